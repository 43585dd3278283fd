"""How a layer puts its children's outputs together, and how else the actual side may do it.

A combination is a concatenation, or a sum of up to three terms, each the product of up to two of
the children's outputs and the layer's inputs. The one that gives the reference and the one that
gives the actual tensor are searched apart from each other; the relation is what is between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product

import numpy as np

from pipeline.explain.ops import ACTIVATIONS
from pipeline.explain.parts import Part, given_parts, parts_for, relation_of_ways
from pipeline.explain.target import Array, Candidate, Target, fixed, part_of, wide
from pipeline.failure import FailureCase

PROBES = 64
"""Elements on which combinations are tried before all."""
MOST_OF_TWO = 300
MOST_OF_THREE = 60
"""Products up to whose number sums of two and of three are tried."""
CORNER = (slice(0, 1), slice(None), slice(0, 8), slice(0, 16))
"""Where pieces of a concatenation are compared before all: channels are whole."""
FACTORS = (1.0, -1.0, 2.0, 0.5)

Product = tuple[str, ...]


@dataclass(frozen=True)
class Combination:
    """A sum of products of parts, or a concatenation of parts plus one."""

    terms: Mapping[Product, float]
    """Product of parts -> its factor."""
    parts: tuple[str, ...] = ()
    """Of the concatenation; empty if there is none."""
    rectified: bool = False
    """True if relu is applied to it."""

    def value(self, given: Mapping[str, Part]) -> Array:
        """Compute it."""
        found: Array = np.zeros(())
        if self.parts:
            found = np.concatenate([wide(given[name].array) for name in self.parts], axis=1)
        for names, factor in self.terms.items():
            term = wide(given[names[0]].array)
            for name in names[1:]:
                term = term * given[name].array
            found = found + factor * term
        return np.maximum(found, 0.0) if self.rectified else found

    def mapped(self, names: Callable[[str], str]) -> tuple[object, ...]:
        """Return what it is made of, with its parts called otherwise."""
        terms = {tuple(sorted(map(names, key))): factor for key, factor in self.terms.items()}
        return frozenset(terms.items()), tuple(map(names, self.parts)), self.rectified

    def used(self) -> list[str]:
        """Return the names of its parts in their order."""
        return [*self.parts, *(name for names in sorted(self.terms) for name in names)]

    def __str__(self) -> str:
        words = [f"concat({', '.join(self.parts)})"] if self.parts else []
        for names, factor in self.terms.items():
            words.append(("" if factor == 1 else f"{factor:.6g} ") + " x ".join(names))
        text = " + ".join(words)
        return f"relu({text})" if self.rectified else text


def candidates(case: FailureCase, target: Target) -> Iterator[Candidate]:
    """Yield the combination of children and inputs that is the actual tensor."""
    given = given_parts(case)
    if not any(name.startswith("child ") for name in given) and len(given) < 2:
        return
    there = parts_for(given, target.actual)
    found = combination(there, target.actual, target)
    if found is None:
        return
    known = parts_for(given, target.reference)
    right = combination(known, target.reference, target)
    if is_multiple(right, found):
        return
    relation = relation_between(right, found, target, {**there, **known})
    instead = "" if right is None else f" in place of {right}"
    yield fixed(relation, f"is {found}{instead}", found.value(there))


def is_multiple(right: Combination | None, found: Combination) -> bool:
    """Tell whether one term differs from the reference's by a factor: no relation of parts."""
    if right is None or right.parts or found.parts or right.rectified != found.rectified:
        return False
    return len(right.terms) == 1 and right.terms.keys() == found.terms.keys()


def relation_between(
    right: Combination | None, found: Combination, target: Target, parts: Mapping[str, Part]
) -> str:
    """Return the name of what the actual combination does otherwise."""
    if _activates(target):
        return "missing-activation"
    if right is None:
        return "other-combination"
    if right.mapped(lambda name: parts[name].base) == found.mapped(lambda name: parts[name].base):
        return _relation_of_ways(right, found, parts)
    if right.parts != found.parts:
        same = sorted(found.parts) == sorted(right.parts)
        return "concat-order" if same else "other-part"
    return _relation_of_sums(right, found)


