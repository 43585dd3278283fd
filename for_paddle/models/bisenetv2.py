"""BiSeNetV2: a wide, shallow detail branch and a narrow, deep semantic branch, aggregated.

Source: Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic
Segmentation"; CoinCheung/BiSeNet@6b4b67a, lib/models/bisenetv2.py (the form "current") and
CoinCheung/BiSeNet@a8ddd22, bisenetv2/bisenetv2.py (the form "2020"): names, shapes, numbers.
Upstream departs from the paper in the ReLUs after some depthwise convolutions, in CEBlock's last
convolution and in the width of the main head.

Departures from upstream: a dict of logits is returned, the auxiliary heads in training only; the
current form accepts any image size (upstream needs multiples of 32 and changes the size of some
others).
"""

from __future__ import annotations

from typing import Literal

import paddle
from paddle import Tensor, nn

from for_paddle.layers import (
    AvgPool2d,
    ConvBNReLU,
    ResizeBilinear,
    ResizeNearest,
    crop_to_size,
    init_conv_fan_out,
    pad_to_multiple,
    resize_bilinear,
    resize_nearest,
    spatial_mean,
)
from for_paddle.norm import BatchNorm2d

Form = Literal["current", "2020"]
"""Which published form: they differ in the resizing, the heads and the heads' learning rate."""

EXPANSION = 6
"""Channels inside a gather-and-expansion layer, as a multiple of its input channels."""


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2D:
    """Return a 3x3 convolution without bias; groups=in_channels makes it depthwise."""
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        groups=groups,
        bias_attr=False,
    )


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2D:
    """Return a 1x1 convolution without bias."""
    return nn.Conv2D(in_channels, out_channels, kernel_size=1, stride=1, padding=0, bias_attr=False)


def starting_at_zero(channels: int) -> BatchNorm2d:
    """Return a BatchNorm of weight 0: a residual that ends in it starts as its shortcut."""
    last_bn = BatchNorm2d(channels)
    nn.initializer.Constant(0.0)(last_bn.weight)
    return last_bn


class DetailBranch(nn.Layer):
    """Eight convolutions in three stages: low-level detail at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.S1 = nn.Sequential(
            ConvBNReLU(3, 64, kernel_size=3, stride=2, padding=1),
            ConvBNReLU(64, 64, kernel_size=3, stride=1, padding=1),
        )
        self.S2 = nn.Sequential(
            ConvBNReLU(64, 64, kernel_size=3, stride=2, padding=1),
            ConvBNReLU(64, 64, kernel_size=3, stride=1, padding=1),
            ConvBNReLU(64, 64, kernel_size=3, stride=1, padding=1),
        )
        self.S3 = nn.Sequential(
            ConvBNReLU(64, 128, kernel_size=3, stride=2, padding=1),
            ConvBNReLU(128, 128, kernel_size=3, stride=1, padding=1),
            ConvBNReLU(128, 128, kernel_size=3, stride=1, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 128, H/8, W/8)."""
        return self.S3(self.S2(self.S1(image)))


class StemBlock(nn.Layer):
    """Convolve and pool side by side: two ways down to 1/4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvBNReLU(3, 16, kernel_size=3, stride=2, padding=1)
        self.left = nn.Sequential(
            ConvBNReLU(16, 8, kernel_size=1, stride=1, padding=0),
            ConvBNReLU(8, 16, kernel_size=3, stride=2, padding=1),
        )
        self.right = nn.MaxPool2D(kernel_size=3, stride=2, padding=1, ceil_mode=False)
        self.fuse = ConvBNReLU(32, 16, kernel_size=3, stride=1, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 16, H/4, W/4)."""
        feature = self.conv(image)
        convolved = self.left(feature)
        pooled = self.right(feature)
        return self.fuse(paddle.concat([convolved, pooled], axis=1))


class GELayerS1(nn.Layer):
    """Gather and expansion: widen by a depthwise convolution, narrow again, add."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid_channels = in_channels * EXPANSION
        self.conv1 = ConvBNReLU(in_channels, in_channels, kernel_size=3, stride=1, padding=1)
        self.dwconv = nn.Sequential(
            conv3x3(in_channels, mid_channels, stride=1, groups=in_channels),
            BatchNorm2d(mid_channels),
            nn.ReLU(),
        )
        self.conv2 = nn.Sequential(
            conv1x1(mid_channels, out_channels), starting_at_zero(out_channels)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W); in equals out."""
        residual = self.conv2(self.dwconv(self.conv1(x)))
        return self.relu(residual + x)


