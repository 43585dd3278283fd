"""Wrong convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from pipeline.explain.channels import channel_orders
from pipeline.explain.ops import PAD_MODES, Pair, Sides
from pipeline.explain.options import Operands, Options, of_layer, run, with_options
from pipeline.explain.target import Array, Candidate, Target

FEW = 64
"""Output values on which the orders of the input's channels are tried before all."""


def candidates(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield the convolutions that a wrong port computes."""
    yield from _windows(target, options, operands)
    yield from _weights(options, operands)
    yield from input_orders(target, options, operands)
    yield from _group_orders(options, operands)
    rectified = replace(operands, x=np.maximum(operands.x, 0.0))
    yield of_layer("extra-activation", "applies relu to its input", options, rectified)
    for axis, words in ((3, "left to right"), (2, "upside down")):
        flipped = replace(operands, x=np.flip(operands.x, axis))
        yield of_layer("flip", f"sees its input flipped {words}", options, flipped)


def linear_candidates(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield the linear layers that a wrong port computes."""
    weight = operands.parameters["weight"]
    if weight.shape[0] == weight.shape[1]:
        turned = operands.with_parameter("weight", weight.T)
        yield of_layer("transposed-weight", "uses its weight transposed", options, turned)
    yield from _without_bias(options, operands)
    yield from input_orders(target, options, operands)


# ---- windows ----------------------------------------------------------------------------------
def _windows(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield other paddings, strides and dilations that lead to the actual shape."""
    shape = target.actual.shape
    if len(shape) != 4:
        return
    for changes, relation, text in other_windows(options):
        changed = replace(options, **changes)  # pyright: ignore[reportArgumentType]
        if output_size(changed, operands.x.shape) == tuple(shape[2:]):
            yield of_layer(relation, text, changed, operands)


def other_windows(options: Options) -> Iterator[tuple[dict[str, object], str, str]]:
    """Yield (changed options, relation, text) of other windows, the likeliest first."""
    for padding in _paddings(options):
        yield {"padding": padding}, *_padding_words(padding, options)
    if any(options.padding):
        for mode in PAD_MODES:
            if mode != options.pad_mode:
                text = f"pads by {mode} in place of {options.pad_mode}"
                yield {"pad_mode": mode}, "padding-mode", text
    strides = [(n, n) for n in (1, 2, 3, 4) if (n, n) != options.stride]
    paddings = [options.padding, *_paddings(options)]
    for stride, padding in product(strides, paddings):
        text = f"has stride {stride} in place of {options.stride}"
        yield {"stride": stride, "padding": padding}, "stride", text
    for n in (1, 2, 3):
        if (n, n) == options.dilation:
            continue
        half_h, half_w = (n * (k // 2) for k in options.kernel)
        for padding in (options.padding, (half_h, half_h, half_w, half_w)):
            text = f"has dilation {n} in place of {options.dilation}"
            yield {"dilation": (n, n), "padding": padding}, "dilation", text


def _paddings(options: Options) -> list[Sides]:
    """Return all other paddings of up to a kernel's size, alike for both axes where that fits."""
    most = max(options.kernel)
    both = product(range(most + 1), repeat=2)
    found: list[Sides] = [(a, b, a, b) for a, b in both]
    top, _, left, _ = options.padding
    if top != left:
        height, width = options.kernel
        found += [(a, b, *options.padding[2:]) for a, b in product(range(height + 1), repeat=2)]
        found += [(*options.padding[:2], a, b) for a, b in product(range(width + 1), repeat=2)]
    return [padding for padding in found if padding != options.padding]


def _padding_words(padding: Sides, options: Options) -> tuple[str, str]:
    top, bottom, left, right = padding
    known = options.padding
    same_amount = top == bottom and left == right
    if same_amount:
        return "padding", f"pads by {top}, {left} in place of {known[0]}, {known[2]}"
    where = "padding='same' does" if (top, left) <= (bottom, right) else "padding='same_lower' does"
    text = f"pads {padding} (top, bottom, left, right) in place of {known}, as {where}"
    return "padding-side", text


def output_size(options: Options, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (H, W) of a convolution's or a pooling's output, rounded down."""
    top, bottom, left, right = options.padding
    sizes: list[int] = []
    for axis, around in ((0, top + bottom), (1, left + right)):
        span = options.dilation[axis] * (options.kernel[axis] - 1) + 1
        sizes.append((shape[2 + axis] + around - span) // options.stride[axis] + 1)
    return sizes[0], sizes[1]


# ---- weights ----------------------------------------------------------------------------------
def turned_weights(weight: Array) -> Iterator[tuple[str, str, Array]]:
    """Yield (relation, text, weight) of the ways in which a convolution's weight is turned."""
    if weight.shape[0] == weight.shape[1] > 1:
        text = "uses its weight with input and output channels exchanged"
        yield "transposed-weight", text, weight.swapaxes(0, 1)
    if weight.shape[2] == weight.shape[3] > 1:
        text = "uses its kernels with rows and columns exchanged"
        yield "transposed-weight", text, weight.swapaxes(2, 3)
    if weight.shape[2] * weight.shape[3] > 1:
        text = "uses its kernels turned by 180 degrees (a convolution in the strict sense)"
        yield "flipped-kernel", text, weight[:, :, ::-1, ::-1]
        yield "flipped-kernel", "uses its kernels flipped left to right", weight[:, :, :, ::-1]
        yield "flipped-kernel", "uses its kernels flipped upside down", weight[:, :, ::-1]


def _weights(options: Options, operands: Operands) -> Iterator[Candidate]:
    for relation, text, weight in turned_weights(operands.parameters["weight"]):
        yield of_layer(relation, text, options, operands.with_parameter("weight", weight))
    yield from _without_bias(options, operands)
    if options.activation != "identity":
        text = f"does not apply {options.activation}"
        yield with_options("missing-activation", text, options, operands, activation="identity")


def _without_bias(options: Options, operands: Operands) -> Iterator[Candidate]:
    bias = operands.parameters.get("bias")
    if bias is None:
        return
    without = operands.with_parameter("bias", None)
    yield of_layer("missing-bias", "does not add its bias", options, without)
    twice = operands.with_parameter("bias", 2 * bias)
    yield of_layer("doubled-bias", "adds its bias twice", options, twice)


# ---- channels ---------------------------------------------------------------------------------
def input_orders(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield the layer on an input whose channels are in another order."""
    count = operands.x.shape[1 if operands.x.ndim == 4 else -1]
    if count == 3 and operands.x.ndim == 4:
        orders = {"reversed (BGR)": [2, 1, 0], **channel_orders(3)}
    else:
        orders = channel_orders(count)
    for name, order in _plausible(orders, target, options, operands).items():
        reordered = replace(
            operands, x=operands.x.take(order, axis=1 if operands.x.ndim == 4 else -1)
        )
        half = " (a concatenation in the other order?)" if "BGR" not in name else ""
        text = f"sees its input's channels {name}{half}"
        yield of_layer("swapped-channels", text, options, reordered)


def _plausible(
    orders: dict[str, list[int]], target: Target, options: Options, operands: Operands
) -> dict[str, list[int]]:
    """Return the orders that fit on a corner of one sample: there may be thousands of them."""
    if len(orders) <= 12 or operands.x.ndim != 4 or target.actual.ndim != 4:
        return orders
    # rows enough for a few outputs; the padding below is not the map's own, so the first row only
    height = options.kernel[0] * options.dilation[0] + options.stride[0]
    width = options.kernel[1] * options.dilation[1] + options.stride[1] * 7
    corner = operands.x[:1, :, :height, :width]
    actual = target.actual[:1, :, :1, :4]
    few = _few_outputs(options, operands)
    limit = 4 * target.tolerance * target.scale
    kept: dict[str, list[int]] = {}
    for name, order in orders.items():
        found = run(options, replace(few, x=corner[:, order]))[:, :, :1, :4]
        wanted = actual[:, : found.shape[1], :, : found.shape[3]]
        if found.shape == wanted.shape and np.abs(found - wanted).max() <= limit:
            kept[name] = order
    return kept


def _few_outputs(options: Options, operands: Operands) -> Operands:
    """Return operands that give the first output channels only, where they see all inputs."""
    if options.groups != 1:
        return operands
    parameters = {name: array[:FEW] for name, array in operands.parameters.items()}
    return replace(operands, parameters=parameters)


def _group_orders(options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield a grouped convolution whose groups see the channels i, i + groups, ..."""
    weight = operands.parameters["weight"]
    outputs, per_group = weight.shape[:2]
    if options.groups == 1 or outputs == options.groups:
        return
    # output k of a depthwise convolution with a multiplier belongs to channel k // multiplier
    count = operands.x.shape[1]
    order = [k % options.groups for k in range(outputs)] if per_group == 1 else None
    if order is not None:
        gathered = replace(operands, x=operands.x.take([k % count for k in order], axis=1))
        text = f"its output k sees input channel k % {count}, not k // {outputs // count}"
        changed: Pair = (outputs, 1)
        yield of_layer("groups", text, replace(options, groups=changed[0]), gathered)
