"""What Pillow computes when it resizes and enhances pictures, to the bit, without Pillow.

The recipes of CoinCheung/BiSeNet 2019 and 2020 (transform.py) and STDC-Seg@59ff37f augment with
Pillow, whose resize averages when it shrinks (OpenCV's samples) and whose enhancers round their
own way. Formulas: Pillow's src/libImaging/Resample.c, Geometry.c, Blend.c, Convert.c and
ImageEnhance.py; the tests hold them against the installed Pillow.

Images: (H, W, 3) uint8 RGB. Labels: (H, W) uint8.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.window import Window

Bytes = NDArray[np.uint8]

_PRECISION_BITS = 32 - 8 - 2
"""Of Resample.c: weights are integers with so many binary places."""


def resize_image(image: Bytes, *, size_hw: tuple[int, int]) -> Bytes:
    """Return Image.resize(size, BILINEAR): along the rows first, bytes between the passes.

    Pillow 13 begins with the columns where that saves work (much taller than wide); the versions
    that the recipes ran with, and this function, never do.
    """
    return resize_image_window(image, size_hw=size_hw, window=Window(0, 0, *size_hw))


def resize_image_window(image: Bytes, *, size_hw: tuple[int, int], window: Window) -> Bytes:
    """Return the window of resize_image(image, size), computing no more than that."""
    rows, columns = source_of_window(image.shape[:2], size_hw=size_hw, window=window)
    part = image[rows, columns]
    return resize_part(part, rows, columns, image.shape[:2], size_hw=size_hw, window=window)


def source_of_window(
    source_hw: tuple[int, ...], *, size_hw: tuple[int, int], window: Window
) -> tuple[slice, slice]:
    """Return the rows and columns of a picture that a window of the resized one depends on."""
    return (
        _source(source_hw[0], size_hw[0], slice(window.top, window.top + window.height)),
        _source(source_hw[1], size_hw[1], slice(window.left, window.left + window.width)),
    )


def resize_part(
    part: Bytes,
    rows: slice,
    columns: slice,
    source_hw: tuple[int, ...],
    *,
    size_hw: tuple[int, int],
    window: Window,
) -> Bytes:
    """Return a window of a resized picture, from the part of the picture that it depends on.

    Args:
        part: (h, w, 3) uint8, rows and columns of the picture, as source_of_window tells them.
        rows: of the part.
        columns: of the part.
        source_hw: (H, W) of the whole picture.
        size_hw: (H, W) of the whole resized picture.
        window: what is kept of it.
    """
    if size_hw[1] != source_hw[1]:
        # the pass works along the first axis, where whole rows are copied
        turned = np.ascontiguousarray(part.transpose(1, 0, 2))
        kept = slice(window.left, window.left + window.width)
        turned = _resample(turned, columns.start, source_hw[1], size_hw[1], kept)
        part = turned.transpose(1, 0, 2)
    if size_hw[0] != source_hw[0]:
        kept = slice(window.top, window.top + window.height)
        part = _resample(np.ascontiguousarray(part), rows.start, source_hw[0], size_hw[0], kept)
    return np.ascontiguousarray(part)


def resize_label(label: Bytes, *, size_hw: tuple[int, int]) -> Bytes:
    """Return Image.resize(size, NEAREST)."""
    return resize_label_window(label, size_hw=size_hw, window=Window(0, 0, *size_hw))


def resize_label_window(label: Bytes, *, size_hw: tuple[int, int], window: Window) -> Bytes:
    """Return the window of resize_label(label, size)."""
    rows = _nearest(label.shape[0], size_hw[0])[window.top : window.top + window.height]
    columns = _nearest(label.shape[1], size_hw[1])[window.left : window.left + window.width]
    return label[rows].take(columns, axis=1)


def enhance_brightness(image: Bytes, *, factor: float) -> Bytes:
    """Return ImageEnhance.Brightness(image).enhance(factor): a blend with black."""
    return np.asarray(cv2.LUT(image, _blend_row(0, factor)), np.uint8)


def enhance_contrast(image: Bytes, *, factor: float) -> Bytes:
    """Return ImageEnhance.Contrast(image).enhance(factor): a blend with the mean grey."""
    mean = int(luminance(image).mean() + 0.5)
    return np.asarray(cv2.LUT(image, _blend_row(mean, factor)), np.uint8)


def enhance_colour(image: Bytes, *, factor: float) -> Bytes:
    """Return ImageEnhance.Color(image).enhance(factor): a blend with the grey picture."""
    pairs = luminance(image).astype(np.intp)[..., None] << 8 | image
    return _blend_table(factor).ravel()[pairs]


def luminance(image: Bytes) -> Bytes:
    """Return Image.convert("L"): ITU-R 601 luma in 16 binary places, rounded."""
    red, green, blue = (image[..., c].astype(np.uint32) for c in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16).astype(np.uint8)


def _blend_table(factor: float) -> Bytes:
    """Return (256, 256): Image.blend of a byte (row) with a byte (column)."""
    return _blended(np.arange(256, dtype=np.float32)[:, None], factor)


def _blend_row(base: int, factor: float) -> Bytes:
    return _blended(np.float32(base), factor)


def _blended(base: Any, factor: float) -> Bytes:
    """Blend with every byte; in float32, like Blend.c, with the C compiler's order of operations.

    Clipped, then truncated.
    """
    difference = np.arange(256, dtype=np.float32) - base
    blended = base + np.float32(factor) * difference
    return np.clip(blended, 0, 255).astype(np.uint8)


def _nearest(size: int, new_size: int) -> NDArray[np.intp]:
    """Return the source index of every new pixel; Geometry.c adds up the step pixel by pixel."""
    step = size / new_size
    positions = np.full(new_size, step)
    positions[0] = step * 0.5
    return np.cumsum(positions).astype(np.intp)


def _source(size: int, new_size: int, kept: slice) -> slice:
    """Return which source indices the kept ones of the new pixels depend on."""
    if size == new_size:
        return kept
    first, weights = _triangle_weights(size, new_size)
    last = first + weights.shape[1] - (weights[:, ::-1] != 0).argmax(axis=1)
    return slice(int(first[kept].min()), int(last[kept].max()))


def _resample(image: Bytes, start: int, size: int, new_size: int, kept: slice) -> Bytes:
    """Resize the first axis with the triangle filter, as wide as the step when shrinking.

    The image is what lies from ``start`` on in an axis of ``size``; ``kept`` of the new_size
    pixels are computed.
    """
    first, weights = (array[kept] for array in _triangle_weights(size, new_size))
    first = first - start
    total = np.full((len(first), *image.shape[1:]), 1 << (_PRECISION_BITS - 1), np.int32)
    product = np.empty_like(total)
    for tap in np.flatnonzero(weights.any(axis=0)):
        rows = image[np.minimum(first + tap, len(image) - 1)]
        np.multiply(rows, weights[:, tap, None, None], out=product, dtype=np.int32)
        total += product
    total >>= _PRECISION_BITS
    return np.clip(total, 0, 255).astype(np.uint8)


def _triangle_weights(size: int, new_size: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Return the first source index and the (new_size, taps) integer weights of every new row."""
    scale = size / new_size
    support = max(scale, 1.0)
    centre = (np.arange(new_size) + 0.5) * scale
    # truncated toward zero, then cut at the border: the order of Resample.c
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    last = np.minimum((centre + support + 0.5).astype(np.intp), size)
    tap = np.arange(ceil(support) * 2 + 1)
    distance = np.abs((tap + first[:, None] - centre[:, None] + 0.5) * (1.0 / support))
    inside = tap < (last - first)[:, None]
    weights = np.where(inside & (distance < 1.0), 1.0 - distance, 0.0)
    # one after the other, as the C loop adds them
    total: NDArray[Any] = np.cumsum(weights, axis=1)[:, -1:]
    normal = weights * (1.0 / total)
    return first, (0.5 + normal * (1 << _PRECISION_BITS)).astype(np.int32)
