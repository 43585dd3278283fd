"""BiSeNetV1: a detailed spatial path and a deep context path, fused.

Source: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation";
CoinCheung/BiSeNet@6b4b67a, lib/models/bisenetv1.py (the form "current") and CoinCheung/
BiSeNet@a8ddd22, model.py, diss/model.py, fp16/model.py (the form "2020"): names, shapes, numbers.

Departures from upstream: a dict of logits is returned, the auxiliary heads in training only; the
current form accepts any image size (upstream needs multiples of 32 and changes the size of some
others).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from for_torch.layers import (
    CONV_BLOCKS,
    ResizeBilinear,
    ResizeNearest,
    crop_to_size,
    init_conv_kaiming,
    pad_to_multiple,
    resize_bilinear,
    spatial_mean,
)
from for_torch.models.resnet import ResNet18
from for_torch.norm import BatchNorm2d, Norm, norm_without_activation

Form = Literal["current", "2020"]
"""Which published form: they differ in the attention of the fusion, the heads and the resizing."""


class AttentionRefinementModule(nn.Module):
    """3x3 convolution whose channels are weighed by an attention over the whole map."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm = "batch_norm") -> None:
        super().__init__()
        conv_block = CONV_BLOCKS[norm]
        self.conv = conv_block(in_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.conv_atten = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)
        self.bn_atten = norm_without_activation(out_channels, norm=norm)
        self.sigmoid_atten = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        feature = self.conv(x)
        attention = self.conv_atten(spatial_mean(feature))
        attention = self.sigmoid_atten(self.bn_atten(attention))
        return feature * attention


