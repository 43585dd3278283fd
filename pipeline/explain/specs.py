"""What a case says of its layer: kind and options of ``spec``, completed from the shapes.

A spec names options as the frameworks do (``stride``, ``padding``, ``eps``, ``negative_slope``,
``align_corners`` ...). What is missing is inferred: ``identify`` returns the first reading of the
spec with which the layer, computed here, gives the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from pipeline.explain import ops
from pipeline.explain.ops import Pair, Sides
from pipeline.explain.options import Operands, Options, reduction_of, run
from pipeline.explain.target import Target
from pipeline.failure import FailureCase

KINDS = {
    "conv2d": "conv2d",
    "batchnorm2d": "batch_norm",
    "batchnorm": "batch_norm",
    "syncbatchnorm": "batch_norm",
    "inplaceabn": "inplace_abn",
    "maxpool2d": "max_pool2d",
    "avgpool2d": "avg_pool2d",
    "adaptiveavgpool2d": "adaptive_avg_pool2d",
    "globalavgpool2d": "adaptive_avg_pool2d",
    "linear": "linear",
    "upsample": "upsample",
    "interpolate": "upsample",
    "resizebilinear": "upsample",
    "resizenearest": "upsample",
    "resizetosize": "upsample",
    "leakyrelu": "leaky_relu",
    "dropout": "identity",
    "identity": "identity",
    **{name: name for name in ops.ACTIVATIONS},
}
"""Spellings of a kind without underscores, in lower case, and the one used here."""


def identify(case: FailureCase, operands: Operands, *, side: str = "torch") -> Options | None:
    """Return the options with which the layer, computed here, is the reference.

    Args:
        case: a layer's.
        operands: of the case.
        side: whose spec is read.

    Returns:
        None if no reading of the spec reproduces the reference: the case is incomplete.
    """
    reference = case.arrays["reference"]
    for options in readings(case.spec.get(side, {}), operands, case.mode, shape=reference.shape):
        try:
            found = run(options, operands)
            target = Target(found, reference, reduction_of(options, operands))
        except (ValueError, KeyError, IndexError):
            continue
        if target.fits(found):
            return options
    return None


def readings(
    spec: Mapping[str, Any], operands: Operands, mode: str, *, shape: Sequence[int]
) -> Iterator[Options]:
    """Yield what a spec may mean, the literal reading first.

    Args:
        spec: kind and options, any of them missing.
        operands: from whose shapes the rest is inferred.
        mode: "train" or "eval".
        shape: of the layer's output.
    """
    kind = kind_of(spec, operands)
    if kind == "conv2d":
        yield from _convolutions(spec, operands, shape)
    elif kind in ("batch_norm", "inplace_abn"):
        yield from _norms(spec, kind, mode)
    elif kind == "linear":
        yield from _activations_after(Options("linear"), spec)
    elif kind in ("max_pool2d", "avg_pool2d"):
        yield from _pools(spec, kind, operands, shape)
    elif kind == "adaptive_avg_pool2d":
        yield Options(kind, size_hw=(shape[-2], shape[-1]))
    elif kind == "upsample":
        yield from _resizes(spec, shape)
    elif kind in ("leaky_relu", "identity", *ops.ACTIVATIONS):
        yield Options(kind, slope=slope_of(spec))
    else:
        yield from _anything(spec, operands, shape)


def kind_of(spec: Mapping[str, Any], operands: Operands) -> str:
    """Return a layer's kind, one of KINDS' values or "composite"."""
    word = str(spec.get("kind", "")).lower().replace("_", "")
    if word in KINDS:
        return KINDS[word]
    weight = operands.parameters.get("weight")
    if "running_mean" in operands.buffers:
        return "batch_norm"
    if weight is not None and weight.ndim in (2, 4):
        return "conv2d" if weight.ndim == 4 else "linear"
    return "composite"


def pair(value: Any, default: Pair) -> Pair:
    """Return a number or two as (vertical, horizontal)."""
    if value is None or isinstance(value, str):
        return default
    numbers = [int(n) for n in np.ravel(value)]
    return (numbers[0], numbers[-1])


def sides(value: Any) -> Sides | None:
    """Return padding as (top, bottom, left, right): of a number, a pair, or Paddle's four."""
    if value is None or isinstance(value, str):
        return None
    numbers = [int(n) for n in np.ravel(value)]
    if len(numbers) == 4:
        return numbers[0], numbers[1], numbers[2], numbers[3]
    return numbers[0], numbers[0], numbers[-1], numbers[-1]


def slope_of(spec: Mapping[str, Any]) -> float:
    """Return LeakyReLU's slope, 0.01 unless it is given."""
    given = spec.get("negative_slope", spec.get("slope"))
    return 0.01 if given is None else float(given)


