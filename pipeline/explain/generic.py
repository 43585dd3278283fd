"""Relations between two arrays that need no knowledge of what computed them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import numpy as np

from pipeline.differences import spread
from pipeline.explain import ops, pools
from pipeline.explain.channels import channel_candidates
from pipeline.explain.target import (
    FITTED,
    Array,
    Candidate,
    Target,
    Where,
    applied,
    best_factor,
    fixed,
    largest,
    leaky_slope,
    part_of,
    rounded,
    shorter_than,
    simple_fraction,
    wide,
)
from pipeline.failure import FailureCase


def sibling_candidates(case: FailureCase) -> Iterator[Candidate]:
    """Yield the other heads' outputs."""
    for head, array in case.arrays.items():
        if head.startswith("sibling/"):
            text = f"returns the output of {head.removeprefix('sibling/')}"
            yield fixed("swapped-heads", text, array)


def array_candidates(
    target: Target, *, first_axis: str = "samples", zero: str = "zero"
) -> Iterator[Candidate]:
    """Yield the relations of the actual array to the reference.

    Args:
        target: the two arrays.
        first_axis: what the first axis counts, if it is not the only one.
        zero: what an actual array of zeros is called.
    """
    if target.actual.dtype.kind != "f" or target.actual.size == 0:
        return
    if not target.comparable:
        yield from other_shapes(target)
        return
    yield from factor_candidates(target, zero=zero)
    yield from rounding_candidates(target)
    yield from activation_candidates(target)
    if target.actual.ndim == 4:
        yield from place_candidates(target)
    yield from channel_candidates(target, first_axis=first_axis)
    yield from offset_candidates(target)
    yield from dropout_candidates(target)
    yield from shorter_arithmetic(target)


# ---- factors ----------------------------------------------------------------------------------
def factor_candidates(target: Target, *, zero: str = "zero") -> Iterator[Candidate]:
    """Yield zero, negative, doubled and other multiples; ``zero`` is what zero is called."""
    reference = target.reference

    def multiple(relation: str, text: str, factor: float) -> Candidate:
        return applied(relation, text, lambda x: factor * wide(x), reference)

    yield fixed(zero, "is zero everywhere", np.zeros(target.actual.shape))
    yield multiple("negative", "has the opposite sign", -1.0)
    yield multiple("doubled", "is twice the reference", 2.0)
    factor = best_factor(reference, target.actual)
    if not factor:
        return
    share = _share_as_float32(factor) if target.double else None
    if share is not None:
        text = f"keeps the constant 1/{share} as a float32 number"
        yield multiple("dtype-float32", text, float(np.float32(1 / share)) * share)
    fraction = simple_fraction(factor, tolerance=10 * target.tolerance)
    if fraction is not None:
        if fraction not in (1, 2, -1):
            text = f"is {fraction} times the reference"
            yield multiple("constant-factor", text, float(fraction))
    elif np.count_nonzero(reference) >= FITTED:
        text = f"is {factor:.10g} times the reference"
        yield multiple("constant-factor", text, factor)


def _share_as_float32(factor: float) -> int | None:
    """Return n if the factor is float32(1/n) / (1/n) and not 1."""
    for n in range(3, 65):
        kept = float(np.float32(1 / n)) * n
        if kept != 1.0 and abs(kept - factor) <= 1e-2 * abs(kept - 1.0):
            return n
    return None


def offset_candidates(target: Target) -> Iterator[Candidate]:
    """Yield the reference plus one number."""
    if target.actual.size >= FITTED:
        offset = float(np.median(wide(target.actual) - wide(target.reference)))
        if offset:
            text = f"is the reference plus {offset:.10g}"
            yield fixed("constant-offset", text, wide(target.reference) + offset)


