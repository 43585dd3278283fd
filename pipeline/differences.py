"""How far two arrays are apart: what must hold before values are compared, then the values.

Nothing is broadcast, transposed or skipped; differences are taken in float64 or, of integers,
exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.verdicts import Row, Verdict

Array = NDArray[Any]

_KINDS = {"b": "bool", "i": "integer", "u": "integer", "f": "float", "U": "text"}


def kind(array: Array) -> str:
    """Family of a dtype: differences of width are a step's own business, of kind never."""
    return _KINDS[array.dtype.kind]


def structural_row(key: str, reference: Array, actual: Array) -> Row | None:
    """Return the row of what must hold before values can be compared and does not, or None."""
    for name, array in (("reference", reference), ("actual", actual)):
        if array.dtype.kind not in _KINDS:
            text = f"{name} has dtype {array.dtype}, which is not comparable; record numbers"
            return Row(key, Verdict.FAIL, text, relative=np.inf)
    if reference.shape != actual.shape:
        text = f"shape {actual.shape}, reference {reference.shape}"
        return Row(key, Verdict.FAIL, text, relative=np.inf)
    kinds = (kind(reference), kind(actual))
    # text has its length in the dtype, and a wider integer holds the same number
    if kinds[0] != kinds[1] or (kinds[0] == "float" and reference.dtype != actual.dtype):
        text = f"dtype {actual.dtype}, reference {reference.dtype}"
        return Row(key, Verdict.FAIL, text, relative=np.inf)
    if reference.size == 0:
        return Row(key, Verdict.VACUOUS, "no elements: nothing was compared")
    if kind(reference) == "float":
        for name, array in (("reference", reference), ("actual", actual)):
            # one pass without a copy: a NaN or Inf anywhere makes an end of the range one
            if np.isfinite(array.max()) and np.isfinite(array.min()):
                continue
            bad = ~np.isfinite(array)
            if bad.any():
                where = tuple(int(i) for i in np.argwhere(bad)[0])
                text = f"{name} has {int(bad.sum())} NaN or Inf of {bad.size}, first at {where}"
                return Row(key, Verdict.FAIL, text, relative=np.inf, index=where, size=bad.size)
    return None


def is_constant(array: Array) -> bool:
    """Tell whether all elements, two or more, are the same."""
    if array.size < 2 or array.flat[0] != array.flat[-1]:
        return False
    return bool((array == array.flat[0]).all())


def difference(reference: Array, actual: Array) -> Array:
    """Return |actual - reference| in float64, or as a 0/1 inequality for text."""
    if kind(reference) == "text":
        return (reference != actual).astype(np.float64)
    if kind(reference) in ("integer", "bool"):
        # beyond 2**53 float64 merges neighbours: unequal integers must never look equal
        apart = np.abs(actual.astype(np.float64) - reference.astype(np.float64))
        return np.where(reference == actual, 0.0, np.maximum(apart, 1.0))
    with np.errstate(over="ignore"):  # an infinite difference is one, and fails
        # asarray: a subtraction of two numbers is no array any more
        apart = np.asarray(np.subtract(actual, reference, dtype=np.float64))
        return np.abs(apart, out=apart)


def magnitude(array: Array) -> float:
    """Return the largest absolute value; 1 for text, whose difference is 0 or 1."""
    if kind(array) == "text":
        return 1.0
    # from both ends, which copies nothing: snapshots have millions of elements
    return max(abs(float(array.max())), abs(float(array.min())))


BLOCK = 1 << 16
"""Elements compared at a time: the intermediate arrays stay in the processor's cache."""


def blocks(size: int) -> Iterator[slice]:
    """Yield slices of BLOCK elements that cover a flat array of this size."""
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


@dataclass
class _Scan:
    """What one pass over two flat arrays finds."""

    top: float = 0.0
    """Largest difference; at ``where``."""
    where: int = 0
    total: float = 0.0
    max_rel: float = 0.0

    def add(self, apart: Array, reference: Array, *, start: int) -> None:
        """Take in the next elements, whose first one is number ``start``."""
        at = int(apart.argmax())
        highest = float(apart[at])
        if highest > self.top:
            self.top, self.where = highest, start + at
        self.total += float(apart.sum())
        if highest and reference.dtype.kind == "f":
            ratios = np.zeros(apart.shape)
            with np.errstate(over="ignore"):  # by a reference that is nearly zero
                np.divide(apart, reference, out=ratios, where=reference != 0)
            self.max_rel = max(self.max_rel, magnitude(ratios))


def measure(
    key: str, reference: Array, actual: Array, limit: float, *, scale: float | None = None
) -> Row:
    """Compare values; all that is relative is so to ``scale``, by default the reference's largest.

    In float32 the scale is float64's: a weight that moved by two places moved by one, rounded.
    """
    flat = reference.reshape(-1), actual.reshape(-1)
    scan = _Scan()
    for part in blocks(reference.size):
        scan.add(difference(flat[0][part], flat[1][part]), flat[0][part], start=part.start)
    scale = magnitude(reference) if scale is None else scale
    relative = 0.0 if scan.top == 0 else (scan.top / scale if scale else np.inf)
    passed = relative <= limit
    over = [] if passed else np.flatnonzero(difference(*flat) > limit * scale)
    return Row(
        key,
        Verdict.PASS if passed else Verdict.FAIL,
        "" if passed else f"off by {relative:.1e} of the largest value",
        max_abs=scan.top,
        mean_abs=scan.total / reference.size,
        relative=relative,
        max_rel=scan.max_rel if kind(reference) == "float" else relative,
        index=_index(scan.where, reference.shape),
        first=_index(int(over[0]), reference.shape) if len(over) else (),
        over=len(over),
        size=int(reference.size),
        bound=limit,
    )


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


SAMPLE = 1 << 15
"""Elements, evenly spread, that a median over a large tensor is taken from."""


def spread(array: Array) -> Array:
    """Return a view of SAMPLE elements or so, evenly spread, or of all if there are fewer."""
    # an odd stride, or the width of a picture or kernel could leave out every other column
    return array.reshape(-1)[:: max(1, array.size // SAMPLE) | 1]
