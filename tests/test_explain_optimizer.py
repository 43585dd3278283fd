"""Every wrong update that is known by name is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from explained import Array, assert_named, assert_silent, case_of, relations, unrelated

from pipeline.explain.optimizer import explain_momentum, explain_update, rounded_to
from pipeline.failure import FailureCase

STEPS = 5
MOMENTUM, DECAY = float(np.float32(0.9)), float(np.float32(5e-4))
SCHEDULE = {
    "max_iters": 6,
    "warmup_iters": 2,
    "warmup": "exp",
    "warmup_ratio": 0.1,
    "power": 0.9,
}
OPTIMIZER = {
    "base_lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "head_lr_mult": 10.0,
    "nesterov": False,
}
FACTORS = [0.1, 0.1**0.5, 1.0, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0.0]
"""Of the schedule's iterations."""
SHAPE = (40, 5)


def drawn(mult: float = 10.0) -> tuple[Array, list[Array], list[float]]:
    rng = np.random.default_rng(4)
    gradients = [rng.uniform(-1, 1, SHAPE) for _ in range(STEPS)]
    return rng.standard_normal(SHAPE), gradients, [0.01 * mult * f for f in FACTORS[:STEPS]]


def sgd(
    weight: Array,
    gradients: list[Array],
    rates: list[float],
    *,
    momentum: float = MOMENTUM,
    decay: float = DECAY,
    nesterov: bool = False,
    dampening: float = 0.0,
    zero_start: bool = False,
    decoupled: float | None = None,
    add_up: bool = False,
) -> dict[str, Array]:
    """The update written out, step by step."""
    velocity: Array | None = None
    for number, rate in enumerate(rates):
        g = sum(gradients[: number + 1]) if add_up else gradients[number]
        if decoupled is not None:
            weight = weight * (1 - rate * decoupled * decay)
        else:
            g = g + decay * weight
        if velocity is None and not zero_start:
            velocity = g
        else:
            velocity = momentum * (0.0 if velocity is None else velocity) + (1 - dampening) * g
        weight = weight - rate * (g + momentum * velocity if nesterov else velocity)
    assert velocity is not None
    return {"update": weight, "momentum": velocity}


def case_with(kind: str, actual: Array, *, steps: int = STEPS, decay: float = DECAY) -> FailureCase:
    before, gradients, rates = drawn()
    right = sgd(before, gradients[:steps], rates[:steps], decay=decay)[kind]
    arrays: dict[str, Any] = {"reference": right, "actual": actual, "before": before}
    for n in range(1, steps + 1):
        arrays |= {f"gradient/{n}": gradients[n - 1], f"rate/{n}": rates[n - 1]}
    group = {
        "name": "head_decay" if decay else "head_no_decay",
        "lr_mult": 10.0,
        "weight_decay": decay,
        "momentum": MOMENTUM,
        "nesterov": False,
    }
    settings = {"optimizer": OPTIMIZER, "schedule": SCHEDULE, "group": group}
    return case_of(kind, "ffm.weight", arrays, settings, step="optimizer")


def made(kind: str = "update", *, steps: int = STEPS, **wrong: Any) -> Array:
    before, gradients, rates = drawn()
    return sgd(before, gradients[:steps], rates[:steps], **wrong)[kind]


def shifted(by: int) -> Array:
    before, gradients, _ = drawn()
    return sgd(before, gradients, [0.1 * FACTORS[max(n + by, 0)] for n in range(STEPS)])["update"]


def times(ratio: float) -> Array:
    before, gradients, rates = drawn()
    return sgd(before, gradients, [ratio * rate for rate in rates])["update"]


def rounding(dtype: str) -> Array:
    """The weight is rounded after each step."""
    before, gradients, rates = drawn()
    weight, velocity = before, None
    for g, rate in zip(gradients, rates, strict=True):
        g = g + DECAY * weight
        velocity = g if velocity is None else MOMENTUM * velocity + g
        weight = rounded_to(weight - rate * velocity, dtype)
    return weight


