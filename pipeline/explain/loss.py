"""Why a loss term or the gradient at a head's logits differs.

A term is computed anew from the saved logits and labels, with every rule that ports are known to
get wrong; what reproduces Paddle's number (or gradient) is named. A total is explained from its
terms, in all label cases at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from pipeline.explain.boundary import boundary_candidates, boundary_gradient, boundary_terms
from pipeline.explain.class_head import ClassHead, Variant
from pipeline.explain.confirm import Candidate, comparable, confirmed, reproduces
from pipeline.explain.total import explain_total
from pipeline.failure import FailureCase, Hint
from pipeline.records import Array


def explain_loss(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's value of a loss term (case kind "loss")."""
    term = case.name
    if not comparable(case):
        return []
    if _is_mean_of_nothing(case):
        text = "is NaN: the mean over no pixels, where every label is void"
        return [Hint("empty-mean", text, before=1.0, residual=0.0)]
    if term == "total":
        return explain_total(case)
    candidates = [*_swapped_terms(case), *_simple_factors(case)]
    if term.endswith(("_bce", "_dice")):
        head, _, part = term.rpartition("_")
        values = boundary_terms(case, head)
        if reproduces(case, np.asarray(values[part])):
            candidates += boundary_candidates(case, head, part)
        return confirmed(case, candidates)
    head = ClassHead(case, term)
    if reproduces(case, head.right().value()):
        candidates += [Candidate(v.relation, v.text, v.value) for v in head.variants()]
        if case.dtype == "float64":
            # among the means of 1, 2, 3, ... pixels one is always near in seven digits
            candidates += head.counted()
    return confirmed(case, candidates) or _short_detours(case)


DETOUR_SHARE = 0.05
"""Share of a float32 run's difference that a detour may leave in the terms of all heads: the
difference is a few tens of last places then, of which rounding the result takes one."""


def _short_detours(case: FailureCase) -> list[Hint]:
    """Return the detour through a shorter dtype that explains a float32 run's terms of all heads.

    One term differs by so few units in the last place that chance could explain it.
    """
    heads = [
        name
        for key in case.arrays
        if (name := key.removeprefix("logits/")) != key and f"term/{name}/actual" in case.arrays
    ]
    if case.dtype != "float32" or len(heads) < 2:
        return []
    pair = tuple(
        np.array([float(case.arrays[f"term/{name}/{side}"]) for name in heads])
        for side in ("reference", "actual")
    )
    ways = [
        [v for v in ClassHead(case, name).variants() if v.relation == "dtype"] for name in heads
    ]
    candidates = [
        Candidate(variants[0].relation, variants[0].text, partial(_values, variants))
        for variants in zip(*ways, strict=True)
    ]
    return confirmed(case, candidates, pair=(pair[0], pair[1]), share=DETOUR_SHARE)


def _values(variants: Sequence[Variant]) -> Array:
    return np.array([float(variant.value()) for variant in variants])


def explain_logits_gradient(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's gradient at a head's logits (case kind "logits_gradient")."""
    if not comparable(case):
        return []
    name, weight = case.name, float(case.settings["loss"]["head_weights"].get(case.name, 1.0))
    candidates = list(_gradient_relations(case, weight))
    if name.startswith("boundary"):
        if reproduces(case, weight * boundary_gradient(case, name)):
            candidates += boundary_candidates(case, name, "gradient", factor=weight)
        return confirmed(case, candidates)
    head = ClassHead(case, name)
    if reproduces(case, head.right().gradient(weight)):
        candidates += [
            Candidate(v.relation, v.text, partial(v.gradient, weight))
            for v in head.variants()
            if v.differentiable
        ]
    return confirmed(case, candidates)


def _is_mean_of_nothing(case: FailureCase) -> bool:
    void = case.arrays["label"] == case.settings["ignore_index"]
    return bool(void.all() and np.isnan(case.arrays["actual"]))


def _swapped_terms(case: FailureCase) -> Iterator[Candidate]:
    """Yield the other heads' terms: the outputs may have changed names."""
    for key, array in case.arrays.items():
        prefix, _, rest = key.partition("/")
        name, _, side = rest.rpartition("/")
        if prefix == "term" and side == "reference" and name not in (case.name, "total"):
            text = f"is the term of {name}: the heads have changed places"
            yield Candidate("swapped-heads", text, partial(np.asarray, array))


def _simple_factors(case: FailureCase) -> Iterator[Candidate]:
    reference = case.arrays["reference"]
    images = len(case.arrays["label"])
    factors = {
        0.0: ("dropped-term", "is 0: the term is left out"),
        2.0: ("doubled-term", "is counted twice"),
        0.5: ("factor", "is halved"),
        -1.0: ("sign", "has the other sign"),
    }
    text = f"is multiplied by the number of images ({images})"
    factors.setdefault(float(images), ("reduction", text))
    text = f"is divided by the number of images ({images}) once more"
    factors.setdefault(1.0 / images, ("reduction", text))
    for name, weight in case.settings["loss"]["head_weights"].items():
        if weight not in factors and case.name.startswith(name):
            factors[weight] = ("term-weight", f"is multiplied by the head's weight {weight:g}")
    for factor, (relation, text) in factors.items():
        yield Candidate(relation, text, partial(np.multiply, reference, factor))


def _gradient_relations(case: FailureCase, weight: float) -> Iterator[Candidate]:
    reference, actual = (case.arrays[side].astype(np.float64) for side in ("reference", "actual"))
    yield Candidate(
        "detached-branch", "is zero: no gradient comes back to this head", lambda: 0 * reference
    )
    yield Candidate("sign", "has the other sign", lambda: -reference)
    yield Candidate("doubled-term", "is twice as large: the term counts twice", _twice(reference))
    if weight not in (0.0, 1.0):
        text = f"leaves out the head's weight {weight:g}"
        yield Candidate("term-weight", text, lambda: reference / weight)
    size = float(np.vdot(reference, reference))
    if size > 0:
        factor = float(np.vdot(reference, actual)) / size
        text = f"is {factor:.6g} times the reference: another weight of the term"
        yield Candidate("term-weight", text, lambda: factor * reference)
    for key, array in case.arrays.items():
        prefix, _, rest = key.partition("/")
        name, _, side = rest.rpartition("/")
        if prefix == "gradient" and side == "reference" and name != case.name:
            text = f"is the gradient of head {name}: the heads have changed places"
            yield Candidate("swapped-heads", text, partial(np.asarray, array))


def _twice(array: Array) -> Callable[[], Array]:
    return lambda: 2 * array
