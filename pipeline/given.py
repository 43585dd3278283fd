"""What the probes are given by rule and no file holds: logits per head, gradients, scales.

The probes use it on both sides; a failure case repeats it without either.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

OPTIMIZER_STEPS = 5
RECORDED_STEPS = (1, OPTIMIZER_STEPS)
"""Optimizer steps after which parameters and momentum are recorded."""


def logits_by_head(logits: Array, heads: Iterable[str]) -> dict[str, Array]:
    """Return logits of its own for each head, from the saved ones: a mix-up of heads must show.

    Args:
        logits: (N, C, H, W).
        heads: names in the model's order; a boundary head gets one channel at a quarter of H and W.
    """
    own: dict[str, Array] = {}
    for position, head in enumerate(heads):
        turned = np.roll(logits, position, axis=1) / (position + 1)
        if head.startswith("boundary"):
            turned = turned[:, :1, ::4, ::4]
        own[head] = np.ascontiguousarray(turned)
    return own


def gradient_by_rule(name: str, like: Array) -> Array:
    """Return a parameter's gradient by rule, as large as the parameter is."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = float(np.abs(like).mean()) or 1.0
    return rng.uniform(-scale, scale, like.shape)


def gradient_at(drawn: Array, step: int) -> Array:
    """Return the gradient of an optimizer step (1, 2, ...), without drawing millions again."""
    return np.roll(drawn, 7 * step, axis=0) / step


def with_negative_scales(arrays: Mapping[str, Array], layers: Iterable[str]) -> dict[str, Array]:
    """Make every other scale of these layers negative: InPlaceABN takes its absolute value."""
    return dict(arrays) | {
        f"{layer}.weight": every_other_negative(arrays[f"{layer}.weight"]) for layer in layers
    }


def every_other_negative(scale: Array) -> Array:
    """Return the scale with the sign of its second, fourth, ... element turned."""
    changed = scale.copy()
    changed[1::2] *= -1
    return changed
