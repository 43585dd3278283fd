"""The gradient that a layer passes back, to its input or to a parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.explain import norms, ops, pools
from pipeline.explain.options import (
    Operands,
    Options,
    axis_matrices,
    reduction_of,
    run,
    scale_of,
    statistics_of,
)
from pipeline.explain.target import WHOLE, Array, Where, wide

FEW = 4
"""Channels on which a backward pass is tried before all."""


@dataclass(frozen=True)
class Flow:
    """A backward pass through one layer."""

    options: Options
    operands: Operands
    output_gradient: Array
    which: str
    """"weight", "bias" or "input": what the gradient is of."""
    frozen: bool = False
    """True takes the statistics of the batch for constants."""

    def having(self, options: Options) -> Flow:
        """Return the same through a layer with other options."""
        return replace(self, options=options)

    def probe(self) -> Where:
        """Return the part of the gradient that ``part`` is."""
        options, few = self.options, slice(0, FEW)
        if options.kind == "linear" or self.output_gradient.ndim != 4 or options.groups != 1:
            return WHOLE
        if options.kind == "conv2d":
            return {"weight": (few, few), "bias": (few,)}.get(self.which, (slice(0, 1), few))
        if options.kind == "batch_norm":
            return (few,) if self.which != "input" else (slice(None), few)
        return (slice(0, 1), few)

    def part(self) -> Flow:
        """Return the flow that gives the part ``probe`` of the gradient, of a few channels only."""
        probe, few = self.probe(), slice(0, FEW)
        if probe == WHOLE:
            return self
        x, gradient, own = self.operands.x, self.output_gradient, self.operands.parameters
        if self.options.kind == "conv2d":
            return self._part_of_convolution()
        samples = slice(None) if self.options.kind == "batch_norm" else slice(0, 1)
        operands = Operands(
            x[samples, few],
            {name: array[few] for name, array in own.items()},
            {name: array[few] for name, array in self.operands.buffers.items()},
        )
        return replace(self, operands=operands, output_gradient=gradient[samples, few])

    def _part_of_convolution(self) -> Flow:
        few = slice(0, FEW)
        x, own = self.operands.x, dict(self.operands.parameters)
        # an activation behind it needs all of the input
        known = self.options.activation == "identity" and self.which != "input"
        inputs = few if known else slice(None)
        if self.which == "input":
            # few channels of one sample's input, all of the output
            weight = own["weight"][:, few]
            operands = Operands(x[:1, few], {**own, "weight": weight})
            return replace(self, operands=operands, output_gradient=self.output_gradient[:1])
        parameters = {name: array[few] for name, array in own.items()}
        parameters["weight"] = parameters["weight"][:, inputs]
        operands = Operands(x[:, inputs], parameters)
        return replace(self, operands=operands, output_gradient=self.output_gradient[:, few])

    @property
    def reduction(self) -> float:
        """How many values are summed up to one of the gradient's, for rounding in float32."""
        if self.which != "input":
            return float(self.output_gradient.size / self.output_gradient.shape[1])
        weight = self.operands.parameters.get("weight")
        if weight is not None and weight.ndim > 1:
            return float(np.prod(weight.shape) / weight.shape[1])
        return max(64.0, reduction_of(self.options, self.operands))


def gradient_of(flow: Flow) -> Array:
    """Return the gradient.

    Raises:
        ValueError: a layer or an activation whose gradient is not known, or shapes that do not go
            together.
        KeyError: a parameter or buffer is not there.
    """
    kind = flow.options.kind
    if kind in _THROUGH:
        return _THROUGH[kind](flow)
    if flow.which != "input":
        raise ValueError(f"{kind} has no parameter {flow.which!r}")
    options = flow.options
    gradient = flow.output_gradient
    return ops.activation_gradient(kind, flow.operands.x, gradient, slope=options.slope)


def _before_activation(flow: Flow) -> Array:
    """Return the gradient behind which the layer's own activation lies."""
    options = flow.options
    if options.activation == "identity":
        return wide(flow.output_gradient)
    given = run(replace(options, activation="identity"), flow.operands)
    name, gradient = options.activation, flow.output_gradient
    return ops.activation_gradient(name, given, gradient, slope=options.slope)


def _conv(flow: Flow) -> Array:
    options, gradient = flow.options, _before_activation(flow)
    weight, x = flow.operands.parameters["weight"], flow.operands.x
    if flow.which == "bias":
        return gradient.sum(axis=(0, 2, 3))
    if flow.which == "weight":
        return ops.conv2d_weight_gradient(
            x,
            gradient,
            (weight.shape[2], weight.shape[3]),
            stride=options.stride,
            padding=options.padding,
            dilation=options.dilation,
            groups=options.groups,
            pad_mode=options.pad_mode,
        )
    if options.pad_mode != "zeros":
        raise ValueError(f"the gradient through padding by {options.pad_mode} is not known")
    return ops.conv2d_input_gradient(
        weight,
        gradient,
        (x.shape[2], x.shape[3]),
        stride=options.stride,
        padding=options.padding,
        dilation=options.dilation,
        groups=options.groups,
    )


def _linear(flow: Flow) -> Array:
    gradient = _before_activation(flow)
    if flow.which == "bias":
        return gradient.reshape(-1, gradient.shape[-1]).sum(axis=0)
    if flow.which == "weight":
        return ops.linear_weight_gradient(flow.operands.x, gradient)
    return gradient @ wide(flow.operands.parameters["weight"])


def _norm(flow: Flow) -> Array:
    options, operands = flow.options, flow.operands
    mean, variance = statistics_of(options, operands)
    found = norms.normalise_gradients(
        operands.x,
        _before_activation(flow),
        mean,
        variance,
        weight=scale_of(options, operands),
        eps=options.eps,
        batch=options.batch_statistics and not flow.frozen,
    )
    if flow.which == "input":
        return found.input
    if flow.which == "bias":
        return found.bias
    sign = np.sign(wide(operands.parameters["weight"])) if options.absolute_weight else 1.0
    return found.weight * sign


def _pool(flow: Flow) -> Array:
    options = flow.options
    x, gradient = flow.operands.x, flow.output_gradient
    if options.kind == "max_pool2d":
        return pools.max_pool2d_gradient(
            x,
            gradient,
            options.kernel,
            stride=options.stride,
            padding=options.padding,
            ceil_mode=options.ceil_mode,
        )
    return pools.avg_pool2d_gradient(
        x,
        gradient,
        options.kernel,
        stride=options.stride,
        padding=options.padding,
        ceil_mode=options.ceil_mode,
        count_include_pad=options.count_include_pad,
        ninth_as_float32=options.kernel_constants,
    )


def _mean(flow: Flow) -> Array:
    shape = flow.operands.x.shape
    if flow.output_gradient.shape[2:] != (1, 1):
        raise ValueError("the gradient of adaptive pooling is known for a size of 1 x 1 only")
    return np.broadcast_to(wide(flow.output_gradient) / (shape[2] * shape[3]), shape)


def _resize(flow: Flow) -> Array:
    matrices = axis_matrices(flow.options, flow.operands.x.shape[2:], back=True)
    return pools.apply_axes_gradient(flow.output_gradient, *matrices)


_THROUGH = {
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": _norm,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _mean,
    "upsample": _resize,
}
