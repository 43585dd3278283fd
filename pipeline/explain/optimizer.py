"""Why a parameter or its momentum differs after optimizer steps from given gradients.

The steps are taken anew in NumPy from the saved weights, gradients and rates (arrays ``before``,
``gradient/<step>``, ``rate/<step>``), with Torch's update: coupled decay, the first gradient as the
first momentum. Numbers that a port may have got wrong (decay, momentum, the rate's multiplier) are
solved for and then confirmed over all elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from common.config_sections import ScheduleConfig
from common.schedule import lr_factor
from pipeline.explain.confirm import (
    LIMITS,
    Candidate,
    apart,
    comparable,
    confirmed,
    reproduces,
    scale_of,
    shortest,
    solve,
)
from pipeline.explain.schedule import explain_option
from pipeline.failure import FailureCase, Hint
from pipeline.records import Array

__all__ = ["Sgd", "explain_momentum", "explain_option", "explain_update"]


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum, and what can be got wrong about it. Numbers may be complex (solve)."""

    momentum: Any
    weight_decay: Any
    nesterov: bool = False
    dampening: Any = 0.0
    dampens_first: bool = False
    """The first momentum is the dampened gradient, as if the buffer had started at zero."""
    decoupled: Any = None
    """Decay taken off the weight itself, times this rate over the group's own; None: coupled."""
    lr_mult: Any = 1.0
    accumulated: bool = False
    """Gradients of earlier steps stay."""
    dtypes: dict[str, str] = field(default_factory=dict[str, str])
    """What is rounded: "before", "weight" (after a step), "gradient", "momentum", "rate"
    -> dtype."""
    arithmetic: str = "float64"

    def run(self, before: Array, gradients: Sequence[Array], rates: Sequence[float]) -> _State:
        """Return weight and momentum after one step per gradient."""
        weight, momentum = self._short("before", before), None
        for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
            if self.accumulated:
                gradient = np.sum(gradients[: number + 1], axis=0)
            # a plain number: it leaves the arrays in the dtype that they have
            lr = self._short("rate", np.asarray(rate)).item() * self.lr_mult
            g = self._short("gradient", gradient)
            if self.decoupled is None:
                g = g + self.weight_decay * weight
            else:
                weight = weight - lr * self.decoupled * self.weight_decay * weight
            momentum = self._short("momentum", self._next(momentum, g))
            change = g + self.momentum * momentum if self.nesterov else momentum
            weight = self._short("weight", weight - lr * change)
        return _State(weight, np.zeros_like(weight) if momentum is None else momentum)

    def _next(self, momentum: Array | None, gradient: Array) -> Array:
        if momentum is None:
            return gradient * (1 - self.dampening) if self.dampens_first else gradient * 1.0
        return self.momentum * momentum + (1 - self.dampening) * gradient

    def _short(self, what: str, array: Array) -> Array:
        dtype = self.dtypes.get(what)
        if self.arithmetic != "float64":
            array = array.astype(self.arithmetic)
        return array if dtype is None else rounded_to(array, dtype)


def rounded_to(array: Array, dtype: str) -> Array:
    """Return the numbers rounded to a shorter dtype, in the dtype they had."""
    if dtype != "bfloat16":
        return array.astype(dtype).astype(array.dtype)
    bits = array.astype(np.float32).view(np.uint32)
    # to the nearest, half to even: the upper 16 bits of a float32 are a bfloat16
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(array.dtype)


@dataclass(frozen=True)
class _State:
    weight: Array
    momentum: Array

    def of(self, kind: str) -> Array:
        return self.momentum if kind == "momentum" else self.weight


