"""Failure cases made by hand, for the tests of pipeline/explain."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.explain import explain
from pipeline.failure import FailureCase, Hint

Array = NDArray[Any]


def draw(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    """Numbers from N(0, 1), others for every shape."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def make_case(kind: str, reference: Array, actual: Array, **fields: Any) -> FailureCase:
    """A case; ``arrays`` are added to the two."""
    arrays = {"reference": reference, "actual": actual, **fields.pop("arrays", {})}
    given: dict[str, Any] = {
        "step": "forward",
        "dtype": str(reference.dtype),
        "key": "eval/layer/x",
        "name": "x",
        "where": "layer x",
        "mode": "eval",
        **fields,
    }
    return FailureCase(kind=kind, arrays=arrays, **given)


def relations(case: FailureCase) -> list[str]:
    """The names of the hints, the best first."""
    return [hint.relation for hint in explain(case)]


def changed(case: FailureCase, actual: Array) -> FailureCase:
    """The case with another actual tensor."""
    return make_case(
        case.kind,
        case.arrays["reference"],
        actual,
        arrays={k: a for k, a in case.arrays.items() if k not in ("reference", "actual")},
        spec=case.spec,
        mode=case.mode,
        name=case.name,
    )


def check(case: FailureCase, relation: str) -> Hint:
    """The relation is named first; with noise on top, or of something else, it is not.

    The noise is a hundred thousandth of the largest value (float32: a hundredth), the "something
    else" a random difference of the size of the reference.
    """
    hints = explain(case)
    names = [hint.relation for hint in hints]
    assert names[:1] == [relation], f"{names}: {[hint.text for hint in hints]}"
    actual = case.arrays["actual"]
    double = actual.dtype == np.float64
    assert hints[0].residual <= (1e-11 if double else 1e-5)
    # a thousand times what is left, or ten times in float32
    assert hints[0].before >= (1000 if double else 5) * hints[0].residual
    size = float(np.abs(actual).max()) or 1.0
    noise = draw(*actual.shape, seed=7) * size * (1e-5 if double else 1e-2)
    noisy = changed(case, (actual + noise).astype(actual.dtype))
    assert relations(noisy) == [], [hint.text for hint in explain(noisy)]
    other = draw(*actual.shape, seed=8) * size
    assert relations(changed(case, other.astype(actual.dtype))) == []
    return hints[0]
