"""Wrong poolings and resizings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from pipeline.explain.options import Operands, Options, of_layer
from pipeline.explain.target import Array, Candidate, Target, fixed


def pool_candidates(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield other poolings: rounding of the size, divisor, padding, stride, kernel, kind."""
    if target.actual.ndim != 4:
        return
    text = f"has ceil_mode {not options.ceil_mode} in place of {options.ceil_mode}"
    ceil = replace(options, ceil_mode=not options.ceil_mode)
    yield of_layer("ceil-mode", text, ceil, operands)
    if any(options.padding) and ceil.ceil_mode:
        # first: of windows of 3 with stride 2 it is the same as padding='same'
        unpadded = replace(ceil, padding=(0, 0, 0, 0))
        yield of_layer("ceil-mode", "has ceil_mode in place of padding", unpadded, operands)
    other_count = replace(options, count_include_pad=not options.count_include_pad)
    if options.kind == "avg_pool2d":
        words = "leaves the padding out of the mean (exclusive=True)"
        other = "counts the padding in the mean (exclusive=False)"
        text = words if options.count_include_pad else other
        yield of_layer("count-include-pad", text, other_count, operands)
    for relation, text, changed in other_pools(options):
        yield of_layer(relation, text, changed, operands)
    average = options.kind == "avg_pool2d"
    kind = "max_pool2d" if average else "avg_pool2d"
    name, text = ("max-for-average", "maximum") if average else ("average-for-max", "mean")
    for changed in (options, other_count):
        yield of_layer(name, f"pools the {text}", replace(changed, kind=kind), operands)


def other_pools(options: Options) -> Iterator[tuple[str, str, Options]]:
    """Yield (relation, text, options) of poolings with other windows."""
    most = max(options.kernel) // 2
    for ceil in (options.ceil_mode, not options.ceil_mode):
        for top, bottom in product(range(most + 1), repeat=2):
            padding = (top, bottom, top, bottom)
            if padding == options.padding:
                continue
            changed = replace(options, padding=padding, ceil_mode=ceil)
            text = f"pads {padding} (top, bottom, left, right) in place of {options.padding}"
            if ceil != options.ceil_mode:
                yield "ceil-mode", f"{text}, with ceil_mode {ceil}", changed
            else:
                yield "padding" if top == bottom else "padding-side", text, changed
    for n in (1, 2, 3, 4):
        if (n, n) != options.stride:
            text = f"has stride {n} in place of {options.stride}"
            yield "stride", text, replace(options, stride=(n, n))
    for n in (2, 3, 5):
        if (n, n) != options.kernel:
            text = f"has windows of {n} x {n} in place of {options.kernel}"
            for around in {0, n // 2}:
                sides = (around, around, around, around)
                changed = replace(options, kernel=(n, n), padding=sides)
                yield "kernel-size", text, changed


def global_pool_candidates(
    target: Target, options: Options, operands: Operands
) -> Iterator[Candidate]:
    """Yield the maximum or the sum in place of the mean, and the mean of another axis."""
    x = np.asarray(operands.x, np.float64)
    axes = (2, 3)
    yield _whole("max-for-average", "takes the maximum of the map", x.max(axis=axes, keepdims=True))
    yield _whole("sum-for-average", "takes the sum of the map", x.sum(axis=axes, keepdims=True))
    shape = target.actual.shape
    if len(shape) == 4 and (shape[2], shape[3]) != options.size_hw:
        changed = replace(options, size_hw=(shape[2], shape[3]))
        text = f"pools to {changed.size_hw} in place of {options.size_hw}"
        yield of_layer("size", text, changed, operands)


def _whole(relation: str, text: str, array: Array) -> Candidate:
    return fixed(relation, text, array)


def resize_candidates(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield other ways of resizing to the actual size."""
    if target.actual.ndim != 4:
        return
    to_actual = replace(options, size_hw=(target.actual.shape[2], target.actual.shape[3]))
    if to_actual.size_hw != options.size_hw:
        text = f"resizes to {to_actual.size_hw} in place of {options.size_hw}"
        yield of_layer("size", text, to_actual, operands)
    for relation, text, changed in other_resizings(to_actual, operands.x.shape[2:]):
        yield of_layer(relation, text, changed, operands)


def other_resizings(
    options: Options, size_hw: tuple[int, ...]
) -> Iterator[tuple[str, str, Options]]:
    """Yield (relation, text, options) of resizings of a map of this size."""
    if options.mode != "bilinear":
        yield from _for_nearest(options)
    else:
        yield from _for_bilinear(options)
    # the factor asked for, where the size is not that multiple of the map
    scale = max(round(options.size_hw[0] / max(size_hw[0], 1)), 1)
    if options.mode == "bilinear" and scale * size_hw[0] != options.size_hw[0]:
        text = f"takes the ratio from the factor {scale}, not from the sizes"
        yield "scale-for-size", text, replace(options, scale=float(scale))


KEPT = ", with the ratio kept as a float32 number (Paddle's kernel)"


def _for_nearest(options: Options) -> Iterator[tuple[str, str, Options]]:
    aligned = not options.align_corners
    text = f"takes the nearest pixel with align_corners={aligned}"
    yield "align-corners", text, replace(options, align_corners=aligned)
    other = "nearest" if options.mode == "nearest-exact" else "nearest-exact"
    text = f"takes the nearest pixel by the rule {other}"
    yield "nearest-rounding", text, replace(options, mode=other, align_corners=False)
    for corners, mode in ((False, 0), (True, 0), (False, 1)):
        bilinear = replace(options, mode="bilinear", align_corners=corners, align_mode=mode)
        text = f"resizes bilinearly (align_corners={corners}) in place of the nearest pixel"
        yield "bilinear-for-nearest", text, bilinear
        yield "bilinear-for-nearest", text + KEPT, replace(bilinear, kernel_constants=True)


def _for_bilinear(options: Options) -> Iterator[tuple[str, str, Options]]:
    corners = replace(options, align_corners=not options.align_corners, align_mode=0)
    mode = replace(options, align_corners=False, align_mode=1 - options.align_mode)
    ways = (
        ("align-corners", f"has align_corners={corners.align_corners}", corners),
        ("align-mode", f"has align_mode={mode.align_mode}", mode),
    )
    for relation, text, changed in ways:
        yield relation, text, changed
        yield relation, text + KEPT, replace(changed, kernel_constants=True)
    yield "dtype-float32", f"resizes{KEPT[1:]}", replace(options, kernel_constants=True)
    for aligned, rule in product((False, True), ("nearest", "nearest-exact")):
        nearest = replace(options, mode=rule, align_corners=aligned)
        text = "takes the nearest pixel in place of bilinear interpolation"
        yield "nearest-for-bilinear", text, nearest
