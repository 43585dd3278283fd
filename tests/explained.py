"""Failure cases for the tests of pipeline/explain, and what every relation must stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.failure import FailureCase, Hint

Array = NDArray[Any]
Explain = Callable[[FailureCase], list[Hint]]


def case_of(
    kind: str,
    name: str,
    arrays: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    step: str = "loss",
    key: str = "",
    dtype: str = "float64",
) -> FailureCase:
    return FailureCase(
        step=step,
        dtype=dtype,
        key=key or f"case/{name}",
        kind=kind,
        name=name,
        where=name,
        arrays={key: np.asarray(array) for key, array in arrays.items()},
        settings=settings,
    )


def with_actual(case: FailureCase, actual: Any) -> FailureCase:
    return replace(case, arrays={**case.arrays, "actual": np.asarray(actual)})


def relations(hints: list[Hint]) -> list[str]:
    return [hint.relation for hint in hints]


def assert_named(explain: Explain, case: FailureCase, relation: str) -> Hint:
    """The relation comes first, and noise of a thousandth of the difference silences everything."""
    hints = explain(case)
    assert hints, f"{case.name}: nothing found, expected {relation}"
    assert hints[0].relation == relation, [(hint.relation, hint.text) for hint in hints]
    assert hints[0].residual <= 1e-11
    assert hints[0].before >= 1e3 * hints[0].residual
    if case.arrays["actual"].dtype.kind == "f":
        assert_silent(explain, with_noise(case))
    return hints[0]


def with_noise(case: FailureCase) -> FailureCase:
    """Return the case with noise of a hundredth of the difference on the actual side."""
    reference, actual = case.arrays["reference"], case.arrays["actual"]
    size = float(np.abs(actual.astype(np.float64) - reference).max())
    rng = np.random.default_rng(5)
    noise = 0.01 * size * (0.5 + rng.random(actual.shape))
    return with_actual(case, (actual + noise).astype(actual.dtype))


def assert_silent(explain: Explain, case: FailureCase) -> None:
    assert relations(explain(case)) == []


def unrelated(case: FailureCase, seed: int = 3) -> FailureCase:
    """Return the case with an actual side that nothing explains."""
    reference = case.arrays["reference"].astype(np.float64)
    rng = np.random.default_rng(seed)
    return with_actual(
        case, reference + 0.1 * np.abs(reference).max() * rng.random(reference.shape)
    )
