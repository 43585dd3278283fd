"""Pictures of predictions, for people to look at while a training runs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from common.classes import CLASS_TABLES, colourise
from common.config_sections import DataConfig
from common.errors import InputError
from common.files import atomic_path

_MAX_WIDTH = 1536
"""Pixels: three pictures of 512 beside one another."""


def prediction_picture(
    image: NDArray[np.floating],
    label: NDArray[np.integer],
    prediction: NDArray[np.integer],
    *,
    data: DataConfig,
    classes: int,
) -> NDArray[np.uint8]:
    """Lay image, label and prediction beside one another.

    Args:
        image: (3, H, W) floating, RGB, normalised by data.mean and data.std.
        label: (H, W), train ids; anything else is shown black.
        prediction: (H, W), train ids.
        data: the data set whose normalisation and colours are meant.
        classes: number of classes; colours are made up where the data set has none.

    Returns:
        (H', W', 3) uint8, RGB, at most 1536 pixels wide.
    """
    palette = palette_of(data, classes=classes)
    beside = np.concatenate(
        [shown_image(image, data), colourise(label, palette), colourise(prediction, palette)],
        axis=1,
    )
    height, width = beside.shape[:2]
    if width <= _MAX_WIDTH:
        return beside
    size = (_MAX_WIDTH, max(1, round(height * _MAX_WIDTH / width)))
    return np.asarray(cv2.resize(beside, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def shown_image(image: NDArray[np.floating], data: DataConfig) -> NDArray[np.uint8]:
    """Return the (H, W, 3) uint8 RGB picture of a (3, H, W) image normalised by mean and std."""
    pixels = image.transpose(1, 2, 0) * np.array(data.std) + np.array(data.mean)
    return np.clip(np.rint(np.nan_to_num(pixels) * 255), 0, 255).astype(np.uint8)


def palette_of(data: DataConfig, *, classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return the RGB colours of the data set's classes, made up where it has none for so many."""
    table = CLASS_TABLES.get(data.dataset)
    if table is not None and len(table.palette) == classes:
        return table.palette
    return _made_up_palette(classes)


def save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) RGB picture as a PNG, atomically; its folder is made if need be.

    Raises:
        InputError: the folder cannot be written.
    """
    done, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise InputError(f"{path}: the picture of shape {picture.shape} cannot be encoded")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def _made_up_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return colours that are far apart for neighbouring classes: hues by the golden angle."""
    hues = (np.arange(classes) * 137.508 / 2) % 180
    values = np.where(np.arange(classes) % 2, 160, 230)
    hsv = np.stack([hues, np.full(classes, 200), values], axis=1).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return tuple((int(r), int(g), int(b)) for r, g, b in rgb)
