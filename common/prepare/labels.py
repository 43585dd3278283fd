"""Making label files from other files: complete or absent, and kept when they are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.files import atomic_path
from common.images import checked_bytes, label_png
from common.prepare.jobs import Failure, Progress, run_jobs
from common.prepare.report import Report

Draw = Callable[[Path], NDArray[np.uint8]]
"""Turns a source file into (H, W) uint8 train ids."""


@dataclass(frozen=True)
class LabelJob:
    """One label file to make."""

    source: Path
    target: Path


def make_label(job: LabelJob, *, draw: Draw, resume: bool = True) -> bool:
    """Make one label file; tell whether it was written (else a complete one was kept).

    Raises:
        DataError: from draw: the source is missing or broken.
        InputError: the folder cannot be written.
    """
    if resume and _is_current(job):
        return False
    content = label_png(draw(job.source))
    with atomic_path(job.target) as temporary:
        temporary.write_bytes(content)
    return True


def make_labels(
    report: Report,
    jobs: Sequence[LabelJob],
    *,
    draw: Draw,
    resume: bool,
    workers: int,
    progress: Progress | None,
) -> set[Path]:
    """Make label files, count them and their failures in the report; return what is there now.

    Args:
        report: of the preparation.
        jobs: the files.
        draw: a function of a module.
        resume: keep labels that are complete and newer than their source.
        workers: processes; 0 or 1 works in this one.
        progress: told after each label.
    """
    outcomes = run_jobs(
        jobs,
        partial(make_label, draw=draw, resume=resume),
        name_of=lambda job: job.source,
        workers=workers,
        progress=progress,
    )
    made: set[Path] = set()
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, Failure):
            report.failures.append(outcome)
            continue
        made.add(job.target)
        report.written += outcome.result
        report.kept += not outcome.result
    return made


def _is_current(job: LabelJob) -> bool:
    try:
        if job.target.stat().st_mtime_ns < job.source.stat().st_mtime_ns:
            return False
        # another tool may have been stopped in the middle of this file
        checked_bytes(job.target)
    except (OSError, DataError):
        return False
    return True
