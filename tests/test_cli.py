"""The command line as a user meets it: messages, exit codes, what is left behind.

Mistakes are made in this process, where they are found before a recorder starts. Whole runs are
processes of their own, with both frameworks in theirs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.weights import write_weights
from fake_data import scenes
from pipeline import cli
from pipeline.runner import Options
from pipeline.steps import STEP_NAMES

ROOT = Path(__file__).resolve().parent.parent
CITYSCAPES = ROOT / "configs" / "bisenetv1_cityscapes.yml"
CAMVID = ROOT / "configs" / "bisenetv1_camvid.yml"
SMALL = ["--set", "verify.image_hw=[32,64]", "--set", "verify.batch_size=2"]
# the last step is long enough for a test to interrupt it
ENDLESS = ["--steps", "metric,lr_schedule", "--set", "schedule.max_iters=50000000"]

Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: generated scenes are kept below it."""
    return tmp_path_factory.mktemp("cwd")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what cli.main does with signals."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def mistake(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Mistake:
    """Run a command that must end with 2 and one message; return the message."""
    monkeypatch.chdir(folder)

    def run(*words: object, command: str = "verify") -> str:
        line = [command, *words] if "--out" in words else [command, *words, "--out", tmp_path / "o"]
        monkeypatch.setattr(sys, "argv", ["bisenet", *map(str, line)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        assert caught.value.code == 2
        assert "Traceback" not in out + err
        assert out == ""
        assert not list(tmp_path.glob("o/*.log"))
        return err

    return run


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(folder: Path, *words: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has them ignore Ctrl-C, nohup a hang-up
        preexec_fn=_default_signals,
    )


def bisenet(folder: Path, *words: object, **environment: str) -> tuple[int, str, str]:
    process = start(folder, *words, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def recorders(out: Path) -> dict[str, int]:
    """Return side -> process of the recorders that work for a folder of logs, loaders included."""
    found: dict[str, int] = {}
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "pipeline.record" in words and any(str(out) in word for word in words):
            side = re.sub(r".*plan_(\w+)\.json", r"\1", words[-2])
            found[side] = int(status.parent.name)
    return found


def start_endless(folder: Path, out: Path) -> subprocess.Popen[str]:
    """Start a verification and return when both recorders are in the middle of it."""
    process = start(folder, "verify", "--config", CITYSCAPES, "--out", out, *ENDLESS, *SMALL)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("metric float64")
    assert set(recorders(out)) == {"torch", "paddle"}
    return process


# usage and configuration


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "los,forward"], f"unknown step(s) los; steps: {', '.join(STEP_NAMES)}"),
        (["--steps", ","], "unknown step(s) (none named)"),
        (["--device", "tpu"], "--device tpu: expected cpu or gpu"),
        (
            ["--set", "optimizer.base_lrr=1"],
            "optimizer.base_lrr: unknown key; did you mean base_lr",
        ),
        (
            ["--set", "schedule.max_iters=many"],
            "schedule.max_iters: Input should be a valid integer",
        ),
        (["--set", "schedule"], "--set schedule: expected KEY=VALUE"),
        (["--data", "nowhere"], "--data nowhere: no such folder; expected the cityscapes data"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors: no such weights file"),
    ],
)
def test_a_wrong_option_is_one_message(mistake: Mistake, words: list[str], expected: str) -> None:
    text = mistake("--config", CITYSCAPES, *words)
    assert text.startswith("error: ")
    assert expected in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config"], "requires an argument"),
        (["--steps", "loss"], "expected either --config FILE or --all"),
        (["--config", "c.yml", "--all"], "expected either --config FILE or --all"),
        (["--all", "--json"], "--json and --weights are for one configuration"),
        (["--config", "c.yml", "--speed", "9"], "No such option"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(
    mistake: Mistake, words: list[str], expected: str
) -> None:
    assert expected in mistake("--out", "o", *words)


def test_a_wrong_configuration_is_one_message(mistake: Mistake, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    assert f"{wrong}: no such configuration file" in mistake("--config", wrong)
    wrong.write_text("_base_: wrong.yml\n")
    assert "_base_ is cyclic (wrong.yml -> wrong.yml)" in mistake("--config", wrong)
    wrong.write_text(f"_base_: {CAMVID}\nmodel: {{clases: 3}}\n")
    assert "model.clases: unknown key; did you mean classes?" in mistake("--config", wrong)
    # brackets are no markup, and long paths are not cut
    wrong.write_text("model: {name: [bold]x[/bold]}\n")
    assert str(wrong) in mistake("--config", wrong)


def test_scenes_cannot_stand_in_for_camvid(mistake: Mistake) -> None:
    assert "name the folder of the real data with --data" in mistake("--config", CAMVID)


def test_a_folder_that_cannot_be_written_is_one_message(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        text = mistake("--config", CITYSCAPES, "--out", out)
        assert text.startswith(f"error: cannot write {out}: ")
        assert "choose another folder or mend its permissions" in text
        text = mistake("--config", CITYSCAPES, "--out", out, command="audit")
        assert text.startswith(f"error: cannot write {out}: ")


def test_an_unknown_fault_lists_the_known_ones(mistake: Mistake) -> None:
    text = mistake("--config", CITYSCAPES, "--faults", "bn_epss", command="audit")
    assert text.startswith("error: unknown fault(s) bn_epss of bisenetv1; faults: ")
    assert "bn_momentum" in text


def test_a_truncated_checkpoint_is_one_message(mistake: Mistake, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, {"conv.weight": np.ones((8, 8), np.float32)})
    path.write_bytes(path.read_bytes()[:-7])
    text = mistake("--config", CITYSCAPES, "--weights", path)
    assert text.startswith(f"error: {path}: truncated or damaged")


@pytest.fixture
def options_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Options]:
    """Run ``bisenet verify`` up to the verification; return what was asked of it."""

    def run(*words: str) -> Options:
        asked: list[Options] = []

        def run_verify(_config: Path, options: Options, **_rest: object) -> int:
            asked.append(options)
            return 0

        monkeypatch.setattr(cli, "run_verify", run_verify)
        monkeypatch.setattr(sys, "argv", ["bisenet", "verify", "--config", str(CAMVID), *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        return asked[0]

    return run


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ([], "logs/bisenetv1_camvid"),
        (["--steps", ",".join(reversed(STEP_NAMES))], "logs/bisenetv1_camvid"),
        (["--steps", "loss"], "output/verify/bisenetv1_camvid"),
        (["--steps", ",".join(["loss"] * len(STEP_NAMES))], "output/verify/bisenetv1_camvid"),
        (["--steps", "loss", "--out", "here"], "here"),
    ],
)
def test_only_all_steps_write_the_evidence(
    options_of: Callable[..., Options], words: list[str], out: str
) -> None:
    assert options_of(*words).out == Path(out)


def test_the_command_is_told_without_the_folders_of_the_machine(
    options_of: Callable[..., Options], tmp_path: Path
) -> None:
    words = ["--data", f"{tmp_path}/my data", f"--weights={tmp_path}/w.safetensors"]
    words += ["--set", f"data.root={tmp_path}/x", "--steps", "loss", "--out", "a/b"]
    assert options_of(*words).command == (
        "bisenet verify --config bisenetv1_camvid.yml --data 'my data' --weights=w.safetensors "
        "--set data.root=x --steps loss --out a/b"
    )


def test_under_nohup_a_hang_up_is_ignored(options_of: Callable[..., Options]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    options_of("--steps", "loss")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == cli._interrupt


# data


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A small folder in the layout of Cityscapes."""
    return scenes.generate(tmp_path / "frames", train=1, val=1, size_hw=(64, 128))


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _write_text(path: Path) -> None:
    path.write_text("this is no picture")


def _write_small(path: Path) -> None:
    assert cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))


def _write_200(path: Path) -> None:
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    label[0, :5] = 200
    assert cv2.imwrite(str(path), label)


@pytest.mark.parametrize(
    ("file", "spoil", "expected"),
    [
        ("leftImg8bit/val/**/*.png", _truncate, "truncated PNG, its end is missing; copy or"),
        ("leftImg8bit/val/**/*.png", _write_text, "not a picture that OpenCV can decode; expected"),
        ("gtFine/val/**/*labelIds.png", _write_small, "the label is 8x8 (H x W), its image"),
        ("gtFine/val/**/*labelIds.png", _write_200, "5 pixels have label value 200; expected raw"),
        ("gtFine/val/**/*labelIds.png", Path.unlink, "1 of 1 files do not exist"),
        ("leftImg8bit/val", shutil.rmtree, "leftImg8bit/val: no such folder; data.root must hold"),
    ],
)
def test_a_bad_frame_is_one_message(
    mistake: Mistake, frames: Path, file: str, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(path := only(frames, file))
    text = mistake("--config", CITYSCAPES, "--data", frames, "--steps", "forward", *SMALL)
    assert text.startswith("error: ")
    assert expected in text
    assert path.name in text


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a.png,b.png\na.png\n", "train.txt:2: expected an image and a label, separated by"),
        ("a.png,b.png\n", "train.txt: 2 of 2 files do not exist"),
        ("\n", "train.txt: the list is empty"),
        (None, "train.txt: no such list file"),
    ],
)
def test_a_bad_list_is_one_message(
    mistake: Mistake, tmp_path: Path, lines: str | None, expected: str
) -> None:
    if lines is not None:
        (tmp_path / "train.txt").write_text(lines)
    text = mistake("--config", CAMVID, "--data", tmp_path, "--steps", "loss")
    assert text.startswith("error: ")
    assert expected in text


# whole runs


def test_what_only_a_recorder_sees_is_one_message_too(folder: Path, frames: Path) -> None:
    _truncate(path := only(frames, "leftImg8bit/train/**/*.png"))
    out = frames.parent / "out"
    words = ["--config", CITYSCAPES, "--data", frames, "--out", out, "--steps", "data", *SMALL]
    code, stdout, stderr = bisenet(folder, "verify", *words)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(rf"error: (torch|paddle) recorder: {path}: truncated PNG, .*\n", stderr)
    assert recorders(out) == {}


def test_weights_of_another_model_are_one_message(folder: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "other.safetensors", tmp_path / "out"
    write_weights(weights, {"backbone.conv.weight": np.ones((2, 2), np.float32)})
    words = ["--config", CITYSCAPES, "--weights", weights, "--out", out, "--steps", "optimizer"]
    code, stdout, stderr = bisenet(folder, "verify", *words)
    assert (code, stdout) == (2, "")
    assert "recorder: the weights do not fit the model" in stderr
    assert "left over: backbone.conv.weight, (2, 2)" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device", "gpu"], "recorder: device is 'gpu', but"),
        (["--set", "model.name=bisenetv9"], "recorder: model.name is 'bisenetv9'; expected one of"),
    ],
)
def test_what_the_frameworks_refuse_is_one_message(
    folder: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    common = ["--config", CITYSCAPES, "--out", tmp_path / "out", "--steps", "lr_schedule"]
    code, stdout, stderr = bisenet(folder, "verify", *common, *words, CUDA_VISIBLE_DEVICES="")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert expected in stderr
    assert len(stderr.splitlines()) == 1


def test_a_run_that_passes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--config", CITYSCAPES, "--out", out, "--steps", "loss", *SMALL]
    code, stdout, stderr = bisenet(folder, "verify", *words)
    assert (code, stderr) == (0, "")
    assert stdout.endswith("verdict: PASS\n")
    assert "loss float32" in stdout
    for name in ("loss_diff.log", "summary.json", "junit.xml"):
        assert (out / name).is_file()
        # the table is for eyes, but a path in it is for copying
        assert name in stdout
    assert "verdict of step loss: PASS" in (out / "loss_diff.log").read_text()
    assert not list(out.glob("records.*"))
    assert recorders(out) == {}


def test_some_steps_leave_the_evidence_alone(tmp_path: Path) -> None:
    evidence = tmp_path / "logs" / "bisenetv1_cityscapes" / "summary.json"
    evidence.parent.mkdir(parents=True)
    evidence.write_text("of all steps")
    words = ["--config", CITYSCAPES, "--steps", "lr_schedule"]
    code, _, stderr = bisenet(tmp_path, "verify", *words)
    assert (code, stderr) == (0, "")
    assert evidence.read_text() == "of all steps"
    assert [path for path in (tmp_path / "logs").rglob("*") if path.is_file()] == [evidence]
    out = tmp_path / "output" / "verify" / "bisenetv1_cityscapes"
    command = "bisenet verify --config bisenetv1_cityscapes.yml --steps lr_schedule"
    assert json.loads((out / "summary.json").read_text())["command"] == command
    log = (out / "lr_schedule_diff.log").read_text()
    assert f"command: {command}\n" in log
    assert "data set: not used\n" in log
    assert str(tmp_path) not in log + (out / "config.yml").read_text()


def test_a_rate_that_never_moves_proves_nothing(folder: Path, tmp_path: Path) -> None:
    # a decay so slow that float64 does not see it
    flat = ["schedule.max_iters=3", "schedule.warmup_iters=0", "schedule.power=1e-300"]
    words = [word for text in flat for word in ("--set", text)]
    out = tmp_path / "out"
    common = ["--config", CITYSCAPES, "--out", out, "--steps", "lr_schedule", "--json"]
    code, stdout, stderr = bisenet(folder, "verify", *common, *words)
    assert code == 1
    # standard output is the summary alone
    summary = json.loads(stdout)
    assert stdout == (out / "summary.json").read_text()
    assert (summary["verdict"], summary["exit_code"]) == ("VACUOUS", 1)
    assert summary["results"][0]["worst"][0]["detail"] == "constant reference (0.01)"
    assert stderr.startswith("lr_schedule float64")


def test_a_killed_recorder_is_a_failure_of_its_own_kind(folder: Path, tmp_path: Path) -> None:
    side, out = "paddle", tmp_path / "out"
    process = start_endless(folder, out)
    os.kill(recorders(out)[side], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    message = f"{side} recorder killed by signal 9; see {out}/recorder_{side}.log"
    assert message in stdout.replace("\n", "")
    assert "Traceback" not in stdout + stderr
    assert message in (out / "lr_schedule_diff.log").read_text()
    assert recorders(out) == {}
    assert not list(out.glob("records.*"))


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_leaves_nothing_behind(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start_endless(folder, out)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted; the recorders were stopped and no verdict was given\n"
    assert stdout == ""
    assert recorders(out) == {}
    assert sorted(p.name for p in out.iterdir()) == ["recorder_paddle.log", "recorder_torch.log"]


def wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.perf_counter() + seconds
    while not (met := condition()) and time.perf_counter() < deadline:
        time.sleep(0.05)
    return met


@pytest.mark.parametrize("moment", ["starting", "training"])
def test_recorders_end_with_a_runner_that_cannot_end_them(
    folder: Path, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    steps = ["--steps", "metric,training"]
    process = start(folder, "verify", "--config", CITYSCAPES, "--out", out, *steps, *SMALL)
    assert process.stdout is not None
    if moment == "training":
        assert process.stdout.readline().startswith("metric float64")
    assert wait_for(lambda: set(recorders(out)) == {"torch", "paddle"}, seconds=60)
    assert process.poll() is None
    process.kill()
    try:
        assert wait_for(lambda: recorders(out) == {}, seconds=10)
    finally:
        for number in recorders(out).values():
            os.kill(number, signal.SIGKILL)
        process.communicate(timeout=10)
    # no verdict was given
    assert not list(out.glob("*_diff.log"))