def _activates(target: Target) -> bool:
    """Tell whether the reference is an activation of the actual tensor."""
    own = Target(target.reference, target.reference, target.reduction)
    for name in ("relu", "sigmoid", "tanh") if target.comparable else ():
        function = ACTIVATIONS[name]
        where = own.probe
        if own.fits(function(part_of(target.actual, where)), where) and own.fits(
            function(target.actual)
        ):
            return True
    return False


def _relation_of_ways(right: Combination, found: Combination, parts: Mapping[str, Part]) -> str:
    pairs = zip(right.used(), found.used(), strict=True)
    names = {relation_of_ways(parts[a].how, parts[b].how) for a, b in pairs} - {None}
    return str(names.pop()) if len(names) == 1 else "other-combination"


def _relation_of_sums(right: Combination, found: Combination) -> str:
    if right.rectified != found.rectified and right.terms == found.terms:
        return "missing-activation" if right.rectified else "extra-activation"
    if right.terms.keys() == found.terms.keys():
        return "scaled-term"
    if found.terms.items() < right.terms.items():
        return _missing([names for names in right.terms if names not in found.terms], found)
    if found.terms.items() > right.terms.items():
        return "extra-term"
    few, many = sorted((right.terms, found.terms), key=len)
    if len(few) == 1 and len(many) == 2:
        factors = sorted(name for names in many for name in names)
        if sorted(next(iter(few))) == factors:
            return "product-for-sum" if many is right.terms else "sum-for-product"
    if len(few) == len(many) == 1:
        return _single(next(iter(right.terms)), next(iter(found.terms)))
    return "other-combination"


def _missing(missing: list[Product], found: Combination) -> str:
    """A residual is what is added unchanged: an input, or what another term multiplies."""
    others = {name for names in found.terms for name in names}
    residual = any(
        len(names) == 1 and (names[0] in others or names[0].startswith("input"))
        for names in missing
    )
    return "missing-residual" if residual else "missing-term"


def _single(right: Product, found: Product) -> str:
    if set(found) < set(right):
        return "missing-factor"
    return "extra-factor" if set(found) > set(right) else "other-part"


# ---- the search -------------------------------------------------------------------------------
def combination(
    parts: Mapping[str, Part],
    wanted: Array,
    target: Target,
    products: Sequence[Product] | None = None,
) -> Combination | None:
    """Return the simplest combination of parts that is an array, or None.

    Args:
        parts: what it may be made of.
        wanted: the array.
        target: whose rounding decides.
        products: the terms of a sum; all parts, and two of those not made of others by default.
    """
    own = Target(wanted, wanted, target.reduction)
    if wanted.ndim == 0 or wanted.size == 0 or not np.isfinite(wanted).all() or not wanted.any():
        return None
    fitting = {
        name: part.array
        for name, part in parts.items()
        if all(a in (1, w) for a, w in zip(part.array.shape, wanted.shape, strict=True))
    }
    if products is None:
        plain = [name for name in fitting if not parts[name].how]
        products = [(name,) for name in fitting]
        products += list(combinations_with_replacement(plain, 2))
    for rectified in (False, True):
        if rectified and (wanted < 0).any():
            break
        for terms in _sums(fitting, products, wanted, own, positive_only=rectified):
            found = Combination(terms, rectified=rectified)
            if own.fits(found.value(parts)):
                return found
    return _concatenation(parts, fitting, wanted, own)


