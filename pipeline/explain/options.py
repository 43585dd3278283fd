"""One layer: its options, what it is computed from, and the computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.explain import norms, ops, pools
from pipeline.explain.ops import Pair, Sides
from pipeline.explain.target import Array, Candidate, Where
from pipeline.failure import FailureCase


@dataclass(frozen=True)
class Options:
    """One layer, fully specified."""

    kind: str
    stride: Pair = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    pad_mode: str = "zeros"
    kernel: Pair = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    eps: float = 1e-5
    activation: str = "identity"
    slope: float = 0.01
    absolute_weight: bool = False
    """InPlaceABN: the scale is |weight| + eps."""
    batch_statistics: bool = False
    mode: str = "nearest"
    align_corners: bool = False
    align_mode: int = 0
    scale: float | None = None
    size_hw: Pair = (1, 1)
    kernel_constants: bool = False
    """True keeps ratios and divisors as float32 numbers, as Paddle's kernels do."""


@dataclass(frozen=True)
class Operands:
    """What a layer is computed from."""

    x: Array
    parameters: Mapping[str, Array] = field(default_factory=dict[str, Array])
    buffers: Mapping[str, Array] = field(default_factory=dict[str, Array])

    def with_parameter(self, name: str, array: Array | None) -> Operands:
        """Return the same with a parameter replaced, or left out if it is None."""
        others = {key: value for key, value in self.parameters.items() if key != name}
        return replace(self, parameters=others if array is None else {**others, name: array})


def operands_of(case: FailureCase) -> Operands | None:
    """Return a case's first input with the parameters and buffers, or None without an input."""
    x = case.arrays.get("input/0")
    if x is None:
        return None
    return Operands(x, named(case, "parameter"), named(case, "buffer"))


def named(case: FailureCase, group: str) -> dict[str, Array]:
    """Return the arrays ``group/<name>`` by the last word of their name."""
    found = {key: array for key, array in case.arrays.items() if key.startswith(f"{group}/")}
    return {key.removeprefix(f"{group}/").rpartition(".")[2]: a for key, a in found.items()}


def statistics_of(options: Options, operands: Operands) -> tuple[Array, Array]:
    """Return the mean and variance that a normalisation uses."""
    if options.batch_statistics:
        return norms.batch_statistics(operands.x)
    return operands.buffers["running_mean"], operands.buffers["running_var"]


def scale_of(options: Options, operands: Operands) -> Array | None:
    """Return a normalisation's weight as it is applied."""
    weight = operands.parameters.get("weight")
    if weight is None or not options.absolute_weight:
        return weight
    return np.abs(np.asarray(weight, np.float64)) + options.eps


def activated(options: Options, x: Array) -> Array:
    """Apply the options' activation."""
    return activate(options.activation, x, slope=options.slope)


def activate(name: str, x: Array, *, slope: float) -> Array:
    """Apply an activation by name; ``slope`` is leaky_relu's."""
    if name == "identity":
        return np.asarray(x, np.float64)
    if name == "leaky_relu":
        return ops.leaky_relu(x, slope)
    return ops.ACTIVATIONS[name](x)


def axis_matrices(
    options: Options, size_hw: Sequence[int], *, back: bool = False
) -> tuple[Array, Array]:
    """Return the two matrices with which a map of this size is resized; ``back``: its gradient."""
    kept = pools.PADDLE_ROUNDING_BACK if back else pools.PADDLE_ROUNDING
    pairs = list(zip(size_hw, options.size_hw, strict=True))
    roundings = kept if options.kernel_constants else ("exact", "exact")
    if options.mode == "nearest":
        both = [pools.nearest_matrix(o, n, align_corners=options.align_corners) for o, n in pairs]
    elif options.mode == "nearest-exact":
        both = [pools.nearest_matrix(o, n, centred=True) for o, n in pairs]
    else:
        both = [
            pools.bilinear_matrix(
                o,
                n,
                align_corners=options.align_corners,
                align_mode=options.align_mode,
                scale=options.scale,
                rounding=rounding,
            )
            for (o, n), rounding in zip(pairs, roundings, strict=True)
        ]
    return both[0], both[1]


def run(options: Options, operands: Operands) -> Array:
    """Compute a layer.

    Raises:
        ValueError: shapes that do not go together.
        KeyError: a parameter or buffer is not there.
    """
    return _RUN.get(options.kind, _run_activation)(options, operands)


