"""Why a total loss differs though its terms agree: a weight of a head, in all label cases at once.

One number could be explained by many weights. The totals of several label cases are explained
together, which leaves fewer unknowns than equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.explain.confirm import Candidate, confirmed, reproduces
from pipeline.failure import FailureCase, Hint

Floats = NDArray[np.float64]


NO_WEIGHT = 1e-12
"""A solved weight below this is none: the term is left out, which is a candidate of its own."""


def explain_total(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's totals from the terms (case kind "loss", name "total").

    The case's arrays ``elsewhere/<label case>/<term>/<side>`` are the other label cases' numbers.
    """
    terms, reference, actual = _rows(case)
    weights = {name: _weight(case.settings["loss"]["head_weights"], name) for name in terms}
    right = _sum(terms, weights)
    if not reproduces(case, right, reference=reference):
        return []
    candidates = [
        *_simple(terms, weights, right),
        *_solved(terms, weights, actual),
    ]
    return confirmed(case, candidates, pair=(reference, actual))


def _rows(case: FailureCase) -> tuple[dict[str, Floats], Floats, Floats]:
    """Return the terms of all label cases (reference side), the totals of both sides."""
    places = ["term", *dict.fromkeys(_elsewhere(case))]
    names = [k.split("/")[1] for k in case.arrays if k.startswith("term/") and "/ref" in k]
    terms = {
        name: np.array([float(case.arrays[f"{p}/{name}/reference"]) for p in places])
        for name in names
        if name != "total"
    }
    sides = [
        np.array([float(case.arrays[f"{place}/total/{side}"]) for place in places])
        for side in ("reference", "actual")
    ]
    return terms, sides[0], sides[1]


def _elsewhere(case: FailureCase) -> Iterator[str]:
    for key in case.arrays:
        parts = key.split("/")
        if parts[0] == "elsewhere":
            yield "/".join(parts[:2])


def head_of(term: str) -> str:
    """Return the head that a term belongs to: both terms of a boundary head share its weight."""
    for ending in ("_bce", "_dice"):
        if term.startswith("boundary"):
            term = term.removesuffix(ending)
    return term


def _weight(head_weights: Mapping[str, Any], term: str) -> float:
    return float(head_weights.get(head_of(term), 1.0))


def _sum(terms: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    return np.asarray(sum(weights[name] * value for name, value in terms.items()))


def _simple(
    terms: Mapping[str, Floats], weights: Mapping[str, float], right: Floats
) -> Iterator[Candidate]:
    plain = {name: 1.0 for name in terms}
    text = "adds the terms up without the heads' weights"
    yield Candidate("term-weight", text, partial(_sum, terms, plain))
    for name, weight in weights.items():
        part = weight * terms[name]
        text = f"leaves out the term of {name}"
        yield Candidate("dropped-term", text, partial(np.subtract, right, part))
        yield Candidate(
            "doubled-term", f"counts the term of {name} twice", partial(np.add, right, part)
        )
    text = "takes the mean of the terms instead of their sum"
    yield Candidate("reduction", text, partial(np.divide, right, len(terms)))


def _solved(
    terms: Mapping[str, Floats], weights: Mapping[str, float], actual: Floats
) -> Iterator[Candidate]:
    """Yield the total with one weight solved for: a head's, or that of all auxiliary heads."""
    groups = [[name] for name in terms]
    groups += [
        [name for name in terms if head_of(name) == head] for head in {head_of(n) for n in terms}
    ]
    groups.append([name for name in terms if name != "main"])
    for members in groups:
        rest = _sum(terms, {n: 0.0 if n in members else w for n, w in weights.items()})
        part = _sum(terms, {n: float(n in members) for n in terms})
        size = float(part @ part)
        if size == 0.0 or len(actual) < 2:
            continue
        weight = float(part @ (actual - rest)) / size
        if abs(weight) < NO_WEIGHT:
            continue
        text = f"weighs {' and '.join(members)} by {weight:.6g} instead of {weights[members[0]]:g}"
        yield Candidate("term-weight", text, partial(_add, rest, weight, part))


def _add(rest: Floats, weight: float, part: Floats) -> Floats:
    return rest + weight * part
