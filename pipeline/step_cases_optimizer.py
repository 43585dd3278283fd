"""Failure cases of the optimizer step: the weights before, and the gradients and rates given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common.param_groups import ParameterGroup, group_table
from common.schedule import lr_factor
from fake_data import rules
from pipeline.case_maker import CaseMaker
from pipeline.cases import short_schedule
from pipeline.differences import SAMPLE, difference, kind
from pipeline.explain.confirm import LIMITS, apart, scale_of
from pipeline.explain.optimizer import Sgd
from pipeline.failure import FailureCase
from pipeline.given import OPTIMIZER_STEPS, every_other_negative, gradient_at, gradient_by_rule
from pipeline.records import Array
from pipeline.verdicts import Row

NO_GROUP = ParameterGroup("(no group)", 0.0, 0.0)
"""Of a parameter that the recipe never updates."""


def optimizer_cases(maker: CaseMaker, rows: Sequence[Row]) -> Iterator[FailureCase]:
    """Yield a case for the first failing parameter and momentum of each group.

    A step's momentum follows from its gradients, and the weight from the momentum; the weight
    comes first because Nesterov's and a wrong rate leave the momentum as it is.
    """
    keys = [row.key for row in rows if not row.key.startswith("moved/")]
    # how far a parameter moved is compared at another bound: alone it speaks for the parameter
    keys = keys or list(dict.fromkeys(_moved(row.key) for row in rows))
    order = ("step1/param/", "step1/momentum/", "step5/param/", "step5/momentum/")
    ordered = [key for prefix in order for key in keys if key.startswith(prefix)]
    # what the first step got wrong is wrong after five, too
    first_step = [key for key in ordered if key.startswith("step1/")]
    seen: set[tuple[str, str]] = set()
    for key in first_step or ordered:
        _, tensor, name = key.split("/", 2)
        given = _Given.of(maker, name)
        if (tensor, given.group.name) not in seen:
            seen.add((tensor, given.group.name))
            yield _case(maker, key, given)


def _moved(key: str) -> str:
    """Return the key of the parameter whose movement ``moved/<step>/<name>`` tells."""
    _, step, name = key.split("/", 2)
    return f"{step}/param/{name}"


@dataclass(frozen=True)
class _Given:
    """What a parameter's steps started from; found out from the reference's first step."""

    name: str
    before: Array
    group: ParameterGroup

    @classmethod
    def of(cls, maker: CaseMaker, name: str) -> _Given:
        """Return the weights and the group with which the reference's first step is reproduced."""
        after = maker.reference[f"step1/param/{name}"]
        scale, best, least = scale_of(after, after), None, np.inf
        limit = LIMITS[maker.dtype].residual
        for group in _possible_groups(maker, after.ndim):
            for before in _possible_weights(maker, name, after, group):
                given = cls(name, before, group)
                rest = apart(_first_step(maker, given), after, scale)
                if rest < least:
                    best, least = given, rest
                if rest <= limit:
                    return given
        if best is None:
            raise AssertionError(f"no group is possible for {name}")
        return best


def _possible_groups(maker: CaseMaker, rank: int) -> list[ParameterGroup]:
    table = group_table(maker.config.optimizer)
    names = ("no_decay", "head_no_decay") if rank == 1 else ("decay", "head_decay")
    return [*(_stored(maker, table[name]) for name in names), NO_GROUP]


def _stored(maker: CaseMaker, group: ParameterGroup) -> ParameterGroup:
    """Return the group with the decay that the run has: rounded to float32 in float64 runs."""
    if maker.dtype != "float64":
        return group
    return replace(group, weight_decay=float(np.float32(group.weight_decay)))


def _possible_weights(
    maker: CaseMaker, name: str, after: Array, group: ParameterGroup
) -> Iterator[Array]:
    """Yield the weights by rule, those with negative scales, and what the first step came from."""
    if maker.result.meta is None or maker.result.meta["torch"]["weights"] == "by rule":
        by_rule = rules.weight(name, after.shape)
        yield by_rule.astype(maker.dtype)
        if after.ndim == 1 and name.endswith(".weight"):
            yield every_other_negative(by_rule).astype(maker.dtype)
    momentum = maker.reference.get(f"step1/momentum/{name}")
    if momentum is not None:
        yield after + _rates(maker, group)[0] * momentum


