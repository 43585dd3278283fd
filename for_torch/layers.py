"""Building blocks with every framework default that matters written out.

Source: CoinCheung/BiSeNet@6b4b67a (lib/models). Resizing, pooling and the initialisers are where
the two frameworks' defaults differ; they are pinned here, once. Normalisation is in norm.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from for_torch.norm import BatchNorm2d, InPlaceABN, Norm


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


class ConvInPlaceABN(nn.Module):
    """Convolution without bias, InPlaceABN with LeakyReLU."""

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
        self.bn = InPlaceABN(out_channels, activation="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return self.bn(self.conv(x))


CONV_BLOCKS: dict[Norm, type[ConvBNReLU] | type[ConvInPlaceABN]] = {
    "batch_norm": ConvBNReLU,
    "inplace_abn": ConvInPlaceABN,
}


def resize_nearest(
    x: Tensor, *, scale: int | None = None, size_hw: tuple[int, int] | None = None
) -> Tensor:
    """Repeat every pixel scale x scale times, or take the nearest one for a given (H, W).

    Output pixel i shows input pixel floor(i * in / out). Give scale or size_hw, not both.
    """
    return F.interpolate(x, size=size_hw, scale_factor=scale, mode="nearest")


def resize_bilinear(
    x: Tensor,
    *,
    scale: int | None = None,
    size_hw: tuple[int, int] | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Resize bilinearly by an integer factor or to a given (H, W); give one of the two.

    Args:
        x: (N, C, H, W).
        scale: factor on H and W.
        size_hw: (H, W) of the result.
        align_corners: True lays the centres of the corner pixels on each other, False the
            corners of the map.
    """
    return F.interpolate(
        x, size=size_hw, scale_factor=scale, mode="bilinear", align_corners=align_corners
    )


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


class AvgPool2d(nn.AvgPool2d):
    """Mean over windows; the zeros of the padding count in it."""

    def __init__(self, *, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(
            kernel_size, stride=stride, padding=padding, ceil_mode=False, count_include_pad=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / stride, W / stride)."""
        return super().forward(x)


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


def init_conv_fan_out(conv: nn.Conv2d) -> None:
    """Draw weights from N(0, 2 / fan_out), as kaiming_normal for ReLU does; biases are 0."""
    nn.init.normal_(conv.weight, mean=0.0, std=math.sqrt(2.0 / _fan_out(conv)))
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


def _fan_out(conv: nn.Conv2d) -> int:
    # all output channels count, also when a grouped convolution splits them
    return conv.weight.shape[0] * math.prod(conv.weight.shape[2:])
