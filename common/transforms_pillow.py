"""Augmentation with Pillow's arithmetic: that of the recipes of 2019 and 2020 and of STDC-Seg.

Source and departures: see common/transforms.py, which puts the steps together.
"""

import cv2
import numpy as np

from common import pillow_arithmetic as pillow
from common.geometry import Array, draw_scale, random_crop
from common.window import Window


def random_scale_pillow(
    image: Array,
    label: Array,
    rng: np.random.Generator,
    *,
    scale_range: tuple[float, float],
    choices: tuple[float, ...] | None = None,
) -> tuple[Array, Array]:
    """Resize both by one factor, drawn as in random_scale; sizes are truncated."""
    scale = draw_scale(rng, scale_range, choices)
    return _resized_pillow(image, label, _scaled_pillow(label.shape, scale))


def _scaled_pillow(size_hw: tuple[int, ...], scale: float) -> tuple[int, int]:
    # a picture of a few pixels must not vanish
    return max(int(size_hw[0] * scale), 1), max(int(size_hw[1] * scale), 1)


def enlarge_to_crop(
    image: Array,
    label: Array,
    rng: np.random.Generator,  # noqa: ARG001 - the signature of every step
    *,
    crop_hw: tuple[int, int],
) -> tuple[Array, Array]:
    """Enlarge a picture with a side shorter than the crop until both sides reach it.

    As upstream, to int(factor * size + 1): 128 x 256 becomes 513 x 1025 for a crop of 512 x 1024.
    """
    H, W = label.shape
    if crop_hw[0] <= H and crop_hw[1] <= W:
        return image, label
    scale = max(crop_hw[0] / H, crop_hw[1] / W)
    return _resized_pillow(image, label, (int(scale * H + 1), int(scale * W + 1)))


def random_window_pillow(
    image: Array,
    label: Array,
    rng: np.random.Generator,
    *,
    saturation: tuple[float, float] | None,
    flip_probability: float,
    scale_range: tuple[float, float],
    choices: tuple[float, ...] | None,
    crop_hw: tuple[int, int],
) -> tuple[Array, Array]:
    """Do saturation, flip, scale, enlarge_to_crop and random_crop on what the crop keeps."""
    factor = None if saturation is None else rng.uniform(*saturation)
    flipped = rng.random() < flip_probability
    size_hw = _scaled_pillow(label.shape, draw_scale(rng, scale_range, choices))
    if size_hw[0] < crop_hw[0] or size_hw[1] < crop_hw[1]:
        image = image if factor is None else pillow.enhance_colour(image, factor=factor)
        if flipped:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        image, label = _resized_pillow(image, label, size_hw)
        image, label = enlarge_to_crop(image, label, rng, crop_hw=crop_hw)
        return random_crop(image, label, rng, crop_hw=crop_hw)
    top = int(rng.integers(size_hw[0] - crop_hw[0] + 1))
    left = int(rng.integers(size_hw[1] - crop_hw[1] + 1))
    window = Window(top, left, *crop_hw)
    if flipped:
        # views: only the part is copied
        image, label = image[:, ::-1], label[:, ::-1]
    rows, columns = pillow.source_of_window(label.shape, size_hw=size_hw, window=window)
    part = np.ascontiguousarray(image[rows, columns])
    part = part if factor is None else pillow.enhance_colour(part, factor=factor)
    part = pillow.resize_part(part, rows, columns, label.shape, size_hw=size_hw, window=window)
    if size_hw == label.shape:
        return part, np.ascontiguousarray(window.cut(label))
    return part, pillow.resize_label_window(label, size_hw=size_hw, window=window)


def _resized_pillow(image: Array, label: Array, size_hw: tuple[int, int]) -> tuple[Array, Array]:
    if size_hw == label.shape:
        return image, label
    return (
        pillow.resize_image(image, size_hw=size_hw),
        pillow.resize_label(label, size_hw=size_hw),
    )


def brightness_pillow(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Blend the image with black, by one factor, uniform in factor_range."""
    return pillow.enhance_brightness(image, factor=rng.uniform(*factor_range)), label


def contrast_pillow(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Blend the image with its mean grey, by one factor, uniform in factor_range."""
    return pillow.enhance_contrast(image, factor=rng.uniform(*factor_range)), label


def saturation_pillow(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Blend the image with its grey picture, by one factor, uniform in factor_range."""
    return pillow.enhance_colour(image, factor=rng.uniform(*factor_range)), label
