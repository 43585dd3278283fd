"""What train_path.py is made of: commands that leave nothing running, and comparisons.

A comparison returns what differs, in words; nothing where all is equal.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from common.log_lines import read_lines
from common.run_log import LOG_NAME

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 900
"""Seconds until a command is given up: a machine that is busy otherwise is not a failure."""
LEFT_S = 30
"""Seconds that a loader's processes may outlive a command's own."""
MARK = "BISENET_TRAIN_PATH"
"""Variable by which the processes of a command are known, whoever is their parent by now."""
TOLD_APART = ("command", "processes", "seconds", "images_per_second")
"""Keys of eval.json that differ between runs of one evaluation."""

Row = Mapping[str, Any]


class PathError(Exception):
    """Something on the path is not as it must be."""


def require(holds: bool, text: str) -> None:
    """Raise PathError with the text unless the condition holds."""
    if not holds:
        raise PathError(text)


# ---- commands -----------------------------------------------------------------------------------
class Commands:
    """Runs commands in the work folder; their output lies in ``screen/`` there.

    Args:
        work: folder they run in.
        say: prints a line of progress.
    """

    def __init__(self, work: Path, *, say: Callable[[str], None]) -> None:
        self.work, self.say = work, say
        self.number = itertools.count(1)
        (work / "screen").mkdir()

    def run(self, title: str, words: Sequence[str | Path], *, expected: int = 0) -> str:
        """Run a command to its end and return its output.

        Raises:
            PathError: it ended with another code, or not at all.
        """
        with Launched(self, title, words) as job:
            return job.end(expected)


class Launched:
    """A command that runs; when the context ends, no process of it is left.

    Args:
        commands: where it runs.
        title: for the progress line and the file of its output.
        words: the command.
    """

    def __init__(self, commands: Commands, title: str, words: Sequence[str | Path]) -> None:
        self.title = title
        self.screen = (
            commands.work / "screen" / f"{next(commands.number):02d}_{title}.txt".replace(" ", "_")
        )
        self.mark = secrets.token_hex(8)
        commands.say(f"{title}: {' '.join(_short(word) for word in words)}")
        # one thread each: kernels give the same bits with the same number of threads, and the
        # evaluations by two processes and by one are compared
        environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark}
        with self.screen.open("wb") as screen:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                cwd=commands.work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Launched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def end(self, expected: int) -> str:
        """Wait for the end and return the output; see Commands.run."""
        try:
            code = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise PathError(
                f"{self.title}: not done after {LIMIT_S} s\n{self._last_lines()}"
            ) from None
        require(
            code == expected,
            f"{self.title}: exit code {code}; expected {expected}\n{self._last_lines()}",
        )
        self._require_all_ended()
        return self.screen.read_text(errors="replace")

    def wait_for(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so while the command runs.

        Raises:
            PathError: the command ended before, or it takes too long.
        """
        end = time.monotonic() + LIMIT_S
        while not reached():
            ended, late = self.process.poll() is not None, time.monotonic() > end
            require(not ended, f"{self.title}: ended too early\n{self._last_lines()}")
            require(not late, f"{self.title}: not there after {LIMIT_S} s\n{self._last_lines()}")
            time.sleep(0.01)

    def kill(self) -> int:
        """Kill all processes of the command by SIGKILL, the launcher first; return how many.

        The launchers put their processes into sessions of their own, so that a signal to the
        launcher's process group would not reach them.
        """
        killed: set[int] = set()
        end = time.monotonic() + 30
        while found := self._processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(found)
            require(time.monotonic() < end, f"{self.title}: processes {found} cannot be killed")
            # of the dead the launcher is ours to be waited for
            self.process.poll()
            time.sleep(0.02)
        self.process.wait()
        return len(killed)

    def _require_all_ended(self) -> None:
        end = time.monotonic() + LEFT_S
        while left := self._processes():
            require(time.monotonic() < end, f"{self.title}: it left processes {left} running")
            time.sleep(0.02)

    def _processes(self) -> list[int]:
        """Return the ids of the processes that inherited the mark, the launcher's first."""
        wanted = f"{MARK}={self.mark}".encode()
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            # of a process that ended, or another user's
            with contextlib.suppress(OSError):
                if wanted in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return sorted(found, key=lambda pid: (pid != self.process.pid, pid))

    def _last_lines(self, count: int = 40) -> str:
        lines = self.screen.read_text(errors="replace").splitlines()
        # what a launcher says of a process that failed may be longer than that
        errors = [line for line in lines[:-count] if line.startswith("error:")]
        return "\n".join([*errors, *lines[-count:], f"the whole output: {self.screen}"])


