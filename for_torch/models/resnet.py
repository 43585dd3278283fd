"""ResNet18 without its classifier, the backbone of the context path.

Source: torchvision's ResNet18 (names of its checkpoint, which upstream starts from), as used by
CoinCheung/BiSeNet@6b4b67a, lib/models/resnet.py; with InPlaceABN as in @a8ddd22, resnet.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from for_torch.layers import init_conv_uniform
from for_torch.norm import BatchNorm2d, InPlaceABN, Norm, norm_without_activation


def norm_and_activation(channels: int, *, norm: Norm) -> nn.Module:
    """Return BatchNorm, which a ReLU must follow, or InPlaceABN, which activates by itself."""
    return InPlaceABN(channels) if norm == "inplace_abn" else BatchNorm2d(channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by 1x1 where the shape changes."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "batch_norm"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.bn1 = norm_and_activation(out_channels, norm=norm)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, kernel_size=3, stride=1, padding=1, bias=False
        )
        self.bn2 = norm_without_activation(out_channels, norm=norm)
        self.relu = nn.ReLU()
        self.bn1_activates = norm == "inplace_abn"
        self.downsample = None
        if in_channels != out_channels or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                norm_without_activation(out_channels, norm=norm),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        residual = self.bn1(self.conv1(x))
        if not self.bn1_activates:
            residual = self.relu(residual)
        residual = self.bn2(self.conv2(residual))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(shortcut + residual)


class ResNet18(nn.Module):
    """Features at 1/8, 1/16 and 1/32 of the image."""

    def __init__(self, *, norm: Norm = "batch_norm") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_and_activation(64, norm=norm)
        self.relu = nn.ReLU()
        self.bn1_activates = norm == "inplace_abn"
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=False)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, norm=norm), BasicBlock(64, 64, norm=norm))
        self.layer2 = nn.Sequential(
            BasicBlock(64, 128, stride=2, norm=norm), BasicBlock(128, 128, norm=norm)
        )
        self.layer3 = nn.Sequential(
            BasicBlock(128, 256, stride=2, norm=norm), BasicBlock(256, 256, norm=norm)
        )
        self.layer4 = nn.Sequential(
            BasicBlock(256, 512, stride=2, norm=norm), BasicBlock(512, 512, norm=norm)
        )
        self._init_weights()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature maps of layer2, layer3 and layer4.

        Args:
            image: (N, 3, H, W), RGB, normalised.

        Returns:
            (N, 128, H/8, W/8), (N, 256, H/16, W/16), (N, 512, H/32, W/32).
        """
        x = self.bn1(self.conv1(image))
        if not self.bn1_activates:
            x = self.relu(x)
        x = self.layer1(self.maxpool(x))
        feature8 = self.layer2(x)
        feature16 = self.layer3(feature8)
        feature32 = self.layer4(feature16)
        return feature8, feature16, feature32

    def _init_weights(self) -> None:
        for _, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                init_conv_uniform(layer)
