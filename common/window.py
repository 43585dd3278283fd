"""Resizing, of a picture that is resized as a whole, only what a window keeps.

A training crop of 512 x 1024 keeps a fifth of a street scene enlarged to 1024 x 2048 * 1.25; the
rest was computed to be thrown away. The results equal cutting the window from cv2.resize of the
whole picture, to the bit: the tests hold them against that.

Bilinear: OpenCV's source position of a pixel is (x + 0.5) / factor - 0.5, in float32, and depends
on the factor only, so a picture cut off behind the window gives the same pixels. Cut off before
the window it would not: the shifted position rounds differently. Nearest: the source index is
known, so rows and columns are picked.
"""

from math import ceil
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MARGIN = 2
"""Source pixels kept behind the last one that the window needs: the right one of a bilinear pair,
and one for what rounding the size of the part may lack."""


class Window(NamedTuple):
    """A rectangle in pixels; it may stick out of the picture, where something is padded."""

    top: int
    left: int
    height: int
    width: int

    def inside(self, size_hw: tuple[int, int]) -> "Window":
        """Return the part of the window that lies in a picture of this size."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = min(self.top + self.height, size_hw[0])
        right = min(self.left + self.width, size_hw[1])
        return Window(top, left, bottom - top, right - left)

    def cut(self, picture: Array) -> Array:
        """Return the window of a picture it lies in, as a view."""
        rows = slice(self.top, self.top + self.height)
        return picture[rows, self.left : self.left + self.width]


def resized_image_window(image: Array, size_hw: tuple[int, int], window: Window) -> Array:
    """Return the window of cv2.resize(image, size, INTER_LINEAR).

    Args:
        image: (H, W, 3) uint8.
        size_hw: (H, W) in pixels of the whole resized picture, which the window lies in.
        window: what is kept.
    """
    H, W = image.shape[:2]
    if size_hw == (H, W):
        return window.cut(image)
    rows = _needed(window.top + window.height, size=H, new_size=size_hw[0])
    columns = _needed(window.left + window.width, size=W, new_size=size_hw[1])
    factor_y, factor_x = size_hw[0] / H, size_hw[1] / W
    # a part whose rounded size is its own would be copied, not interpolated
    if (round(rows * factor_y), round(columns * factor_x)) == (rows, columns):
        whole = cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR)
        return window.cut(whole)
    part = cv2.resize(
        image[:rows, :columns], None, fx=factor_x, fy=factor_y, interpolation=cv2.INTER_LINEAR
    )
    return window.cut(part)


def resized_label_window(label: Array, size_hw: tuple[int, int], window: Window) -> Array:
    """Return the window of cv2.resize(label, size, INTER_NEAREST).

    Args:
        label: (H, W) uint8.
        size_hw: (H, W) in pixels of the whole resized label, which the window lies in.
        window: what is kept.
    """
    H, W = label.shape
    if size_hw == (H, W):
        return window.cut(label)
    rows = _nearest(window.top, window.height, size=H, new_size=size_hw[0])
    columns = _nearest(window.left, window.width, size=W, new_size=size_hw[1])
    return label[rows].take(columns, axis=1)


def _needed(end: int, *, size: int, new_size: int) -> int:
    """Return how many source pixels the first ``end`` of new_size pixels depend on, or more."""
    return min(size, ceil(end * size / new_size) + _MARGIN)


def _nearest(start: int, count: int, *, size: int, new_size: int) -> NDArray[np.intp]:
    """Return the source indices of count pixels: floor(x / factor), in float64 as OpenCV."""
    positions = np.arange(start, start + count) * (1 / (new_size / size))
    return np.minimum(positions.astype(np.intp), size - 1)