def dropout_candidates(target: Target) -> Iterator[Candidate]:
    """Yield a dropout that is active: some values are zero, all others grow by one factor."""
    reference, actual = wide(target.reference), wide(target.actual)
    dropped = (actual == 0) & (reference != 0)
    kept = (actual != 0) & (reference != 0)
    if min(int(dropped.sum()), int(kept.sum())) < FITTED:
        return
    factor = best_factor(reference[kept], actual[kept])
    share = float(dropped.sum()) / float(dropped.sum() + kept.sum())
    # 1 / (1 - p), and about a share of p is gone
    if factor is None or factor <= 1 or abs(share - (1 - 1 / factor)) > 0.25:
        return
    text = f"dropout is active, p = {1 - 1 / factor:.4g}: {share:.1%} of the values are zero"
    yield fixed("dropout", text, np.where(dropped, 0.0, reference * factor))


# ---- dtypes -----------------------------------------------------------------------------------
def rounding_candidates(target: Target) -> Iterator[Candidate]:
    """Yield the reference rounded to fewer digits."""
    for dtype in shorter_than(target):
        text = f"is rounded to {dtype}"
        function = partial(rounded, dtype=dtype)
        yield applied(f"dtype-{dtype}", text, function, target.reference)


def shorter_arithmetic(target: Target) -> Iterator[Candidate]:
    """Yield a tensor computed in fewer digits.

    What such arithmetic returns cannot be computed again without knowing its order. But each of its
    values is a number of the shorter dtype, which of a longer one's values one in 2^13 or fewer
    is; and they are the reference's to that dtype's rounding.
    """
    for dtype in shorter_than(target):
        values = wide(target.actual)
        sample = spread(values)
        if not _all_of_dtype(sample, dtype) or not np.array_equal(rounded(values, dtype), values):
            continue
        if np.array_equal(rounded(target.reference, dtype), wide(target.reference)):
            return
        step = 2.0 ** (1 - DIGITS[dtype])
        far = largest(values - wide(target.reference)) / target.scale
        if far <= step * (4 + 2 * target.reduction**0.5):
            text = (
                f"is computed in {dtype}: every value is a number of that dtype, off by "
                f"{far / step:.1f} of its last places"
            )
            # the values themselves: what is confirmed is that they are of that dtype
            yield fixed(f"dtype-{dtype}", text, rounded(values, dtype))
            return


DIGITS = {"float32": 24, "bfloat16": 8, "float16": 11}
"""Binary digits of a dtype's numbers."""


def _all_of_dtype(values: Array, dtype: str) -> bool:
    """Tell whether the values, many enough, are the dtype's numbers and use all its digits."""
    values = values[values != 0]
    if np.unique(values).size < 8 or not np.array_equal(rounded(values, dtype), values):
        return False
    # three of four random numbers have one of the last two digits; whole numbers have neither
    ends = np.frexp(values)[0] * 2.0 ** (DIGITS[dtype] - 2) % 1.0
    return bool(np.mean(ends != 0) > 0.5)


# ---- activations ------------------------------------------------------------------------------
def activation_candidates(target: Target) -> Iterator[Candidate]:
    """Yield an activation that comes on top of the reference."""
    text = "applies {} on top of the reference"
    for name, function in ops.ACTIVATIONS.items():
        if name == "softmax" and target.actual.ndim < 2:
            continue
        yield applied("extra-activation", text.format(name), function, target.reference)
    slope = leaky_slope(target, target.reference)
    if slope is not None:
        name = f"leaky_relu with slope {slope:.8g}"
        function = partial(ops.leaky_relu, slope=slope)
        yield applied("extra-activation", text.format(name), function, target.reference)


# ---- places -----------------------------------------------------------------------------------
def place_candidates(target: Target) -> Iterator[Candidate]:
    """Yield maps that are flipped, shifted, transposed, or differ in their border."""
    reference = wide(target.reference)
    for name, axes in (("left to right", 3), ("upside down", 2), ("in both directions", (2, 3))):
        yield fixed("flip", f"is flipped {name}", np.flip(reference, axes))
    if reference.shape[2] == reference.shape[3] > 1:
        yield fixed("transposed", "has rows and columns exchanged", reference.swapaxes(2, 3))
    yield from _shifts(target)
    yield from _borders(target)