def run_part(options: Options, operands: Operands, where: Where) -> Array:
    """Compute a part of a layer's output, of no more input than it needs.

    Args:
        options: of the layer.
        operands: of the layer.
        where: WHOLE, samples and channels (anything), or with rows and columns from 0 on.
    """
    if not where:
        return run(options, operands)
    samples = where[0]
    if options.kind == "batch_norm":
        options, operands = with_statistics(options, operands)
        return run(options, replace(operands, x=operands.x[where]))
    if options.kind in ("leaky_relu", "identity", *ops.ACTIVATIONS):
        return run(options, replace(operands, x=operands.x[where]))
    x = operands.x[samples]
    if options.kind in _WINDOWED and len(where) == 4 and options.pad_mode != "circular":
        x = x[:, :, : _needed(options, 0, where[2].stop), : _needed(options, 1, where[3].stop)]
    out = run(options, replace(operands, x=x))
    return out[(slice(None), *where[1:])]


_WINDOWED = ("conv2d", "max_pool2d", "avg_pool2d")


def _needed(options: Options, axis: int, count: int) -> int:
    """Return how many rows or columns of the input the first outputs see, and more behind them.

    The padding behind the map must not be seen by them.
    """
    span = options.dilation[axis] * (options.kernel[axis] - 1) + 1
    return count * options.stride[axis] + 2 * span


def with_statistics(options: Options, operands: Operands) -> tuple[Options, Operands]:
    """Return a normalisation with the batch's statistics as if they were the running ones."""
    if not options.batch_statistics:
        return options, operands
    mean, variance = norms.batch_statistics(operands.x)
    buffers = {"running_mean": mean, "running_var": variance}
    return replace(options, batch_statistics=False), replace(operands, buffers=buffers)


def _run_conv(options: Options, operands: Operands) -> Array:
    out = ops.conv2d(
        operands.x,
        operands.parameters["weight"],
        operands.parameters.get("bias"),
        stride=options.stride,
        padding=options.padding,
        dilation=options.dilation,
        groups=options.groups,
        pad_mode=options.pad_mode,
    )
    return activated(options, out)


def _run_norm(options: Options, operands: Operands) -> Array:
    mean, variance = statistics_of(options, operands)
    out = norms.normalise(
        operands.x,
        mean,
        variance,
        weight=scale_of(options, operands),
        bias=operands.parameters.get("bias"),
        eps=options.eps,
    )
    return activated(options, out)


def _run_linear(options: Options, operands: Operands) -> Array:
    weight, bias = operands.parameters["weight"], operands.parameters.get("bias")
    return activated(options, ops.linear(operands.x, weight, bias))


def _run_max_pool(options: Options, operands: Operands) -> Array:
    return pools.max_pool2d(
        operands.x,
        options.kernel,
        stride=options.stride,
        padding=options.padding,
        ceil_mode=options.ceil_mode,
    )


def _run_avg_pool(options: Options, operands: Operands) -> Array:
    return pools.avg_pool2d(
        operands.x,
        options.kernel,
        stride=options.stride,
        padding=options.padding,
        ceil_mode=options.ceil_mode,
        count_include_pad=options.count_include_pad,
    )


def _run_adaptive(options: Options, operands: Operands) -> Array:
    return pools.adaptive_avg_pool2d(operands.x, options.size_hw)


def _run_resize(options: Options, operands: Operands) -> Array:
    return pools.apply_axes(operands.x, *axis_matrices(options, operands.x.shape[2:]))


def _run_activation(options: Options, operands: Operands) -> Array:
    return activate(options.kind, operands.x, slope=options.slope)


_RUN = {
    "conv2d": _run_conv,
    "batch_norm": _run_norm,
    "linear": _run_linear,
    "max_pool2d": _run_max_pool,
    "avg_pool2d": _run_avg_pool,
    "adaptive_avg_pool2d": _run_adaptive,
    "upsample": _run_resize,
}


def reduction_of(options: Options, operands: Operands) -> float:
    """Return how many values are summed up to one of the layer's, for rounding in float32."""
    if options.kind in ("conv2d", "linear"):
        return float(np.prod(operands.parameters["weight"].shape[1:]))
    if options.kind == "batch_norm":
        # mean and deviation cancel where the mean is much larger than the spread
        mean, variance = statistics_of(options, operands)
        return 16.0 * float((1.0 + np.max(np.abs(mean) / np.sqrt(variance + options.eps))) ** 2)
    if options.kind in ("avg_pool2d", "adaptive_avg_pool2d"):
        return 16.0
    if options.kind == "upsample" and options.mode == "bilinear":
        # where a pixel lies is rounded, and the further out the more
        return float(max(operands.x.shape[2:]) ** 2)
    return 1.0


def of_layer(relation: str, text: str, options: Options, operands: Operands) -> Candidate:
    """Return a candidate that computes a layer."""
    return Candidate(relation, text, lambda where: run_part(options, operands, where))


def with_options(
    relation: str, text: str, options: Options, operands: Operands, **changes: object
) -> Candidate:
    """Return a candidate that computes a layer with some of its options changed."""
    changed = replace(options, **changes)  # pyright: ignore[reportArgumentType]
    return of_layer(relation, text, changed, operands)
