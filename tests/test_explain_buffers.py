"""Every relation of a running statistic, made by hand."""

import numpy as np
import pytest

from pipeline.explain import explain
from pipeline.failure import FailureCase
from tests.failing_cases import Array, check, draw, make_case, relations

X = draw(4, 6, 3, 5) * 2 + 1
N = 60
MEAN = X.mean(axis=(0, 2, 3))
BIASED = X.var(axis=(0, 2, 3))
UNBIASED = BIASED * N / (N - 1)
BEFORE = {"running_mean": draw(6), "running_var": np.abs(draw(6)) + 0.5}
RIGHT = {
    "running_mean": 0.9 * BEFORE["running_mean"] + 0.1 * MEAN,
    "running_var": 0.9 * BEFORE["running_var"] + 0.1 * UNBIASED,
}


def buffer(name: str, actual: Array, *, given: bool = True, momentum: float | None = 0.1):
    arrays = {"before": BEFORE[name], "count": np.asarray(N)}
    if given:
        arrays["input/0"] = X
    spec = {"torch": {"kind": "batch_norm"} | ({} if momentum is None else {"momentum": momentum})}
    return make_case(
        "buffer", RIGHT[name], actual, arrays=arrays, spec=spec, name=f"cp.bn.{name}", mode="train"
    )


def var(momentum: float, statistic: Array) -> Array:
    return (1 - momentum) * BEFORE["running_var"] + momentum * statistic


def mean(momentum: float, statistic: Array = MEAN) -> Array:
    return (1 - momentum) * BEFORE["running_mean"] + momentum * statistic


def short(array: Array) -> Array:
    return array.astype(np.float16).astype(array.dtype)


HALF = X[:2]
WRONG: list[tuple[str, str, Array]] = [
    ("stale-running-statistics", "running_mean", BEFORE["running_mean"]),
    ("stale-running-statistics", "running_var", BEFORE["running_var"]),
    ("updated-twice", "running_mean", 0.81 * BEFORE["running_mean"] + 0.19 * MEAN),
    ("updated-twice", "running_var", 0.729 * BEFORE["running_var"] + 0.271 * UNBIASED),
    ("momentum-convention", "running_mean", mean(0.9)),
    ("momentum-convention", "running_var", var(0.9, UNBIASED)),
    ("momentum", "running_mean", mean(0.01)),
    ("momentum", "running_var", var(0.25, UNBIASED)),
    ("biased-variance", "running_var", var(0.1, BIASED)),
    ("biased-variance and momentum-convention", "running_var", var(0.9, BIASED)),
    ("unbiased-twice", "running_var", var(0.1, UNBIASED * N / (N - 1))),
    ("variance-count", "running_var", var(0.1, BIASED * 15 / 14)),
    ("no-averaging", "running_mean", MEAN),
    ("no-decay", "running_mean", BEFORE["running_mean"] + 0.1 * MEAN),
    ("deviation-for-variance", "running_var", var(0.1, np.sqrt(UNBIASED))),
    ("second-moment", "running_var", var(0.1, np.square(X).mean(axis=(0, 2, 3)))),
    ("mean-for-variance", "running_var", var(0.1, MEAN)),
    ("variance-for-mean", "running_mean", mean(0.1, BIASED)),
    ("extra-activation", "running_mean", mean(0.1, np.maximum(X, 0).mean(axis=(0, 2, 3)))),
    ("part-of-batch", "running_mean", mean(0.1, HALF.mean(axis=(0, 2, 3)))),
    ("part-of-batch", "running_var", var(0.1, HALF.var(axis=(0, 2, 3)) * 30 / 29)),
    ("dtype-float16", "running_mean", short(RIGHT["running_mean"])),
    ("swapped-channels", "running_mean", RIGHT["running_mean"][[1, 0, 2, 3, 4, 5]]),
]


@pytest.mark.parametrize(("relation", "name", "actual"), WRONG)
def test_wrong_buffers(relation: str, name: str, actual: Array) -> None:
    check(buffer(name, actual), relation)


@pytest.mark.parametrize(
    ("momentum", "text"),
    [
        (0.01, "gives the batch the weight 0.01 in place of 0.1"),
        (
            float(np.float32(0.01)),
            "gives the batch the weight 0.009999999776 in place of 0.1 (0.01 as a float32 number)",
        ),
        (1 - float(np.float32(0.9)), "keeps its momentum, 0.9, as a float32 number"),
    ],
)
def test_the_momentum_is_named(momentum: float, text: str) -> None:
    assert explain(buffer("running_mean", mean(momentum)))[0].text == text


def test_the_momentum_of_the_reference_is_read_off_it() -> None:
    case = buffer("running_mean", mean(0.9), momentum=None)
    assert "keeps 0.1 of the old value, not 0.9" in check(case, "momentum-convention").text


@pytest.mark.parametrize(
    ("relation", "name", "actual"),
    [
        ("momentum-convention", "running_mean", mean(0.9)),
        ("biased-variance", "running_var", var(0.1, BIASED)),
        ("updated-twice", "running_var", 0.81 * BEFORE["running_var"] + 0.19 * UNBIASED),
    ],
)
def test_without_the_batch_its_statistic_is_read_off_the_reference(
    relation: str, name: str, actual: Array
) -> None:
    check(buffer(name, actual, given=False), relation)


def test_a_case_that_does_not_fit_its_reference_is_not_explained() -> None:
    case = buffer("running_mean", mean(0.9))
    arrays = {**dict(case.arrays), "input/0": X + 1}
    wrong: FailureCase = make_case(
        "buffer", RIGHT["running_mean"], mean(0.9), arrays=arrays, name=case.name, spec=case.spec
    )
    assert relations(wrong) == []


def test_buffers_in_float32() -> None:
    for relation, actual in (
        ("momentum-convention", mean(0.9)),
        ("dtype-float16", short(RIGHT["running_mean"])),
    ):
        case = buffer("running_mean", actual)
        arrays = {k: a.astype(np.float32) for k, a in case.arrays.items() if a.dtype.kind == "f"}
        reference, found = arrays.pop("reference"), arrays.pop("actual")
        narrow = make_case("buffer", reference, found, arrays=arrays, name=case.name)
        check(narrow, relation)
    right = RIGHT["running_mean"].astype(np.float32)
    ulp = np.nextafter(right, np.float32(9))
    assert relations(make_case("buffer", right, ulp, name="bn.running_mean")) == []