def _shifts(target: Target) -> Iterator[Candidate]:
    if min(target.reference.shape[2:]) < 4:
        return
    for down, right in product((-1, 0, 1), repeat=2):
        if not down and not right:
            continue
        words = [("down" if down > 0 else "up")] * (down != 0)
        words += [("right" if right > 0 else "left")] * (right != 0)
        text = f"is shifted by one pixel {' and '.join(words)}"
        yield Candidate("shift", text, partial(_shifted, target, (down, right)))


def _shifted(target: Target, by: ops.Pair, where: Where) -> Array:
    samples = where[0] if where else slice(None)
    reference, actual = wide(target.reference[samples]), wide(target.actual[samples])
    moved = np.roll(reference, by, axis=(2, 3))
    # what comes in from outside of the map is not known, and taken as it is
    row, column = ({1: 0, -1: -1}.get(step) for step in by)
    if row is not None:
        moved[:, :, row] = actual[:, :, row]
    if column is not None:
        moved[:, :, :, column] = actual[:, :, :, column]
    return moved[(slice(None), *where[1:])]


def _borders(target: Target) -> Iterator[Candidate]:
    H, W = target.reference.shape[2:]
    names = ("top", "bottom", "left", "right")
    chosen = [(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0)]
    chosen += [tuple(int(i == k) for i in range(4)) for k in range(4)]
    for width, which in product((1, 2, 3), chosen):
        top, bottom, left, right = (width * flag for flag in which)
        if H - top - bottom < 2 or W - left - right < 2:
            continue
        where = ", ".join(name for name, flag in zip(names, which, strict=True) if flag)
        for mode, text in (("zeros", "is zero"), ("replicate", "repeats its neighbours")):
            compute = partial(_bordered, target.reference, (top, bottom, left, right), mode)
            words = f"{text} in a border {width} wide ({where})"
            yield Candidate("border", words, compute)


def _bordered(reference: Array, sides: ops.Sides, mode: str, where: Where) -> Array:
    top, bottom, left, right = sides
    H, W = reference.shape[2:]
    inner = reference[where[0] if where else slice(None), :, top : H - bottom, left : W - right]
    return ops.pad(wide(inner), sides, mode=mode)[(slice(None), *where[1:])]


def other_shapes(target: Target) -> Iterator[Candidate]:
    """Yield crops, paddings, turns and resizings of the reference to another shape."""
    reference, shape = wide(target.reference), target.actual.shape
    if reference.size == target.actual.size:
        text = f"has the values of the reference in the shape {shape}"
        yield fixed("reshaped", text, reference.reshape(shape))
    if reference.ndim >= 2:
        turned = reference.swapaxes(-1, -2)
        yield fixed("transposed", "has its last two axes exchanged", turned)
    if reference.ndim != 4 or len(shape) != 4 or shape[:2] != reference.shape[:2]:
        return
    down, right = shape[2] - reference.shape[2], shape[3] - reference.shape[3]
    for at, mode in product((0.0, 0.5, 1.0), ("zeros", "replicate")):
        sides = int(down * at), down - int(down * at), int(right * at), right - int(right * at)
        relation = "padded" if down >= 0 and right >= 0 else "cropped"
        text = f"is the reference {relation} by {sides} (top, bottom, left, right)"
        yield Candidate(relation, text, partial(_padded, reference, sides, mode))
    yield from _resized(reference, (shape[2], shape[3]))


def _padded(reference: Array, sides: ops.Sides, mode: str, where: Where) -> Array:
    return part_of(ops.pad(reference, sides, mode=mode), where)


def _resized(reference: Array, size_hw: ops.Pair) -> Iterator[Candidate]:
    pairs = list(zip(reference.shape[2:], size_hw, strict=True))
    nearest = [pools.nearest_matrix(o, n) for o, n in pairs]
    text = f"is resized to {size_hw} on top"
    yield fixed("extra-resize", f"{text}, nearest", pools.apply_axes(reference, *nearest))
    for corners in (False, True):
        both = [pools.bilinear_matrix(o, n, align_corners=corners) for o, n in pairs]
        name = f"{text}, bilinear, align_corners={corners}"
        yield fixed("extra-resize", name, pools.apply_axes(reference, *both))
