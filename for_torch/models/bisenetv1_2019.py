"""BiSeNetV1 as its author first published it, in January 2019: u-shape, spatial path, fusion.

Source: CoinCheung/BiSeNet@2d6d8f1 (names, shapes, numbers). Its checkpoint carries the
paper's attention refinement and global pooling, but its forward pass leaves them out, and so does
ours by default; ``use_arm`` and ``use_global_pooling`` put them where the paper has them.

Departures from upstream: a dict of logits is returned, the auxiliary heads in training only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from for_torch.layers import (
    ConvBNReLU,
    init_conv_kaiming,
    resize_bilinear,
    resize_nearest,
    spatial_mean,
)
from for_torch.models.bisenetv1 import FeatureFusionModule
from for_torch.models.resnet import ResNet18
from for_torch.norm import BatchNorm2d


class ChannelAttention(nn.Module):
    """Add the channels that an attention over the whole map picks: upstream's refinement."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.bn = BatchNorm2d(channels)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        attention = self.sigmoid(self.bn(self.conv(spatial_mean(x))))
        return x * attention + x


class UShapedContextPath(nn.Module):
    """ResNet18 whose deepest features are brought back to 1/8, with all their channels.

    The refinement and the pooling are always there, for the names of the published checkpoint.
    """

    def __init__(self, *, use_arm: bool = False, use_global_pooling: bool = False) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.conv_cat = ConvBNReLU(768, 512, kernel_size=3, stride=1, padding=1)
        self.arm16 = ChannelAttention(256)
        self.arm32 = ChannelAttention(512)
        self.conv_avg = nn.Conv2d(512, 512, kernel_size=1, bias=True)
        self.bn_avg = BatchNorm2d(512)
        self.use_arm = use_arm
        self.use_global_pooling = use_global_pooling

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the context at 1/8 and the backbone's features at 1/16 and 1/32.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size, of which sizes are rounded up below.

        Returns:
            (N, 512, H/8, W/8), (N, 256, H/16, W/16), (N, 512, H/32, W/32).
        """
        feature8, feature16, feature32 = self.resnet(image)
        context16, context32 = feature16, feature32
        if self.use_arm:
            # the auxiliary heads keep the features from before: upstream measured 68.98 against
            # 68.02 mIoU with those from behind the refinement
            context16, context32 = self.arm16(feature16), self.arm32(feature32)
        if self.use_global_pooling:
            context32 = context32 + self.bn_avg(self.conv_avg(spatial_mean(feature32)))
        up32 = resize_nearest(context32, size_hw=(feature16.shape[2], feature16.shape[3]))
        merged16 = self.conv_cat(torch.cat([up32, context16], dim=1))
        context8 = resize_nearest(merged16, size_hw=(feature8.shape[2], feature8.shape[3]))
        return context8, feature16, feature32


class WideningSpatialPath(nn.Module):
    """Three strided convolutions that keep detail at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(3, 32, kernel_size=3, stride=2, padding=1)
        self.conv2 = ConvBNReLU(32, 128, kernel_size=3, stride=2, padding=1)
        self.conv3 = ConvBNReLU(128, 512, kernel_size=3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 512, H/8, W/8)."""
        return self.conv3(self.conv2(self.conv1(image)))


class FCNOutput(nn.Module):
    """Segmentation head with dropout; its logits stay at the map's size."""

    def __init__(self, in_channels: int, *, classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, 256, kernel_size=3, stride=1, padding=1)
        self.dropout = nn.Dropout(p=dropout)
        self.conv_out = nn.Conv2d(256, classes, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, classes, H, W)."""
        return self.conv_out(self.dropout(self.conv(x)))


class BiSeNetV1First(nn.Module):
    """The whole network.

    Attributes:
        name: the key of MODELS it was built as; empty if it was not built by build_model.
        classes: number of classes.
        heads: names of the outputs, the main one first.
        head_modules: empty: the recipe has one learning rate for everything.
        unused: layers that are switched off, and so neither trained nor their statistics moved.
        aux_in_eval: True computes the auxiliary heads in eval mode too.
    """

    name: str = ""

    def __init__(
        self,
        classes: int,
        *,
        aux_heads: bool = True,
        use_arm: bool = False,
        use_global_pooling: bool = False,
        dropout: float = 0.1,
    ) -> None:
        """Build the network, initialised by upstream's rules.

        Args:
            classes: number of classes, the channels of every output.
            aux_heads: False leaves out the heads that only training uses.
            use_arm: True refines the features at 1/16 and 1/32 by attention.
            use_global_pooling: True adds the mean of the feature at 1/32 to it.
            dropout: probability of a channel's value to be dropped before the logits.
        """
        super().__init__()
        self.classes = classes
        self.cp = UShapedContextPath(use_arm=use_arm, use_global_pooling=use_global_pooling)
        self.sp = WideningSpatialPath()
        self.ffm = FeatureFusionModule(1024, 1024, kernel_size=3, attention_channels=1024)
        self.conv_out = FCNOutput(1024, classes=classes, dropout=dropout)
        self.heads: tuple[str, ...] = ("main",)
        self.head_modules: tuple[str, ...] = ()
        self.unused: tuple[str, ...] = (
            *(() if use_arm else ("cp.arm16", "cp.arm32")),
            *(() if use_global_pooling else ("cp.conv_avg", "cp.bn_avg")),
        )
        self.aux_heads = aux_heads
        self.aux_in_eval = False
        if aux_heads:
            self.conv_out16 = FCNOutput(256, classes=classes, dropout=dropout)
            self.conv_out32 = FCNOutput(512, classes=classes, dropout=dropout)
            self.heads = ("main", "aux16", "aux32")
        self._init_weights()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits of every active head.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size.

        Returns:
            "main", then "aux16" and "aux32" when they are active: (N, classes, H, W) each.
        """
        context8, feature16, feature32 = self.cp(image)
        spatial8 = self.sp(image)
        fused = self.ffm(spatial8, context8)
        logits = {"main": self.conv_out(fused)}
        if self.aux_heads and (self.training or self.aux_in_eval):
            logits["aux16"] = self.conv_out16(feature16)
            logits["aux32"] = self.conv_out32(feature32)
        size_hw = (image.shape[2], image.shape[3])
        return {
            head: resize_bilinear(value, size_hw=size_hw, align_corners=False)
            for head, value in logits.items()
        }

    def _init_weights(self) -> None:
        for name, layer in self.named_modules():
            # the backbone keeps its own initialisation: upstream starts it from ImageNet weights
            if isinstance(layer, nn.Conv2d) and not name.startswith("cp.resnet."):
                init_conv_kaiming(layer)
