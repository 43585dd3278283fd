"""The reference: a network in Torch, as it is. Nothing here knows that it will be compared."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConvBlock(nn.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return self.relu(self.bn(self.conv(x)))


class Minimal(nn.Module):
    """Three convolutions down to 1/8, a classifier, and the logits at the picture's size."""

    def __init__(self, classes: int, *, width: int = 16) -> None:
        super().__init__()
        self.down2 = ConvBlock(3, width, stride=2)
        self.down4 = ConvBlock(width, 2 * width, stride=2)
        self.down8 = ConvBlock(2 * width, 4 * width, stride=2)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(4 * width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W) logits."""
        feature = self.down8(self.down4(self.down2(image)))
        logits = self.classifier(self.dropout(feature))
        size = (image.shape[2], image.shape[3])
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
