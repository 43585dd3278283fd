"""What makes a candidate an explanation: the tensor computed with it is the actual one.

float64: within 1e-11 of the largest value, and at most a thousandth of the difference to the
reference is left. float32: within a few units in the last place of the largest value, more where
many values are summed up, and a tenth of the difference (root mean square), which there is often
not much larger than rounding itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.failure import FailureCase, Hint

Array = NDArray[Any]

MAX_HINTS = 5
FLOAT64_RESIDUAL = 1e-11
FLOAT64_SEPARATION = 1000.0
FLOAT32_SEPARATION = 10.0
EQUAL = 1e-13
"""float64 residuals below this are rounding, and none of them is better than another."""

Where = tuple[slice, ...]
"""Index of a part of an array."""
WHOLE: Where = ()
PROBED = (slice(0, 1), slice(None), slice(0, 8), slice(0, 16))
"""A corner of the first sample: what a candidate is tried on before all."""
WORTH_PROBING = 4096
"""Elements; smaller tensors are computed at once."""
SMALLEST_SLOPE = 1e-6
FITTED = 4
"""Elements that a relation with one fitted number must at least reproduce."""
LARGEST_COUNT = 4096


@dataclass(frozen=True)
class Candidate:
    """A relation to be tried."""

    relation: str
    text: str
    compute: Callable[[Where], Array | None]
    """This part of the tensor with the relation; None if it cannot be computed."""
    probe: Where | None = None
    """The part that is tried before all; None: the target's own."""


@dataclass(frozen=True)
class Target:
    """The tensor that is to be explained, and what "the same to rounding" means for it."""

    reference: Array
    actual: Array
    reduction: float = 1.0
    """How many values are summed up to one, for rounding in float32."""

    @property
    def comparable(self) -> bool:
        """Tell whether both have one shape, so that their difference can be taken."""
        return self.reference.shape == self.actual.shape

    @property
    def double(self) -> bool:
        """Tell whether rounding is float64's."""
        return "float32" not in (str(self.reference.dtype), str(self.actual.dtype))

    @property
    def scale(self) -> float:
        """Largest absolute value of either; 1 if both are zero."""
        return max(largest(self.reference), largest(self.actual)) or 1.0

    @property
    def tolerance(self) -> float:
        """Residual that is rounding, relative to the scale."""
        if self.double:
            return FLOAT64_RESIDUAL
        return 2.0**-24 * (4.0 + 2.0 * self.reduction**0.5)

    @property
    def before(self) -> float:
        """Difference of the two relative to the scale; 1 if their shapes differ."""
        if not self.comparable:
            return 1.0
        return largest(wide(self.actual) - wide(self.reference)) / self.scale

    @property
    def probe(self) -> Where:
        """Return a part that is quick to compute; WHOLE if all is."""
        if self.actual.size < WORTH_PROBING or self.actual.ndim < 2:
            return WHOLE
        return PROBED if self.actual.ndim == 4 else PROBED[:1]

    def fits(self, found: Array | None, where: Where = WHOLE) -> bool:
        """Tell whether an array is this part of the actual one to rounding."""
        actual = self.actual[where] if where else self.actual
        if found is None or found.shape != actual.shape or actual.size == 0:
            return False
        return largest(wide(found) - wide(actual)) / self.scale <= self.tolerance

    def residual(self, found: Array | None) -> float | None:
        """Return what is left of the difference, or None if that is too much."""
        if found is None or not self.fits(found):
            return None
        left = wide(found) - wide(self.actual)
        if not self.comparable:
            return largest(left) / self.scale
        apart = wide(self.actual) - wide(self.reference)
        measure = largest if self.double else root_mean_square
        separation = FLOAT64_SEPARATION if self.double else FLOAT32_SEPARATION
        if measure(apart) < separation * measure(left) or not apart.any():
            return None
        return largest(left) / self.scale


def target_of(case: FailureCase, *, reduction: float = 1.0) -> Target:
    """Return a case's two tensors, to be compared."""
    return Target(case.arrays["reference"], case.arrays["actual"], reduction)


def confirm(target: Target, candidates: Iterable[Candidate]) -> list[Hint]:
    """Return the candidates that reproduce the actual tensor.

    Args:
        target: the tensor.
        candidates: the simplest and most specific first; that order decides among those that are
            equally exact.

    Returns:
        At most MAX_HINTS, each relation once, the most exact first.
    """
    found: list[tuple[float, int, Hint]] = []
    for number, candidate in enumerate(candidates):
        if any(hint.relation == candidate.relation for _, _, hint in found):
            continue
        left = _confirmed(target, candidate)
        if left is None:
            continue
        rank = 0.0 if left <= (EQUAL if target.double else target.tolerance) else left
        hint = Hint(candidate.relation, candidate.text, before=target.before, residual=left)
        found.append((rank, number, hint))
    found.sort(key=lambda row: row[:2])
    return [hint for _, _, hint in found[:MAX_HINTS]]


def _confirmed(target: Target, candidate: Candidate) -> float | None:
    probe = target.probe if candidate.probe is None else candidate.probe
    if probe and not target.fits(_computed(candidate, probe), probe):
        return None
    return target.residual(_computed(candidate, WHOLE))


