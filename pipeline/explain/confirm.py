"""From candidates to hints: a relation is named only if it reproduces what Paddle computed.

The limits: float64 keeps 16 digits, and a tensor computed anew in another order loses a few of
them, so 1e-11 of the largest value may be left, and the difference that is explained must be a
thousand times what is left. float32 keeps seven: eight units in the last place may be left, and a
hundredth of the difference. Integers and text must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.differences import difference, kind, magnitude
from pipeline.failure import FailureCase, Hint
from pipeline.records import Array

SHOWN = 5
"""Hints per case at most."""


@dataclass(frozen=True)
class Limits:
    """What may be left of a difference that is explained."""

    residual: float
    """Relative to the largest value."""
    share: float
    """Of the difference itself."""
    equal: float
    """Residuals below this are equally good: rounding alone decides between them."""


LIMITS = {
    "float64": Limits(1e-11, 1e-3, 1e-13),
    "float32": Limits(8 * 2.0**-23, 1e-2, 2 * 2.0**-23),
}
"""By the dtype that a step was recorded in."""


@dataclass(frozen=True)
class Candidate:
    """A relation that may explain a difference."""

    relation: str
    text: str
    compute: Callable[[], Any]
    """Returns the tensor as the relation makes it."""


def apart(computed: Any, found: Array, scale: float) -> float:
    """Return the largest difference relative to ``scale``; inf where the two cannot be compared."""
    array = np.asarray(computed)
    if array.shape != found.shape or kind(array) != kind(found):
        return np.inf
    if kind(array) == "float" and not (np.isfinite(array).all() and np.isfinite(found).all()):
        return np.inf
    return float(difference(array, found).max(initial=0.0)) / scale


def scale_of(reference: Array, actual: Array) -> float:
    """Return the reference's largest value; the actual one's where the reference is all zero."""
    arrays = (reference, actual)
    if any(array.size == 0 for array in arrays):
        return 1.0
    if not all(kind(a) != "float" or np.isfinite(a).all() for a in arrays):
        return 1.0
    return magnitude(reference) or magnitude(actual) or 1.0


def reproduces(case: FailureCase, computed: Any, *, reference: Array | None = None) -> bool:
    """Tell whether the tensor computed without any candidate is the reference's."""
    found = case.arrays["reference"] if reference is None else reference
    limit = LIMITS[case.dtype].residual if kind(found) == "float" else 0.0
    return apart(computed, found, scale_of(found, found)) <= limit


def comparable(case: FailureCase) -> bool:
    """Tell whether the two sides have one shape: otherwise no number can be solved for."""
    return case.arrays["reference"].shape == case.arrays["actual"].shape


def confirmed(
    case: FailureCase,
    candidates: Iterable[Candidate],
    *,
    pair: tuple[Array, Array] | None = None,
    share: float | None = None,
) -> list[Hint]:
    """Return the candidates that reproduce the actual tensor: best first, simplest among equals.

    Of several with the same relation (two thresholds that keep the same pixels) the first is taken.

    Args:
        case: the failing tensor; its dtype sets the limits.
        candidates: simplest first; one that cannot be computed (ValueError) is passed over.
        pair: (reference, actual) where these are not the case's own: several numbers at once.
        share: largest share of the difference that may be left, where it is not the dtype's.
    """
    reference, actual = pair or (case.arrays["reference"], case.arrays["actual"])
    scale, limits = scale_of(reference, actual), LIMITS[case.dtype]
    before = apart(reference, actual, scale)
    # of another shape, or not finite: then all of it differs
    before = before if np.isfinite(before) else 1.0
    exact = kind(actual) != "float"
    hints: list[Hint] = []
    for candidate in candidates:
        try:
            residual = apart(candidate.compute(), actual, scale)
        except (ValueError, IndexError, ZeroDivisionError, np.linalg.LinAlgError):
            continue
        allowed = 0.0 if exact else min(limits.residual, (share or limits.share) * before)
        if before > 0 and residual <= allowed:
            hints.append(Hint(candidate.relation, candidate.text, before, residual))
    hints.sort(key=lambda hint: max(hint.residual, limits.equal))
    best = {hint.relation: hint for hint in reversed(hints)}
    return [hint for hint in hints if best[hint.relation] is hint][:SHOWN]


SOLVING_STEPS = 12


def solve(compute: Callable[[Any], Array], start: float, actual: Array) -> float:
    """Return the number with which ``compute`` comes nearest to the actual tensor.

    Gauss-Newton; the derivative is taken by a complex step, which is exact for the polynomials
    that updates are. What comes out is confirmed like any candidate.

    Args:
        compute: tensor from the number; must accept a complex one.
        start: where to begin.
        actual: what it shall be.
    """
    value, step = start, 1e-30
    wanted = actual.astype(np.float64)
    for _ in range(SOLVING_STEPS):
        found: NDArray[np.complex128] = np.asarray(compute(value + 1j * step))
        slope, rest = np.imag(found) / step, wanted - np.real(found)
        steepness = float(np.vdot(slope, slope))
        if not np.isfinite(steepness) or steepness == 0.0:
            break
        change = float(np.vdot(slope, rest)) / steepness
        value += change
        if abs(change) <= 1e-15 * max(abs(value), 1e-300):
            break
    return value


def shortest(value: float, accepts: Callable[[float], bool]) -> float:
    """Return the value with the fewest digits that is still accepted: 0.95 for 0.9500000000001."""
    if accepts(0.0):
        return 0.0
    for digits in range(1, 16):
        rounded = float(f"{value:.{digits}g}")
        if accepts(rounded):
            return rounded
    return value
