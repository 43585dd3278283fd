"""Recorders that fail, crash, hang or are interrupted."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_recorder import Play, verdicts

from common.errors import InputError
from pipeline import recording


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
