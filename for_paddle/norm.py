"""Normalisation layers, with every framework default that matters written out.

Source: CoinCheung/BiSeNet@6b4b67a (lib/models) and mapillary/inplace_abn. BatchNorm is where the
two frameworks' defaults differ most; it is pinned here, once.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

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


class BatchNorm2d(nn.BatchNorm2D):
    """BatchNorm over (N, H, W): eps 1e-5, running = 0.9 * running + 0.1 * batch.

    The running variance takes the unbiased variance of the batch, n / (n - 1) times the one that
    normalises it. Paddle's own layer departs from that; see ``_batch_norm``.
    """

    EPS = 1e-5

    def __init__(self, channels: int) -> None:
        # 0.9 here is the weight of the old value: Torch's momentum of 0.1
        super().__init__(channels, momentum=0.9, epsilon=self.EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W)."""
        return _batch_norm(
            x,
            mean=self._mean,
            variance=self._variance,
            weight=self.weight,
            bias=self.bias,
            training=self.training,
            eps=self.EPS,
        )

    @staticmethod
    @functools.cache
    def _kernel_variance_is_biased(device: str, dtype: paddle.dtype) -> bool:  # noqa: ARG004
        # asked of the kernel itself: the convention differs between devices and is not documented
        kept = "float64" if dtype == paddle.float64 else "float32"
        x = paddle.arange(8, dtype="float32").reshape([2, 1, 2, 2]).astype(dtype)
        mean, variance = paddle.zeros([1], dtype=kept), paddle.zeros([1], dtype=kept)
        one, zero = paddle.ones([1], dtype=kept), paddle.zeros([1], dtype=kept)
        F.batch_norm(x, mean, variance, weight=one, bias=zero, training=True, momentum=0.0)
        found = variance.item()
        # 0..7: the squared deviations sum up to 42; divided by 8 or by 7
        return abs(found - 42 / 8) < abs(found - 42 / 7)


def _batch_norm(
    x: Tensor,
    *,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
) -> Tensor:
    """Normalise x; in training, move mean and variance (in place) towards the batch's.

    The kernel only normalises, and what departs from the reference is mended around it:

    * the CPU kernel puts the biased variance of the batch into the running variance; the
      reference puts the unbiased one, n / (n - 1) times as large;
    * the kernel keeps momentum as float32 whatever the dtype (2e-7 in float64);
    * it keeps eps so, too (up to 1e-7 in float64 gradients): BN(x, eps) = BN(s x, s^2 eps), so
      in float64 its input is scaled by s = 1 - 1.3e-8, with which its eps acts as 1e-5;
    * one value per channel passes through unchanged, without a word.
    """
    scale = math.sqrt(float(np.float32(eps)) / eps) if x.dtype == paddle.float64 else None
    scaled = x if scale is None else x * scale

    def normalise(with_mean: Tensor, with_variance: Tensor) -> Tensor:
        return F.batch_norm(
            scaled,
            with_mean,
            with_variance,
            weight=weight,
            bias=bias,
            training=training,
            momentum=0.0,
            epsilon=eps,
            data_format="NCHW",
        )

    if not training:
        if scale is None:
            return normalise(mean, variance)
        return normalise(mean * scale, variance * scale**2)
    require_batch_statistics(x)
    # with momentum 0 the kernel leaves exactly the statistics of this batch in its buffers
    batch_mean, batch_variance = paddle.zeros_like(mean), paddle.zeros_like(variance)
    normalised = normalise(batch_mean, batch_variance)
    with paddle.no_grad():
        if scale is not None:
            batch_mean, batch_variance = batch_mean / scale, batch_variance / scale**2
        device = paddle.device.get_device()
        if BatchNorm2d._kernel_variance_is_biased(device, x.dtype):  # pyright: ignore[reportPrivateUsage]
            count = x.shape[0] * x.shape[2] * x.shape[3]
            batch_variance = batch_variance * (count / (count - 1))
        paddle.assign(0.9 * mean + 0.1 * batch_mean, output=mean)
        paddle.assign(0.9 * variance + 0.1 * batch_variance, output=variance)
    return normalised


class InPlaceABN(nn.Layer):
    """BatchNorm and activation in one: weights |weight| + 1e-5, then LeakyReLU(0.01) or nothing.

    Named after the layer of mapillary/inplace_abn, with which the 2020 checkpoints were trained:
    its sign of the weight has no meaning, and there is no counter of batches. (What gave it its
    name, saving memory by inverting the activation, is no part of the arithmetic.)

    No BatchNorm of the framework's own, and so left alone when a network is converted to
    synchronised BatchNorm: one would drop the |weight| and the activation without a word.
    """

    EPS = 1e-5
    """Added to the variance, and to the absolute value of the weight."""

    def __init__(
        self, channels: int, *, activation: Literal["leaky_relu", "identity"] = "leaky_relu"
    ) -> None:
        super().__init__()
        self.activation = activation
        constant = nn.initializer.Constant
        self.weight = self.create_parameter([channels], default_initializer=constant(1.0))
        self.bias = self.create_parameter([channels], is_bias=True)
        self.register_buffer("_mean", paddle.zeros([channels]))
        self.register_buffer("_variance", paddle.ones([channels]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate x, (N, C, H, W)."""
        # a tensor: Paddle 2.6 rounds a number that is added to float32, also in float64
        eps = paddle.full_like(self.weight, self.EPS)
        normalised = _batch_norm(
            x,
            mean=self._mean,
            variance=self._variance,
            weight=paddle.abs(self.weight) + eps,
            bias=self.bias,
            training=self.training,
            eps=self.EPS,
        )
        return leaky_relu(normalised) if self.activation == "leaky_relu" else normalised


def leaky_relu(x: Tensor) -> Tensor:
    """Return x where it is positive, 0.01 x elsewhere."""
    # the kernel's slope at 0 is 1, not 0.01; Paddle 2.6 keeps it as float32, also in float64
    return paddle.where(x > 0, x, 0.01 * x)


Norm = Literal["batch_norm", "inplace_abn"]
"""Which normalisation a network is built with; its activation goes with it."""


def norm_without_activation(channels: int, *, norm: Norm) -> BatchNorm2d | InPlaceABN:
    """Return a normalisation that is followed by something else than its activation."""
    if norm == "inplace_abn":
        return InPlaceABN(channels, activation="identity")
    return BatchNorm2d(channels)
