"""BatchNorm, InPlaceABN and their gradients in NumPy, float64, NCHW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.explain.ops import channels

Array = NDArray[Any]
AXES = (0, 2, 3)


def count_per_channel(x: Array) -> int:
    """Return how many values of a channel a batch holds."""
    return x.size // x.shape[1]


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Return mean and biased variance of each channel of (N, C, H, W), (C,) each."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=AXES)
    # about the mean: E[x^2] - E[x]^2 loses digits
    return mean, np.square(x - channels(mean)).mean(axis=AXES)


def normalise(
    x: Array, mean: Array, variance: Array, *, weight: Array | None, bias: Array | None, eps: float
) -> Array:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias; None leaves that part out."""
    scale = 1.0 / np.sqrt(np.asarray(variance, np.float64) + eps)
    if weight is not None:
        scale = scale * weight
    out = (np.asarray(x, np.float64) - channels(mean)) * channels(scale)
    return out if bias is None else out + channels(bias)


@dataclass(frozen=True)
class NormGradients:
    """Gradients of one normalisation."""

    input: Array
    weight: Array
    bias: Array


def normalise_gradients(
    x: Array,
    output_gradient: Array,
    mean: Array,
    variance: Array,
    *,
    weight: Array | None,
    eps: float,
    batch: bool,
) -> NormGradients:
    """Return the gradients of normalise.

    Args:
        x: (N, C, H, W).
        output_gradient: the same shape.
        mean: that x was normalised with, (C,).
        variance: the same.
        weight: scale, (C,).
        eps: added to the variance.
        batch: True if mean and variance are this batch's own and so depend on x.
    """
    x, gradient = np.asarray(x, np.float64), np.asarray(output_gradient, np.float64)
    deviation = 1.0 / np.sqrt(np.asarray(variance, np.float64) + eps)
    normal = (x - channels(mean)) * channels(deviation)
    by_weight = (gradient * normal).sum(axis=AXES)
    by_bias = gradient.sum(axis=AXES)
    scale = deviation if weight is None else deviation * weight
    inner = gradient
    if batch:
        n = count_per_channel(x)
        inner = gradient - channels(by_bias / n) - normal * channels(by_weight / n)
    return NormGradients(inner * channels(scale), by_weight, by_bias)


def updated(before: Array, batch: Array, momentum: float) -> Array:
    """Return a running statistic after one batch: momentum is the weight of the batch."""
    return (1.0 - momentum) * np.asarray(before, np.float64) + momentum * batch


def unbiased(variance: Array, count: float) -> Array:
    """Return a biased variance times n / (n - 1)."""
    return variance * (count / (count - 1))
