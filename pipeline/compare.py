"""Comparison of named arrays, reference (Torch) against actual (Paddle). No framework is loaded.

A value passes only by being compared. Order of the checks of one tensor: present on both sides,
shape, kind of number, finite, not constant, then the difference

    max |actual - reference|  <=  bound * max |reference|

in float64 or, for integers, exactly. Nothing is broadcast, transposed or skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Verdict(str, Enum):
    """Outcome of one tensor, one step or one run."""

    PASS = "PASS"
    FAIL = "FAIL"
    MISSING = "MISSING"
    VACUOUS = "VACUOUS"
    ERROR = "ERROR"
    NOT_RUN = "NOT RUN"

    @property
    def passed(self) -> bool:
        """True for PASS only."""
        return self is Verdict.PASS


@dataclass(frozen=True)
class Bound:
    """Largest difference allowed, relative to the tensor's largest reference value."""

    pattern: str
    """Shell pattern of the keys it is for; the first matching bound counts."""
    relative: float
    reason: str
    """Why this number and not a smaller one: a measurement or a property of the kernel."""


@dataclass(frozen=True)
class Allowance:
    """Keys whose reference may be constant, or must not be zero, with the reason."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Row:
    """The comparison of one tensor."""

    key: str
    verdict: Verdict
    detail: str = ""
    """What is wrong, in words; empty when it passed."""
    max_abs: float = 0.0
    mean_abs: float = 0.0
    relative: float = 0.0
    """max_abs over the largest |reference|: the deciding number, and so the bound that would have
    passed."""
    max_rel: float = 0.0
    """Largest elementwise |difference| / |reference|, over elements that are not zero."""
    index: tuple[int, ...] = ()
    """Where the largest difference is."""
    first: tuple[int, ...] = ()
    """The first element over the bound, in memory order: in a series, the iteration."""
    over: int = 0
    """Elements whose own difference exceeds the bound."""
    size: int = 0
    bound: float = 0.0
    floor: float | None = None
    """float32 only: |torch32 - torch64| + |paddle32 - paddle64|, relative like the rest."""
    self_ratio: float | None = None
    """float32 only: Paddle's own rounding over Torch's (medians)."""

    @property
    def severity(self) -> tuple[bool, float]:
        """Sort key: failures first, then by the share of the bound that is used."""
        share = self.relative / self.bound if self.bound else self.relative
        return (not self.verdict.passed, share if np.isfinite(share) else np.inf)


EXACT = 0.0


def matching(pattern: str, key: str) -> bool:
    """Tell whether a key matches a shell pattern."""
    return fnmatchcase(key, pattern)


def bound_for(key: str, bounds: Sequence[Bound]) -> Bound:
    """Return the first bound whose pattern matches. A table ends with the pattern ``*``."""
    for bound in bounds:
        if matching(bound.pattern, key):
            return bound
    raise LookupError(f"no bound for {key}; end the table with a bound for '*'")


_KINDS = {"b": "bool", "i": "integer", "u": "integer", "f": "float", "U": "text"}


def _kind(array: Array) -> str:
    """Family of a dtype: differences of width are a step's own business, of kind never."""
    return _KINDS[array.dtype.kind]


def _structural(key: str, reference: Array, actual: Array) -> Row | None:
    """Check all that must hold before values can be compared."""
    for name, array in (("reference", reference), ("actual", actual)):
        if array.dtype.kind not in _KINDS:
            text = f"{name} has dtype {array.dtype}, which is not comparable; record numbers"
            return Row(key, Verdict.FAIL, text, relative=np.inf)
    if reference.shape != actual.shape:
        text = f"shape {actual.shape}, reference {reference.shape}"
        return Row(key, Verdict.FAIL, text, relative=np.inf)
    kinds = (_kind(reference), _kind(actual))
    # text has its length in the dtype, and a wider integer holds the same number
    if kinds[0] != kinds[1] or (kinds[0] == "float" and reference.dtype != actual.dtype):
        text = f"dtype {actual.dtype}, reference {reference.dtype}"
        return Row(key, Verdict.FAIL, text, relative=np.inf)
    if reference.size == 0:
        return Row(key, Verdict.VACUOUS, "no elements: nothing was compared")
    if _kind(reference) == "float":
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


