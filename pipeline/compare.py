"""Comparison of named arrays, reference (Torch) against actual (Paddle). No framework is loaded.

A value passes only by being compared. Order of the checks of one tensor: present on both sides,
shape, kind of number, finite, not constant, then the difference

    max |actual - reference|  <=  bound * max |reference|

in float64 or, for integers, exactly. Nothing is broadcast, transposed or skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.differences import (
    Array,
    difference,
    is_constant,
    kind,
    magnitude,
    measure,
    structural_row,
)
from pipeline.verdicts import Allowance, Bound, Row, Verdict, bound_for, matching

EXACT = 0.0


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
    row = structural_row(key, reference, actual)
    if row is not None:
        return row
    exact = kind(reference) != "float"
    row = measure(key, reference, actual, EXACT if exact else limit)
    if row.verdict.passed and not may_be_constant and is_constant(reference):
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
            bound = bound_for(key, bounds)
            row = compare_tensor(
                key, reference[key], actual[key], limit=bound.relative, may_be_constant=free
            )
            row = replace(row, by_chance=True) if bound.by_chance else row
        rows.append(row)
    if not rows:
        rows.append(Row("(record)", Verdict.VACUOUS, "empty record: nothing was compared"))
    return rows


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
    row = structural_row(key, reference, actual)
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
