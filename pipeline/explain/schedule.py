"""Why a learning rate, an option of a group, or a parameter's group differs.

The series is computed anew from the configuration's schedule, all iterations at once, with what
ports get wrong about it. An option or a group is explained by where its value stands instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.explain.confirm import Candidate, comparable, confirmed, reproduces
from pipeline.failure import FailureCase, Hint
from pipeline.records import Array

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """A schedule over all iterations: common.schedule.lr_factor, and wrong forms of it."""

    max_iters: int
    warmup_iters: int
    warmup: str
    warmup_ratio: float
    power: float
    shift: int = 0
    """Iterations by which the rates come too early."""
    every: int = 1
    """Iterations between two steps of the scheduler."""
    steps: int = 1
    """Steps of the scheduler per iteration."""
    decay_length: int = 0
    """Iterations of the decay added to max_iters - warmup_iters."""
    decay_counts_warmup: bool = False

    def factors(self, length: int) -> Floats:
        """Return the (length,) factors on the base rate."""
        i = np.arange(length) // self.every * self.steps + self.shift
        i = np.maximum(i, 0)
        start = 0 if self.decay_counts_warmup else self.warmup_iters
        total = self.max_iters - start + self.decay_length
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.maximum(1 - (i - start) / total, 0.0)
            decayed = np.maximum(left, 0.0) ** self.power
        warm = i < self.warmup_iters
        return np.where(
            warm, self._warming(np.minimum(i / max(self.warmup_iters, 1), 1.0)), decayed
        )

    def _warming(self, progress: Floats) -> Floats:
        ratio = self.warmup_ratio
        if self.warmup == "exp":
            return ratio ** (1 - progress)
        if self.warmup == "linear":
            return ratio + (1 - ratio) * progress
        if self.warmup == "from_zero":
            return progress
        return np.full(progress.shape, ratio)


def explain_series(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's learning rates (case kind "series")."""
    if not comparable(case) or case.arrays["reference"].size < 2:
        return []
    rates = _Rates(case)
    candidates = list(_generic(case))
    if reproduces(case, rates.of(rates.right)):
        for wrong in (_shifts, _warmups, _decays, _paces):
            candidates += wrong(rates)
    return confirmed(case, candidates)


class _Rates:
    """The series of one group."""

    def __init__(self, case: FailureCase) -> None:
        self.case = case
        self.length = len(case.arrays["reference"])
        settings = case.settings
        self.base = float(settings["optimizer"]["base_lr"]) * float(settings["group"]["lr_mult"])
        self.right = Series(**settings["schedule"])
        self.actual = case.arrays["actual"].astype(np.float64)

    def of(self, series: Series) -> Floats:
        """Return the rates of another schedule."""
        return self.base * series.factors(self.length)

    def candidate(self, relation: str, text: str, series: Series) -> Candidate:
        """Return the candidate of one schedule."""
        return Candidate(relation, text, partial(self.of, series))


def _generic(case: FailureCase) -> Iterator[Candidate]:
    reference, actual = case.arrays["reference"], case.arrays["actual"]
    text = "never changes: the scheduler is not stepped, or not attached"
    yield Candidate("lr-constant", text, lambda: np.full_like(reference, actual[0]))
    top = int(np.argmax(reference))
    ratio = float(actual[top] / reference[top])
    text = f"is {ratio:.6g} times the reference at every iteration"
    yield Candidate("lr-multiplier", text, lambda: reference * ratio)
    for key, array in case.arrays.items():
        name = key.removeprefix("other/")
        if key.startswith("other/") and name != case.name:
            text = f"is the series of group {name}"
            yield Candidate("swapped-groups", text, partial(np.asarray, array))
    floor = float(actual.min())
    text = f"does not fall below {floor:.6g}"
    yield Candidate("minimum-rate", text, lambda: np.maximum(reference, floor))


def _shifts(rates: _Rates) -> Iterator[Candidate]:
    warmup = rates.right.warmup_iters
    shifts = [1, -1, 2, -2, 3, -3, warmup, -warmup]
    for shift in (s for s in shifts if s):
        way = "early" if shift > 0 else "late"
        text = f"comes {abs(shift)} iteration{'s' * (abs(shift) > 1)} too {way}"
        yield rates.candidate("lr-shifted", text, replace(rates.right, shift=shift))


def _warmups(rates: _Rates) -> Iterator[Candidate]:
    right = rates.right
    kinds = {
        "exp": "an exponential warm-up",
        "linear": "a linear warm-up",
        "constant": "a constant warm-up",
        "from_zero": "a linear warm-up from 0",
    }
    for kind, words in kinds.items():
        if kind != right.warmup:
            text = f"{words} instead of {right.warmup}"
            yield rates.candidate("warmup-kind", text, replace(right, warmup=kind))
    text = "no warm-up, the decay as it should be: the full rate until it begins"
    yield rates.candidate("warmup-kind", text, replace(right, warmup_ratio=1.0))
    text = "no warm-up: the decay begins at once"
    yield rates.candidate("warmup-kind", text, replace(right, warmup_iters=0))
    ratio = float(rates.actual[0]) / rates.base
    if ratio > 0:
        text = (
            f"the warm-up starts at {ratio:.6g} of the base rate instead of {right.warmup_ratio:g}"
        )
        yield rates.candidate("warmup-ratio", text, replace(right, warmup_ratio=ratio))
    peak = int(np.argmax(rates.actual))
    for length in dict.fromkeys((peak, right.warmup_iters - 1, right.warmup_iters + 1)):
        if 0 < length < right.max_iters and length != right.warmup_iters:
            text = f"a warm-up of {length} iterations instead of {right.warmup_iters}"
            yield rates.candidate("warmup-length", text, replace(right, warmup_iters=length))