class GELayerS2(nn.Layer):
    """Gather and expansion with stride 2: two depthwise convolutions, a projected shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid_channels = in_channels * EXPANSION
        self.conv1 = ConvBNReLU(in_channels, in_channels, kernel_size=3, stride=1, padding=1)
        self.dwconv1 = nn.Sequential(
            conv3x3(in_channels, mid_channels, stride=2, groups=in_channels),
            BatchNorm2d(mid_channels),
        )
        self.dwconv2 = nn.Sequential(
            conv3x3(mid_channels, mid_channels, stride=1, groups=mid_channels),
            BatchNorm2d(mid_channels),
            nn.ReLU(),
        )
        self.conv2 = nn.Sequential(
            conv1x1(mid_channels, out_channels), starting_at_zero(out_channels)
        )
        self.shortcut = nn.Sequential(
            conv3x3(in_channels, in_channels, stride=2, groups=in_channels),
            BatchNorm2d(in_channels),
            conv1x1(in_channels, out_channels),
            BatchNorm2d(out_channels),
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H/2, W/2)."""
        residual = self.conv2(self.dwconv2(self.dwconv1(self.conv1(x))))
        return self.relu(residual + self.shortcut(x))


class CEBlock(nn.Layer):
    """Context embedding: add the map's average to every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = BatchNorm2d(128)
        self.conv_gap = ConvBNReLU(128, 128, kernel_size=1, stride=1, padding=0)
        self.conv_last = ConvBNReLU(128, 128, kernel_size=3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 128, H, W) -> (N, 128, H, W)."""
        context = self.conv_gap(self.bn(spatial_mean(x)))
        return self.conv_last(context + x)


