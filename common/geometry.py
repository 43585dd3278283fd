"""Scale, pad, crop and flip of image and label together, with OpenCV's arithmetic.

Source and departures: see common/transforms.py, which puts the steps together.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.window import Window, resized_image_window, resized_label_window

Array = NDArray[Any]
Step = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]


def random_scale(
    image: Array,
    label: Array,
    rng: np.random.Generator,
    *,
    scale_range: tuple[float, float],
    choices: tuple[float, ...] | None = None,
) -> tuple[Array, Array]:
    """Resize both by one factor; bilinear image, nearest label.

    The factor is uniform in scale_range or, where there are any, one of the choices.
    """
    scale = draw_scale(rng, scale_range, choices)
    H, W = label.shape
    size_wh = (ceil(W * scale), ceil(H * scale))
    if size_wh == (W, H):
        return image, label
    image = cv2.resize(image, size_wh, interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label, size_wh, interpolation=cv2.INTER_NEAREST)


def draw_scale(
    rng: np.random.Generator, scale_range: tuple[float, float], choices: tuple[float, ...] | None
) -> float:
    """Return one of the choices or, without any, a factor uniform in scale_range."""
    if choices is None:
        return rng.uniform(*scale_range)
    return choices[int(rng.integers(len(choices)))]


def pad_to_crop(
    image: Array,
    label: Array,
    rng: np.random.Generator,  # noqa: ARG001 - the signature of every step
    *,
    crop_hw: tuple[int, int],
    ignore_index: int,
) -> tuple[Array, Array]:
    """Pad a side shorter than the crop, half at each end: image with 0, label with ignore_index.

    As upstream, (crop - size) // 2 + 1 pixels at each end: one or two more than the crop needs,
    which leaves random_crop a little freedom.
    """
    top, left = _padding(label.shape, crop_hw)
    return _padded(image, label, (top, top, left, left), ignore_index)


def _padding(size_hw: tuple[int, ...], crop_hw: tuple[int, int]) -> tuple[int, int]:
    """Return how many pixels are added at the top and bottom, and at the left and right."""
    H, W = size_hw
    top = (crop_hw[0] - H) // 2 + 1 if crop_hw[0] > H else 0
    left = (crop_hw[1] - W) // 2 + 1 if crop_hw[1] > W else 0
    return top, left


def _padded(
    image: Array, label: Array, sides: tuple[int, int, int, int], ignore_index: int
) -> tuple[Array, Array]:
    """Add pixels at (top, bottom, left, right): 0 to the image, ignore_index to the label."""
    if not any(sides):
        return image, label
    padded = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    return padded, cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=(ignore_index,))


def random_crop(
    image: Array, label: Array, rng: np.random.Generator, *, crop_hw: tuple[int, int]
) -> tuple[Array, Array]:
    """Cut the same window of exactly crop_hw from both, every position equally likely."""
    H, W = label.shape
    top = int(rng.integers(H - crop_hw[0] + 1))
    left = int(rng.integers(W - crop_hw[1] + 1))
    window = Window(top, left, *crop_hw)
    return window.cut(image), window.cut(label)


def random_window(
    image: Array,
    label: Array,
    rng: np.random.Generator,
    *,
    scale_range: tuple[float, float],
    choices: tuple[float, ...] | None,
    crop_hw: tuple[int, int],
    ignore_index: int,
) -> tuple[Array, Array]:
    """Do random_scale, pad_to_crop and random_crop, resizing no more than the crop keeps."""
    scale = draw_scale(rng, scale_range, choices)
    H, W = (ceil(size * scale) for size in label.shape)
    pad_y, pad_x = _padding((H, W), crop_hw)
    top = int(rng.integers(H + 2 * pad_y - crop_hw[0] + 1)) - pad_y
    left = int(rng.integers(W + 2 * pad_x - crop_hw[1] + 1)) - pad_x
    window = Window(top, left, *crop_hw)
    part = window.inside((H, W))
    image = resized_image_window(image, (H, W), part)
    label = resized_label_window(label, (H, W), part)
    above, before = part.top - top, part.left - left
    below, behind = crop_hw[0] - above - part.height, crop_hw[1] - before - part.width
    return _padded(image, label, (above, below, before, behind), ignore_index)


def random_flip(
    image: Array, label: Array, rng: np.random.Generator, *, probability: float
) -> tuple[Array, Array]:
    """Mirror both left to right with the given probability."""
    if rng.random() >= probability:
        return image, label
    return cv2.flip(image, 1), cv2.flip(label, 1)
