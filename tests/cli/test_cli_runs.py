"""Whole runs: exit codes, what is left behind, and interruptions."""

import json
import os
import signal
from pathlib import Path

import pytest
from commands import (
    CITYSCAPES,
    SIGNALS,
    SMALL,
    bisenet,
    recorders,
    start,
    start_endless,
    wait_for,
)


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
