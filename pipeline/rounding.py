"""The float32 rule: differences are judged by the rounding that the float64 runs measure.

By the triangle inequality |t32 - p32| <= |t32 - t64| + |p32 - p64| + |t64 - p64|, so
CROSS_FACTOR = 1 holds whenever float64 agrees: a violation means that the float32 program is
another one. What the sum cannot see is a Paddle side that rounds far more than Torch (a
half-precision detour, another eps), hence the limits of Step.rounding. Both are discussed in
docs/parity.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.compare import EXACT, compare_tensor
from pipeline.differences import (
    Array,
    blocks,
    difference,
    is_constant,
    kind,
    magnitude,
    measure,
    spread,
    structural_row,
)
from pipeline.verdicts import Row, Verdict

CROSS_FACTOR = 1.5
ULP = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class _Rounding:
    """How far one side's float32 numbers are from its own float64 numbers."""

    largest: float
    sample: Array
    """The same of evenly spread elements."""


def _rounding(narrow: Array, wide: Array) -> _Rounding:
    flat = narrow.reshape(-1), wide.reshape(-1)
    largest = max(
        float(difference(flat[1][part], flat[0][part]).max()) for part in blocks(narrow.size)
    )
    return _Rounding(largest, difference(spread(wide), spread(narrow)))


def _self_ratio(own: Sequence[_Rounding], wide: Array, scale: float) -> float:
    """Return Paddle's typical rounding over Torch's.

    Typical is the median, not the largest: where a ReLU or the choice of hard pixels flips by
    rounding, a few gradients jump on one side and say nothing about its arithmetic. It is taken
    over the elements that either side rounds: behind a ReLU, a saturated sigmoid or the choice of
    hard pixels most are exact, and a median over all of them would be zero whatever the rest is.
    """
    # so far below the largest there is only the tail of a saturated activation
    rounded = np.maximum(own[0].sample, own[1].sample) > ULP**2 * scale
    if not rounded.any():
        return 0.0
    torch, paddle = (float(np.median(side.sample[rounded])) for side in own)
    # Torch may be exact by luck: then by the last place of such a number
    size = float(np.median(np.abs(spread(wide)[rounded]))) or scale
    return paddle / max(torch, ULP * size)


def compare_tensor_float32(
    key: str,
    pair32: tuple[Array, Array],
    pair64: tuple[Array, Array],
    *,
    may_be_constant: bool = False,
    self_limit: float,
) -> Row:
    """Judge a float32 tensor against the rounding floor that the float64 run measures.

    Args:
        key: name of the tensor.
        pair32: (torch, paddle) in float32.
        pair64: (torch, paddle) of the same key in float64.
        may_be_constant: see compare_tensor.
        self_limit: largest ratio of Paddle's own rounding to Torch's.
    """
    row = structural_row(key, *pair32)
    if row is not None:
        return row
    if any(a.shape != b.shape for a, b in zip(pair32, pair64, strict=True)):
        text = "float32 and float64 runs have different shapes"
        return Row(key, Verdict.FAIL, text, relative=np.inf)
    if kind(pair32[0]) != "float":
        return compare_tensor(key, *pair32, limit=EXACT, may_be_constant=may_be_constant)
    # an Inf in float64 would be an infinite floor, by which everything passes
    row = structural_row(key, *pair64)
    if row is not None:
        return replace(row, detail=f"in the float64 records: {row.detail}")
    own = [_rounding(narrow, wide) for narrow, wide in zip(pair32, pair64, strict=True)]
    scale = max(magnitude(pair64[0]), float(np.finfo(np.float64).tiny))
    floor = (own[0].largest + own[1].largest) / scale
    limit = CROSS_FACTOR * floor + 4 * ULP
    row = measure(key, *pair32, limit, scale=scale)
    if row.verdict.passed and not may_be_constant and is_constant(pair32[0]):
        return Row(key, Verdict.VACUOUS, f"constant reference ({pair32[0].flat[0]})", size=row.size)
    ratio = _self_ratio(own, pair64[0], float(scale))
    verdict, detail = row.verdict, row.detail
    if verdict.passed and ratio > self_limit:
        verdict = Verdict.FAIL
        detail = f"Paddle's own rounding is {ratio:.1f} times Torch's (limit {self_limit:g})"
    return replace(row, verdict=verdict, detail=detail, floor=floor, self_ratio=ratio)


def compare_draws(key: str, reference: Array, actual: Array, *, self_limit: float) -> Row:
    """Judge one side's own float32 rounding by the other's, each measured in several draws.

    The two are compared draw by draw: what amplifies rounding in one draw does so on both sides.
    The second smallest ratio counts. A flip on one side alone spoils single draws, so the largest
    ones are chance; the smallest would be, too, when Torch flips once and Paddle does not.

    Args:
        key: name of the tensor.
        reference: Torch's typical rounding in each draw, relative to the largest value.
        actual: Paddle's.
        self_limit: largest ratio that passes.
    """
    row = structural_row(key, reference, actual)
    if row is not None:
        return row
    if reference.size < 3:
        return Row(key, Verdict.VACUOUS, "fewer than three draws: two can be chance")
    ratios = actual.reshape(-1) / np.maximum(reference.reshape(-1), ULP)
    draw = int(np.argsort(ratios)[1])
    ratio = float(ratios[draw])
    passed = ratio <= self_limit
    text = f"Paddle's own rounding is {ratio:.1f} times Torch's (limit {self_limit:g})"
    return Row(
        key,
        Verdict.PASS if passed else Verdict.FAIL,
        "" if passed else text,
        max_abs=float(actual.flat[draw]),
        mean_abs=float(actual.mean()),
        relative=float(actual.flat[draw]),
        max_rel=ratio,
        index=(draw,),
        size=int(reference.size),
        bound=max(float(reference.flat[draw]), ULP) * self_limit,
        self_ratio=ratio,
    )