def _short(word: str | Path) -> str:
    """Return a word of a command as it is typed in the checkout."""
    path = Path(word)
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return path.name if path.is_absolute() else str(word)


def log_rows(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a training's log, as far as they are written."""
    log = out / LOG_NAME
    return read_lines(log) if log.exists() else []


# ---- comparisons --------------------------------------------------------------------------------
def only_once(rows: Sequence[Row], kind: str, iterations: list[int]) -> None:
    """Require a log to have lines of a kind for these iterations, each once and in order."""
    found = [row["iteration"] for row in rows if row["kind"] == kind]
    require(found == iterations, f"{kind} lines of iterations {found}; expected {iterations}")


def file_differences(expected: Path, found: Path) -> list[str]:
    """Compare two files of weights byte for byte; name the tensors that differ."""
    if missing := [str(path) for path in (expected, found) if not path.is_file()]:
        return [f"no such file: {path}" for path in missing]
    if expected.read_bytes() == found.read_bytes():
        return []
    one, other = load_file(expected), load_file(found)
    told = [f"{found}: not the bytes of {expected}"]
    for name in sorted({**one, **other}):
        a, b = one.get(name), other.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            told.append(f"  {name}: missing in one, or of another shape or type")
        elif a.tobytes() != b.tobytes():
            largest = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            told.append(f"  {name}: differs by up to {largest:.3g}")
    return told


def log_differences(expected: Sequence[Row], found: Sequence[Row]) -> list[str]:
    """Compare loss, rates and scores of every iteration of two logs."""
    return [
        text
        for kind, keys in (
            ("train", ("iteration", "epoch", "loss", "lr")),
            ("eval", ("iteration", "miou", "iou", "best_miou", "best_iteration")),
        )
        for text in _rows_differ(
            [{key: row[key] for key in keys} for row in expected if row["kind"] == kind],
            [{key: row[key] for key in keys} for row in found if row["kind"] == kind],
            kind,
        )
    ]


def _rows_differ(expected: Sequence[Row], found: Sequence[Row], kind: str) -> list[str]:
    if len(expected) != len(found):
        return [f"{len(found)} {kind} lines; expected {len(expected)}"]
    return [
        f"{kind} line {row}; expected {wanted}"
        for wanted, row in zip(expected, found, strict=True)
        if wanted != row
    ]


def eval_differences(expected: Row, found: Row) -> list[str]:
    """Compare two eval.json, but for what tells one run from another."""
    keys = [key for key in {**expected, **found} if key not in TOLD_APART]
    return [
        f"{key}: {found.get(key)}; expected {expected.get(key)}"
        for key in keys
        if key not in expected or key not in found or expected[key] != found[key]
    ]


def trainer_differences(line: Row, result: Row) -> list[str]:
    """Compare an evaluation in a training's log with an eval.json of the same weights."""
    score = next(number["value"] for number in result["numbers"] if number["name"] == "mIoU")
    classes = [row["iou"] for row in result["classes"]]
    told: list[str] = []
    if line["miou"] != score:
        told.append(f"mIoU {score!r}; the trainer's log has {line['miou']!r}")
    for row, own, logged in zip(result["classes"], classes, line["iou"], strict=True):
        if own != logged:
            told.append(f"IoU of {row['name']}: {own!r}; the trainer's log has {logged!r}")
    return told