def _sums(
    given: Mapping[str, Array],
    products: Sequence[Product],
    wanted: Array,
    own: Target,
    *,
    positive_only: bool,
) -> Iterator[dict[Product, float]]:
    """Yield the sums of products that are the array on a few of its elements, simplest first."""
    flat = wide(wanted).reshape(-1)
    places = np.flatnonzero(flat > 0) if positive_only else np.arange(flat.size)
    if places.size < 8 or not products:
        return
    # drawn, not evenly spread: a stride could hit the same column of every map
    places = np.random.default_rng(0).choice(places, size=min(PROBES, places.size), replace=False)
    at = np.unravel_index(places, wanted.shape)
    seen = {name: wide(np.broadcast_to(array, wanted.shape)[at]) for name, array in given.items()}
    values = np.array([np.prod([seen[name] for name in names], axis=0) for names in products])
    limit = 4 * own.tolerance * own.scale
    goal = flat[places]
    yield from _one_term(products, values, goal, limit)
    values = values[:MOST_OF_TWO]
    for factors in product(FACTORS, repeat=2):
        for i, j in _pairs(values, goal, factors, limit):
            yield {products[i]: factors[0], products[j]: factors[1]}
    if len(products) <= MOST_OF_THREE:
        yield from _three_terms(products, values, goal, limit)


def _one_term(
    products: Sequence[Product], values: Array, goal: Array, limit: float
) -> Iterator[dict[Product, float]]:
    scaled: list[dict[Product, float]] = []
    for names, value in zip(products, values, strict=True):
        square = float(value @ value)
        factor = float(value @ goal) / square if square else 0.0
        factor = 1.0 if abs(factor - 1.0) < 1e-6 else factor
        if factor and np.abs(factor * value - goal).max() <= limit:
            scaled.append({names: factor})
    # a part as it is before one that is scaled
    yield from sorted(scaled, key=lambda terms: next(iter(terms.values())) != 1.0)


def _three_terms(
    products: Sequence[Product], values: Array, goal: Array, limit: float
) -> Iterator[dict[Product, float]]:
    for signs in ((1.0, 1.0, 1.0), (1.0, 1.0, -1.0), (1.0, -1.0, -1.0)):
        for first in range(len(products)):
            rest = goal - signs[0] * values[first]
            for i, j in _pairs(values, rest, signs[1:], limit):
                if first not in (i, j):
                    terms = zip((first, i, j), signs, strict=True)
                    yield {products[k]: sign for k, sign in terms}


def _pairs(
    values: Array, goal: Array, factors: tuple[float, ...], limit: float
) -> list[tuple[int, int]]:
    """Return the pairs whose sum with these factors is the goal, each once."""
    first = goal - factors[0] * values
    same = factors[0] == factors[1]
    found: list[tuple[int, int]] = []
    for i, left in enumerate(first):
        near = np.abs(left - factors[1] * values).max(axis=1) <= limit
        found += [(i, int(j)) for j in np.flatnonzero(near) if i != j and (i < j or not same)]
    return found


def _concatenation(
    parts: Mapping[str, Part], fitting: Mapping[str, Array], wanted: Array, own: Target
) -> Combination | None:
    """Return the concatenation along the channels that is an array, alone or with a part added."""
    if wanted.ndim < 2:
        return None
    corner = wanted[CORNER]
    few = {name: replace(part, array=part.array[CORNER]) for name, part in parts.items()}
    for added in ("", *fitting):
        rest = wide(corner) - fitting[added][CORNER] if added else wide(corner)
        found = _channel_parts(few, rest, own)
        if found is not None:
            terms: dict[Product, float] = {(added,): 1.0} if added else {}
            whole = Combination(terms, parts=found)
            if own.fits(whole.value(parts)):
                return whole
    return None


def _channel_parts(given: Mapping[str, Part], wanted: Array, own: Target) -> tuple[str, ...] | None:
    found: list[str] = []
    start, count = 0, wanted.shape[1]
    while start < count:
        for name, part in given.items():
            end = start + part.array.shape[1]
            piece = wanted[:, start:end]
            if piece.shape == part.array.shape and _equal(piece, part.array, own):
                found.append(name)
                start = end
                break
        else:
            return None
    return tuple(found) if len(found) > 1 else None


def _equal(piece: Array, array: Array, own: Target) -> bool:
    return bool(np.abs(piece - wide(array)).max() <= own.tolerance * own.scale)
