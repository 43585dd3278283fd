"""Normalisation layers, with every framework default that matters written out.

Source: CoinCheung/BiSeNet@6b4b67a (lib/models) and mapillary/inplace_abn. BatchNorm is where the
two frameworks' defaults differ most; it is pinned here, once.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError


def require_batch_statistics(x: Tensor) -> None:
    """Refuse a training batch from which no variance can be taken.

    Args:
        x: (N, C, H, W) input of a BatchNorm in training.

    Raises:
        InputError: (a ValueError) when there is one value per channel.
    """
    N, _, H, W = x.shape
    if N * H * W < 2:
        raise InputError(
            "Expected more than 1 value per channel when training, "
            f"got input size {list(x.shape)}: train with a batch of at least 2 images per process"
        )


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over (N, H, W): eps 1e-5, running = 0.9 * running + 0.1 * batch.

    The running variance takes the unbiased variance of the batch, n / (n - 1) times the one that
    normalises it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W)."""
        if self.training:
            require_batch_statistics(x)
        return super().forward(x)


class InPlaceABN(nn.Module):
    """BatchNorm and activation in one: weights |weight| + 1e-5, then LeakyReLU(0.01) or nothing.

    Named after the layer of mapillary/inplace_abn, with which the 2020 checkpoints were trained:
    its sign of the weight has no meaning, and there is no counter of batches. (What gave it its
    name, saving memory by inverting the activation, is no part of the arithmetic.)

    No BatchNorm of the framework's own, and so left alone when a network is converted to
    synchronised BatchNorm: one would drop the |weight| and the activation without a word.
    """

    EPS = 1e-5
    """Added to the variance, and to the absolute value of the weight."""
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, *, activation: Literal["leaky_relu", "identity"] = "leaky_relu"
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate x, (N, C, H, W)."""
        if self.training:
            require_batch_statistics(x)
        normalised = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            weight=torch.abs(self.weight) + self.EPS,
            bias=self.bias,
            training=self.training,
            momentum=0.1,
            eps=self.EPS,
        )
        return leaky_relu(normalised) if self.activation == "leaky_relu" else normalised


def leaky_relu(x: Tensor) -> Tensor:
    """Return x where it is positive, 0.01 x elsewhere."""
    return F.leaky_relu(x, negative_slope=0.01)


Norm = Literal["batch_norm", "inplace_abn"]
"""Which normalisation a network is built with; its activation goes with it."""


def norm_without_activation(channels: int, *, norm: Norm) -> BatchNorm2d | InPlaceABN:
    """Return a normalisation that is followed by something else than its activation."""
    if norm == "inplace_abn":
        return InPlaceABN(channels, activation="identity")
    return BatchNorm2d(channels)
