"""The runner, with recorders that are a few lines each: order, failures, what is left behind."""

import os
import stat
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from common.config import Config, load_config
from common.errors import ConfigError, DataError, InputError, WeightsError
from fake_data import scenes
from pipeline import inputs, recording
from pipeline.compare import Verdict
from pipeline.inputs import data_digest
from pipeline.judge import Result
from pipeline.recording import recorder_environment
from pipeline.runner import (
    Options,
    Outcome,
    resolve_data,
    selected_steps,
    snapshot_parts,
    verify,
)
from pipeline.steps import STEP_NAMES, step_named

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
SMALL = ("verify.image_hw=[32,64]", "verify.batch_size=1")

RECORDER = """\
#!{python}
# stands in for a recorder: same plan, same events, same records
import json, os, signal, subprocess, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from pathlib import Path
from pipeline.records import record_name, write_record

plan = json.loads(Path(sys.argv[-1]).read_text())
side = plan["side"]
job = plan["jobs"][0]
plan["runs"] = job["runs"]

def emit(event, **fields):
    print(json.dumps({{"event": event, "job": job["name"], **fields}}), flush=True)

def write(run, arrays, part="", **changes):
    meta = {{"side": side, "dtype": run["dtype"], "frameworks": [side], "config": "c",
            "inputs": "i", "data": "d", "weights": "w", "seed": 0, "versions": {{}},
            **changes}}
    name = record_name(run["step"], run["dtype"], side, part)
    write_record(Path(run["folder"]), name, arrays, meta)

def start(run):
    emit("start", step=run["step"], dtype=run["dtype"], fault=None)

def done(run):
    emit("done", step=run["step"], dtype=run["dtype"], fault=None, seconds=0.5)

def fail(run, message, input_error=False):
    emit("failed", step=run["step"], dtype=run["dtype"], fault=None, message=message,
         input_error=input_error)

GOOD = {{"lr/decay": np.linspace(1, 2, 9), "options/decay/momentum": np.asarray(0.9)}}
{body}
emit("end", peak_mib=7)
"""

EVERYTHING = """
for run in plan["runs"]:
    start(run)
    write(run, {key: a.astype(run["dtype"]) for key, a in GOOD.items()})
    done(run)
"""

Play = Callable[..., Outcome]


@pytest.fixture
def config() -> Config:
    return load_config(ROOT / "configs" / "bisenetv1_cityscapes.yml", overrides=SMALL)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Config, scratch: Path, out: Path
) -> Play:
    """Verify with recorders that run the given lines."""

    def verify_with(
        body: str,
        *,
        steps: tuple[str, ...] = ("lr_schedule",),
        keep_going: bool = False,
        events: list[Mapping[str, Any]] | None = None,
        configuration: Config = config,
    ) -> Outcome:
        script = tmp_path / "recorder"
        text = RECORDER.format(python=PYTHON, root=str(ROOT), body=textwrap.dedent(body))
        script.write_text(text)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))
        options = Options(out=out, steps=steps, keep_going=keep_going, scratch=scratch)
        seen = events if events is not None else []
        return verify(configuration, options, progress=seen.append)

    return verify_with


def verdicts(outcome: Outcome) -> dict[str, str]:
    return {f"{r.step.name} {r.dtype}": r.verdict.value for r in outcome.results}


def test_equal_records_pass_and_are_removed(play: Play, out: Path) -> None:
    events: list[Mapping[str, Any]] = []
    outcome = play(EVERYTHING, events=events)
    assert verdicts(outcome) == {"lr_schedule float64": "PASS"}
    assert outcome.exit_code == 0
    assert outcome.peak_mib == {"torch": 7, "paddle": 7}
    assert outcome.results[0].seconds == {"torch": 0.5, "paddle": 0.5}
    assert set(outcome.artefacts["lr_schedule"]) == {"torch", "paddle"}
    # the recorders' own output stays, for whoever looks for the cause of a crash
    assert sorted(p.name for p in out.iterdir()) == ["recorder_paddle.log", "recorder_torch.log"]
    assert [e["event"] for e in events].count("start") == 2
    assert any(e["event"] == "judged" and isinstance(e["result"], Result) for e in events)


