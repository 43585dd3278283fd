"""ResNet18 without its classifier, the backbone of the context path.

Source: torchvision's ResNet18 (names of its checkpoint, which upstream starts from), as used by
CoinCheung/BiSeNet@6b4b67a, lib/models/resnet.py.
"""

from __future__ import annotations

from paddle import Tensor, nn

from for_paddle.layers import BatchNorm2d, init_conv_uniform


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions and a shortcut, projected by 1x1 where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(
            in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias_attr=False
        )
        self.bn1 = BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2D(
            out_channels, out_channels, kernel_size=3, stride=1, padding=1, bias_attr=False
        )
        self.bn2 = BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = None
        if in_channels != out_channels or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2D(in_channels, out_channels, kernel_size=1, stride=stride, bias_attr=False),
                BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(shortcut + residual)


class ResNet18(nn.Layer):
    """Features at 1/8, 1/16 and 1/32 of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(3, 64, kernel_size=7, stride=2, padding=3, bias_attr=False)
        self.bn1 = BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2D(kernel_size=3, stride=2, padding=1, ceil_mode=False)
        self.layer1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, stride=2), BasicBlock(256, 256))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, stride=2), BasicBlock(512, 512))
        self._init_weights()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature maps of layer2, layer3 and layer4.

        Args:
            image: (N, 3, H, W), RGB, normalised.

        Returns:
            (N, 128, H/8, W/8), (N, 256, H/16, W/16), (N, 512, H/32, W/32).
        """
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer1(self.maxpool(x))
        feature8 = self.layer2(x)
        feature16 = self.layer3(feature8)
        feature32 = self.layer4(feature16)
        return feature8, feature16, feature32

    def _init_weights(self) -> None:
        for _, layer in self.named_sublayers():
            if isinstance(layer, nn.Conv2D):
                init_conv_uniform(layer)
