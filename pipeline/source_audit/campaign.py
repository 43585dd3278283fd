"""The audit of the source: choose mutants, try them on several workers, keep what was found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from common.errors import ConfigError
from common.files import scratch_folder
from common.provenance import ROOT
from pipeline.source_audit.deciding import deciding_digest
from pipeline.source_audit.experiments import EXPERIMENTS
from pipeline.source_audit.mutants import Mutant, all_mutants, sampled
from pipeline.source_audit.pool import on_workers
from pipeline.source_audit.reference import Reference, remove_other_digests
from pipeline.source_audit.store import Store
from pipeline.source_audit.trial import Finding, tried
from pipeline.source_audit.workers import Worker

ROOT_FOLDER = Path("data") / "source_audit"
"""Records and results; ignored by git."""

Progress = Callable[[int, int, float, Mutant, Finding], None]
"""Called with (done, all, seconds left, mutant, finding)."""


@dataclass(frozen=True)
class Choice:
    """Which mutants."""

    files: str = "*"
    """Shell patterns below for_paddle, separated by commas."""
    sample: int | None = None
    """So many, each as likely as any other; None: all."""
    seed: int = 0


@dataclass(frozen=True)
class Audited:
    """All mutants, those that were chosen, and what became of these."""

    every: tuple[Mutant, ...]
    chosen: tuple[Mutant, ...]
    found: dict[str, Finding]
    digest: str
    seconds: float
    new: int
    """How many were tried in this run; the others were known."""


def chosen_mutants(choice: Choice) -> tuple[list[Mutant], list[Mutant]]:
    """Return (all mutants, the chosen ones).

    Raises:
        ConfigError: no file matches.
    """
    every = list(all_mutants(ROOT / "for_paddle", shared=[ROOT / "common"]))
    patterns = [word.strip() for word in choice.files.split(",") if word.strip()]
    # in a pattern of a shell the star does not stop at a slash, so "*" is everything
    own = [m for m in every if any(fnmatchcase(m.file, pattern) for pattern in patterns)]
    if not own:
        files = ", ".join(dict.fromkeys(mutant.file for mutant in every))
        raise ConfigError(f"--files {choice.files} matches nothing; files: {files}")
    return every, sampled(own, choice.sample, seed=choice.seed)


def source_audit(
    choice: Choice, *, jobs: int, say: Callable[[str], None], progress: Progress
) -> Audited:
    """Try the chosen mutants that are not known yet; see tried.

    Args:
        choice: which.
        jobs: workers, one core each.
        say: told what is being prepared.
        progress: told about every mutant.
    """
    started = time.perf_counter()
    every, chosen = chosen_mutants(choice)
    folder = ROOT_FOLDER.resolve()
    configs = [experiment.load(folder) for experiment in EXPERIMENTS]
    digest = deciding_digest(configs)
    store = Store(folder / "results.jsonl", digest)
    # by id, which is a hash: what an interrupted run has tried is a fair sample of the whole
    waiting = sorted((m for m in chosen if m.id not in store.found), key=lambda m: m.id)
    if waiting:
        remove_other_digests(folder, digest[:12])
        reference = Reference(folder / f"records.{digest[:12]}", EXPERIMENTS, configs)
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(folder / f"recorder_paddle_{number}.log"))
                for number in range(jobs)
            ]
            reference.prepare(workers, say)
            work = stack.enter_context(scratch_folder(folder, prefix="mutants."))
            _try_all(waiting, workers, reference, work=work, store=store, progress=progress)
    found = {mutant.id: store.found[mutant.id] for mutant in chosen}
    seconds = time.perf_counter() - started
    return Audited(tuple(every), tuple(chosen), found, digest, seconds, len(waiting))


def _try_all(
    mutants: Sequence[Mutant],
    workers: Sequence[Worker],
    reference: Reference,
    *,
    work: Path,
    store: Store,
    progress: Progress,
) -> None:
    started = time.perf_counter()
    done = 0

    def act(mutant: Mutant, worker: Worker) -> Finding:
        return tried(mutant, judge=reference, worker=worker, work=work)

    def keep(mutant: Mutant, finding: Finding) -> None:
        nonlocal done
        store.add(finding)
        done += 1
        each = (time.perf_counter() - started) / done
        progress(done, len(mutants), each * (len(mutants) - done), mutant, finding)

    on_workers(mutants, workers, act, done=keep)


def default_jobs() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
