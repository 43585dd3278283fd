"""A time limit for the next batch: a loader process that hangs is no silence for ever.

Neither framework can be told so in a way that holds on both: Paddle's loader takes a ``timeout``
and goes on waiting after it, and none of them counts without loader processes. So a thread here
counts the seconds. When they are over it kills the loader's processes, whatever they are doing:
both frameworks raise an error in the training process as soon as a loader process ends, and
`batches_within` puts the reason in its place. Where that does not help (there is no loader process,
or the disk lets none of them end) the thread ends the whole process with the same message.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

TICK_S = 0.5
"""A process that was stopped as a whole (Ctrl-Z) counts as this much, however long it was."""
GRACE_S = 30.0
"""Seconds that the framework is given to notice; Paddle's loader looks every five."""
USAGE = 2
"""Exit code where the process must be ended, that of a loader which fails."""
_STATES = {
    "R": "runs",
    "S": "sleeps",
    "D": "waits for a disk or network drive",
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "Z": "has ended",
}
"""Letter in /proc/PID/stat -> what it means."""
_CAUSES = ("T", "t", "D")


class LoaderHungError(RuntimeError):
    """No batch has come within the time limit; the message names the loader's processes."""


def end_process(message: str) -> None:
    """Write the message to standard error and end this process, whose main thread hangs."""
    # not through sys.stderr, whose lock the main thread may hold
    os.write(2, f"error: {message}\n".encode())
    os._exit(USAGE)


def batches_within(
    batches: Iterable[T], limit_s: float, *, end: Callable[[str], None] = end_process
) -> Iterator[T]:
    """Yield the batches; each must come within the limit, the first one too.

    Args:
        batches: of a loader; its processes are children of this one.
        limit_s: seconds; 0: no limit.
        end: called in a thread with the message when killing the loader's processes has not freed
            the main thread within GRACE_S; it must end the process.

    Raises:
        LoaderHungError: no batch has come.
    """
    source = iter(batches)
    while True:
        watch = LoaderWatch(limit_s, end=end) if limit_s else None
        try:
            with watch or contextlib.nullcontext():
                batch = next(source)
        except StopIteration as error:
            if watch is not None and watch.message is not None:
                raise LoaderHungError(watch.message) from error
            return
        except Exception as error:
            if watch is not None and watch.message is not None:
                raise LoaderHungError(watch.message) from error
            raise
        yield batch


class LoaderWatch:
    """Watches over one wait for a batch; a context manager.

    Args:
        limit_s: seconds.
        end: see batches_within.
    """

    def __init__(self, limit_s: float, *, end: Callable[[str], None]) -> None:
        self.limit_s = limit_s
        self.message: str | None = None
        """Set once the time is over."""
        self._end = end
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loader watch", daemon=True)

    def __enter__(self) -> LoaderWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()

    def _watch(self) -> None:
        waited = 0.0
        while waited < self.limit_s:
            tick = min(TICK_S, self.limit_s - waited)
            started = time.monotonic()
            if self._left.wait(tick):
                return
            # no more than the tick: see TICK_S
            waited += min(tick, time.monotonic() - started)
        workers = loader_processes()
        self.message = hung_text(workers, limit_s=self.limit_s)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not workers or not self._left.wait(GRACE_S):
            self._end(self.message)


def loader_processes() -> list[int]:
    """Return the ids of the loader processes of this one: multiprocessing starts no others here."""
    return sorted(child.pid for child in multiprocessing.active_children() if child.pid)


def hung_text(workers: list[int], *, limit_s: float) -> str:
    """Return what is told of a batch that has not come: which process hangs, and what to do.

    Args:
        workers: ids of the loader processes; empty: the training process reads by itself.
        limit_s: seconds that were waited.
    """
    head = f"no batch has come within {limit_s:g} s (train.loader_timeout_s)"
    advice = (
        "look at the disk or network drive that holds data.root; if reading is merely slow, raise "
        "--set train.loader_timeout_s=SECONDS (0: no limit); then go on with --resume_model auto"
    )
    if not workers:
        return f"{head}: the training process itself hangs while it reads a sample\n{advice}"
    states = {pid: _state(pid) for pid in workers}
    causes = [pid for pid in workers if states[pid] in _CAUSES]
    shown = [
        f"loader process {pid} {_STATES.get(states[pid], 'is in state ' + states[pid])}"
        for pid in [*causes, *(pid for pid in workers if pid not in causes)]
    ]
    return f"{head}: {'; '.join(shown)}\n{advice}"


def _state(pid: int) -> str:
    try:
        # the name of the program, in parentheses, may hold anything
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "unknown"
