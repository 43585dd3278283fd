"""Fast-SCNN in Torch: Poudel, Liwicki, Cipolla, "Fast-SCNN", 2019 (arXiv:1902.04502), table 1.

Written from the paper's description. What it leaves open is settled here so: BatchNorm and ReLU
follow both convolutions of a depthwise separable one; maps are resized with align_corners=True;
the pyramid's bins are 1, 2, 3 and 6, as in the PSPNet that it takes the module from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvBNReLU(nn.Module):
    """Convolution without bias, BatchNorm, and ReLU unless it is left out."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU() if relu else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        x = self.bn(self.conv(x))
        return x if self.relu is None else self.relu(x)


class DSConv(nn.Module):
    """Depthwise separable convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvBNReLU(in_channels, in_channels, stride=stride, groups=in_channels)
        self.pointwise = ConvBNReLU(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return self.pointwise(self.depthwise(x))


class Bottleneck(nn.Module):
    """Inverted residual: widen, convolve per channel, narrow without an activation."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.expand = ConvBNReLU(in_channels, wide, kernel_size=1)
        self.depthwise = ConvBNReLU(wide, wide, stride=stride, groups=wide)
        self.project = ConvBNReLU(wide, out_channels, kernel_size=1, relu=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


def bottlenecks(in_channels: int, out_channels: int, *, count: int, stride: int) -> nn.Sequential:
    """Return a stage: the first block changes the channels and the size."""
    first = Bottleneck(in_channels, out_channels, expansion=6, stride=stride)
    rest = [Bottleneck(out_channels, out_channels, expansion=6, stride=1) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


class PyramidPooling(nn.Module):
    """Means over 1, 2x2, 3x3 and 6x6 bins, beside the map itself."""

    BINS = (1, 2, 3, 6)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid = in_channels // len(self.BINS)
        self.pools = nn.ModuleList([nn.AdaptiveAvgPool2d(bins) for bins in self.BINS])
        self.convs = nn.ModuleList([ConvBNReLU(in_channels, mid, kernel_size=1) for _ in self.BINS])
        self.out = ConvBNReLU(in_channels + mid * len(self.BINS), out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        means = [
            resize(conv(pool(x)), x) for pool, conv in zip(self.pools, self.convs, strict=True)
        ]
        return self.out(torch.cat([x, *means], dim=1))


class FeatureFusion(nn.Module):
    """The deep map, enlarged and convolved per channel, added to the map at 1/8."""

    def __init__(self, high_channels: int, low_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = ConvBNReLU(low_channels, low_channels, dilation=4, groups=low_channels)
        self.low = ConvBNReLU(low_channels, out_channels, kernel_size=1, relu=False)
        self.high = ConvBNReLU(high_channels, out_channels, kernel_size=1, relu=False)
        self.relu = nn.ReLU()

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """(N, high, H/8, W/8) and (N, low, H/32, W/32) -> (N, out, H/8, W/8)."""
        low = self.low(self.depthwise(resize(low, high)))
        return self.relu(self.high(high) + low)


class FastSCNN(nn.Module):
    """The whole network; with aux_head it returns two outputs in training."""

    def __init__(self, num_classes: int, *, aux_head: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.down = nn.Sequential(
            ConvBNReLU(3, 32, stride=2), DSConv(32, 48, stride=2), DSConv(48, 64, stride=2)
        )
        self.stage1 = bottlenecks(64, 64, count=3, stride=2)
        self.stage2 = bottlenecks(64, 96, count=3, stride=2)
        self.stage3 = bottlenecks(96, 128, count=3, stride=1)
        self.pyramid = PyramidPooling(128, 128)
        self.fusion = FeatureFusion(64, 128, 128)
        self.classifier = nn.Sequential(DSConv(128, 128), DSConv(128, 128))
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Conv2d(128, num_classes, 1)
        self.aux = None
        if aux_head:
            self.aux = nn.Sequential(ConvBNReLU(64, 32), nn.Conv2d(32, num_classes, 1))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> (N, classes, H, W) logits, in training with those of the other head."""
        high = self.down(image)
        low = self.pyramid(self.stage3(self.stage2(self.stage1(high))))
        feature = self.classifier(self.fusion(high, low))
        main = resize(self.logits(self.dropout(feature)), image)
        if self.aux is None or not self.training:
            return main
        return main, resize(self.aux(high), image)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of another map."""
    size = (like.shape[2], like.shape[3])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
