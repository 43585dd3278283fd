"""Pooling and resizing, and what flows back through them, in NumPy, float64, NCHW."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.explain.ops import Pair, Sides, pad, windows

Array = NDArray[Any]


def ceiling(x: Array, kernel: Pair, *, stride: Pair, padding: Sides) -> Sides:
    """Return the padding with which a pooling in ceil_mode sees all of the map.

    A window that would start in the padding behind the map is left out, as both frameworks do.
    """
    sides = list(padding)
    for axis in range(2):
        before, after = padding[2 * axis], padding[2 * axis + 1]
        size = x.shape[2 + axis]
        span = size + before + after - kernel[axis]
        count = -(-span // stride[axis]) + 1
        if (count - 1) * stride[axis] >= size + before:
            count -= 1
        sides[2 * axis + 1] = max(after, (count - 1) * stride[axis] + kernel[axis] - size - before)
    return sides[0], sides[1], sides[2], sides[3]


def max_pool2d(
    x: Array, kernel: Pair, *, stride: Pair, padding: Sides, ceil_mode: bool = False
) -> Array:
    """Return the largest value of each window; the padding never is."""
    sides = ceiling(x, kernel, stride=stride, padding=padding) if ceil_mode else padding
    padded = pad(np.asarray(x, np.float64), sides, value=-np.inf)
    return windows(padded, kernel, stride=stride).max(axis=(4, 5))


def avg_pool2d(
    x: Array,
    kernel: Pair,
    *,
    stride: Pair,
    padding: Sides,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Return the mean of each window.

    Args:
        x: (N, C, H, W).
        kernel: size of the window.
        stride: its step.
        padding: zeros around the map.
        ceil_mode: True rounds the size of the result up.
        count_include_pad: True divides by what of the window lies on the map or the padding
            (not by what ceil_mode adds behind it), False by what lies on the map.
    """
    sides = ceiling(x, kernel, stride=stride, padding=padding) if ceil_mode else padding
    total = windows(pad(np.asarray(x, np.float64), sides), kernel, stride=stride).sum(axis=(4, 5))
    return total / _divisor(x, kernel, stride, padding, sides, count_include_pad)


def _divisor(
    x: Array, kernel: Pair, stride: Pair, padding: Sides, sides: Sides, include: bool
) -> Array:
    inside = np.ones((1, 1, x.shape[2], x.shape[3]))
    if include:
        inside = pad(inside, padding, value=1.0)
        sides = (0, sides[1] - padding[1], 0, sides[3] - padding[3])
    return windows(pad(inside, sides), kernel, stride=stride).sum(axis=(4, 5))


def avg_pool2d_gradient(
    x: Array,
    output_gradient: Array,
    kernel: Pair,
    *,
    stride: Pair,
    padding: Sides,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    ninth_as_float32: bool = False,
) -> Array:
    """Return the gradient at the input; ``ninth_as_float32`` keeps 1 / divisor in float32."""
    sides = ceiling(x, kernel, stride=stride, padding=padding) if ceil_mode else padding
    divisor = _divisor(x, kernel, stride, padding, sides, count_include_pad)
    share = 1.0 / divisor
    if ninth_as_float32:
        share = share.astype(np.float32).astype(np.float64)
    gradient = np.asarray(output_gradient, np.float64) * share
    return _spread(x, gradient, kernel, stride, sides)


def max_pool2d_gradient(
    x: Array,
    output_gradient: Array,
    kernel: Pair,
    *,
    stride: Pair,
    padding: Sides,
    ceil_mode: bool = False,
) -> Array:
    """Return the gradient at the input: each window's goes to its first largest value."""
    sides = ceiling(x, kernel, stride=stride, padding=padding) if ceil_mode else padding
    seen = windows(pad(np.asarray(x, np.float64), sides, value=-np.inf), kernel, stride=stride)
    first = seen.reshape(*seen.shape[:4], -1).argmax(axis=4)
    gradient = np.asarray(output_gradient, np.float64)
    return _spread(x, gradient, kernel, stride, sides, chosen=first)


def _spread(
    x: Array,
    gradient: Array,
    kernel: Pair,
    stride: Pair,
    sides: Sides,
    chosen: Array | None = None,
) -> Array:
    """Give each window's value to all its places, or to the ``chosen`` one."""
    H, W = x.shape[2:]
    rows, columns = gradient.shape[2:]
    full = np.zeros((*x.shape[:2], H + sides[0] + sides[1], W + sides[2] + sides[3]))
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            part = gradient if chosen is None else gradient * (chosen == i * kernel[1] + j)
            at = full[:, :, i :: stride[0], j :: stride[1]]
            at[:, :, :rows, :columns] += part
    return full[:, :, sides[0] : sides[0] + H, sides[2] : sides[2] + W]


