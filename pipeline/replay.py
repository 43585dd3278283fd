"""A failure case alone, outside the pipeline: does it still differ, and what explains it?

A layer, its buffer or a gradient is computed anew on each side, in a process of its own, from the
arrays of the case. Of the other kinds (a loss term, an update, a rate, a sample) the arrays that
were saved are compared.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from common.errors import InputError
from pipeline.differences import structural_row
from pipeline.failure import FailureCase, Hint, read_case
from pipeline.investigate import explained
from pipeline.recording import recorder_environment
from pipeline.records import Array, read_arrays
from pipeline.replay_side import VALUE
from pipeline.steps import SIDES

RERUN = ("layer", "buffer", "parameter_gradient", "layer_gradient")
"""Kinds that are computed anew."""
LEFT = 0.1
"""Share of the saved difference that must be left for it to persist."""
TIMEOUT_S = 300


@dataclass(frozen=True)
class Comparison:
    """One line of the table."""

    what: str
    relative: float
    """Largest difference over the largest value of the first; infinite if they do not compare."""
    detail: str = ""


@dataclass(frozen=True)
class Replay:
    """What a replay found."""

    case: FailureCase
    comparisons: tuple[Comparison, ...]
    persists: bool
    rerun: bool
    """False when only the saved arrays were compared."""
    hints: tuple[Hint, ...]
    note: str = ""

    @property
    def exit_code(self) -> int:
        """1 while the difference persists, 0 when it has gone."""
        return int(self.persists)

    def as_json(self) -> dict[str, Any]:
        """Return it for --json."""
        case = self.case
        return {
            "step": case.step,
            "dtype": case.dtype,
            "kind": case.kind,
            "where": case.where,
            "iteration": case.iteration,
            "phase": case.phase,
            "spec": {side: dict(spec) for side, spec in case.spec.items()},
            "rerun": self.rerun,
            "comparisons": [
                {**asdict(c), "relative": f"{c.relative:.3e}"} for c in self.comparisons
            ],
            "persists": self.persists,
            "hints": [asdict(hint) for hint in self.hints],
            "note": self.note,
        }


def compared(what: str, reference: Array, actual: Array) -> Comparison:
    """Compare two arrays of a case."""
    row = structural_row(what, reference, actual)
    if row is not None:
        return Comparison(what, float("inf"), row.detail)
    if reference.dtype.kind == "U":
        differing = int((reference != actual).sum())
        return Comparison(what, float(differing > 0), f"{differing} of {reference.size} differ")
    apart = np.abs(actual.astype(np.float64) - reference.astype(np.float64))
    top = float(apart.max())
    scale = float(np.abs(reference.astype(np.float64)).max())
    relative = 0.0 if top == 0 else (top / scale if scale else float("inf"))
    at = [int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape)]
    return Comparison(what, relative, f"largest at {at}" if top else "equal to the bit")


def replay(folder: Path) -> Replay:
    """Replay the case in a folder.

    Raises:
        InputError: there is no case, it is damaged, of another program, or cannot be built.
    """
    case = read_case(folder)
    saved = compared("saved: Torch, Paddle", case.arrays["reference"], case.arrays["actual"])
    if case.kind not in RERUN or case.settings.get("sampled"):
        done, note = explained(case)
        hints = tuple(done.hints)
        return Replay(done, (saved,), saved.relative > 0, rerun=False, hints=hints, note=note)
    _require_settings(folder, case)
    torch, paddle = _both_sides(folder)
    now = compared("now: Torch, Paddle", torch, paddle)
    comparisons = (
        saved,
        compared("Torch: saved, now", case.arrays["reference"], torch),
        compared("Paddle: saved, now", case.arrays["actual"], paddle),
        now,
    )
    persists = now.relative > LEFT * saved.relative
    note = "" if persists else "the difference has gone"
    if not persists and case.step == "training":
        note += ", or is not the layer's: the training loop can have set it up wrongly"
    hints: tuple[Hint, ...] = ()
    if persists:
        again = replace(case, arrays={**case.arrays, "reference": torch, "actual": paddle})
        done, note = explained(again)
        hints = tuple(done.hints)
    return Replay(case, comparisons, persists, rerun=True, hints=hints, note=note)


def _require_settings(folder: Path, case: FailureCase) -> None:
    """Refuse a case that lacks what a replay needs."""
    missing = [k for k in ("model", "layer", "call", "cut", "arguments") if k not in case.settings]
    inputs = any(key.startswith("input/") for key in case.arrays)
    if missing or not inputs or set(case.spec) != set(SIDES):
        what = ", ".join(missing) or ("spec of both sides" if inputs else "input/0")
        raise InputError(f"{folder}: damaged failure case (no {what}); verify again")


def _both_sides(folder: Path) -> Sequence[Array]:
    """Compute the case on both sides at the same time and return the results."""
    with TemporaryDirectory() as scratch:
        results = [Path(scratch) / f"{side}.npz" for side in SIDES]
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "pipeline.replay_side", side, str(folder), str(result)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=recorder_environment(),
            )
            for side, result in zip(SIDES, results, strict=True)
        ]
        try:
            said = [child.communicate(timeout=TIMEOUT_S)[1] for child in children]
        finally:
            for child in children:
                child.kill()
        for side, child, text in zip(SIDES, children, said, strict=True):
            if child.returncode != 0:
                last = (text.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
                raise InputError(f"{folder}: cannot be replayed on {side}: {last}")
        return [read_arrays(result)[VALUE] for result in results]
