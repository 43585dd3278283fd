"""STDC backbones: short-term dense concatenate blocks, made for segmentation.

Source: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", and
MichaelFan01/STDC-Seg@59ff37f, models/stdcnet.py (names, shapes, numbers).

Departures from upstream: every layer has one name, ``features.*`` (upstream's state dict lists it
again under x2, x4, x8, x16 and x32); the block type is a word, the number of convolutions of a
block is checked.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import InputError
from for_torch.layers import AvgPool2d, init_conv_fan_out, spatial_mean
from for_torch.norm import BatchNorm2d

Layers = tuple[int, int, int]
BlockType = Literal["cat", "add"]

STDC1_LAYERS: Layers = (2, 2, 2)
"""STDCNet813: blocks of the stages at 1/8, 1/16 and 1/32."""
STDC2_LAYERS: Layers = (4, 5, 3)
"""STDCNet1446."""


class ConvX(nn.Module):
    """Convolution without bias, plain BatchNorm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=False,
        )
        self.bn = BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        return self.relu(self.bn(self.conv(x)))


class CatBottleneck(nn.Module):
    """Convolutions in a row, whose outputs are concatenated: out / 2, out / 4, ... channels.

    With stride 2 the first output is carried on by a strided depthwise convolution and joins the
    concatenation through average pooling.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, blocks: int = 4, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv_list = stdc_convolutions(in_channels, out_channels, blocks=blocks)
        self.avd_layer = None
        self.skip = None
        if stride == 2:
            self.avd_layer = nn.Sequential(
                depthwise_convolution(out_channels // 2), BatchNorm2d(out_channels // 2)
            )
            self.skip = AvgPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        first = self.conv_list[0](x)
        x = first if self.avd_layer is None else self.avd_layer(first)
        parts = [first]
        for index in range(1, len(self.conv_list)):
            x = self.conv_list[index](x)
            parts.append(x)
        if self.skip is not None:
            parts[0] = self.skip(first)
        return torch.cat(parts, dim=1)


class AddBottleneck(nn.Module):
    """As CatBottleneck, with a shortcut around the block that is added to the concatenation.

    With stride 2 the first output is strided before it joins the concatenation, and the shortcut
    is a strided depthwise and a 1x1 convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, blocks: int = 4, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv_list = stdc_convolutions(in_channels, out_channels, blocks=blocks)
        self.avd_layer = None
        self.skip = None
        if stride == 2:
            self.avd_layer = nn.Sequential(
                depthwise_convolution(out_channels // 2), BatchNorm2d(out_channels // 2)
            )
            self.skip = nn.Sequential(
                depthwise_convolution(in_channels),
                BatchNorm2d(in_channels),
                nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
                BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        carried = self.conv_list[0](x)
        if self.avd_layer is not None:
            carried = self.avd_layer(carried)
        parts = [carried]
        for index in range(1, len(self.conv_list)):
            carried = self.conv_list[index](carried)
            parts.append(carried)
        shortcut = x if self.skip is None else self.skip(x)
        return torch.cat(parts, dim=1) + shortcut


class STDCNet(nn.Module):
    """Features at five scales, and the ImageNet classifier that the backbone was trained with.

    The classifier belongs to the published weights; segmentation does not use it.
    """

    def __init__(
        self,
        layers: Layers,
        *,
        base: int = 64,
        blocks: int = 4,
        block_type: BlockType = "cat",
        dropout: float = 0.2,
        classifier: bool = True,
    ) -> None:
        """Build the backbone, initialised by upstream's rules for training from scratch.

        Args:
            layers: number of blocks at 1/8, 1/16 and 1/32.
            base: channels at 1/4; 4, 8 and 16 times as many at 1/8, 1/16 and 1/32.
            blocks: convolutions per block.
            block_type: "cat" (the published weights) or "add".
            dropout: probability in the classifier.
            classifier: False leaves the classifier out.
        """
        super().__init__()
        self.features = stdc_features(layers, base=base, blocks=blocks, block_type=block_type)
        self.stage_ends = stage_ends(layers)
        if classifier:
            self.conv_last = ConvX(base * 16, max(1024, base * 16), kernel_size=1)
            self.fc = nn.Linear(max(1024, base * 16), max(1024, base * 16), bias=False)
            # stored in the published weights, never applied
            self.bn = BatchNorm2d(max(1024, base * 16))
            self.relu = nn.ReLU()
            self.dropout = nn.Dropout(p=dropout)
            self.linear = nn.Linear(max(1024, base * 16), 1000, bias=False)
        init_stdc(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the last feature map of each scale.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size, an odd one is rounded up when halved.

        Returns:
            Maps at 1/2, 1/4, 1/8, 1/16, 1/32: 32, base, 4 base, 8 base, 16 base channels.
        """
        return run_stages(self.features, image, ends=self.stage_ends)

    def classify(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1000) ImageNet logits."""
        feature = self.conv_last(self.forward(image)[-1])
        pooled = spatial_mean(feature * feature).flatten(1)
        return self.linear(self.dropout(self.relu(self.fc(pooled))))


def stdc_convolutions(in_channels: int, out_channels: int, *, blocks: int) -> nn.ModuleList:
    """Return a block's convolutions; their widths halve, the last repeats its neighbour's.

    Raises:
        InputError: (a ValueError) the block has one convolution, or its width cannot be halved.
    """
    if blocks < 2 or out_channels % 2 ** (blocks - 1):
        raise InputError(
            f"an STDC block of {blocks} convolutions and {out_channels} channels cannot be built; "
            "expected 2 convolutions or more, and channels that divide by 2 ** (convolutions - 1)"
        )
    layers = [ConvX(in_channels, out_channels // 2, kernel_size=1)]
    for index in range(1, blocks):
        width = out_channels // 2**index
        layers.append(ConvX(width, width // 2 if index < blocks - 1 else width))
    return nn.ModuleList(layers)


def depthwise_convolution(channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution of each channel by itself, with stride 2."""
    return nn.Conv2d(
        channels, channels, kernel_size=3, stride=2, padding=1, groups=channels, bias=False
    )


def stdc_features(
    layers: Layers, *, base: int, blocks: int, block_type: BlockType
) -> nn.ModuleList:
    """Return two strided convolutions and three stages of blocks, the first of each strided."""
    block = {"cat": CatBottleneck, "add": AddBottleneck}[block_type]
    features: list[nn.Module] = [ConvX(3, base // 2, stride=2), ConvX(base // 2, base, stride=2)]
    width = base
    for stage, count in enumerate(layers):
        for index in range(count):
            out_channels = base * 4 * 2**stage
            stride = 2 if index == 0 else 1
            features.append(block(width, out_channels, blocks=blocks, stride=stride))
            width = out_channels
    return nn.ModuleList(features)


def stage_ends(layers: Layers) -> tuple[int, ...]:
    """Return the position in the features of the last layer at 1/2, 1/4, 1/8, 1/16, 1/32."""
    first, second, third = layers
    return 0, 1, 1 + first, 1 + first + second, 1 + first + second + third


def run_stages(
    features: nn.ModuleList, image: Tensor, *, ends: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Run the layers one after the other and return what those at ``ends`` return."""
    outputs: list[Tensor] = []
    x = image
    for index in range(len(features)):
        x = features[index](x)
        if index in ends:
            outputs.append(x)
    return tuple(outputs)


def init_stdc(backbone: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / fan_out) and linear layers from N(0, 0.001^2)."""
    for _, layer in backbone.named_modules():
        if isinstance(layer, nn.Conv2d):
            init_conv_fan_out(layer)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, mean=0.0, std=0.001)