def _computed(candidate: Candidate, where: Where) -> Array | None:
    try:
        return candidate.compute(where)
    except (ValueError, IndexError, ZeroDivisionError):
        # shapes that do not go together: the candidate makes no sense for this tensor
        return None


def fixed(relation: str, text: str, array: Array | None) -> Candidate:
    """Return a candidate whose tensor is already computed."""
    return Candidate(relation, text, lambda where: None if array is None else part_of(array, where))


def applied(
    relation: str, text: str, function: Callable[[Array], Array], array: Array
) -> Candidate:
    """Return a candidate that applies a function to each element of an array."""
    return Candidate(relation, text, lambda where: function(part_of(array, where)))


def part_of(array: Array, where: Where) -> Array:
    """Return a part of an array."""
    return array[where] if where else array


# ---- numbers ----------------------------------------------------------------------------------
def wide(array: Array) -> Array:
    """Return the array as float64."""
    return np.asarray(array, np.float64)


def largest(array: Array) -> float:
    """Return the largest absolute value, 0 of an empty array, inf if there is a NaN."""
    if array.size == 0:
        return 0.0
    found = float(np.abs(wide(array)).max())
    return found if found == found else float("inf")


def root_mean_square(array: Array) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(wide(array)))))


def rounded(array: Array, dtype: str) -> Array:
    """Return the values as float16, bfloat16 or float32 holds them, in float64."""
    if dtype != "bfloat16":
        return wide(array.astype(dtype))
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    # round half to even on the 16 bits that are dropped
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return wide(kept.astype(np.uint32).view(np.float32))


SHORTER = ("float32", "bfloat16", "float16")


def shorter_than(target: Target) -> tuple[str, ...]:
    """Return the dtypes with fewer digits than the target's, the longest first."""
    return SHORTER if target.double else SHORTER[1:]


def best_factor(source: Array, actual: Array) -> float | None:
    """Return the factor that brings source closest to actual, or None if source is zero."""
    flat, wanted = wide(source).reshape(-1), wide(actual).reshape(-1)
    square = float(flat @ flat)
    return float(flat @ wanted) / square if square else None


def nice(value: float, *, digits: int = 3) -> list[float]:
    """Return shorter numbers close to a solved one, the shortest first, and itself at last."""
    short = [float(f"{value:.{n}e}") for n in range(digits)]
    as_float32 = [float(np.float32(number)) for number in short]
    return [*short, *as_float32, value]


def simple_fraction(value: float, *, tolerance: float, top: int = 64) -> Fraction | None:
    """Return the fraction of small numbers, or 1 / n, that a factor is; None if it is neither."""
    if not np.isfinite(value) or value == 0:
        return None
    for fraction in (Fraction(value).limit_denominator(top), _unit_fraction(value)):
        small = fraction != 0 and abs(fraction.numerator) <= top * top
        if small and abs(float(fraction) / value - 1.0) <= tolerance:
            return fraction
    return None


def _unit_fraction(value: float) -> Fraction:
    """Return the nearest 1 / n, as a mean in the place of a sum makes it."""
    n = round(1.0 / value) if abs(value) < 1.0 else 0
    # of larger n some are close to any number, in float32
    return Fraction(1, n) if 0 < abs(n) <= LARGEST_COUNT else Fraction(0)


def solve(
    compute: Callable[[float], Array], actual: Array, *, start: float, steps: int = 24
) -> float | None:
    """Return the positive number with which ``compute`` comes closest to ``actual``.

    Gauss-Newton on the number's logarithm, so that 1e-12 is as far from 1e-5 as 1e2 is. None if
    the result does not depend on the number.
    """
    value = start
    for _ in range(steps):
        here = compute(value)
        # a wide step: of an eps of 1e-12 little is left in the last places of the result
        slope = (compute(value * 1.05) - compute(value * 0.95)) / 0.1
        square = float(np.sum(slope * slope))
        if not square or not np.isfinite(square):
            return None
        step = float(np.sum(slope * (wide(actual) - here))) / square
        value *= float(np.exp(np.clip(step, -3.0, 3.0)))
        if abs(step) < 1e-13:
            break
    return value if np.isfinite(value) else None


def solved(
    target: Target, compute: Callable[[float, Where], Array], *, starts: Sequence[float]
) -> float | None:
    """Return the shortest number that confirms, found by ``solve`` from any of the starts.

    It is solved for on a part of the tensor, with ``compute(number, where)``, and confirmed on all.
    """
    if not target.comparable:
        return None
    where = target.probe
    part = part_of(target.actual, where)
    for start in starts:
        found = solve(lambda number: compute(number, where), part, start=start)
        if found is None:
            continue
        for number in nice(found):
            near = target.fits(compute(number, where), where)
            if near and target.residual(compute(number, WHOLE)) is not None:
                return number
    return None


def leaky_slope(target: Target, before: Array) -> float | None:
    """Return the slope with which a leaky_relu of an array confirms; neither 0 nor 1."""
    if not target.comparable or before.shape != target.actual.shape:
        return None
    negative = before < 0
    if np.count_nonzero(negative) < FITTED:
        return None
    found = best_factor(before[negative], target.actual[negative])
    for slope in [] if found is None or found < SMALLEST_SLOPE else nice(found):
        after = np.where(negative, slope * wide(before), wide(before))
        if slope != 1.0 and target.residual(after) is not None:
            return slope
    return None
