"""One mutant: run what executes its place, step by step, until something gives it away."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from common.files import scratch_folder
from common.provenance import ROOT
from pipeline.judge import Result
from pipeline.source_audit.experiments import Run, ordered
from pipeline.source_audit.mutants import Mutant, write_mutated
from pipeline.source_audit.workers import Reply, Request

Found = Literal["caught", "crashed", "timeout", "survived", "not executed"]
"""caught: by a number; crashed: by an exception or a signal, which is noticed, but by Python."""

SLACK_S, SLACK = 20.0, 8.0
"""A run may take so many seconds more, and so many times longer, than without a change."""
DETAIL = 300


@dataclass(frozen=True)
class Finding:
    """What became of a mutant."""

    mutant: str
    """Its id."""
    found: Found
    where: str = ""
    """Experiment, step and dtype that noticed."""
    key: str = ""
    """Tensor at which the difference starts."""
    detail: str = ""
    runs: int = 0
    """Runs made."""
    seconds: float = 0.0


class Judge(Protocol):
    """What a trial needs of the reference."""

    seconds: dict[Run, float]

    def executing(self, mutant: Mutant) -> list[Run]:
        """Return the runs that execute the mutant's place."""
        ...

    def request(self, run: Run, *, package: Path, folder: Path, seconds: float) -> Request:
        """Return the request to record a run."""
        ...

    def judge(self, run: Run, folder: Path) -> Result:
        """Judge the record of a run."""
        ...


class Asks(Protocol):
    """A worker."""

    def ask(self, request: Request) -> Reply:
        """Record."""
        ...


def tried(mutant: Mutant, *, judge: Judge, worker: Asks, work: Path) -> Finding:
    """Run a mutant until it is noticed, or to the end of what executes its place.

    Args:
        mutant: what is changed.
        judge: the reference.
        worker: who records.
        work: folder for the copy and its records, which are removed.
    """
    started = time.perf_counter()
    runs = ordered(mutant.file, judge.executing(mutant), judge.seconds)
    if not runs:
        return Finding(mutant.id, "not executed")
    finding = Finding(mutant.id, "survived")
    done = 0
    with scratch_folder(work, prefix=f"{mutant.id}.") as folder:
        package = write_mutated(mutant, package=ROOT / "for_paddle", folder=folder)
        for run in runs:
            done += 1
            noticed = _once(mutant, run, judge=judge, worker=worker, package=package)
            if noticed is not None:
                finding = noticed
                break
    seconds = round(time.perf_counter() - started, 2)
    return replace(finding, runs=done, seconds=seconds)


def _once(mutant: Mutant, run: Run, *, judge: Judge, worker: Asks, package: Path) -> Finding | None:
    """Make one run; None when nothing is noticed."""
    with scratch_folder(package, prefix="run.") as folder:
        limit = SLACK_S + SLACK * judge.seconds[run]
        reply = worker.ask(judge.request(run, package=package, folder=folder, seconds=limit))
        if reply.status == "timeout":
            return Finding(mutant.id, "timeout", run.name, detail=f"over {limit:.0f} s")
        if reply.status != "recorded":
            return Finding(mutant.id, "crashed", run.name, detail=_error(folder, reply.status))
        result = judge.judge(run, folder)
        if result.verdict.passed:
            return None
        key = result.divergence.key if result.divergence else ""
        worst = result.worst
        detail = result.divergence.text if result.divergence else result.message
        if not detail and worst is not None:
            key, detail = worst.key, worst.detail
        return Finding(mutant.id, "caught", run.name, key=key, detail=detail[:DETAIL])


def _error(folder: Path, status: str) -> str:
    """Return the first line of what the recorder has written down."""
    for path in sorted(folder.glob("*.error.txt")):
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        if lines:
            return lines[0][:DETAIL]
    return status