class ContextPath(nn.Module):
    """ResNet18 with two refinement modules and a global branch, brought back to 1/8."""

    def __init__(self, *, norm: Norm = "batch_norm") -> None:
        super().__init__()
        conv_block = CONV_BLOCKS[norm]
        self.resnet = ResNet18(norm=norm)
        self.arm16 = AttentionRefinementModule(256, 128, norm=norm)
        self.arm32 = AttentionRefinementModule(512, 128, norm=norm)
        self.up32 = ResizeNearest(scale=2)
        self.up16 = ResizeNearest(scale=2)
        self.conv_head32 = conv_block(128, 128, kernel_size=3, stride=1, padding=1)
        self.conv_head16 = conv_block(128, 128, kernel_size=3, stride=1, padding=1)
        self.conv_avg = conv_block(512, 128, kernel_size=1, stride=1, padding=0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the context at 1/8 and 1/16, and the backbone's own feature at 1/8.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size, of which sizes are rounded up below.

        Returns:
            (N, 128, H/8, W/8), (N, 128, H/16, W/16), (N, 128, H/8, W/8).
        """
        feature8, feature16, feature32 = self.resnet(image)
        average = self.conv_avg(spatial_mean(feature32))
        context32 = self.arm32(feature32) + average
        # doubled and cropped, the nearest pixels are those of a resize to the very size
        context16 = self.conv_head32(cropped_like(self.up32(context32), feature16))
        merged16 = self.arm16(feature16) + context16
        context8 = self.conv_head16(cropped_like(self.up16(merged16), feature8))
        return context8, context16, feature8


def cropped_like(x: Tensor, other: Tensor) -> Tensor:
    """Cut x to the height and width of another map."""
    return crop_to_size(x, height=other.shape[2], width=other.shape[3])


class SpatialPath(nn.Module):
    """Three strided convolutions that keep detail at 1/8."""

    def __init__(self, *, norm: Norm = "batch_norm") -> None:
        super().__init__()
        conv_block = CONV_BLOCKS[norm]
        self.conv1 = conv_block(3, 64, kernel_size=7, stride=2, padding=3)
        self.conv2 = conv_block(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv3 = conv_block(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv_out = conv_block(64, 128, kernel_size=1, stride=1, padding=0)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 128, H/8, W/8)."""
        return self.conv_out(self.conv3(self.conv2(self.conv1(image))))


class FeatureFusionModule(nn.Module):
    """Concatenate both paths, mix them, and add the channels that an attention picks."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        attention_channels: int | None = None,
        norm: Norm = "batch_norm",
    ) -> None:
        """Build the module.

        Args:
            in_channels: channels of both maps together.
            out_channels: channels of the result.
            kernel_size: of the convolution that mixes the maps.
            attention_channels: channels between the two convolutions of the attention; None
                makes it a single convolution with a BatchNorm.
            norm: normalisation of the mixing convolution.
        """
        super().__init__()
        self.convblk = CONV_BLOCKS[norm](
            in_channels, out_channels, kernel_size=kernel_size, stride=1, padding=kernel_size // 2
        )
        self.single_conv = attention_channels is None
        if attention_channels is None:
            self.conv = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)
            self.bn = BatchNorm2d(out_channels)
        else:
            self.conv1 = nn.Conv2d(out_channels, attention_channels, kernel_size=1, bias=False)
            self.relu = nn.ReLU()
            self.conv2 = nn.Conv2d(attention_channels, out_channels, kernel_size=1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two (N, in / 2, H, W) maps, the spatial one first -> (N, out, H, W)."""
        feature = self.convblk(torch.cat([spatial, context], dim=1))
        pooled = spatial_mean(feature)
        if self.single_conv:
            attention = self.sigmoid(self.bn(self.conv(pooled)))
        else:
            attention = self.sigmoid(self.conv2(self.relu(self.conv1(pooled))))
        return feature * attention + feature


class BiSeNetOutput(nn.Module):
    """Segmentation head: logits, enlarged by a fixed factor or left at the map's size."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        *,
        classes: int,
        scale: int | None,
        bias: bool = True,
        norm: Norm = "batch_norm",
    ) -> None:
        super().__init__()
        self.conv = CONV_BLOCKS[norm](in_channels, mid_channels, kernel_size=3, stride=1, padding=1)
        self.conv_out = nn.Conv2d(mid_channels, classes, kernel_size=1, bias=bias)
        self.up = None if scale is None else ResizeBilinear(scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, classes, scale * H, scale * W)."""
        logits = self.conv_out(self.conv(x))
        return logits if self.up is None else self.up(logits)


class BiSeNetV1(nn.Module):
    """The whole network.

    Attributes:
        name: the key of MODELS it was built as; empty if it was not built by build_model.
        classes: number of classes.
        heads: names of the outputs, the main one first.
        head_modules: children that the recipe trains with a multiplied learning rate.
        aux_in_eval: True computes the auxiliary heads in eval mode too.
    """

    name: str = ""

    def __init__(
        self,
        classes: int,
        *,
        aux_heads: bool = True,
        form: Form = "current",
        norm: Norm = "batch_norm",
        spatial_path: bool = True,
    ) -> None:
        """Build the network, initialised by upstream's rules.

        Args:
            classes: number of classes, the channels of every output.
            aux_heads: False leaves out the heads that only training uses.
            form: "current": the attention of the fusion is one convolution and a BatchNorm, the
                heads end in a bias and enlarge by fixed factors, corners of the maps aligned.
                "2020": it is two convolutions, the heads have no bias and are resized to the
                image, centres of the corner pixels aligned.
            norm: "inplace_abn" is what the 2020 checkpoints were trained with.
            spatial_path: False fuses the backbone's feature at 1/8 in its place (upstream's
                "diss").
        """
        super().__init__()
        self.classes = classes
        current = form == "current"
        self.cp = ContextPath(norm=norm)
        self.sp = SpatialPath(norm=norm) if spatial_path else None
        self.ffm = FeatureFusionModule(
            256, 256, attention_channels=None if current else 64, norm=norm
        )
        self.conv_out = BiSeNetOutput(
            256, 256, classes=classes, scale=8 if current else None, bias=current, norm=norm
        )
        self.heads: tuple[str, ...] = ("main",)
        self.head_modules: tuple[str, ...] = ("ffm", "conv_out")
        self.fixed_factors = current
        self.aux_heads = aux_heads
        self.aux_in_eval = False
        if aux_heads:
            # named after the paper's stages; the maps they see are at 1/8 and 1/16
            self.conv_out16 = BiSeNetOutput(
                128, 64, classes=classes, scale=8 if current else None, bias=current, norm=norm
            )
            self.conv_out32 = BiSeNetOutput(
                128, 64, classes=classes, scale=16 if current else None, bias=current, norm=norm
            )
            self.heads = ("main", "aux16", "aux32")
            self.head_modules = ("ffm", "conv_out", "conv_out16", "conv_out32")
        self._init_weights()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits of every active head.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size. With fixed factors, sizes that do not
                divide by 32 are padded with zeros at the bottom and right, and the logits
                cropped back.

        Returns:
            "main", then "aux16" and "aux32" when they are active: (N, classes, H, W) each.
        """
        fitting = pad_to_multiple(image, multiple=32) if self.fixed_factors else image
        context8, context16, feature8 = self.cp(fitting)
        spatial8 = feature8 if self.sp is None else self.sp(fitting)
        fused = self.ffm(spatial8, context8)
        logits = {"main": self.conv_out(fused)}
        if self.aux_heads and (self.training or self.aux_in_eval):
            logits["aux16"] = self.conv_out16(context8)
            logits["aux32"] = self.conv_out32(context16)
        return {head: self._at_image_size(value, image) for head, value in logits.items()}

    def _at_image_size(self, logits: Tensor, image: Tensor) -> Tensor:
        if self.fixed_factors:
            return cropped_like(logits, image)
        size_hw = (image.shape[2], image.shape[3])
        return resize_bilinear(logits, size_hw=size_hw, align_corners=True)

    def _init_weights(self) -> None:
        for name, layer in self.named_modules():
            # the backbone keeps its own initialisation: upstream starts it from ImageNet weights
            if isinstance(layer, nn.Conv2d) and not name.startswith("cp.resnet."):
                init_conv_kaiming(layer)