def _convolutions(
    spec: Mapping[str, Any], operands: Operands, shape: Sequence[int]
) -> Iterator[Options]:
    weight = operands.parameters.get("weight")
    if weight is None or operands.x.ndim != 4:
        return
    kernel: Pair = weight.shape[2], weight.shape[3]
    half = kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2
    groups = operands.x.shape[1] // weight.shape[1]
    strides = (
        [pair(spec["stride"], (1, 1))]
        if spec.get("stride") is not None
        else _around(shape, operands)
    )
    paddings = [sides(spec.get("padding"))] if sides(spec.get("padding")) else [half, (0, 0, 0, 0)]
    dilation = pair(spec.get("dilation"), (1, 1))
    for stride, padding in product(strides, paddings):
        base = Options(
            "conv2d",
            stride=stride,
            padding=padding or half,
            dilation=dilation,
            groups=groups,
            kernel=kernel,
            pad_mode=str(spec.get("padding_mode") or "zeros"),
        )
        yield from _activations_after(base, spec)


def _around(shape: Sequence[int], operands: Operands) -> list[Pair]:
    """Return the strides that lead from the input's size to about the output's."""
    ratios = [operands.x.shape[2 + axis] / max(shape[2 + axis], 1) for axis in range(2)]
    vertical, horizontal = ({max(int(r), 1), max(round(r), 1)} for r in ratios)
    return sorted(product(vertical, horizontal))


def _activations_after(base: Options, spec: Mapping[str, Any]) -> Iterator[Options]:
    """Yield a layer with the activation of its spec, else without one."""
    name = str(spec.get("activation") or "identity").lower().replace("none", "identity")
    name = KINDS.get(name.replace("_", ""), name)
    yield replace(base, activation=name, slope=slope_of(spec))


def _norms(spec: Mapping[str, Any], kind: str, mode: str) -> Iterator[Options]:
    eps = spec.get("eps", spec.get("epsilon"))
    own = mode == "train"
    names = [spec["activation"]] if "activation" in spec else ["identity", "leaky_relu", "relu"]
    forms = [kind == "inplace_abn", kind != "inplace_abn"]
    for absolute, name, batch in product(forms, names, (own, not own)):
        base = Options("batch_norm", eps=1e-5 if eps is None else float(eps))
        base = replace(base, absolute_weight=absolute, batch_statistics=batch)
        yield from _activations_after(base, {**spec, "activation": name})


def _pools(
    spec: Mapping[str, Any], kind: str, operands: Operands, shape: Sequence[int]
) -> Iterator[Options]:
    kernel = pair(spec.get("kernel_size"), (3, 3))
    given = spec.get("count_include_pad")
    if given is None and spec.get("exclusive") is not None:
        given = not spec["exclusive"]
    includes = (True, False) if given is None else (bool(given),)
    strides = [pair(spec["stride"], kernel)] if spec.get("stride") else _around(shape, operands)
    known = sides(spec.get("padding"))
    paddings: list[Sides] = [known] if known else [(n, n, n, n) for n in range(kernel[0])]
    ceils = [bool(spec["ceil_mode"])] if "ceil_mode" in spec else [False, True]
    for stride, padding, ceil, include in product(strides, paddings, ceils, includes):
        yield Options(
            kind,
            kernel=kernel,
            stride=stride,
            padding=padding,
            ceil_mode=ceil,
            count_include_pad=include,
        )


def _resizes(spec: Mapping[str, Any], shape: Sequence[int]) -> Iterator[Options]:
    mode, corners = spec.get("mode"), spec.get("align_corners")
    modes = [str(mode).lower()] if mode else ["nearest", "bilinear"]
    aligned = (False, True) if corners is None else (bool(corners),)
    for name, align_corners in product(modes, aligned):
        yield Options(
            "upsample",
            mode=name,
            align_corners=align_corners,
            align_mode=int(spec.get("align_mode") or 0),
            size_hw=(int(shape[-2]), int(shape[-1])),
        )


def _anything(
    spec: Mapping[str, Any], operands: Operands, shape: Sequence[int]
) -> Iterator[Options]:
    """Yield the operations without parameters, for a layer whose kind says nothing."""
    if operands.parameters or operands.x.ndim != 4 or len(shape) != 4:
        return
    if tuple(shape) == operands.x.shape:
        yield from (Options(name) for name in ("relu", "sigmoid", "tanh"))
        yield Options("leaky_relu", slope=slope_of(spec))
        return
    if shape[2] == shape[3] == 1:
        yield Options("adaptive_avg_pool2d")
    yield from _resizes(spec, shape)
    if shape[2] < operands.x.shape[2]:
        yield from _pools(spec, "max_pool2d", operands, shape)
        yield from _pools(spec, "avg_pool2d", operands, shape)
