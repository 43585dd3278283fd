"""Convolution, linear layer, activations and their gradients in NumPy, float64, NCHW.

Written from the definitions and independent of both frameworks. Padding is (top, bottom, left,
right); stride and dilation are (vertical, horizontal).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[int, int]
Sides = tuple[int, int, int, int]

PadMode = Literal["constant", "edge", "reflect", "wrap"]
PAD_MODES: dict[str, PadMode] = {
    "zeros": "constant",
    "replicate": "edge",
    "reflect": "reflect",
    "circular": "wrap",
}
"""The frameworks' words for what stands outside of a map, and NumPy's."""


def pad(x: Array, sides: Sides, *, mode: str = "zeros", value: float = 0.0) -> Array:
    """Return (N, C, H, W) with rows and columns added around it (cut off where negative)."""
    top, bottom, left, right = sides
    H, W = x.shape[2], x.shape[3]
    x = x[:, :, max(-top, 0) : H - max(-bottom, 0), max(-left, 0) : W - max(-right, 0)]
    widths = ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))
    if not any(sum(width) for width in widths):
        return x
    if mode == "zeros":
        return np.pad(x, widths, constant_values=value)
    return np.pad(x, widths, mode=PAD_MODES[mode])


def windows(x: Array, kernel: Pair, *, stride: Pair, dilation: Pair = (1, 1)) -> Array:
    """Return all windows of a padded map, (N, C, rows, columns, kernel H, kernel W), a view."""
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    seen = sliding_window_view(x, span, axis=(2, 3))
    return seen[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    pad_mode: str = "zeros",
) -> Array:
    """Convolve (as the frameworks say: correlate) a map.

    Args:
        x: (N, in, H, W).
        weight: (out, in / groups, kernel H, kernel W).
        bias: (out,).
        stride: step of the window.
        padding: rows and columns around the map.
        dilation: distance of neighbours in the window.
        groups: parts that the channels are split into; an output sees the inputs of its own.
        pad_mode: one of PAD_MODES.
    """
    seen = windows(
        pad(_wide(x), padding, mode=pad_mode), _kernel(weight), stride=stride, dilation=dilation
    )
    N, C, rows, columns = seen.shape[:4]
    grouped = seen.reshape(N, groups, C // groups, rows, columns, *seen.shape[4:])
    kernels = _wide(weight).reshape(groups, -1, *weight.shape[1:])
    parts = [
        np.tensordot(grouped[:, g], kernels[g], axes=([1, 4, 5], [1, 2, 3]))
        for g in range(groups if groups < C else 0)
    ]
    if parts:
        out = np.concatenate(parts, axis=3).transpose(0, 3, 1, 2)
    else:  # depthwise: one product per channel would be slow one by one
        out = np.einsum("ncyxij,coij->ncoyx", grouped[:, :, 0], kernels[:, :, 0], optimize=True)
        out = out.reshape(N, -1, rows, columns)
    return out if bias is None else out + channels(bias)


def conv2d_weight_gradient(
    x: Array,
    output_gradient: Array,
    kernel: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    pad_mode: str = "zeros",
) -> Array:
    """Return the gradient of conv2d's weight, (out, in / groups, *kernel)."""
    padded = pad(_wide(x), padding, mode=pad_mode)
    seen = windows(padded, kernel, stride=stride, dilation=dilation)
    N, C, rows, columns = seen.shape[:4]
    seen = seen.reshape(N, groups, C // groups, rows, columns, *kernel)
    gradient = _wide(output_gradient).reshape(N, groups, -1, rows, columns)
    parts = [
        np.tensordot(gradient[:, g], seen[:, g], axes=([0, 2, 3], [0, 2, 3])) for g in range(groups)
    ]
    return np.concatenate(parts)


def conv2d_input_gradient(
    weight: Array,
    output_gradient: Array,
    size_hw: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Return the gradient of conv2d's input, (N, in, *size_hw), for padding with zeros."""
    top, bottom, left, right = padding
    H, W = size_hw
    N, _, rows, columns = output_gradient.shape
    gradient = _wide(output_gradient).reshape(N, groups, -1, rows, columns)
    kernels = _wide(weight).reshape(groups, -1, *weight.shape[1:])
    spread = np.zeros((N, groups, weight.shape[1], H + top + bottom, W + left + right))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            part = np.einsum("ngoyx,goc->ngcyx", gradient, kernels[..., i, j], optimize=True)
            at = (slice(i * dilation[0], None, stride[0]), slice(j * dilation[1], None, stride[1]))
            spread[:, :, :, at[0], at[1]][..., :rows, :columns] += part
    full = spread.reshape(N, -1, H + top + bottom, W + left + right)
    return full[:, :, top : top + H, left : left + W]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return x weight^T + bias: (..., in), (out, in), (out,) -> (..., out)."""
    out = _wide(x) @ _wide(weight).T
    return out if bias is None else out + _wide(bias)


def linear_weight_gradient(x: Array, output_gradient: Array) -> Array:
    """Return the gradient of linear's weight, (out, in)."""
    inputs, gradient = _wide(x), _wide(output_gradient)
    return gradient.reshape(-1, gradient.shape[-1]).T @ inputs.reshape(-1, inputs.shape[-1])


def channels(values: Array) -> Array:
    """Return (C,) as (1, C, 1, 1), to stand beside (N, C, H, W)."""
    return _wide(values).reshape(1, -1, 1, 1)


# ---- activations ------------------------------------------------------------------------------
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    x = _wide(x)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def leaky_relu(x: Array, slope: float) -> Array:
    """Return x where it is positive, slope x elsewhere."""
    x = _wide(x)
    return np.where(x > 0, x, slope * x)


def softmax(x: Array, axis: int = 1) -> Array:
    """Return exp(x) over its sum along an axis."""
    x = _wide(x)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(_wide(x), 0.0),
    "sigmoid": sigmoid,
    "tanh": lambda x: np.tanh(_wide(x)),
    "relu6": lambda x: np.clip(_wide(x), 0.0, 6.0),
    "hardsigmoid": lambda x: np.clip(_wide(x) / 6.0 + 0.5, 0.0, 1.0),
    "hardswish": lambda x: _wide(x) * np.clip(_wide(x) + 3.0, 0.0, 6.0) / 6.0,
    "swish": lambda x: _wide(x) * sigmoid(x),
    "elu": lambda x: np.where(_wide(x) > 0, _wide(x), np.expm1(np.minimum(_wide(x), 0.0))),
    "softplus": lambda x: np.logaddexp(0.0, _wide(x)),
    "softmax": softmax,
}
"""Activations without an option; leaky_relu has its slope."""


def activation_gradient(name: str, x: Array, output_gradient: Array, *, slope: float) -> Array:
    """Return the gradient at an activation's input.

    Args:
        name: "relu", "leaky_relu", "sigmoid", "tanh" or "identity".
        x: what the activation was given.
        output_gradient: gradient at its output, of the shape of x.
        slope: of leaky_relu.

    Raises:
        ValueError: another activation.
    """
    x, gradient = _wide(x), _wide(output_gradient)
    if name == "identity":
        return gradient
    if name in ("relu", "leaky_relu"):
        return np.where(x > 0, gradient, (slope if name == "leaky_relu" else 0.0) * gradient)
    if name == "sigmoid":
        return gradient * sigmoid(x) * sigmoid(-x)
    if name == "tanh":
        return gradient / np.cosh(x) ** 2
    raise ValueError(f"activation {name!r}; gradients are known of relu, leaky_relu, sigmoid, tanh")


def _wide(array: Array) -> Array:
    return np.asarray(array, np.float64)


def _kernel(weight: Array) -> Pair:
    return weight.shape[2], weight.shape[3]
