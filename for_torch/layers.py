"""Building blocks with every framework default that matters written out.

Source: CoinCheung/BiSeNet@6b4b67a (lib/models). BatchNorm and the initialisers are where the two
frameworks' defaults differ; they are pinned here, once.
"""

from __future__ import annotations

import math

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


class ConvBNReLU(nn.Module):
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
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            bias=False,
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
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


class ResizeNearest(nn.Module):
    """resize_nearest as a layer: seen by name when outputs are recorded."""

    def __init__(self, *, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, scale * H, scale * W)."""
        return resize_nearest(x, scale=self.scale)


class ResizeBilinear(nn.Module):
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
    return torch.mean(x, dim=[2, 3], keepdim=True)


def init_conv_kaiming(conv: nn.Conv2d) -> None:
    """Draw weights from N(0, 1 / fan_in), as kaiming_normal with a=1 does; biases are 0."""
    nn.init.normal_(conv.weight, mean=0.0, std=1.0 / math.sqrt(_fan_in(conv)))
    if conv.bias is not None:
        nn.init.constant_(conv.bias, 0.0)


def init_conv_uniform(conv: nn.Conv2d) -> None:
    """Draw weights (and biases) from U(-b, b), b = 1 / sqrt(fan_in): Torch's own default."""
    bound = 1.0 / math.sqrt(_fan_in(conv))
    nn.init.uniform_(conv.weight, -bound, bound)
    if conv.bias is not None:
        nn.init.uniform_(conv.bias, -bound, bound)


def _fan_in(conv: nn.Conv2d) -> int:
    return math.prod(conv.weight.shape[1:])