def _rates(maker: CaseMaker, group: ParameterGroup) -> list[float]:
    schedule = short_schedule(maker.config, OPTIMIZER_STEPS + 1)
    base = maker.config.optimizer.base_lr * group.lr_mult
    return [base * lr_factor(step, schedule) for step in range(OPTIMIZER_STEPS)]


def _gradients(maker: CaseMaker, given: _Given, steps: int) -> list[Array]:
    drawn = gradient_by_rule(given.name, given.before)
    return [gradient_at(drawn, step).astype(maker.dtype) for step in range(1, steps + 1)]


def _first_step(maker: CaseMaker, given: _Given) -> Array:
    options = _options(maker, given.group)
    rule = Sgd(options["momentum"], options["weight_decay"], nesterov=options["nesterov"])
    state = rule.run(
        given.before.astype(np.float64), _gradients(maker, given, 1), _rates(maker, given.group)[:1]
    )
    return state.weight.astype(maker.dtype)


def _options(maker: CaseMaker, group: ParameterGroup) -> dict[str, Any]:
    optimizer = maker.config.optimizer
    momentum = optimizer.momentum
    return {
        "name": group.name,
        "lr_mult": group.lr_mult,
        "weight_decay": group.weight_decay,
        "momentum": float(np.float32(momentum)) if maker.dtype == "float64" else momentum,
        "nesterov": optimizer.nesterov,
    }


def _case(maker: CaseMaker, key: str, given: _Given) -> FailureCase:
    step, tensor, name = key.split("/", 2)
    count = int(step.removeprefix("step"))
    pick = _Picked.of(maker.reference[key], maker.actual[key])
    arrays = {
        "reference": pick(maker.reference[key]),
        "actual": pick(maker.actual[key]),
        "before": pick(given.before),
    }
    rates = _rates(maker, given.group)
    for number, gradient in enumerate(_gradients(maker, given, count), 1):
        arrays[f"gradient/{number}"] = pick(gradient)
        arrays[f"rate/{number}"] = np.asarray(rates[number - 1])
    if other := _changed_places(maker, key):
        arrays[f"other/{other}"] = pick(maker.reference[f"{step}/{tensor}/{other}"])
    settings = maker.sections("optimizer") | {
        "schedule": short_schedule(maker.config, OPTIMIZER_STEPS + 1).model_dump(mode="json"),
        "group": _options(maker, given.group),
        "step": count,
        "elements": f"{arrays['reference'].size} of {maker.reference[key].size}",
    }
    case_kind = "update" if tensor == "param" else "momentum"
    words = "parameter" if tensor == "param" else "momentum of"
    where = f"{words} {name} (group {given.group.name}) after step {count}"
    return maker.case(key, case_kind, name, where, arrays, settings)


@dataclass(frozen=True)
class _Picked:
    """Chooses elements of a large parameter: an update is a matter of each element alone."""

    places: Array | None

    @classmethod
    def of(cls, reference: Array, actual: Array) -> _Picked:
        """Choose evenly, and the element that differs most; of a small parameter all."""
        if reference.size <= SAMPLE or reference.shape != actual.shape:
            return cls(None)
        worst = 0
        if kind(reference) == kind(actual):
            worst = int(np.nan_to_num(difference(reference, actual), nan=np.inf).argmax())
        even = np.arange(0, reference.size, reference.size // SAMPLE | 1)
        return cls(np.union1d(even, [worst]))

    def __call__(self, array: Array) -> Array:
        """Return the chosen elements."""
        return array if self.places is None else array.reshape(-1)[self.places]


def _changed_places(maker: CaseMaker, key: str) -> str:
    """Return the parameter whose reference the actual one is, if there is one."""
    prefix = "/".join(key.split("/")[:2]) + "/"
    actual = maker.actual[key]
    for other, array in maker.reference.items():
        if other == key or not other.startswith(prefix) or array.shape != actual.shape:
            continue
        if np.allclose(array, actual, rtol=1e-6, atol=0):
            return other.removeprefix(prefix)
    return ""
