"""Preparation of training and validation samples with NumPy and OpenCV.

Source: CoinCheung/BiSeNet@6b4b67a, lib/data/transform_cv2.py: scale, pad, crop, flip, brightness,
contrast, saturation, normalise, in this order and with these formulas.
Departures: the random numbers come from a Generator argument; every crop offset can be drawn (there
the last one cannot); void is ignore_index instead of a fixed 255; saturation rounds where upstream
truncates, so that grey pixels stay as they are whatever the rounding of the product.

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
    steps: list[tuple[str, Step]] = [
        ("scale", partial(random_scale, scale_range=data.scale_range)),
        ("pad", partial(pad_to_crop, crop_hw=data.crop_hw, ignore_index=data.ignore_index)),
        ("crop", partial(random_crop, crop_hw=data.crop_hw)),
        ("flip", partial(random_flip, probability=data.flip_probability)),
    ]
    if data.brightness is not None:
        steps.append(("brightness", partial(random_brightness, factor_range=data.brightness)))
    if data.contrast is not None:
        steps.append(("contrast", partial(random_contrast, factor_range=data.contrast)))
    if data.saturation is not None:
        steps.append(("saturation", partial(random_saturation, factor_range=data.saturation)))
    return Transform((*steps, _normalise_step(data)))


def val_transform(data: DataConfig) -> Transform:
    """Return the preparation of validation samples: whole picture, normalised."""
    return Transform((_normalise_step(data),))


def _normalise_step(data: DataConfig) -> tuple[str, Step]:
    return "normalise", partial(normalise, mean=data.mean, std=data.std)


def random_scale(
    image: Array, label: Array, rng: np.random.Generator, *, scale_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Resize both by one factor, uniform in scale_range; bilinear image, nearest label."""
    scale = rng.uniform(*scale_range)
    H, W = label.shape
    size_wh = (ceil(W * scale), ceil(H * scale))
    if size_wh == (W, H):
        return image, label
    image = cv2.resize(image, size_wh, interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label, size_wh, interpolation=cv2.INTER_NEAREST)


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
