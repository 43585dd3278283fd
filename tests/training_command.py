"""Starts tools/train.py, alone or under a launcher, watches its log and sends signals."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.log_lines import read_lines
from common.run_log import LOG_NAME

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/bisenetv2_cityscapes.yml"
ITERATIONS = 14
PATIENCE_S = 600
"""Seconds until a run is given up: a machine that is busy otherwise is not a failure."""
LAUNCHERS = {"torch": "torch.distributed.run", "paddle": "paddle.distributed.launch"}


def arguments(framework: str, scenes: Path, out: Path, *more: str) -> list[str]:
    keys = (
        *("train.ema_decay=0.9", "train.accumulate=2", "schedule.warmup_iters=2"),
        *(f"data.root={scenes}", "data.crop_hw=[32,64]"),
    )
    flags = {
        **{"config": CONFIG, "framework": framework, "device": "cpu", "save_dir": str(out)},
        **{"iters": str(ITERATIONS), "batch_size": "2", "num_workers": "1"},
        **{"save_interval": "2", "log_iters": "1", "keep_checkpoint_max": "3"},
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    return [*words, *(word for key in keys for word in ("--set", key)), *more]


def launched(framework: str, log_dir: Path, *words: str) -> list[str]:
    """Return the command of two processes under the framework's launcher."""
    logs = ["--log_dir", str(log_dir)] if framework == "paddle" else ["--standalone"]
    return ["-m", LAUNCHERS[framework], "--nproc_per_node", "2", *logs, "tools/train.py", *words]


class Run:
    """A training in processes of its own, with what it has written so far."""

    def __init__(self, command: list[str], out: Path, *, cwd: Path = ROOT) -> None:
        self.out = out
        # two processes on two cores: threads that wait for each other cost more than they bring
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def done(self) -> int:
        """Return the iterations done according to the log."""
        rows = [row for row in log_rows(self.out) if row["kind"] == "train"]
        return rows[-1]["iteration"] if rows else 0

    def wait_for(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, f"it ended before:\n{self.text()}"
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.01)

    def finish(self) -> tuple[int, str]:
        try:
            text, _ = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.kill()
        return self.process.returncode, text

    def text(self) -> str:
        return self.process.stdout.read() if self.process.stdout else ""

    def family(self) -> list[int]:
        """Return the ids of all processes below this one, and its own."""
        found, parents = [self.process.pid], _parents()
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kill(self) -> None:
        for pid in self.family() if self.process.poll() is None else []:
            send(pid, signal.SIGKILL)
        self.process.wait()


def _parents() -> dict[int, int]:
    """Process id -> its parent's, of all processes."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            content = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(content.rpartition(")")[2].split()[1])
    return parents


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def log_rows(out: Path) -> list[dict[str, Any]]:
    """Return the lines of the log, as far as they are written."""
    log = out / LOG_NAME
    return read_lines(log) if log.exists() else []


def checkpoint_files(out: Path, iteration: int = ITERATIONS) -> dict[str, bytes]:
    folder = out / "checkpoints" / f"iter_{iteration:06d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def newest(out: Path) -> Path:
    return sorted((out / "checkpoints").glob("iter_*"))[-1]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def end(run: Run, expected: int) -> str:
    code, text = run.finish()
    assert code == expected, text
    return text