def _is_constant(array: Array) -> bool:
    if array.size < 2 or array.flat[0] != array.flat[-1]:
        return False
    return bool((array == array.flat[0]).all())


def difference(reference: Array, actual: Array) -> Array:
    """Return |actual - reference| in float64, or as a 0/1 inequality for text."""
    if _kind(reference) == "text":
        return (reference != actual).astype(np.float64)
    if _kind(reference) in ("integer", "bool"):
        # beyond 2**53 float64 merges neighbours: unequal integers must never look equal
        apart = np.abs(actual.astype(np.float64) - reference.astype(np.float64))
        return np.where(reference == actual, 0.0, np.maximum(apart, 1.0))
    with np.errstate(over="ignore"):  # an infinite difference is one, and fails
        # asarray: a subtraction of two numbers is no array any more
        apart = np.asarray(np.subtract(actual, reference, dtype=np.float64))
        return np.abs(apart, out=apart)


def magnitude(array: Array) -> float:
    """Return the largest absolute value; 1 for text, whose difference is 0 or 1."""
    if _kind(array) == "text":
        return 1.0
    # from both ends, which copies nothing: snapshots have millions of elements
    return max(abs(float(array.max())), abs(float(array.min())))


BLOCK = 1 << 16
"""Elements compared at a time: the intermediate arrays stay in the processor's cache."""


def _blocks(size: int) -> Iterator[slice]:
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


def _measure(
    key: str, reference: Array, actual: Array, limit: float, *, scale: float | None = None
) -> Row:
    """Compare values; all that is relative is so to ``scale``, by default the reference's largest.

    In float32 the scale is float64's: a weight that moved by two places moved by one, rounded.
    """
    flat = reference.reshape(-1), actual.reshape(-1)
    scan = _Scan()
    for part in _blocks(reference.size):
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
        max_rel=scan.max_rel if _kind(reference) == "float" else relative,
        index=_index(scan.where, reference.shape),
        first=_index(int(over[0]), reference.shape) if len(over) else (),
        over=len(over),
        size=int(reference.size),
        bound=limit,
    )


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def compare_tensor(
    key: str, reference: Array, actual: Array, *, limit: float, may_be_constant: bool = False
) -> Row:
    """Compare one tensor at a bound relative to its largest reference value.

    Args:
        key: name of the tensor.
        reference: what Torch computed.
        actual: what Paddle computed.
        limit: largest max|difference| / max|reference| that passes; 0 asks for equality.
        may_be_constant: a constant reference is expected here, and no sign of an empty check.
    """
    row = _structural(key, reference, actual)
    if row is not None:
        return row
    exact = _kind(reference) != "float"
    row = _measure(key, reference, actual, EXACT if exact else limit)
    if row.verdict.passed and not may_be_constant and _is_constant(reference):
        return Row(key, Verdict.VACUOUS, f"constant reference ({reference.flat[0]})", size=row.size)
    return row


