"""How a composite layer puts gradients together, and how else the actual side may do it.

What arrives at a child's output, or at an input, is a sum over the uses of it: the gradient at the
layer's own output or at another child's input (``gradient/handed/<name>/<i>``), as it is or times
what it was multiplied with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd

from pipeline.explain import composites, pools
from pipeline.explain.composites import Product
from pipeline.explain.parts import Part, given_parts
from pipeline.explain.target import Array, Candidate, Target, fixed, wide
from pipeline.failure import FailureCase

MOST_SLICES = 12
DETACHED = "detached-branch"


def candidates(case: FailureCase, target: Target) -> Iterator[Candidate]:
    """Yield the combination of gradients and values that is the actual gradient."""
    arriving = arriving_gradients(case)
    if not arriving or not target.comparable:
        return
    sources = gradient_parts(arriving, target.reference)
    values = {name: Part(name, "", array) for name, array in given_parts(case).items()}
    parts = {**sources, **values, **_summed(arriving, values, target.reference)}
    products: list[Product] = [(name,) for name in parts if name not in values]
    products += [(name, value) for name in sources for value in values]
    products = [names for names in products if _fit(names, parts, target.reference)]
    right = composites.combination(parts, target.reference, target, products)
    if right is None:
        return
    found = composites.combination(parts, target.actual, target, products)
    if found is None or composites.is_multiple(right, found):
        return
    relation = composites.relation_between(right, found, target, parts)
    if relation.startswith("missing"):
        relation = DETACHED
    text = f"is {found} in place of {right}"
    yield fixed(relation, text, found.value(parts))


def arriving_gradients(case: FailureCase) -> dict[str, Array]:
    """Return the gradients that a case's one may be made of, by what they are called."""
    found: dict[str, Array] = {}
    for key, array in case.arrays.items():
        if key.startswith("output_gradient"):
            found[f"gradient at the output {key[len('output_gradient/') :]}".strip()] = array
        elif key.startswith("gradient/handed/"):
            name = key.removeprefix("gradient/handed/").rpartition("/")[0]
            found[f"gradient back from {name}"] = array
        elif key.startswith("part/"):
            found[f"gradient back from {key.removeprefix('part/')}"] = array
    return found


def gradient_parts(arriving: Mapping[str, Array], wanted: Array) -> dict[str, Part]:
    """Return gradients as they flow back to an array of this shape: cut, spread or resized."""
    found: list[Part] = []
    for name, array in arriving.items():
        if array.shape == wanted.shape:
            found.append(Part(name, "", array))
        elif array.ndim == wanted.ndim == 4 and array.shape[0] == wanted.shape[0]:
            found += [Part(name, how, made) for how, made in _flowing_back(array, wanted)]
    return {part.name: part for part in found}


def _flowing_back(array: Array, wanted: Array) -> Iterator[tuple[str, Array]]:
    sizes, goal = array.shape[2:], wanted.shape[2:]
    if sizes == goal:
        yield from _slices(array, wanted.shape[1])
    elif array.shape[1] != wanted.shape[1]:
        return
    elif sizes == (1, 1):
        share = wide(array) / (goal[0] * goal[1])
        yield "through a mean", share.repeat(goal[0], axis=2).repeat(goal[1], axis=3)
    elif goal == (1, 1):
        yield "summed over the map", wide(array).sum(axis=(2, 3), keepdims=True)
    else:
        pairs = list(zip(goal, sizes, strict=True))
        nearest = [pools.nearest_matrix(o, n) for o, n in pairs]
        yield "through nearest resizing", pools.apply_axes_gradient(array, *nearest)
        for corners in (False, True):
            both = [pools.bilinear_matrix(o, n, align_corners=corners) for o, n in pairs]
            words = f"through bilinear resizing, align_corners={corners}"
            yield words, pools.apply_axes_gradient(array, *both)


def _slices(array: Array, count: int) -> Iterator[tuple[str, Array]]:
    """Yield the parts of a gradient that flow back out of a concatenation."""
    total = array.shape[1]
    if count >= total:
        return
    step = gcd(total, count)
    starts = range(0, total - count + 1, step)
    for start in list(starts)[:MOST_SLICES]:
        yield f"channels {start} to {start + count - 1}", array[:, start : start + count]


def _summed(
    arriving: Mapping[str, Array], values: Mapping[str, Part], wanted: Array
) -> dict[str, Part]:
    """Return gradients times values, summed over the map: what a broadcast factor receives."""
    if wanted.ndim != 4 or wanted.shape[2:] != (1, 1):
        return {}
    found: dict[str, Part] = {}
    for name, gradient in arriving.items():
        for value in values.values():
            if value.array.shape == gradient.shape != wanted.shape:
                total = (wide(gradient) * value.array).sum(axis=(2, 3), keepdims=True)
                part = Part(f"sum over the map of {name} x {value.name}", "", total)
                if total.shape == wanted.shape:
                    found[part.name] = part
    return found


def _fit(names: Product, parts: Mapping[str, Part], wanted: Array) -> bool:
    return all(
        array.ndim == wanted.ndim
        and all(a in (1, w) for a, w in zip(array.shape, wanted.shape, strict=True))
        for array in (parts[name].array for name in names)
    )
