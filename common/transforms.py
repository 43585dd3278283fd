"""Preparation of training and validation samples with NumPy and OpenCV.

Source: CoinCheung/BiSeNet@6b4b67a, lib/data/transform_cv2.py: scale, pad, crop, flip, brightness,
contrast, saturation, normalise, in this order and with these formulas.
Departures: the random numbers come from a Generator argument; every crop offset can be drawn (there
the last one cannot); void is ignore_index instead of a fixed 255; saturation rounds where upstream
truncates, so that grey pixels stay as they are whatever the rounding of the product.
``augmentation: pillow`` is that of the recipes of 2019 and 2020 (@2d6d8f1, @a8ddd22 transform.py)
and of STDC-Seg@59ff37f: jitter, flip, scale, enlarge back, crop, with Pillow's arithmetic.
Departure: a picture is enlarged until both sides reach the crop (there one side is chosen by the
picture's orientation, and what the other lacks is filled with class 0).

Every step is a function (image, label, rng) -> (image, label); its other arguments are bound.
Image: (H, W, 3) uint8 RGB, after ``normalise`` (3, H, W) float32. Label: (H, W) uint8, then int64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common import pillow_arithmetic as pillow
from common.config import DataConfig

Array = NDArray[Any]
Step = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]

CONTRAST_PIVOT = 74
"""Grey value that contrast leaves as it is: upstream's constant, about the mean of Cityscapes."""


