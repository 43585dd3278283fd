"""The same work on many files, over several processes: nothing lost, nothing silent.

PaddleSeg's converter hands files to a pool and never asks for the results, so that a broken file
leaves no label and no message. Here each file gives a result or a failure that names it.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import cv2

from common.allocator import keep_freed_memory
from common.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

_CHUNK = 8
"""Files handed to a process at a time: few enough for a smooth progress bar, and the hand-over
costs less than a hundredth of the work."""


@dataclass(frozen=True)
class Failure:
    """A file that could not be used."""

    file: Path
    reason: str

    def __str__(self) -> str:
        # most messages name their file already
        return self.reason if str(self.file) in self.reason else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What a job gave."""

    result: Result


def run_jobs(
    jobs: Sequence[Job],
    work: Callable[[Job], Result],
    *,
    name_of: Callable[[Job], Path],
    workers: int,
    progress: Progress | None = None,
) -> Iterator[Done[Result] | Failure]:
    """Yield the outcome of every job, in order.

    Args:
        jobs: what is to be done.
        work: a function of a module, and so known to the other processes.
        name_of: the file that a failure of the job names.
        workers: number of processes; 0 or 1 works in this one.
        progress: told after each job.

    Raises:
        InputError: workers is negative, or a process was killed (out of memory).
    """
    if workers < 0:
        raise InputError(f"workers is {workers}; expected 0 or more")
    attempts = partial(_attempt, work)
    outcomes = _in_processes(jobs, attempts, workers) if workers > 1 else map(attempts, jobs)
    for number, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True), start=1):
        yield Failure(name_of(job), outcome) if isinstance(outcome, str) else outcome
        if progress is not None:
            progress(number, len(jobs))


def _attempt(work: Callable[[Job], Result], job: Job) -> Done[Result] | str:
    """Return the result, or the reason of the failure."""
    try:
        return Done(work(job))
    except (InputError, OSError) as error:
        return str(error)
    except Exception:
        # our own bug with this one file must not cost the hours of the others
        return "unexpected error\n" + traceback.format_exc()


def _in_processes(
    jobs: Sequence[Job], work: Callable[[Job], Done[Result] | str], workers: int
) -> Iterator[Done[Result] | str]:
    # spawn: a forked child could inherit a lock that a thread of this process holds
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        yield from pool.map(work, jobs, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise InputError(
            f"one of {workers} processes was killed, which is what happens when memory runs out; "
            f"take fewer --workers and run the command again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    cv2.setNumThreads(0)
    keep_freed_memory()
