"""Cross entropy over pixels and OHEM once more in NumPy, for explanations: with wrong rules too.

A loss is the sum of the pixels' losses, each times a weight; which pixels have a weight, and which
one, is what the rules of for_torch/losses.py (where their sources stand) decide. In this form its
gradient is known as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Array

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """Which pixels count; the fields of LossConfig, and what can be got wrong about them."""

    ohem: str
    hard_loss: float
    divisor: int
    min_kept: int
    at_or_above: bool = False
    """Hard is "not below" instead of "above"."""

    @classmethod
    def of(cls, loss: Mapping[str, Any]) -> Rule:
        """Return the rule of a configuration's loss section."""
        # float32, as for_torch.losses.hard_loss_of says
        hard_loss = float(np.float32(-math.log(np.float32(loss["threshold"]))))
        return cls(str(loss["ohem"]), hard_loss, int(loss["divisor"]), int(loss["min_kept"]))


@dataclass(frozen=True)
class Pixels:
    """The losses of all pixels, and what their gradients are made of."""

    losses: Floats
    """(N * H * W,), 0 where void."""
    valid: NDArray[np.bool_]
    """(N * H * W,)"""
    label: Array
    """(N, H, W)"""
    likely: Floats
    """(N, C, H, W) log-softmax."""
    target: Floats | None = None
    """(N, C, H, W) wanted probabilities; None is 1 at the label."""

    def gradient(self, weights: Floats) -> Floats:
        """Return the gradient at the logits for these weights of the pixels' losses."""
        N, C, H, W = self.likely.shape
        target = one_hot(self.label, C) if self.target is None else self.target
        counted = (weights * self.valid).reshape(N, 1, H, W)
        return (np.exp(self.likely) - target) * counted


def log_softmax(logits: Floats, axis: int = 1) -> Floats:
    """Return log(softmax) over an axis."""
    shifted = logits - logits.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def one_hot(label: Array, classes: int) -> Floats:
    """Return (N, C, H, W) of (N, H, W), 1 at the label; all 0 where it is no class."""
    return (label[:, None] == np.arange(classes)[:, None, None]).astype(np.float64)


def pixels_of(logits: Array, label: Array, *, ignore_index: int, axis: int = 1) -> Pixels:
    """Return the cross entropy of every pixel, computed in float64."""
    likely = log_softmax(logits.astype(np.float64), axis)
    return pixels_from(likely, label, ignore_index=ignore_index)


def pixels_from(likely: Floats, label: Array, *, ignore_index: int) -> Pixels:
    """Return the cross entropy of every pixel from log-probabilities (N, C, H, W)."""
    valid = label != ignore_index
    known = np.where(valid, label, 0)
    losses = -np.take_along_axis(likely, known[:, None], axis=1)[:, 0]
    losses = np.where(valid, losses, 0.0)
    return Pixels(losses.ravel(), valid.ravel(), label, likely)


def smoothed(pixels: Pixels, smoothing: float) -> Pixels:
    """Return the losses with label smoothing: ``smoothing`` is spread over all classes."""
    classes = pixels.likely.shape[1]
    everywhere = -pixels.likely.mean(axis=1).ravel() * pixels.valid
    target = (1 - smoothing) * one_hot(pixels.label, classes) + smoothing / classes
    losses = (1 - smoothing) * pixels.losses + smoothing * everywhere
    return replace(pixels, losses=losses, target=target)


def weights_of(pixels: Pixels, rule: Rule) -> Floats:
    """Return each pixel's weight in the loss, (N * H * W,)."""
    count, valid = pixels.losses.size, int(pixels.valid.sum())
    if valid == 0:
        return np.ones(count)
    if rule.ohem == "none":
        return pixels.valid / valid
    if rule.ohem == "min_kept":
        return _min_kept(pixels, rule, valid)
    least = max((valid if rule.ohem == "valid_fraction" else count) // rule.divisor, 1)
    return of_hard(pixels.losses, rule, least)


def hard_pixels(losses: Floats, rule: Rule) -> NDArray[np.bool_]:
    """Return where a pixel is hard."""
    return losses >= rule.hard_loss if rule.at_or_above else losses > rule.hard_loss


def of_hard(losses: Floats, rule: Rule, least: int) -> Floats:
    """Return the weights of a mean over the hard pixels, or the ``least`` hardest if more."""
    kept = hard_pixels(losses, rule)
    if int(kept.sum()) < least:
        kept = hardest(losses, least)
    return kept / max(int(kept.sum()), 1)


def hardest(losses: Floats, count: int) -> NDArray[np.bool_]:
    """Return where the largest losses are, exactly so many; of equal ones the first."""
    limit = np.partition(losses, -count)[-count]
    kept = losses > limit
    kept[np.flatnonzero(losses == limit)[: count - int(kept.sum())]] = True
    return kept


def _min_kept(pixels: Pixels, rule: Rule, valid: int) -> Floats:
    losses = pixels.losses
    kept = pixels.valid
    if valid > rule.min_kept:
        limit = rule.hard_loss
        if int((losses > limit).sum()) < rule.min_kept:
            limit = float(np.partition(losses, -rule.min_kept)[-rule.min_kept])
        kept = losses > limit
    return kept / losses.size / _fraction(int(kept.sum()), losses.size)


def _fraction(kept: Any, count: int) -> Any:
    """Return PaddleSeg's divisor, the kept fraction in float32."""
    return np.asarray(
        np.asarray(kept, np.float32) / np.float32(count) + np.float32(1e-5), np.float64
    )


def means_of_hardest(losses: Floats, divided_by: str) -> Floats:
    """Return the loss if the 1, 2, 3, ... hardest pixels were kept, divided in one of three ways.

    Args:
        losses: (pixels,).
        divided_by: "kept", or "fraction" (PaddleSeg's, by the kept fraction + 1e-5).
    """
    sums = np.cumsum(np.sort(losses)[::-1])
    kept = np.arange(1, losses.size + 1)
    if divided_by == "kept":
        return sums / kept
    return sums / losses.size / _fraction(kept, losses.size)