BEFORE = drawn()[0]
WRONG: list[tuple[str, Callable[[], Array], str]] = [
    ("nesterov", lambda: made(nesterov=True), "Nesterov"),
    ("gradient-not-cleared", lambda: made(add_up=True), "not cleared"),
    ("weight-decay", lambda: made(decay=0.0), "no weight decay on group head_decay"),
    ("weight-decay", lambda: made(decay=1e-4), "weight decay 0.0001 instead of 0.0005"),
    ("decoupled-decay", lambda: made(decoupled=1.0), "the group's rate"),
    ("decoupled-decay", lambda: made(decoupled=0.1), "the base rate"),
    ("lr-multiplier", lambda: times(0.1), "rate times 1 instead of 10"),
    ("lr-multiplier", lambda: times(10.0), "rate times 100 instead of 10"),
    ("lr-multiplier", lambda: times(0.37), "0.37 times"),
    ("momentum", lambda: made(momentum=0.95), "momentum 0.95 instead of 0.9"),
    ("momentum", lambda: made(momentum=0.0), "no momentum"),
    ("momentum", lambda: made(momentum=0.9), "0.9 in float64"),
    ("dampening", lambda: made(dampening=MOMENTUM), "dampened"),
    ("dampening", lambda: made(dampening=MOMENTUM, zero_start=True), "starts at zero"),
    ("dampening", lambda: made(dampening=0.25), "dampening 0.25"),
    ("lr-shifted", lambda: shifted(1), "1 iteration later"),
    ("lr-shifted", lambda: shifted(-1), "1 iteration earlier"),
    ("lr-shifted", lambda: shifted(2), "2 iterations later"),
    ("lr-constant", lambda: sgd(*drawn()[:2], [drawn()[2][0]] * STEPS)["update"], "first step"),
    ("not-updated", lambda: BEFORE, "not moved"),
    ("dtype", lambda: rounding("float32"), "weight is kept in float32"),
    ("dtype", lambda: rounding("float16"), "weight is kept in float16"),
    ("dtype", lambda: rounding("bfloat16"), "weight is kept in bfloat16"),
]


@pytest.mark.parametrize(("relation", "wrong", "words"), WRONG)
def test_a_wrong_update_is_named(relation: str, wrong: Callable[[], Array], words: str) -> None:
    hint = assert_named(explain_update, case_with("update", wrong()), relation)
    assert words in hint.text


def test_decay_on_a_group_without_is_named() -> None:
    actual = made(decay=DECAY)
    hint = assert_named(explain_update, case_with("update", actual, decay=0.0), "weight-decay")
    assert "on group head_no_decay, which has none" in hint.text


@pytest.mark.parametrize(
    ("relation", "wrong"),
    [
        ("momentum", {"momentum": 0.8}),
        ("weight-decay", {"decay": 0.0}),
        ("gradient-not-cleared", {"add_up": True}),
        ("dampening", {"dampening": MOMENTUM, "zero_start": True}),
    ],
)
def test_a_wrong_momentum_is_named(relation: str, wrong: dict[str, Any]) -> None:
    case = case_with("momentum", made("momentum", **wrong))
    assert_named(explain_momentum, case, relation)


def test_a_momentum_that_never_came_is_named() -> None:
    assert_named(explain_momentum, case_with("momentum", np.zeros(SHAPE)), "not-updated")


def test_two_parameters_that_changed_places_are_named() -> None:
    other = np.random.default_rng(8).standard_normal(SHAPE)
    case = case_with("update", other)
    arrays = {**case.arrays, "other/ffm.bn.weight": other}
    case = case_of("update", "ffm.weight", arrays, case.settings)
    hint = assert_named(explain_update, case, "swapped-parameters")
    assert "ffm.bn.weight" in hint.text


def test_after_one_step_the_plain_relation_comes_first() -> None:
    # after one step Nesterov's is a rate of 1.9: both are true, the known relation is first
    case = case_with("update", made(steps=1, nesterov=True), steps=1)
    assert relations(explain_update(case))[0] == "nesterov"


def test_an_unrelated_update_has_no_hint() -> None:
    assert_silent(explain_update, unrelated(case_with("update", BEFORE)))
    assert_silent(explain_momentum, unrelated(case_with("momentum", BEFORE)))


def test_without_the_right_steps_no_relation_of_steps_is_tried() -> None:
    case = case_with("update", made(nesterov=True))
    arrays = {**case.arrays, "reference": case.arrays["reference"] + 0.1}
    assert_silent(explain_update, case_of("update", "ffm.weight", arrays, case.settings))


def test_bfloat16_rounds_to_the_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    np.testing.assert_array_equal(rounded_to(values, "bfloat16"), [1.0, 1.0, 1 + 2**-6, 1 + 2**-7])
