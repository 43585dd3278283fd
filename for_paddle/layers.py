"""Building blocks with every framework default that matters written out.

Source: CoinCheung/BiSeNet@6b4b67a (lib/models). BatchNorm and the initialisers are where the two
frameworks' defaults differ; they are pinned here, once.
"""

from __future__ import annotations

import functools
import math

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

    Paddle's own layer departs from the reference; here the kernel only normalises, and the rest is
    mended around it:

    * the CPU kernel puts the biased variance of the batch into the running variance; the
      reference puts the unbiased one, n / (n - 1) times as large;
    * the kernel keeps momentum as float32 whatever the dtype (2e-7 in float64);
    * it keeps eps so, too (up to 1e-7 in float64 gradients): in float64 its input is scaled by
      1 - 1.3e-8 so that its eps acts as 1e-5. In float32 that scale is 1;
    * one value per channel passes through unchanged, without a word.
    """

    EPS = 1e-5
    # BN(x, eps) = BN(s x, s^2 eps): with this s, the kernel's float32 eps is s^2 times ours
    EXACT_EPS_SCALE = math.sqrt(float(np.float32(EPS)) / EPS)

    def __init__(self, channels: int) -> None:
        # 0.9 here is the weight of the old value: Torch's momentum of 0.1
        super().__init__(channels, momentum=0.9, epsilon=self.EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W)."""
        scale = self.EXACT_EPS_SCALE if x.dtype == paddle.float64 else None
        if not self.training:
            if scale is None:
                return super().forward(x)
            return self._normalise(x * scale, self._mean * scale, self._variance * scale**2)
        require_batch_statistics(x)
        # with momentum 0 the kernel leaves exactly the statistics of this batch in its buffers
        mean, variance = paddle.zeros_like(self._mean), paddle.zeros_like(self._variance)
        normalised = self._normalise(x if scale is None else x * scale, mean, variance)
        with paddle.no_grad():
            if scale is not None:
                mean, variance = mean / scale, variance / scale**2
            if self._kernel_variance_is_biased(paddle.device.get_device(), x.dtype):
                count = x.shape[0] * x.shape[2] * x.shape[3]
                variance = variance * (count / (count - 1))
            paddle.assign(0.9 * self._mean + 0.1 * mean, output=self._mean)
            paddle.assign(0.9 * self._variance + 0.1 * variance, output=self._variance)
        return normalised

    def _normalise(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            mean,
            variance,
            weight=self.weight,
            bias=self.bias,
            training=self.training,
            momentum=0.0,
            epsilon=self.EPS,
            data_format="NCHW",
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


class ConvBNReLU(nn.Layer):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2D(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            bias_attr=False,
        )
        self.bn = BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return self.relu(self.bn(self.conv(x)))


def resize_nearest(x: Tensor, *, scale: int) -> Tensor:
    """Repeat every pixel scale x scale times."""
    return F.interpolate(x, scale_factor=scale, mode="nearest")


def resize_bilinear(x: Tensor, *, scale: int) -> Tensor:
    """Enlarge by an integer factor, bilinear, pixel centres aligned (align_corners=False)."""
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False, align_mode=0)


class ResizeNearest(nn.Layer):
    """resize_nearest as a layer: seen by name when outputs are recorded."""

    def __init__(self, *, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, scale * H, scale * W)."""
        return resize_nearest(x, scale=self.scale)


class ResizeBilinear(nn.Layer):
    """resize_bilinear as a layer: seen by name when outputs are recorded."""

    def __init__(self, *, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, scale * H, scale * W)."""
        return resize_bilinear(x, scale=self.scale)


def pad_to_multiple(x: Tensor, *, multiple: int) -> Tensor:
    """Pad with zeros at the bottom and right until H and W divide by multiple.

    In a normalised image zero is the mean colour. A size that already fits is returned untouched.
    """
    H, W = x.shape[2], x.shape[3]
    bottom, right = -H % multiple, -W % multiple
    if bottom == 0 and right == 0:
        return x
    return F.pad(x, [0, right, 0, bottom], mode="constant", value=0.0)


def crop_to_size(x: Tensor, *, height: int, width: int) -> Tensor:
    """Undo pad_to_multiple: keep the top left (height, width). A fitting size is untouched."""
    if x.shape[2] == height and x.shape[3] == width:
        return x
    return x[:, :, :height, :width]


def spatial_mean(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 1, 1)."""
    return paddle.mean(x, axis=[2, 3], keepdim=True)


def init_conv_kaiming(conv: nn.Conv2D) -> None:
    """Draw weights from N(0, 1 / fan_in), as kaiming_normal with a=1 does; biases are 0."""
    nn.initializer.Normal(mean=0.0, std=1.0 / math.sqrt(_fan_in(conv)))(conv.weight)
    if conv.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        nn.initializer.Constant(0.0)(conv.bias)


def init_conv_uniform(conv: nn.Conv2D) -> None:
    """Draw weights (and biases) from U(-b, b), b = 1 / sqrt(fan_in): Torch's own default."""
    bound = 1.0 / math.sqrt(_fan_in(conv))
    nn.initializer.Uniform(-bound, bound)(conv.weight)
    if conv.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        nn.initializer.Uniform(-bound, bound)(conv.bias)


def _fan_in(conv: nn.Conv2D) -> int:
    return math.prod(conv.weight.shape[1:])
