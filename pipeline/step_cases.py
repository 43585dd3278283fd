"""Failure cases of the steps data, metric, loss, lr_schedule and optimizer, from their records.

Of each step the tensors that differ first are taken, in the order in which they are computed, and
one of a kind: what follows from them is not shown again. A case holds what pipeline/explain needs
to compute the tensor anew (pipeline/failure.py says which arrays).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from common.config import Config
from common.param_groups import group_table
from pipeline.case_maker import CaseMaker
from pipeline.explain.total import head_of
from pipeline.failure import FailureCase
from pipeline.given import logits_by_head
from pipeline.judge import Result
from pipeline.records import Array, Record
from pipeline.step_cases_data import data_cases
from pipeline.step_cases_optimizer import optimizer_cases
from pipeline.verdicts import Row, Verdict

CASES = 5
"""Cases per step at most."""


def step_cases(
    result: Result, pair: tuple[Record, Record], inputs: Mapping[str, Array], config: Config
) -> list[FailureCase]:
    """Return the failure cases of a step's result; none if it passed or no case can be made.

    Args:
        result: the judged step.
        pair: its (torch, paddle) records.
        inputs: the step's saved inputs (pipeline/inputs.py); empty for steps without.
        config: the configuration as it was run, data.root included.
    """
    if result.step.name not in _BUILDERS or result.verdict.passed:
        return []
    step = result.step.name
    reference, actual = (
        {key: array for key, array in record.arrays.items() if _is_of_recipe(step, key, inputs)}
        for record in pair
    )
    maker = CaseMaker(result, reference, actual, inputs, config)
    rows = [row for row in failing_rows(result, pair) if row.key in reference]
    cases: list[FailureCase] = []
    for case in _BUILDERS[step](maker, rows):
        cases.append(case)
        if len(cases) == CASES:
            break
    return cases


def _is_of_recipe(step: str, key: str, inputs: Mapping[str, Array]) -> bool:
    """Tell whether a tensor is of the configuration's own recipe.

    What a recipe does not reach (pipeline/branches.py: other rules, a device's arithmetic) is
    computed from inputs and options that no case holds.
    """
    folder, *rest = key.split("/")
    if step in ("loss", "metric"):
        return folder == "frames" or f"{folder}/label" in inputs
    # options/<group>/<option>; those of other recipes and of the dropout layers lie deeper
    return step != "lr_schedule" or folder != "options" or len(rest) == 2


def failing_rows(result: Result, pair: Sequence[Record]) -> list[Row]:
    """Return the rows that differ and that both sides have recorded, in recorded order."""
    order = {key: number for number, key in enumerate(pair[0].arrays)}
    rows = [
        row
        for row in result.rows
        if row.verdict is Verdict.FAIL and all(row.key in record.arrays for record in pair)
    ]
    return sorted(rows, key=lambda row: order[row.key])


def first_of_each(rows: Iterable[Row], kind_of: Callable[[Row], Hashable]) -> Iterator[Row]:
    """Yield the first row of every kind."""
    seen: set[Hashable] = set()
    for row in rows:
        if kind_of(row) not in seen:
            seen.add(kind_of(row))
            yield row


def _loss_cases(maker: CaseMaker, rows: Sequence[Row]) -> Iterator[FailureCase]:
    ignore = maker.config.data.ignore_index

    def all_void(row: Row) -> bool:
        return bool((maker.inputs[f"{row.key.split('/')[0]}/label"] == ignore).all())

    # without a valid pixel there is nothing to explain by; such labels come last
    rows = sorted((row for row in rows if not row.key.endswith("/label")), key=all_void)
    terms = [r for r in rows if "/loss/" in r.key and not r.key.endswith("/total")]
    totals = [r for r in rows if r.key.endswith("/loss/total")]
    wrong_heads = tuple(row.key.rpartition("/")[2] for row in terms)
    gradients = [
        row
        for row in rows
        if "/grad/" in row.key
        and not any(term.startswith(row.key.rpartition("/")[2]) for term in wrong_heads)
    ]
    for row in first_of_each([*terms, *([] if terms else totals), *gradients], _last):
        yield _loss_case(maker, row)


def _last(row: Row) -> str:
    return row.key.rpartition("/")[2]


def _loss_case(maker: CaseMaker, row: Row) -> FailureCase:
    label_case, kind, name = row.key.split("/")
    reference = maker.reference
    heads = [key.split("/")[2] for key in reference if key.startswith(f"{label_case}/grad/")]
    saved = maker.inputs[f"{label_case}/logits"]
    # a total is made of all heads, and a detour of float32 is confirmed by all; else one is enough
    whole = name == "total" or maker.dtype == "float32"
    arrays = {
        f"logits/{head}": logits.astype(maker.dtype)
        for head, logits in logits_by_head(saved, heads).items()
        if whole or head == head_of(name)
    }
    arrays["label"] = maker.inputs[f"{label_case}/label"]
    for key in reference:
        other, _, term = key.partition("/loss/")
        if term and key in maker.actual:
            folder = "term" if other == label_case else f"elsewhere/{other}"
            arrays |= maker.both(key, f"{folder}/{term}")
    settings = maker.sections("loss") | {
        "ignore_index": maker.config.data.ignore_index,
        "classes": maker.config.model.classes,
        "label_case": label_case,
    }
    if kind == "loss":
        where = f"term {name}, labels {label_case}"
        return maker.case(row.key, "loss", name, where, arrays, settings)
    arrays |= maker.both(row.key, f"gradient/{name}")
    arrays |= _equal_gradients(maker, label_case, name)
    where = f"gradient at the logits of head {name}, labels {label_case}"
    return maker.case(row.key, "logits_gradient", name, where, arrays, settings)


def _equal_gradients(maker: CaseMaker, label_case: str, head: str) -> dict[str, Array]:
    """Return the other heads' gradients that the actual one is equal to; the rest is large."""
    actual = maker.actual[f"{label_case}/grad/{head}"]
    found: dict[str, Array] = {}
    for key, array in maker.reference.items():
        if not key.startswith(f"{label_case}/grad/") or key.endswith(f"/{head}"):
            continue
        if array.shape == actual.shape and np.allclose(array, actual, rtol=1e-5, atol=0):
            found |= maker.both(key, f"gradient/{key.rpartition('/')[2]}")
    return found


def _metric_cases(maker: CaseMaker, rows: Sequence[Row]) -> Iterator[FailureCase]:
    counts = [row for row in rows if row.key.endswith("matrix")]
    wrong = {row.key.split("/")[0] for row in counts}
    averages = [row for row in rows if row.key.split("/")[0] not in wrong]
    for row in first_of_each([*counts, *averages], _last):
        folder, _, name = row.key.partition("/")
        arrays = {
            key: maker.inputs[f"{folder}/{key}"]
            for key in ("prediction", "label")
            if f"{folder}/{key}" in maker.inputs
        }
        if not name.endswith("matrix"):
            arrays["matrix"] = maker.reference[f"{folder}/matrix"]
        settings = {
            "classes": maker.config.model.classes,
            "ignore_index": maker.config.data.ignore_index,
            "repeats": int(maker.inputs.get(f"{folder}/repeats", np.asarray(1))),
        }
        where = f"{name} of the pictures {folder}"
        yield maker.case(row.key, "metric", name, where, arrays, settings)


def _schedule_cases(maker: CaseMaker, rows: Sequence[Row]) -> Iterator[FailureCase]:
    reference, actual = maker.reference, maker.actual
    groups = {
        key.split("/")[1]: {
            option: float(reference[f"options/{key.split('/')[1]}/{option}"])
            for option in ("lr_mult", "weight_decay", "momentum", "nesterov")
        }
        for key in reference
        if key.startswith("options/") and key.endswith("/lr_mult")
    }
    # a group that the reference leaves empty is in the recipe all the same
    table = {
        name: {"lr_mult": group.lr_mult, "weight_decay": group.weight_decay}
        for name, group in group_table(maker.config.optimizer).items()
    }
    settings = maker.sections("optimizer", "schedule") | {"groups": table | groups}
    members = [row for row in rows if row.key.startswith("group/")]
    for row, others in _alike(members, lambda r: (str(reference[r.key]), str(actual[r.key]))):
        name = row.key.removeprefix("group/")
        arrays = {f"other/{group}": np.asarray(group) for group in groups}
        where = f"group of parameter {name}" + _and_more(others)
        yield maker.case(row.key, "option", name, where, arrays, settings)
    options = [row for row in rows if row.key.startswith("options/")]
    for row, others in _alike(
        options, lambda r: (_last(r), float(reference[r.key]), float(actual[r.key]))
    ):
        _, group, option = row.key.split("/")
        arrays = {f"other/{g}": reference[f"options/{g}/{option}"] for g in groups if g != group}
        where = f"{option} of group {group}" + _and_more(others)
        yield maker.case(row.key, "option", group, where, arrays, settings)
    series = [row for row in rows if row.key.startswith("lr/")]
    for row, others in _alike(series, lambda r: _course(reference[r.key], actual[r.key])):
        group = row.key.removeprefix("lr/")
        arrays = {f"other/{g}": reference[f"lr/{g}"] for g in groups}
        first = f" from iteration {row.first[0]} on" if row.first else ""
        where = f"rate of group {group}{first}" + _and_more(others)
        own = settings | {"group": groups[group]}
        yield maker.case(row.key, "series", group, where, arrays, own)


def _alike(rows: Sequence[Row], kind_of: Callable[[Row], Hashable]) -> Iterator[tuple[Row, int]]:
    """Yield the first row of every kind, and how many more there are of it."""
    kinds = [kind_of(row) for row in rows]
    for row in first_of_each(rows, kind_of):
        yield row, kinds.count(kind_of(row)) - 1


def _and_more(others: int) -> str:
    return f" and {others} more" if others else ""


def _course(reference: Array, actual: Array) -> Hashable:
    """Return what two groups' series have in common when the same is wrong with both."""
    if reference.shape != actual.shape:
        return actual.shape
    ratio = actual / np.where(reference == 0, 1.0, reference)
    return np.round(ratio, 9).tobytes()


_BUILDERS: Mapping[str, Callable[[CaseMaker, Sequence[Row]], Iterator[FailureCase]]] = {
    "data": data_cases,
    "metric": _metric_cases,
    "loss": _loss_cases,
    "lr_schedule": _schedule_cases,
    "optimizer": optimizer_cases,
}
