"""Weights, images and labels by rule: the inputs of the recorded upstream outputs.

Every array is a function of a name or a seed, so both sides, and the original implementations,
can be given the same one without a file. Drawn in float64; cast to the dtype of the run.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.weight_names import is_batch_counter

VOID = 255
CELL = 8
"""Side in pixels of the squares of one class in a label map."""


def weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the array of one parameter or buffer.

    Args:
        key: canonical state-dict name; it seeds the generator.
        shape: its shape.

    Raises:
        ValueError: the rules do not cover this name and shape.
    """
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    last = key.rpartition(".")[2]
    if is_batch_counter(key):
        return np.zeros(shape)
    if len(shape) >= 2:
        return rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    if last in ("weight", "running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if last in ("bias", "running_mean"):
        return 0.1 * rng.standard_normal(shape)
    raise ValueError(
        f"no rule for {key} of shape {shape}; expected a name ending in weight, bias, "
        "running_mean, running_var or num_batches_tracked"
    )


def image(seed: int, n: int, h: int, w: int) -> NDArray[np.float64]:
    """Return (n, 3, h, w) standard normal pixels, as if normalised."""
    return np.random.default_rng(seed).standard_normal((n, 3, h, w))


def labels(
    seed: int, n: int, h: int, w: int, *, classes: int = 19, void: float = 0.05
) -> NDArray[np.int64]:
    """Return (n, h, w) labels in squares of 8 pixels: 0..classes-1, and 255 where void.

    Args:
        seed: of the image that the labels belong to.
        n: images.
        h: height in pixels.
        w: width in pixels.
        classes: number of classes.
        void: probability that a square is void.
    """
    cells = (n, math.ceil(h / CELL), math.ceil(w / CELL))
    label = np.random.default_rng(seed + 1).integers(0, classes, cells)
    label[np.random.default_rng(seed + 2).random(cells) < void] = VOID
    return label.repeat(CELL, 1).repeat(CELL, 2)[:, :h, :w]


def rule_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float64]]:
    """Return a whole model's weights by rule: name -> array for every name -> shape."""
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}