def explain_update(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's parameter after the steps (case kind "update")."""
    return _explain(case)


def explain_momentum(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's momentum buffer (case kind "momentum")."""
    return _explain(case)


def _explain(case: FailureCase) -> list[Hint]:
    if not comparable(case):
        return []
    steps = _Steps(case)
    candidates = list(_generic(case))
    if reproduces(case, steps.with_rule(steps.right)):
        for wrong in (_flags, _decays, _multipliers, _momenta, _shifts, _rounded, _solved):
            candidates += wrong(steps)
    return confirmed(case, candidates)


class _Steps:
    """The steps of a case, to be taken by any rule."""

    def __init__(self, case: FailureCase) -> None:
        self.case = case
        self.group = case.settings["group"]
        count = sum(key.startswith("gradient/") for key in case.arrays)
        self.numbers = range(1, count + 1)
        self.before = case.arrays["before"].astype(np.float64)
        self.gradients = [case.arrays[f"gradient/{n}"].astype(np.float64) for n in self.numbers]
        self.rates = [float(case.arrays[f"rate/{n}"]) for n in self.numbers]
        self.right = Sgd(
            float(self.group["momentum"]),
            float(self.group["weight_decay"]),
            nesterov=bool(self.group["nesterov"]),
        )
        self.actual = case.arrays["actual"].astype(np.float64)

    def with_rule(self, rule: Sgd, rates: Sequence[float] | None = None) -> Array:
        """Return the tensor of the case by another rule or with other rates."""
        chosen = self.rates if rates is None else rates
        made = rule.run(self.before, self.gradients, chosen).of(self.case.kind)
        return made if np.iscomplexobj(made) else made.astype(np.float64)

    def candidate(self, relation: str, text: str, rule: Sgd) -> Candidate:
        """Return the candidate of one rule."""
        return Candidate(relation, text, partial(self.with_rule, rule))

    def solved(self, change: Callable[[Any], Sgd], start: float) -> float:
        """Return the number with which ``change`` comes nearest, in as few digits as confirm it."""
        value = solve(lambda number: self.with_rule(change(number)), start, self.actual)
        scale, limit = scale_of(self.actual, self.actual), LIMITS[self.case.dtype].residual
        allowed = min(limit, 4 * apart(self.with_rule(change(value)), self.actual, scale) + 1e-15)
        return shortest(
            value, lambda n: apart(self.with_rule(change(n)), self.actual, scale) <= allowed
        )


def _generic(case: FailureCase) -> Iterator[Candidate]:
    before = case.arrays["before"]
    if case.kind == "update":
        text = "has not moved: it is in no group, frozen, or its gradient never came"
        yield Candidate("not-updated", text, partial(np.asarray, before))
    else:
        text = "is zero: it was never updated, or there is no momentum"
        yield Candidate("not-updated", text, lambda: np.zeros_like(case.arrays["reference"]))
    for key, array in case.arrays.items():
        if key.startswith("other/"):
            text = f"is what {key.removeprefix('other/')} should be: two parameters changed places"
            yield Candidate("swapped-parameters", text, partial(np.asarray, array))


def _flags(steps: _Steps) -> Iterator[Candidate]:
    right = steps.right
    text = "plain momentum where Nesterov's is asked" if right.nesterov else "Nesterov momentum"
    yield steps.candidate("nesterov", text, replace(right, nesterov=not right.nesterov))
    text = "gradients are not cleared: each step has the sum of all so far"
    yield steps.candidate("gradient-not-cleared", text, replace(right, accumulated=True))
    if right.momentum:
        yield steps.candidate("momentum", "no momentum", replace(right, momentum=0.0))


def _decays(steps: _Steps) -> Iterator[Candidate]:
    right, decay = steps.right, float(steps.right.weight_decay)
    optimizer, name = steps.case.settings["optimizer"], steps.group["name"]
    recipe = _stored(float(optimizer["weight_decay"]), steps.case)
    if decay:
        text = f"no weight decay on group {name}, which has {decay:.6g}"
        yield steps.candidate("weight-decay", text, replace(right, weight_decay=0.0))
    elif recipe:
        text = f"weight decay {recipe:.6g} on group {name}, which has none"
        yield steps.candidate("weight-decay", text, replace(right, weight_decay=recipe))
    mult = float(steps.group["lr_mult"])
    for factor, rate in {1.0: "group's", 1.0 / mult if mult else 1.0: "base"}.items():
        text = f"weight decay is decoupled from the gradient, times the {rate} rate (group {name})"
        yield steps.candidate("decoupled-decay", text, replace(right, decoupled=factor))


def _stored(value: float, case: FailureCase) -> float:
    """Return an option as the float64 run has it: rounded to float32, as Paddle's kernel does."""
    return float(np.float32(value)) if case.dtype == "float64" else value


def _multipliers(steps: _Steps) -> Iterator[Candidate]:
    right, group = steps.right, steps.group
    mult, head = float(group["lr_mult"]), float(steps.case.settings["optimizer"]["head_lr_mult"])
    for other in dict.fromkeys((1.0, head, 1.0 / head, head * head)):
        if other != mult:
            text = f"rate times {other:g} instead of {mult:g} (group {group['name']})"
            yield steps.candidate("lr-multiplier", text, replace(right, lr_mult=other / mult))


def _momenta(steps: _Steps) -> Iterator[Candidate]:
    right, momentum = steps.right, float(steps.right.momentum)
    plain = float(steps.case.settings["optimizer"]["momentum"])
    if plain != momentum:
        text = f"momentum is {plain:g} in float64, where the kernel stores it in float32"
        yield steps.candidate("momentum", text, replace(right, momentum=plain))
    for first in (False, True):
        words = ", the first one too: the buffer starts at zero" if first else ""
        text = f"gradients are dampened by 1 - {momentum:.6g}{words}"
        rule = replace(right, dampening=momentum, dampens_first=first)
        yield steps.candidate("dampening", text, rule)


def _shifts(steps: _Steps) -> Iterator[Candidate]:
    schedule = ScheduleConfig(**steps.case.settings["schedule"])
    base = float(steps.case.settings["optimizer"]["base_lr"]) * float(steps.group["lr_mult"])
    for shift in (1, -1, 2, -2, 3, -3):
        rates = [base * lr_factor(max(n - 1 + shift, 0), schedule) for n in steps.numbers]
        way = "later" if shift > 0 else "earlier"
        text = f"rates of {abs(shift)} iteration{'s' * (abs(shift) > 1)} {way}"
        yield Candidate("lr-shifted", text, partial(steps.with_rule, steps.right, rates))
    rates = [steps.rates[0]] * len(steps.rates)
    text = "rate stays that of the first step: the scheduler does not step"
    yield Candidate("lr-constant", text, partial(steps.with_rule, steps.right, rates))


def _rounded(steps: _Steps) -> Iterator[Candidate]:
    # where a number falls between two short ones depends on the last place it had before
    right = replace(steps.right, arithmetic=steps.case.dtype)
    for dtype in ("float32", "float16", "bfloat16"):
        if dtype == steps.case.dtype:
            continue
        for what in ("weight", "momentum", "gradient", "rate"):
            if what != "rate" or dtype != "bfloat16":
                text = f"{what} is kept in {dtype}"
                yield steps.candidate("dtype", text, replace(right, dtypes={what: dtype}))
        text = f"weight is kept in {dtype} from the start"
        kept = {"before": dtype, "weight": dtype}
        yield steps.candidate("dtype", text, replace(right, dtypes=kept))
        both = {what: dtype for what in ("before", "weight", "gradient", "momentum")}
        yield steps.candidate("dtype", f"steps in {dtype}", replace(right, dtypes=both))
    if steps.case.dtype == "float64":
        yield steps.candidate("dtype", "steps in float32", replace(right, arithmetic="float32"))


def _solved(steps: _Steps) -> Iterator[Candidate]:
    """Yield the numbers that fit best; last, because one of them may stand for a known relation."""
    right, group = steps.right, steps.group
    decay, momentum = float(right.weight_decay), float(right.momentum)
    value = steps.solved(lambda d: replace(right, weight_decay=d), decay)
    text = f"weight decay {value:.6g} instead of {decay:.6g} on group {group['name']}"
    yield steps.candidate("weight-decay", text, replace(right, weight_decay=value))
    ratio = steps.solved(lambda r: replace(right, lr_mult=r), 1.0)
    text = f"rate is {ratio:.6g} times what it should be (group {group['name']})"
    yield steps.candidate("lr-multiplier", text, replace(right, lr_mult=ratio))
    value = steps.solved(lambda m: replace(right, momentum=m), momentum)
    text = f"momentum {value:.6g} instead of {momentum:.6g}"
    yield steps.candidate("momentum", text, replace(right, momentum=value))
    value = steps.solved(lambda d: replace(right, dampening=d), 0.0)
    text = f"dampening {value:.6g} instead of 0"
    yield steps.candidate("dampening", text, replace(right, dampening=value))
