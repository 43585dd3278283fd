"""The port: the same network in Paddle, with the same names of layers.

BatchNorm and the bilinear resize come from for_paddle: Paddle's own differ from Torch's
(docs/parity.md, "Known differences of the frameworks"). Everything else is Paddle's.
"""

from __future__ import annotations

from paddle import Tensor, nn

from for_paddle.layers import init_conv_uniform, resize_bilinear
from for_paddle.norm import BatchNorm2d


class ConvBlock(nn.Layer):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2D(
            in_channels, out_channels, 3, stride=stride, padding=1, bias_attr=False
        )
        self.bn = BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return self.relu(self.bn(self.conv(x)))


class Minimal(nn.Layer):
    """Three convolutions down to 1/8, a classifier, and the logits at the picture's size."""

    def __init__(self, classes: int, *, width: int = 16) -> None:
        super().__init__()
        self.down2 = ConvBlock(3, width, stride=2)
        self.down4 = ConvBlock(width, 2 * width, stride=2)
        self.down8 = ConvBlock(2 * width, 4 * width, stride=2)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2D(4 * width, classes, 1)
        for layer in self.sublayers():
            if isinstance(layer, nn.Conv2D):
                # Torch's own initialisation; a verification gives both sides the same weights
                init_conv_uniform(layer)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W) logits."""
        feature = self.down8(self.down4(self.down2(image)))
        logits = self.classifier(self.dropout(feature))
        return resize_bilinear(logits, size_hw=(image.shape[2], image.shape[3]))