def test_a_difference_stops_the_run_unless_told_otherwise(play: Play) -> None:
    body = """
    for run in plan["runs"]:
        wrong = side == "paddle" and run["step"] == "metric"
        arrays = {key: a.astype(run["dtype"]) + wrong for key, a in GOOD.items()}
        write(run, arrays)
        done(run)
    """
    steps = ("lr_schedule", "metric", "data")
    outcome = play(body, steps=steps)
    expected = {"data float32": "PASS", "metric float64": "FAIL", "lr_schedule float64": "NOT RUN"}
    assert verdicts(outcome) == expected
    assert outcome.exit_code == 1
    assert outcome.results[-1].message == "stopped after metric (float64); --keep-going runs on"
    outcome = play(body, steps=steps, keep_going=True)
    assert verdicts(outcome) == expected | {"lr_schedule float64": "PASS"}
    assert outcome.exit_code == 1


@pytest.mark.parametrize(
    ("change", "verdict", "code"),
    [
        ("arrays['lr/decay'][3] = np.nan", "FAIL", 1),
        ("arrays['lr/decay'] = arrays['lr/decay'][:-1]", "FAIL", 1),
        ("arrays['lr/decay'] = arrays['lr/decay'].astype('f4')", "FAIL", 1),
        ("arrays['lr/more'] = np.ones(2)", "MISSING", 1),
        ("del arrays['lr/decay']", "MISSING", 1),
        ("arrays.clear()", "MISSING", 1),
        ("meta = {'side': 'torch'}", "ERROR", 3),
        ("meta = {'frameworks': ['torch', 'paddle']}", "ERROR", 3),
        ("meta = {'weights': 'others'}", "ERROR", 3),
        ("meta = {'data': 'others'}", "ERROR", 3),
    ],
)
def test_a_wrong_record_of_one_side(play: Play, change: str, verdict: str, code: int) -> None:
    outcome = play(f"""
    for run in plan["runs"]:
        arrays, meta = {{key: a.copy() for key, a in GOOD.items()}}, {{}}
        if side == "paddle":
            {change}
        write(run, arrays, **meta)
        done(run)
    """)
    assert verdicts(outcome) == {"lr_schedule float64": verdict}
    assert outcome.exit_code == code


@pytest.mark.parametrize(
    "change",
    ["arrays.clear()", "arrays['lr/decay'] = np.full(9, 0.01)", "arrays['x'] = np.zeros(0)"],
)
def test_what_is_empty_on_both_sides_is_vacuous(play: Play, change: str) -> None:
    outcome = play(f"""
    for run in plan["runs"]:
        arrays = dict(GOOD)
        {change}
        write(run, arrays)
        done(run)
    """)
    assert verdicts(outcome) == {"lr_schedule float64": "VACUOUS"}
    assert outcome.exit_code == 1


def test_a_failed_run_is_an_error_and_the_others_go_on(play: Play) -> None:
    outcome = play(
        """
        for run in plan["runs"]:
            if side == "paddle" and run["step"] == "metric":
                fail(run, "RuntimeError('boom')")
                continue
            write(run, {key: a.astype(run["dtype"]) for key, a in GOOD.items()})
            done(run)
        """,
        steps=("metric", "lr_schedule"),
        keep_going=True,
    )
    assert verdicts(outcome) == {"metric float64": "ERROR", "lr_schedule float64": "PASS"}
    assert outcome.results[0].message == "paddle recorder: RuntimeError('boom')"
    assert outcome.exit_code == 3