def spatial_mean(x: Array) -> Array:
    """(N, C, H, W) -> (N, C, 1, 1)."""
    return np.asarray(x, np.float64).mean(axis=(2, 3), keepdims=True)


def adaptive_avg_pool2d(x: Array, size_hw: Pair) -> Array:
    """Return the means of a grid of size_hw windows that cover the map, and may overlap."""
    x = np.asarray(x, np.float64)
    for axis, count in zip((2, 3), size_hw, strict=True):
        size = x.shape[axis]
        edges = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        means = [x.take(range(a, b), axis=axis).mean(axis=axis, keepdims=True) for a, b in edges]
        x = np.concatenate(means, axis=axis)
    return x


# ---- resizing ---------------------------------------------------------------------------------
Rounding = Literal["exact", "ratio", "places"]
"""What of a resizing is float32: nothing, the ratio of the sizes and the weights, or all between.

Paddle's CPU kernel does the second along the height and the third along the width, and the third
along both on the way back (measured in 3.3.1, over sizes 2..11 to 2..29).
"""
PADDLE_ROUNDING: tuple[Rounding, Rounding] = ("ratio", "places")
PADDLE_ROUNDING_BACK: tuple[Rounding, Rounding] = ("places", "places")


def bilinear_matrix(
    old: int,
    new: int,
    *,
    align_corners: bool,
    align_mode: int = 0,
    scale: float | None = None,
    rounding: Rounding = "exact",
) -> Array:
    """Return the (new, old) weights of bilinear resizing along one axis.

    Args:
        old: size before.
        new: size after.
        align_corners: True lays the centres of the corner pixels on each other.
        align_mode: Paddle's, without align_corners: 1 maps pixel i to i * ratio, 0 as Torch does
            to (i + 0.5) * ratio - 0.5.
        scale: the factor asked for, which need not be new / old.
        rounding: what is kept as float32.
    """
    kind = np.float64 if rounding == "exact" else np.float32
    between = np.float32 if rounding == "places" else np.float64
    if align_corners:
        ratio = kind(old - 1) / kind(new - 1) if new > 1 else kind(0)
    else:
        ratio = kind(1 / scale) if scale else kind(old) / kind(new)
    i = np.arange(new, dtype=kind)
    if align_corners or align_mode == 1:
        places = ratio * i
    else:
        half = between(0.5)
        places = (between(ratio) * (i.astype(between) + half) - half).astype(kind)
        places = np.maximum(places, kind(0))
    first = np.clip(np.floor(places).astype(int), 0, old - 1)
    second = np.minimum(first + 1, old - 1)
    far = (places - first.astype(kind)).astype(kind)
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    np.add.at(matrix, (rows, first), (kind(1) - far).astype(np.float64))
    np.add.at(matrix, (rows, second), far.astype(np.float64))
    return matrix


def nearest_matrix(
    old: int, new: int, *, align_corners: bool = False, centred: bool = False
) -> Array:
    """Return the (new, old) choice of pixels of nearest resizing along one axis.

    Args:
        old: size before.
        new: size after.
        align_corners: True rounds i * (old - 1) / (new - 1), Paddle's nearest with that option;
            False takes floor(i * old / new).
        centred: True takes floor((i + 0.5) * old / new), "nearest-exact".
    """
    i = np.arange(new)
    if align_corners:
        chosen = np.floor(i * ((old - 1) / max(new - 1, 1)) + 0.5).astype(int)
    else:
        chosen = (2 * i + 1) * old // (2 * new) if centred else i * old // new
    matrix = np.zeros((new, old))
    matrix[i, np.clip(chosen, 0, old - 1)] = 1.0
    return matrix


def apply_axes(x: Array, vertical: Array, horizontal: Array) -> Array:
    """Return vertical x horizontal^T for each map of (N, C, H, W)."""
    return np.matmul(vertical, np.matmul(np.asarray(x, np.float64), horizontal.T))


def apply_axes_gradient(output_gradient: Array, vertical: Array, horizontal: Array) -> Array:
    """Return the gradient at the input of apply_axes."""
    return apply_axes(output_gradient, vertical.T, horizontal.T)