def _decays(rates: _Rates) -> Iterator[Candidate]:
    right = rates.right
    text = "the decay counts the warm-up's iterations: it is on its way when the warm-up ends"
    yield rates.candidate("decay-start", text, replace(right, decay_counts_warmup=True))
    text = "the decay starts after the warm-up but is as long as the whole schedule"
    longer = replace(right, decay_length=right.warmup_iters)
    yield rates.candidate("decay-length", text, longer)
    for more in (1, -1):
        text = f"the decay ends {'after' if more > 0 else 'before'} max_iters, by one iteration"
        yield rates.candidate("decay-length", text, replace(right, decay_length=more))
    power = _power(rates)
    text = f"power {power:.6g} instead of {right.power:g}"
    yield rates.candidate("power", text, replace(right, power=power))
    end = _end(rates)
    text = f"max_iters {end} instead of {right.max_iters}"
    yield rates.candidate("decay-length", text, replace(right, max_iters=end))


def _middle(rates: _Rates) -> int:
    """Return an iteration in the middle of the decay, where logarithms are well-behaved."""
    return min((rates.right.warmup_iters + rates.right.max_iters) // 2, rates.length - 1)


def _power(rates: _Rates) -> float:
    at = _middle(rates)
    straight = replace(rates.right, power=1.0).factors(rates.length)[at]
    found = rates.actual[at] / rates.base
    if not (0 < straight < 1 and found > 0):
        return rates.right.power
    return float(f"{np.log(found) / np.log(straight):.10g}")


def _end(rates: _Rates) -> int:
    """Return the max_iters that the rate in the middle of the decay speaks of."""
    at, right = _middle(rates), rates.right
    found = float(rates.actual[at]) / rates.base
    left = 1 - found ** (1 / right.power) if found > 0 else 0.0
    if left <= 0:
        return right.max_iters
    return round((at - right.warmup_iters) / left) + right.warmup_iters


def _paces(rates: _Rates) -> Iterator[Candidate]:
    changes = np.flatnonzero(np.diff(rates.actual))
    for every in dict.fromkeys(
        [*(int(c) + 1 for c in changes[:1]), *np.diff(changes[:2]).tolist()]
    ):
        if every > 1:
            text = f"the scheduler steps at every {every} iterations only"
            yield rates.candidate("lr-pace", text, replace(rates.right, every=int(every)))
    for steps in (2, 3, 4):
        text = f"the scheduler steps {steps} times per iteration"
        yield rates.candidate("lr-pace", text, replace(rates.right, steps=steps))


_OPTION_RELATIONS = {
    "lr_mult": "lr-multiplier",
    "weight_decay": "weight-decay",
    "momentum": "momentum",
    "nesterov": "nesterov",
}


def explain_option(case: FailureCase) -> list[Hint]:
    """Return where a wrong option's value, or a parameter's group, comes from (kind "option").

    Arrays ``other/<group>``: the reference of the same option in every group; for a parameter the
    names of the groups.
    """
    if case.key.startswith("group/"):
        return confirmed(case, list(_groups(case)))
    option = case.key.rpartition("/")[2]
    return confirmed(case, list(_options(case, option)))


def _groups(case: FailureCase) -> Iterator[Candidate]:
    reference = str(case.arrays["reference"])
    tables: dict[str, Any] = dict(case.settings["groups"])
    yield Candidate(
        "not-updated",
        f"{case.name} is in no group: it is never updated",
        lambda: np.asarray("(no group)"),
    )
    for name, group in tables.items():
        if name == reference:
            continue
        text = f"{case.name} is in group {name} instead of {reference}"
        if changed := _differences(group, tables.get(reference, {})):
            text += f": {', '.join(changed)}"
        yield Candidate("parameter-group", text, partial(np.asarray, name))


def _differences(group: Mapping[str, float], reference: Mapping[str, float]) -> list[str]:
    words = {"lr_mult": "rate times", "weight_decay": "weight decay"}
    return [
        f"{text} {group[option]:g} instead of {reference[option]:g}"
        for option, text in words.items()
        if option in reference and group[option] != reference[option]
    ]


def _options(case: FailureCase, option: str) -> Iterator[Candidate]:
    relation = _OPTION_RELATIONS.get(option, "option")
    reference = case.arrays["reference"]
    settings = case.settings["optimizer"]
    known: list[tuple[float, str]] = [
        (0.0, ""),
        (1.0, ""),
        (settings["base_lr"], "the recipe's base_lr"),
        (settings["momentum"], "the recipe's momentum"),
        (1 - settings["momentum"], "1 - momentum"),
        (settings["weight_decay"], "the recipe's weight_decay"),
        (settings["head_lr_mult"], "the recipe's head_lr_mult"),
    ]
    known += [
        (float(array), f"that of group {key.removeprefix('other/')}")
        for key, array in case.arrays.items()
        if key.startswith("other/")
    ]
    of = f"{option} of group {case.name}"
    for value, words in known:
        origin = f", {words}," if words else ""
        text = f"{of} is {value:g}{origin} instead of {float(reference):g}"
        yield Candidate(relation, text, _number(value))
    for factor in (10.0, 0.1, 2.0, 0.5):
        text = f"{of} is {factor:g} times what it should be"
        yield Candidate(relation, text, _number(factor * float(reference)))


def _number(value: Any) -> Callable[[], Array]:
    return lambda: np.asarray(float(value))