@dataclass(frozen=True)
class Transform:
    """Named steps, applied one after the other."""

    steps: tuple[tuple[str, Step], ...]

    def __call__(self, image: Array, label: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the (3, H, W) float32 image and the (H, W) int64 label."""
        for _, step in self.steps:
            image, label = step(image, label, rng)
        return image, label

    def trace(
        self, image: Array, label: Array, rng: np.random.Generator
    ) -> Iterator[tuple[str, Array, Array]]:
        """Yield (name, image, label) after every step."""
        for name, step in self.steps:
            image, label = step(image, label, rng)
            yield name, image, label


def train_transform(data: DataConfig) -> Transform:
    """Return the augmentation of training samples; a jitter whose range is None is left out."""
    is_pillow = data.augmentation == "pillow"
    scale = random_scale_pillow if is_pillow else random_scale
    scale = partial(scale, scale_range=data.scale_range, choices=data.scale_choices)
    crop = partial(random_crop, crop_hw=data.crop_hw)
    flip = partial(random_flip, probability=data.flip_probability)
    jitter = _jitter_steps(data)
    if is_pillow:
        enlarge = partial(enlarge_to_crop, crop_hw=data.crop_hw)
        geometry = [("flip", flip), ("scale", scale), ("enlarge", enlarge), ("crop", crop)]
        return Transform((*jitter, *geometry, _normalise_step(data)))
    pad = partial(pad_to_crop, crop_hw=data.crop_hw, ignore_index=data.ignore_index)
    geometry = [("scale", scale), ("pad", pad), ("crop", crop), ("flip", flip)]
    return Transform((*geometry, *jitter, _normalise_step(data)))


def _jitter_steps(data: DataConfig) -> list[tuple[str, Step]]:
    is_pillow = data.augmentation == "pillow"
    ranges = {
        "brightness": (data.brightness, _brightness_pillow if is_pillow else random_brightness),
        "contrast": (data.contrast, _contrast_pillow if is_pillow else random_contrast),
        "saturation": (data.saturation, _saturation_pillow if is_pillow else random_saturation),
    }
    return [
        (name, partial(step, factor_range=factor_range))
        for name, (factor_range, step) in ranges.items()
        if factor_range is not None
    ]


def val_transform(data: DataConfig) -> Transform:
    """Return the preparation of validation samples: whole picture, normalised."""
    return Transform((_normalise_step(data),))


def _normalise_step(data: DataConfig) -> tuple[str, Step]:
    return "normalise", partial(normalise, mean=data.mean, std=data.std)


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
    scale = _draw_scale(rng, scale_range, choices)
    H, W = label.shape
    size_wh = (ceil(W * scale), ceil(H * scale))
    if size_wh == (W, H):
        return image, label
    image = cv2.resize(image, size_wh, interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label, size_wh, interpolation=cv2.INTER_NEAREST)


def _draw_scale(
    rng: np.random.Generator, scale_range: tuple[float, float], choices: tuple[float, ...] | None
) -> float:
    if choices is None:
        return rng.uniform(*scale_range)
    return choices[int(rng.integers(len(choices)))]


def random_scale_pillow(
    image: Array,
    label: Array,
    rng: np.random.Generator,
    *,
    scale_range: tuple[float, float],
    choices: tuple[float, ...] | None = None,
) -> tuple[Array, Array]:
    """Resize both by one factor, drawn as in random_scale; sizes are truncated."""
    scale = _draw_scale(rng, scale_range, choices)
    H, W = label.shape
    # a picture of a few pixels must not vanish
    size_hw = (max(int(H * scale), 1), max(int(W * scale), 1))
    return _resized_pillow(image, label, size_hw)


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


def _resized_pillow(image: Array, label: Array, size_hw: tuple[int, int]) -> tuple[Array, Array]:
    if size_hw == label.shape:
        return image, label
    return (
        pillow.resize_image(image, size_hw=size_hw),
        pillow.resize_label(label, size_hw=size_hw),
    )


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
    H, W = label.shape
    top = (crop_hw[0] - H) // 2 + 1 if crop_hw[0] > H else 0
    left = (crop_hw[1] - W) // 2 + 1 if crop_hw[1] > W else 0
    if not top and not left:
        return image, label
    border = (top, top, left, left, cv2.BORDER_CONSTANT)
    padded = cv2.copyMakeBorder(image, *border, value=(0, 0, 0))
    return padded, cv2.copyMakeBorder(label, *border, value=(ignore_index,))


def random_crop(
    image: Array, label: Array, rng: np.random.Generator, *, crop_hw: tuple[int, int]
) -> tuple[Array, Array]:
    """Cut the same window of exactly crop_hw from both, every position equally likely."""
    H, W = label.shape
    top = int(rng.integers(H - crop_hw[0] + 1))
    left = int(rng.integers(W - crop_hw[1] + 1))
    window = (slice(top, top + crop_hw[0]), slice(left, left + crop_hw[1]))
    return image[window], label[window]


def random_flip(
    image: Array, label: Array, rng: np.random.Generator, *, probability: float
) -> tuple[Array, Array]:
    """Mirror both left to right with the given probability."""
    if rng.random() >= probability:
        return image, label
    return cv2.flip(image, 1), cv2.flip(label, 1)


def random_brightness(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Multiply the image by one factor, uniform in factor_range."""
    values = np.arange(256) * rng.uniform(*factor_range)
    return cv2.LUT(image, _as_bytes(values)), label


def random_contrast(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Stretch the image's distance to the pivot by one factor, uniform in factor_range."""
    values = CONTRAST_PIVOT + (np.arange(256) - CONTRAST_PIVOT) * rng.uniform(*factor_range)
    return cv2.LUT(image, _as_bytes(values)), label


def random_saturation(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Blend each pixel with its mean over R, G, B: factor * c + (1 - factor) * mean."""
    factor = rng.uniform(*factor_range)
    matrix = np.full((3, 3), (1 - factor) / 3) + factor * np.eye(3)
    return cv2.transform(image, matrix), label


def _brightness_pillow(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    return pillow.enhance_brightness(image, factor=rng.uniform(*factor_range)), label


def _contrast_pillow(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    return pillow.enhance_contrast(image, factor=rng.uniform(*factor_range)), label


def _saturation_pillow(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    return pillow.enhance_colour(image, factor=rng.uniform(*factor_range)), label


def normalise(
    image: Array,
    label: Array,
    rng: np.random.Generator,  # noqa: ARG001 - the signature of every step
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> tuple[Array, Array]:
    """Return (value / 255 - mean) / std as (3, H, W) float32, and the label as int64.

    A byte has 256 values: the table is computed in float64, rounded once to float32, looked up.
    """
    levels = np.arange(256)[:, None] / 255
    table = ((levels - np.asarray(mean)) / np.asarray(std)).astype(np.float32)
    planes = np.empty((3, *label.shape), np.float32)
    for c, plane in enumerate(cv2.split(image)):
        cv2.LUT(plane, table[:, c], dst=planes[c])
    return planes, label.astype(np.int64)


def _as_bytes(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).astype(np.uint8)