@pytest.mark.parametrize("side", ["torch", "paddle"])
def test_what_only_one_side_cannot_use_is_an_error_of_the_port(play: Play, side: str) -> None:
    outcome = play(f"""
    for run in plan["runs"]:
        if side == {side!r}:
            fail(run, "a.png: truncated PNG", input_error=True)
        else:
            write(run, GOOD)
            done(run)
    """)
    assert verdicts(outcome) == {"lr_schedule float64": "ERROR"}
    assert outcome.exit_code == 3
    other = "torch" if side == "paddle" else "paddle"
    assert outcome.results[0].message == (
        f"{side} recorder: a.png: truncated PNG "
        f"(the {other} side had no objection: look at the port)"
    )


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("fail(run, 'boom')", "paddle recorder: boom"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "paddle recorder killed by signal 9; see "),
    ],
)
def test_a_crash_is_told_before_the_other_sides_objection(play: Play, end: str, how: str) -> None:
    outcome = play(f"""
    for run in plan["runs"]:
        if side == "torch":
            fail(run, "a.png: truncated PNG", input_error=True)
        else:
            {end}
    """)
    assert outcome.exit_code == 3
    assert outcome.results[0].message.startswith(how)


def test_what_neither_side_can_use_is_the_users_to_mend(play: Play, out: Path) -> None:
    body = """
    for run in plan["runs"]:
        fail(run, "a.png: truncated PNG", input_error=True)
    """
    with pytest.raises(InputError, match=r"torch recorder: a\.png: truncated PNG$"):
        play(body)
    assert sorted(p.name for p in out.iterdir()) == ["recorder_paddle.log", "recorder_torch.log"]


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("os._exit(0)", "ended with exit code 0"),
        ("raise SystemExit(5)", "ended with exit code 5"),
    ],
)
def test_a_recorder_that_ends_in_the_middle(play: Play, out: Path, end: str, how: str) -> None:
    outcome = play(
        f"""
        for run in plan["runs"]:
            start(run)
            if side == "paddle" and run["step"] == "lr_schedule":
                print("last words", file=sys.stderr, flush=True)
                {end}
            write(run, GOOD)
            done(run)
        """,
        steps=("metric", "lr_schedule"),
    )
    assert verdicts(outcome) == {"metric float64": "PASS", "lr_schedule float64": "ERROR"}
    assert outcome.exit_code == 3
    log = out / "recorder_paddle.log"
    assert outcome.results[1].message == f"paddle recorder {how}; see {log}"
    assert log.read_text() == "last words\n"


