"""Runs the command line in a process of its own, and finds its recorders."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


CITYSCAPES = ROOT / "configs" / "bisenetv1_cityscapes.yml"


CAMVID = ROOT / "configs" / "bisenetv1_camvid.yml"


SMALL = ["--set", "verify.image_hw=[32,64]", "--set", "verify.batch_size=2"]


# the last step is long enough for a test to interrupt it
ENDLESS = ["--steps", "metric,lr_schedule", "--set", "schedule.max_iters=50000000"]


Mistake = Callable[..., str]


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


def wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.perf_counter() + seconds
    while not (met := condition()) and time.perf_counter() < deadline:
        time.sleep(0.05)
    return met
