"""BiSeNetV1: a detailed spatial path and a deep context path, fused.

Source: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation",
and CoinCheung/BiSeNet@6b4b67a, lib/models/bisenetv1.py (names, shapes, numbers).

Departures from upstream: a dict of logits is returned; any image size is accepted (upstream
needs multiples of 32 and changes the size of some others).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from for_torch.layers import (
    BatchNorm2d,
    ConvBNReLU,
    ResizeBilinear,
    ResizeNearest,
    crop_to_size,
    init_conv_kaiming,
    pad_to_multiple,
    spatial_mean,
)
from for_torch.models.resnet import ResNet18


class AttentionRefinementModule(nn.Module):
    """3x3 convolution whose channels are weighed by an attention over the whole map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.conv_atten = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)
        self.bn_atten = BatchNorm2d(out_channels)
        self.sigmoid_atten = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        feature = self.conv(x)
        attention = self.conv_atten(spatial_mean(feature))
        attention = self.sigmoid_atten(self.bn_atten(attention))
        return feature * attention


class ContextPath(nn.Module):
    """ResNet18 with two refinement modules and a global branch, brought back to 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.arm16 = AttentionRefinementModule(256, 128)
        self.arm32 = AttentionRefinementModule(512, 128)
        self.up32 = ResizeNearest(scale=2)
        self.up16 = ResizeNearest(scale=2)
        self.conv_head32 = ConvBNReLU(128, 128, kernel_size=3, stride=1, padding=1)
        self.conv_head16 = ConvBNReLU(128, 128, kernel_size=3, stride=1, padding=1)
        self.conv_avg = ConvBNReLU(512, 128, kernel_size=1, stride=1, padding=0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> (N, 128, H/8, W/8), (N, 128, H/16, W/16)."""
        _, feature16, feature32 = self.resnet(image)
        average = self.conv_avg(spatial_mean(feature32))
        context32 = self.arm32(feature32) + average
        context16 = self.conv_head32(self.up32(context32))
        merged16 = self.arm16(feature16) + context16
        context8 = self.conv_head16(self.up16(merged16))
        return context8, context16


class SpatialPath(nn.Module):
    """Three strided convolutions that keep detail at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(3, 64, kernel_size=7, stride=2, padding=3)
        self.conv2 = ConvBNReLU(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv3 = ConvBNReLU(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv_out = ConvBNReLU(64, 128, kernel_size=1, stride=1, padding=0)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 128, H/8, W/8)."""
        return self.conv_out(self.conv3(self.conv2(self.conv1(image))))


class FeatureFusionModule(nn.Module):
    """Concatenate both paths, mix them, and add the channels that an attention picks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convblk = ConvBNReLU(in_channels, out_channels, kernel_size=1, stride=1, padding=0)
        self.conv = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)
        self.bn = BatchNorm2d(out_channels)
        self.sigmoid = nn.Sigmoid()

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two (N, in / 2, H, W) maps, the spatial one first -> (N, out, H, W)."""
        feature = self.convblk(torch.cat([spatial, context], dim=1))
        attention = self.sigmoid(self.bn(self.conv(spatial_mean(feature))))
        return feature * attention + feature


class BiSeNetOutput(nn.Module):
    """Segmentation head: logits, enlarged by a fixed factor."""

    def __init__(self, in_channels: int, mid_channels: int, *, classes: int, scale: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, mid_channels, kernel_size=3, stride=1, padding=1)
        self.conv_out = nn.Conv2d(mid_channels, classes, kernel_size=1, bias=True)
        self.up = ResizeBilinear(scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, classes, scale * H, scale * W)."""
        return self.up(self.conv_out(self.conv(x)))


class BiSeNetV1(nn.Module):
    """The whole network.

    Attributes:
        heads: names of the outputs, the main one first.
        head_modules: children that the recipe trains with a multiplied learning rate.
        aux_in_eval: True computes the auxiliary heads in eval mode too.
    """

    def __init__(self, classes: int, *, aux_heads: bool = True) -> None:
        """Build the network, initialised by upstream's rules.

        Args:
            classes: number of classes, the channels of every output.
            aux_heads: False leaves out the heads that only training uses.
        """
        super().__init__()
        self.cp = ContextPath()
        self.sp = SpatialPath()
        self.ffm = FeatureFusionModule(256, 256)
        self.conv_out = BiSeNetOutput(256, 256, classes=classes, scale=8)
        self.heads: tuple[str, ...] = ("main",)
        self.head_modules: tuple[str, ...] = ("ffm", "conv_out")
        self.aux_heads = aux_heads
        self.aux_in_eval = False
        if aux_heads:
            # named after the paper's stages; the maps they see are at 1/8 and 1/16
            self.conv_out16 = BiSeNetOutput(128, 64, classes=classes, scale=8)
            self.conv_out32 = BiSeNetOutput(128, 64, classes=classes, scale=16)
            self.heads = ("main", "aux16", "aux32")
            self.head_modules = ("ffm", "conv_out", "conv_out16", "conv_out32")
        self._init_weights()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits of every active head.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size. Sizes that do not divide by 32 are
                padded with zeros at the bottom and right, and the logits cropped back.

        Returns:
            "main", then "aux16" and "aux32" when they are active: (N, classes, H, W) each.
        """
        padded = pad_to_multiple(image, multiple=32)
        context8, context16 = self.cp(padded)
        spatial8 = self.sp(padded)
        fused = self.ffm(spatial8, context8)
        logits = {"main": self.conv_out(fused)}
        if self.aux_heads and (self.training or self.aux_in_eval):
            logits["aux16"] = self.conv_out16(context8)
            logits["aux32"] = self.conv_out32(context16)
        height, width = image.shape[2], image.shape[3]
        return {
            head: crop_to_size(value, height=height, width=width) for head, value in logits.items()
        }

    def _init_weights(self) -> None:
        for name, layer in self.named_modules():
            # the backbone keeps its own initialisation: upstream starts it from ImageNet weights
            if isinstance(layer, nn.Conv2d) and not name.startswith("cp.resnet."):
                init_conv_kaiming(layer)
