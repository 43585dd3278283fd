"""Building blocks with every framework default that matters written out.

Source: CoinCheung/BiSeNet@6b4b67a (lib/models). Resizing, pooling and the initialisers are where
the two frameworks' defaults differ; they are pinned here, once. Normalisation is in norm.py.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle.nn import functional as F

from for_paddle.norm import BatchNorm2d, InPlaceABN, Norm


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


class ConvInPlaceABN(nn.Layer):
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
        self.conv = nn.Conv2D(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            bias_attr=False,
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
    if x.dtype == paddle.float64:
        size = (x.shape[2], x.shape[3])
        target = size_hw if scale is None else (size[0] * scale, size[1] * scale)
        if target is not None and not _ratio_fits_kernel(size, target, align_corners):
            rows, columns = (
                paddle.to_tensor(interpolation_matrix(old, new, align_corners=align_corners))
                for old, new in zip(size, target, strict=True)
            )
            return paddle.matmul(rows, paddle.matmul(x, columns, transpose_y=True))
    return F.interpolate(
        x,
        size=size_hw,
        scale_factor=scale,
        mode="bilinear",
        align_corners=align_corners,
        align_mode=0,
    )


def _ratio_fits_kernel(size: tuple[int, int], target: tuple[int, int], align_corners: bool) -> bool:
    """Tell whether float32, in which the kernel keeps its ratio, holds it exactly."""
    ratios = [old / new for old, new in zip(size, target, strict=True)]
    return not align_corners and all(float(np.float32(ratio)) == ratio for ratio in ratios)


@functools.cache
def interpolation_matrix(old: int, new: int, *, align_corners: bool) -> NDArray[np.float64]:
    """Return the (new, old) matrix that resizes one axis bilinearly.

    For float64 alone: Paddle's kernel keeps the ratio of the sizes as float32 whatever the dtype,
    which is off by 5e-6 of a map's largest value.
    """
    place = np.arange(new, dtype=np.float64)
    if align_corners:
        place = place * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        place = np.maximum((place + 0.5) * (old / new) - 0.5, 0.0)
    lower = np.minimum(place.astype(np.int64), old - 1)
    upper = np.minimum(lower + 1, old - 1)
    weight = place - lower
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    np.add.at(matrix, (rows, lower), 1.0 - weight)
    np.add.at(matrix, (rows, upper), weight)
    return matrix


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


class AvgPool2d(nn.AvgPool2D):
    """Mean over windows; the zeros of the padding count in it.

    In float64 a sum over the window, divided: the gradient of Paddle's kernel keeps 1 / window
    size as float32, which is off by 7e-9 of the gradient's largest value.
    """

    def __init__(self, *, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(
            kernel_size, stride=stride, padding=padding, ceil_mode=False, exclusive=False
        )
        self.window = (kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / stride, W / stride)."""
        if x.dtype != paddle.float64:
            return super().forward(x)
        kernel_size, stride, padding = self.window
        channels = x.shape[1]
        ones = paddle.ones([channels, 1, kernel_size, kernel_size], dtype=x.dtype)
        total = F.conv2d(x, ones, stride=stride, padding=padding, groups=channels)
        return total / kernel_size**2


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


def init_conv_fan_out(conv: nn.Conv2D) -> None:
    """Draw weights from N(0, 2 / fan_out), as kaiming_normal for ReLU does; biases are 0."""
    nn.initializer.Normal(mean=0.0, std=math.sqrt(2.0 / _fan_out(conv)))(conv.weight)
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


def _fan_out(conv: nn.Conv2D) -> int:
    # all output channels count, also when a grouped convolution splits them
    return conv.weight.shape[0] * math.prod(conv.weight.shape[2:])
