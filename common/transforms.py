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
A sample is made by fewer, faster steps than ``trace`` shows (only the pixels that the crop keeps
are computed), with the same draws and the same result to the bit.

Every step is a function (image, label, rng) -> (image, label); its other arguments are bound.
Image: (H, W, 3) uint8 RGB, after ``normalise`` (3, H, W) float32. Label: (H, W) uint8, then int64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.config_sections import DataConfig
from common.geometry import (
    Array,
    Step,
    pad_to_crop,
    random_crop,
    random_flip,
    random_scale,
    random_window,
)
from common.transforms_pillow import (
    brightness_pillow,
    contrast_pillow,
    enlarge_to_crop,
    random_scale_pillow,
    random_window_pillow,
    saturation_pillow,
)

CONTRAST_PIVOT = 74
"""Grey value that contrast leaves as it is: upstream's constant, about the mean of Cityscapes."""


@dataclass(frozen=True)
class Transform:
    """Named steps, applied one after the other."""

    steps: tuple[tuple[str, Step], ...]
    quick_steps: tuple[Step, ...] = ()
    """What a call takes instead, where there are any: the same draws, the same result."""

    def __call__(self, image: Array, label: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the (3, H, W) float32 image and the (H, W) int64 label."""
        for step in self.quick_steps or [step for _, step in self.steps]:
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
        window = partial(
            random_window_pillow,
            saturation=data.saturation,
            flip_probability=data.flip_probability,
            scale_range=data.scale_range,
            choices=data.scale_choices,
            crop_hw=data.crop_hw,
        )
        steps = (*jitter, *geometry, _normalise_step(data))
        first = [step for name, step in jitter if name != "saturation"]
        return Transform(steps, (*first, window, _normalise_step(data)[1]))
    pad = partial(pad_to_crop, crop_hw=data.crop_hw, ignore_index=data.ignore_index)
    geometry = [("scale", scale), ("pad", pad), ("crop", crop), ("flip", flip)]
    steps = (*geometry, *jitter, _normalise_step(data))
    window = partial(
        random_window,
        scale_range=data.scale_range,
        choices=data.scale_choices,
        crop_hw=data.crop_hw,
        ignore_index=data.ignore_index,
    )
    if data.brightness is not None and data.contrast is not None:
        tone = partial(random_tone, brightness=data.brightness, contrast=data.contrast)
        jitter = [("tone", tone), *jitter[2:]]
    quick = (window, flip, *(step for _, step in (*jitter, _normalise_step(data))))
    return Transform(steps, quick)


def _jitter_steps(data: DataConfig) -> list[tuple[str, Step]]:
    is_pillow = data.augmentation == "pillow"
    ranges = {
        "brightness": (data.brightness, brightness_pillow if is_pillow else random_brightness),
        "contrast": (data.contrast, contrast_pillow if is_pillow else random_contrast),
        "saturation": (data.saturation, saturation_pillow if is_pillow else random_saturation),
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


def random_brightness(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Multiply the image by one factor, uniform in factor_range."""
    return cv2.LUT(image, _brightness_table(rng.uniform(*factor_range))), label


def random_contrast(
    image: Array, label: Array, rng: np.random.Generator, *, factor_range: tuple[float, float]
) -> tuple[Array, Array]:
    """Stretch the image's distance to the pivot by one factor, uniform in factor_range."""
    return cv2.LUT(image, _contrast_table(rng.uniform(*factor_range))), label


def random_tone(
    image: Array,
    label: Array,
    rng: np.random.Generator,
    *,
    brightness: tuple[float, float],
    contrast: tuple[float, float],
) -> tuple[Array, Array]:
    """Do random_brightness, then random_contrast, in one look-up per byte."""
    first = _brightness_table(rng.uniform(*brightness))
    return cv2.LUT(image, _contrast_table(rng.uniform(*contrast))[first]), label


def _brightness_table(factor: float) -> NDArray[np.uint8]:
    return _as_bytes(np.arange(256) * factor)


def _contrast_table(factor: float) -> NDArray[np.uint8]:
    return _as_bytes(CONTRAST_PIVOT + (np.arange(256) - CONTRAST_PIVOT) * factor)


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