class SegmentBranch(nn.Layer):
    """Fast downsampling to 1/32, few channels: what is where."""

    def __init__(self) -> None:
        super().__init__()
        self.S1S2 = StemBlock()
        self.S3 = nn.Sequential(GELayerS2(16, 32), GELayerS1(32, 32))
        self.S4 = nn.Sequential(GELayerS2(32, 64), GELayerS1(64, 64))
        self.S5_4 = nn.Sequential(
            GELayerS2(64, 128), GELayerS1(128, 128), GELayerS1(128, 128), GELayerS1(128, 128)
        )
        self.S5_5 = CEBlock()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> 16 channels at 1/4, 32 at 1/8, 64 at 1/16, and twice 128 at 1/32."""
        feature2 = self.S1S2(image)
        feature3 = self.S3(feature2)
        feature4 = self.S4(feature3)
        feature5_4 = self.S5_4(feature4)
        feature5_5 = self.S5_5(feature5_4)
        return feature2, feature3, feature4, feature5_4, feature5_5


class ResizeToSize(nn.Layer):
    """Resize to a size given with the map, as the published form does it."""

    def __init__(self, *, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """(N, C, H, W) -> (N, C, *size_hw)."""
        if self.form == "2020":
            return resize_bilinear(x, size_hw=size_hw, align_corners=True)
        return resize_nearest(x, size_hw=size_hw)


class BGALayer(nn.Layer):
    """Bilateral guided aggregation: each branch is weighed by the other, at 1/8 and at 1/32."""

    def __init__(self, *, form: Form) -> None:
        super().__init__()
        self.left1 = nn.Sequential(
            conv3x3(128, 128, stride=1, groups=128), BatchNorm2d(128), conv1x1(128, 128)
        )
        self.left2 = nn.Sequential(
            conv3x3(128, 128, stride=2),
            BatchNorm2d(128),
            AvgPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.right1 = nn.Sequential(conv3x3(128, 128), BatchNorm2d(128))
        self.right2 = nn.Sequential(
            conv3x3(128, 128, stride=1, groups=128), BatchNorm2d(128), conv1x1(128, 128)
        )
        self.sigmoid1 = nn.Sigmoid()
        self.sigmoid2 = nn.Sigmoid()
        self.up1 = ResizeToSize(form=form)
        self.up2 = ResizeToSize(form=form)
        self.conv = nn.Sequential(conv3x3(128, 128), BatchNorm2d(128), nn.ReLU())

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        """(N, 128, H/8, W/8), (N, 128, H/32, W/32) -> (N, 128, H/8, W/8)."""
        size_hw = (detail.shape[2], detail.shape[3])
        detail8 = self.left1(detail)
        detail32 = self.left2(detail)
        semantic8 = self.right1(semantic)
        semantic32 = self.right2(semantic)
        guided8 = detail8 * self.sigmoid1(self.up1(semantic8, size_hw))
        guided32 = self.up2(detail32 * self.sigmoid2(semantic32), size_hw)
        return self.conv(guided8 + guided32)


class SegmentHead(nn.Layer):
    """Segmentation head: logits in the size of the image.

    The current form enlarges by fixed factors. Its auxiliary heads first repeat every pixel 2 x 2
    and convolve once more, to scale * scale channels: a width left from an earlier form, in which
    these channels were rearranged to pixels.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        *,
        classes: int,
        scale: int,
        auxiliary: bool,
        form: Form,
        dropout: float,
    ) -> None:
        super().__init__()
        self.form = form
        self.conv = ConvBNReLU(in_channels, mid_channels, kernel_size=3, stride=1, padding=1)
        self.drop = nn.Dropout(p=dropout)
        self.conv_out: nn.Layer
        if form == "2020":
            self.conv_out = nn.Conv2D(mid_channels, classes, kernel_size=1, bias_attr=True)
            self.up = ResizeToSize(form=form)
        elif auxiliary:
            enlarge = nn.Sequential(
                ResizeNearest(scale=2),
                ConvBNReLU(mid_channels, scale * scale, kernel_size=3, stride=1, padding=1),
            )
            self.conv_out = nn.Sequential(
                enlarge,
                nn.Conv2D(scale * scale, classes, kernel_size=1, bias_attr=True),
                ResizeBilinear(scale=scale // 2),
            )
        else:
            # the published names count this place, which only auxiliary heads fill
            self.conv_out = nn.Sequential(
                nn.Identity(),
                nn.Conv2D(mid_channels, classes, kernel_size=1, bias_attr=True),
                ResizeBilinear(scale=scale),
            )

    def forward(self, x: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """(N, in, H, W) -> (N, classes, *size_hw)."""
        logits = self.conv_out(self.drop(self.conv(x)))
        if self.form == "2020":
            return self.up(logits, size_hw)
        return crop_to_size(logits, height=size_hw[0], width=size_hw[1])


class BiSeNetV2(nn.Layer):
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
        dropout: float = 0.1,
    ) -> None:
        """Build the network, initialised by upstream's rules.

        Args:
            classes: number of classes, the channels of every output.
            aux_heads: False leaves out the heads that only training uses.
            form: "current" resizes by fixed factors, nearest in the aggregation, and pads images
                to multiples of 32; "2020" resizes to exact sizes, bilinear with aligned corners,
                and its recipe multiplies no learning rate.
            dropout: probability at which a head drops a value in training.
        """
        super().__init__()
        self.classes = classes
        self.form: Form = form
        self.detail = DetailBranch()
        self.segment = SegmentBranch()
        self.bga = BGALayer(form=form)

        def head(
            in_channels: int, mid_channels: int, *, scale: int, auxiliary: bool
        ) -> SegmentHead:
            return SegmentHead(
                in_channels,
                mid_channels,
                classes=classes,
                scale=scale,
                auxiliary=auxiliary,
                form=form,
                dropout=dropout,
            )

        self.head = head(128, 1024, scale=8, auxiliary=False)
        self.heads: tuple[str, ...] = ("main",)
        modules: tuple[str, ...] = ("head",)
        self.aux_heads = aux_heads
        self.aux_in_eval = False
        if aux_heads:
            self.aux2 = head(16, 128, scale=4, auxiliary=True)
            self.aux3 = head(32, 128, scale=8, auxiliary=True)
            self.aux4 = head(64, 128, scale=16, auxiliary=True)
            self.aux5_4 = head(128, 128, scale=32, auxiliary=True)
            self.heads = ("main", "aux2", "aux3", "aux4", "aux5_4")
            modules = ("head", "aux2", "aux3", "aux4", "aux5_4")
        self.head_modules: tuple[str, ...] = () if form == "2020" else modules
        self._init_weights()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits of every active head.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size. The current form pads sizes that do
                not divide by 32 with zeros at the bottom and right, and crops the logits back.

        Returns:
            "main", then "aux2", "aux3", "aux4" and "aux5_4" when they are active: each
            (N, classes, H, W).
        """
        size_hw = (image.shape[2], image.shape[3])
        padded = image if self.form == "2020" else pad_to_multiple(image, multiple=32)
        detail = self.detail(padded)
        feature2, feature3, feature4, feature5_4, semantic = self.segment(padded)
        fused = self.bga(detail, semantic)
        logits = {"main": self.head(fused, size_hw)}
        if self.aux_heads and (self.training or self.aux_in_eval):
            logits["aux2"] = self.aux2(feature2, size_hw)
            logits["aux3"] = self.aux3(feature3, size_hw)
            logits["aux4"] = self.aux4(feature4, size_hw)
            logits["aux5_4"] = self.aux5_4(feature5_4, size_hw)
        return logits

    def _init_weights(self) -> None:
        for _, layer in self.named_sublayers():
            if isinstance(layer, nn.Conv2D):
                init_conv_fan_out(layer)
