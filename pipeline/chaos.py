"""Chaos or bug: is Paddle's float32 training as far from Torch's as rounding alone carries Torch?

Training amplifies rounding, so two right programs drift apart. How far is asked of Torch: it trains
twice more from weights of which every one is moved by one unit in the last place, up and down. The
largest distance of those runs from Torch's own, so far and in the next ``LEAD`` iterations, is the
band. Paddle's losses must stay within ``BAND_FACTOR`` bands of Torch's. docs/parity.md has the
measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.differences import Array, magnitude, structural_row
from pipeline.records import has_record, read_record, record_name
from pipeline.rounding import ULP
from pipeline.steps import Step
from pipeline.training import NUDGES, PERTURBED_PART
from pipeline.verdicts import Row, Verdict

BAND_FACTOR = 10.0
"""How many bands Paddle may be away. Measured over the family, 30 iterations each, up to 3.3; one
perturbed run of Torch by the band of the other alone up to 7.2."""
LEAD = 2
"""Iterations by which a run may be ahead: a hard pixel that flips by rounding makes a loss jump,
and does so an iteration or two sooner in one run than in another. Without it 28.7 were measured."""
BAND = "band/"
"""Prefix of the rows' keys."""
CHAOS, BUG = "chaos", "bug"


def perturbed_losses(work: Path) -> Mapping[str, Array]:
    """Return what Torch's perturbed runs recorded in this folder: run/loss/term -> values."""
    name = record_name("training", "float32", "torch", PERTURBED_PART)
    return read_record(work, name).arrays if has_record(work, name) else {}


def band_of(reference: Array, perturbed: Sequence[Array]) -> Array:
    """Return the band around a loss curve: the perturbed runs' largest distance so far.

    Args:
        reference: (iterations,) Torch's loss.
        perturbed: the same of the runs from moved weights.

    Returns:
        (iterations,) float64, never falling, and never below two units in the last place of the
        curve's largest value: at a single iteration the runs can meet by chance.
    """
    apart = np.max([np.abs(run.astype(np.float64) - reference) for run in perturbed], axis=0)
    so_far = np.maximum.accumulate(apart)
    soon = so_far[np.minimum(np.arange(len(so_far)) + LEAD, len(so_far) - 1)]
    return np.maximum(soon, 2 * ULP * magnitude(reference))


def perturbation_rows(step: Step, pair: Sequence[Mapping[str, Array]], work: Path) -> list[Row]:
    """Return one row per loss term of a float32 training, none of another step.

    Args:
        step: the row of the table.
        pair: (torch, paddle) arrays of the float32 record.
        work: folder of the records.
    """
    if step.name != "training":
        return []
    perturbed = perturbed_losses(work)
    return [
        compare_band(key, pair[0][key], pair[1][key], perturbed)
        for key in pair[0]
        if key.startswith("loss/") and key in pair[1]
    ]


def compare_band(key: str, reference: Array, actual: Array, perturbed: Mapping[str, Array]) -> Row:
    """Judge one loss curve by the band of Torch's perturbed runs.

    Args:
        key: record key of the curve, ``loss/<term>``.
        reference: (iterations,) Torch's.
        actual: (iterations,) Paddle's.
        perturbed: run/key -> (iterations,).

    Returns:
        The row ``band/<key>``: the iteration that uses most of its band decides.
    """
    name = BAND + key
    runs = [perturbed[f"{run}/{key}"] for run in NUDGES if f"{run}/{key}" in perturbed]
    if len(runs) < len(NUDGES):
        return Row(name, Verdict.MISSING, "Torch's perturbed runs were not recorded")
    for other in (actual, *runs):
        row = structural_row(name, reference, other)
        if row is not None:
            return row
    apart = np.abs(actual.astype(np.float64) - reference)
    band = band_of(reference, runs)
    share = apart / np.maximum(band, np.finfo(np.float64).tiny)
    at = int(share.argmax())
    scale = magnitude(reference) or 1.0
    over = np.flatnonzero(share > BAND_FACTOR)
    word = BUG if len(over) else CHAOS
    text = (
        f"{word}: {share[at]:.1f} times as far from Torch as Torch is from itself when its weights "
        f"move by one unit in the last place (limit {BAND_FACTOR:g}), at iteration {at}"
    )
    return Row(
        name,
        Verdict.FAIL if len(over) else Verdict.PASS,
        text,
        max_abs=float(apart[at]),
        mean_abs=float(apart.mean()),
        relative=float(apart[at] / scale),
        max_rel=float(share[at]),
        index=(at,),
        first=(int(over[0]),) if len(over) else (),
        over=len(over),
        size=int(reference.size),
        bound=float(BAND_FACTOR * band[at] / scale),
    )
