"""Every wrong series, option and group that is known by name is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from explained import Array, assert_named, assert_silent, case_of, relations, unrelated

from pipeline.explain.schedule import explain_option, explain_series
from pipeline.failure import FailureCase

M, W, BASE, RATIO, POWER = 300, 40, 0.01, 0.1, 0.9
SETTINGS: dict[str, Any] = {
    "optimizer": {
        "base_lr": BASE,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "head_lr_mult": 10.0,
        "nesterov": False,
    },
    "schedule": {
        "max_iters": M,
        "warmup_iters": W,
        "warmup": "exp",
        "warmup_ratio": RATIO,
        "power": POWER,
    },
    "group": {"lr_mult": 1.0, "weight_decay": 5e-4},
    "groups": {
        "decay": {"lr_mult": 1.0, "weight_decay": 5e-4},
        "no_decay": {"lr_mult": 1.0, "weight_decay": 0.0},
        "head_decay": {"lr_mult": 10.0, "weight_decay": 5e-4},
    },
}
Rate = Callable[[int], float]


def decay(i: float, *, length: int = M - W, start: int = W, power: float = POWER) -> float:
    return BASE * max(0.0, 1 - (i - start) / length) ** power


def rate(i: int) -> float:
    return BASE * RATIO ** (1 - i / W) if i < W else decay(i)


def series(function: Rate) -> Array:
    return np.array([function(i) for i in range(M)])


def warm(ramp: Callable[[float], float], length: int = W) -> Rate:
    """Return the schedule with another warm-up."""
    return lambda i: (
        BASE * ramp(i / length) if i < length else decay(i, length=M - length, start=length)
    )


def series_case(actual: Array) -> FailureCase:
    arrays = {
        "reference": series(rate),
        "actual": actual,
        "other/head_decay": 7 * series(rate) ** 2,
    }
    return case_of("series", "decay", arrays, SETTINGS, step="lr_schedule", key="lr/decay")


WRONG: list[tuple[str, Rate, str]] = [
    ("lr-shifted", lambda i: rate(i + 1), "1 iteration too early"),
    ("lr-shifted", lambda i: rate(max(i - 1, 0)), "1 iteration too late"),
    ("lr-shifted", lambda i: rate(i + 3), "3 iterations too early"),
    ("lr-shifted", lambda i: rate(i + W), "40 iterations too early"),
    ("lr-multiplier", lambda i: 10 * rate(i), "10 times"),
    ("lr-multiplier", lambda i: 0.37 * rate(i), "0.37 times"),
    ("lr-constant", lambda *_: BASE, "never changes"),
    ("lr-constant", lambda *_: BASE * RATIO, "never changes"),
    ("swapped-groups", lambda i: 7 * rate(i) ** 2, "head_decay"),
    ("minimum-rate", lambda i: max(rate(i), 0.002), "0.002"),
    ("warmup-kind", warm(lambda x: RATIO + (1 - RATIO) * x), "linear warm-up instead of exp"),
    ("warmup-kind", warm(lambda *_: RATIO), "constant"),
    ("warmup-kind", warm(lambda x: x), "from 0"),
    ("warmup-kind", warm(lambda *_: 1.0), "no warm-up, the decay"),
    ("warmup-kind", lambda i: decay(i, length=M, start=0), "the decay begins at once"),
    ("warmup-ratio", warm(lambda x: 0.02 ** (1 - x)), "0.02 of the base rate"),
    ("warmup-length", warm(lambda x: RATIO ** (1 - x), 60), "60 iterations instead of 40"),
    ("warmup-length", warm(lambda x: RATIO ** (1 - x), 41), "41 iterations"),
    ("decay-start", lambda i: rate(i) if i < W else decay(i, length=M, start=0), "counts"),
    ("decay-length", lambda i: rate(i) if i < W else decay(i, length=M), "whole schedule"),
    ("decay-length", lambda i: rate(i) if i < W else decay(i, length=M - W + 1), "one iteration"),
    ("decay-length", lambda i: rate(i) if i < W else decay(i, length=500 - W), "max_iters 500"),
    ("power", lambda i: rate(i) if i < W else decay(i, power=2.0), "power 2 instead of 0.9"),
    ("lr-pace", lambda i: rate(i // 10), "every 10 iterations"),
    ("lr-pace", lambda i: rate(2 * i), "2 times per iteration"),
]


@pytest.mark.parametrize(("relation", "wrong", "words"), WRONG)
def test_a_wrong_series_is_named(relation: str, wrong: Rate, words: str) -> None:
    hint = assert_named(explain_series, series_case(series(wrong)), relation)
    assert words in hint.text


def test_an_unrelated_series_has_no_hint() -> None:
    for seed in range(3):
        assert_silent(explain_series, unrelated(series_case(series(rate)), seed))


def test_without_the_right_schedule_no_relation_of_it_is_tried() -> None:
    case = series_case(series(warm(lambda *_: 1.0)))
    arrays = {**case.arrays, "reference": series(rate) ** 1.1}
    assert_silent(explain_series, case_of("series", "decay", arrays, SETTINGS))


def option_case(option: str, reference: float, actual: float, group: str = "decay") -> FailureCase:
    others = {
        f"other/{name}": values[option]
        for name, values in SETTINGS["groups"].items()
        if name != group and option in values
    }
    arrays = {"reference": reference, "actual": actual, **others}
    return case_of("option", group, arrays, SETTINGS, key=f"options/{group}/{option}")


@pytest.mark.parametrize(
    ("relation", "option", "reference", "actual"),
    [
        ("lr-multiplier", "lr_mult", 10.0, 1.0),
        ("lr-multiplier", "lr_mult", 1.0, 10.0),
        ("lr-multiplier", "lr_mult", 10.0, 100.0),
        ("weight-decay", "weight_decay", 0.0, 5e-4),
        ("weight-decay", "weight_decay", 5e-4, 0.0),
        ("weight-decay", "weight_decay", 5e-4, 5e-5),
        ("momentum", "momentum", 0.9, 0.0),
        ("momentum", "momentum", 0.9, 0.1),
        ("nesterov", "nesterov", 0.0, 1.0),
    ],
)
def test_a_wrong_option_is_named(
    relation: str, option: str, reference: float, actual: float
) -> None:
    hints = explain_option(option_case(option, reference, actual))
    assert relations(hints) == [relation]
    assert hints[0].residual <= 1e-15


def test_an_option_of_no_known_origin_has_no_hint() -> None:
    assert_silent(explain_option, option_case("weight_decay", 5e-4, 3.3e-4))


def group_case(reference: str, actual: str) -> FailureCase:
    arrays = {"reference": np.array(reference), "actual": np.array(actual)}
    return case_of("option", "ffm.bn.weight", arrays, SETTINGS, key="group/ffm.bn.weight")


def test_the_group_that_a_parameter_is_in_is_told_with_what_it_changes() -> None:
    hints = explain_option(group_case("head_decay", "no_decay"))
    assert relations(hints) == ["parameter-group"]
    assert "rate times 1 instead of 10, weight decay 0 instead of 0.0005" in hints[0].text
    assert relations(explain_option(group_case("decay", "(no group)"))) == ["not-updated"]


def test_a_group_that_the_reference_does_not_have_has_no_hint() -> None:
    assert_silent(explain_option, group_case("decay", "backbone"))