def all_keys(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> list[str]:
    """Return the keys of both records in the reference's order, the actual's own ones last."""
    return [*reference, *(key for key in actual if key not in reference)]


def missing_row(
    key: str, reference: Mapping[str, Array], actual: Mapping[str, Array]
) -> Row | None:
    """Return the row of a key that one side alone has recorded, or None."""
    if key in reference and key in actual:
        return None
    side = "paddle" if key in reference else "torch"
    return Row(key, Verdict.MISSING, f"recorded by the other side only, not by {side}")


def compare_records(
    reference: Mapping[str, Array],
    actual: Mapping[str, Array],
    *,
    bounds: Sequence[Bound],
    constants: Sequence[Allowance] = (),
) -> list[Row]:
    """Compare two records key by key, in the reference's order. Extra and missing keys fail."""
    rows: list[Row] = []
    for key in all_keys(reference, actual):
        row = missing_row(key, reference, actual)
        if row is None:
            free = any(matching(rule.pattern, key) for rule in constants)
            limit = bound_for(key, bounds).relative
            row = compare_tensor(
                key, reference[key], actual[key], limit=limit, may_be_constant=free
            )
        rows.append(row)
    if not rows:
        rows.append(Row("(record)", Verdict.VACUOUS, "empty record: nothing was compared"))
    return rows


# The float32 rule. By the triangle inequality |t32 - p32| <= |t32 - t64| + |p32 - p64| + |t64 -
# p64|, so CROSS_FACTOR = 1 holds whenever float64 agrees: a violation means that the float32
# program is another one. What the sum cannot see is a Paddle side that rounds far more than Torch
# (a half-precision detour, another eps), hence the limits of
# Step.rounding. Both are discussed in docs/parity.md.
CROSS_FACTOR = 1.5
ULP = float(np.finfo(np.float32).eps)


SAMPLE = 1 << 15
"""Elements, evenly spread, that the typical rounding of a tensor is taken from."""


@dataclass(frozen=True)
class _Rounding:
    """How far one side's float32 numbers are from its own float64 numbers."""

    largest: float
    sample: Array
    """The same of evenly spread elements."""


def _rounding(narrow: Array, wide: Array) -> _Rounding:
    flat = narrow.reshape(-1), wide.reshape(-1)
    largest = max(
        float(difference(flat[1][part], flat[0][part]).max()) for part in _blocks(narrow.size)
    )
    return _Rounding(largest, difference(_spread(wide), _spread(narrow)))


def _spread(array: Array) -> Array:
    # an odd stride, or a picture's width could leave out every other column
    return array.reshape(-1)[:: max(1, array.size // SAMPLE) | 1]


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
    size = float(np.median(np.abs(_spread(wide)[rounded]))) or scale
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
    row = _structural(key, *pair32)
    if row is not None:
        return row
    if any(a.shape != b.shape for a, b in zip(pair32, pair64, strict=True)):
        text = "float32 and float64 runs have different shapes"
        return Row(key, Verdict.FAIL, text, relative=np.inf)
    if _kind(pair32[0]) != "float":
        return compare_tensor(key, *pair32, limit=EXACT, may_be_constant=may_be_constant)
    # an Inf in float64 would be an infinite floor, by which everything passes
    row = _structural(key, *pair64)
    if row is not None:
        return replace(row, detail=f"in the float64 records: {row.detail}")
    own = [_rounding(narrow, wide) for narrow, wide in zip(pair32, pair64, strict=True)]
    scale = max(magnitude(pair64[0]), float(np.finfo(np.float64).tiny))
    floor = (own[0].largest + own[1].largest) / scale
    limit = CROSS_FACTOR * floor + 4 * ULP
    row = _measure(key, *pair32, limit, scale=scale)
    if row.verdict.passed and not may_be_constant and _is_constant(pair32[0]):
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
    row = _structural(key, reference, actual)
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


def compare_zero(
    key: str, reference: Array, actual: Array, *, largest: float, limit: float, reason: str
) -> Row:
    """Judge a tensor that is zero but for rounding: both sides small beside their neighbours.

    Args:
        key: name of the tensor.
        reference: what Torch computed.
        actual: what Paddle computed.
        largest: largest absolute value among the tensors recorded with it.
        limit: largest share of ``largest`` that passes as rounding.
        reason: why the exact value is zero.
    """
    row = _structural(key, reference, actual)
    if row is not None:
        return row
    top = max(magnitude(reference), magnitude(actual))
    share = top / largest if largest else np.inf
    passed = share <= limit
    detail = f"exactly zero ({reason})" if passed else f"not zero: {share:.1e} of the largest"
    return Row(
        key,
        Verdict.PASS if passed else Verdict.FAIL,
        detail,
        max_abs=top,
        mean_abs=float(difference(reference, actual).mean()),
        relative=share,
        max_rel=share,
        size=int(reference.size),
        bound=limit,
    )


def overall(rows: Sequence[Row]) -> Verdict:
    """Return PASS if there are rows and all of them pass, else the gravest verdict."""
    if not rows:
        return Verdict.VACUOUS
    order = (Verdict.ERROR, Verdict.FAIL, Verdict.MISSING, Verdict.VACUOUS, Verdict.NOT_RUN)
    found = {row.verdict for row in rows}
    return next((verdict for verdict in order if verdict in found), Verdict.PASS)