def test_a_loader_that_outlives_its_killed_recorder_holds_nothing_up(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LAST_WORDS_S", 0.2)
    started = time.perf_counter()
    outcome = play(f"""
    if side == "paddle":
        child = subprocess.Popen(["sleep", "60"])
        Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    """)
    assert verdicts(outcome) == {"lr_schedule float64": "ERROR"}
    assert "killed by signal 9" in outcome.results[0].message
    assert time.perf_counter() - started < 20
    assert not alive(int((tmp_path / "child").read_text()))


def alive(process: int) -> bool:
    """Tell whether a process runs; one that is dead and waits to be collected does not."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.05)
    return True


def test_what_a_library_prints_is_passed_over(play: Play) -> None:
    noise = """
    sys.stdout.buffer.write(b"I0101 grpc \\xff\\xfe noise\\n3\\n[1]\\n{}\\n{\\"a\\": 1}\\nnull\\n")
    sys.stdout.flush()
    """
    assert play(textwrap.dedent(noise) + EVERYTHING).exit_code == 0


def test_an_exception_in_this_process_ends_the_recorders(
    play: Play, tmp_path: Path, out: Path
) -> None:
    class Stop(BaseException):
        pass

    class Events(list[Mapping[str, Any]]):
        def append(self, event: Mapping[str, Any]) -> None:
            super().append(event)
            if len(self) == 2:
                raise Stop

    with pytest.raises(Stop):
        play(
            f"""
            Path({str(tmp_path)!r}, side).write_text(str(os.getpid()))
            start(plan["runs"][0])
            time.sleep(60)
            """,
            events=Events(),
        )
    for side in ("torch", "paddle"):
        assert not alive(int((tmp_path / side).read_text()))
    assert sorted(p.name for p in out.iterdir()) == ["recorder_paddle.log", "recorder_torch.log"]


def test_an_interruption_between_the_two_starts_ends_the_first(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = recording.Recording._start
    started: list[int] = []

    def start_one(self: Any, side: Any) -> None:
        if started:
            raise KeyboardInterrupt
        start(self, side)
        started.append(self.processes[side].pid)

    monkeypatch.setattr(recording.Recording, "_start", start_one)
    with pytest.raises(KeyboardInterrupt):
        play("time.sleep(60)")
    assert not alive(started[0])


TRAINING = """
state = {"state/a": np.linspace(1, 2, 9), "moved/a": np.asarray(0.5)}
for run in plan["runs"]:
    wide = run["dtype"] == "float64"
    arrays = {key: a.astype(run["dtype"]) for key, a in state.items()}
    for done_iterations in (2, 4, 6, 8) if wide else ():
        part = f"iteration{done_iterations:04d}"
        snapshot = {key: a for key, a in arrays.items() if key.startswith("state")}
        if side == "paddle":
            CHANGE
        if snapshot is not None:
            write(run, snapshot, part)
    if wide and not (side == "paddle" and FLOORLESS):
        write(run, arrays, "floor")
    write(run, arrays)
    done(run)
"""


@pytest.fixture
def training(config: Config) -> Config:
    short = {"train_iters": 10, "check_every": 2, "train_iters_float32": 4}
    return config.model_copy(update={"verify": config.verify.model_copy(update=short)})


def train(
    play: Play, training: Config, *, change: str = "pass", floorless: bool = False
) -> Outcome:
    body = TRAINING.replace("CHANGE", change).replace("FLOORLESS", str(floorless))
    return play(body, steps=("training",), configuration=training, keep_going=True)


def test_every_snapshot_of_a_training_is_compared(play: Play, training: Config) -> None:
    assert snapshot_parts(training) == [f"iteration{n:04d}" for n in (2, 4, 6, 8)]
    outcome = train(play, training)
    assert verdicts(outcome) == {"training float64": "PASS", "training float32": "PASS"}
    keys = [row.key for row in outcome.results[0].rows]
    assert keys[:4] == [f"iteration{n:04d}/state/a" for n in (2, 4, 6, 8)]
    assert keys[4:] == ["state/a", "moved/a"]


def test_a_snapshot_that_one_side_did_not_record_is_missing(play: Play, training: Config) -> None:
    outcome = train(play, training, change="snapshot = snapshot if part[-1] != '4' else None")
    assert outcome.results[0].verdict is Verdict.MISSING
    rows = {row.key: row.verdict for row in outcome.results[0].rows}
    assert rows["iteration0004"] is Verdict.MISSING
    assert [key for key, verdict in rows.items() if not verdict.passed] == ["iteration0004"]
    assert outcome.exit_code == 1


def test_a_snapshot_that_both_sides_lack_is_missing(play: Play, training: Config) -> None:
    more = training.verify.model_copy(update={"train_iters": 12})
    outcome = train(play, training.model_copy(update={"verify": more}))
    assert outcome.results[0].verdict is Verdict.MISSING
    lost = [row.key for row in outcome.results[0].rows if not row.verdict.passed]
    assert lost == ["iteration0010"]


def test_a_snapshot_that_differs_fails_though_the_end_agrees(play: Play, training: Config) -> None:
    wrong = "snapshot = {'state/a': arrays['state/a'] + (part[-1] == '6')}"
    outcome = train(play, training, change=wrong)
    assert outcome.results[0].verdict is Verdict.FAIL
    assert outcome.results[0].divergence is not None
    assert outcome.results[0].divergence.key == "iteration0006/state/a"


def test_without_a_float64_record_there_is_no_floor(play: Play, training: Config) -> None:
    outcome = train(play, training, floorless=True)
    assert verdicts(outcome) == {"training float64": "PASS", "training float32": "ERROR"}
    assert "no rounding floor" in outcome.results[1].message
    assert outcome.exit_code == 3


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 1),
        ([Verdict.PASS], 0),
        ([Verdict.PASS, Verdict.PASS], 0),
        ([Verdict.PASS, Verdict.FAIL, Verdict.NOT_RUN], 1),
        ([Verdict.MISSING], 1),
        ([Verdict.VACUOUS], 1),
        ([Verdict.PASS, Verdict.NOT_RUN], 1),
        ([Verdict.FAIL, Verdict.ERROR], 3),
        ([Verdict.ERROR, Verdict.NOT_RUN], 3),
    ],
)
def test_exit_codes(config: Config, found: list[Verdict], code: int) -> None:
    results = [Result(step_named("loss"), "float64", verdict) for verdict in found]
    assert Outcome(config, Options(Path("x"), ("loss",)), results).exit_code == code


def test_steps_are_selected_in_the_order_of_the_table() -> None:
    assert [step.name for step in selected_steps(("loss", "data", "loss"))] == ["data", "loss"]
    assert [step.name for step in selected_steps(STEP_NAMES)] == list(STEP_NAMES)
    with pytest.raises(ConfigError, match=r"unknown step\(s\) los, x; steps: data, forward"):
        selected_steps(("los", "data", "x"))
    with pytest.raises(ConfigError, match=r"\(none named\); steps: data"):
        selected_steps(())


def test_real_data_is_looked_at_before_anything_starts(config: Config, tmp_path: Path) -> None:
    real = tmp_path / "real"
    with pytest.raises(InputError, match="real: no such folder; expected the cityscapes data"):
        resolve_data(config, Options(tmp_path, ("loss",), data=real))
    (real / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="train: no file matches"):
        resolve_data(config, Options(tmp_path, ("loss",), data=real))


def test_the_digest_of_the_data_is_of_its_files(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = scenes.generate(tmp_path / "here", train=1, val=1, size_hw=(32, 64))
    there = scenes.generate(tmp_path / "there", train=1, val=1, size_hw=(32, 64))

    def digest(folder: Path) -> str:
        return data_digest(resolve_data(config, Options(tmp_path, ("data",), data=folder)))

    assert digest(here) == digest(there)
    (path,) = there.glob("gtFine/val/**/*labelIds.png")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert digest(here) != digest(there)
    monkeypatch.setattr(inputs, "HASHED_BYTES", 0)
    assert digest(here) == digest(there)
    path.write_bytes(content + b"0")
    assert digest(here) != digest(there)


def test_scenes_stand_in_for_cityscapes_only(tmp_path: Path) -> None:
    camvid = load_config(ROOT / "configs" / "bisenetv1_camvid.yml")
    with pytest.raises(InputError, match=r"'camvid'.*name the folder of the real data with --data"):
        resolve_data(camvid, Options(tmp_path, ("loss",), scratch=tmp_path))


def test_bad_weights_and_folders_are_told_before_anything_starts(
    config: Config, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runner.Recording", None)
    options = Options(
        tmp_path / "out", ("loss",), scratch=scratch, weights=tmp_path / "w.safetensors"
    )
    with pytest.raises(WeightsError, match="no such weights file"):
        verify(config, options, progress=print)
    (tmp_path / "file").write_text("")
    options = Options(tmp_path / "file" / "out", ("loss",), scratch=scratch)
    with pytest.raises(InputError, match=r"cannot write .*choose another folder"):
        verify(config, options, progress=print)
    assert list((tmp_path / "out").iterdir()) == []


def test_recorders_share_the_processors() -> None:
    environment = recorder_environment()
    threads = int(environment["OMP_NUM_THREADS"])
    assert 1 <= threads <= max(1, (os.cpu_count() or 2) // 2)
    assert environment["PATH"] == os.environ["PATH"]
