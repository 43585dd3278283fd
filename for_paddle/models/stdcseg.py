"""STDC-Seg: a context path on an STDC backbone, whose own 1/8 features are the spatial path.

Source: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", and
MichaelFan01/STDC-Seg@59ff37f, models/model_stages.py (names, shapes, numbers).

Departures from upstream: a dict of outputs is returned, whatever boundary heads are asked for
(upstream returns None for half of the combinations, and never its 1/16 boundary); heads that are
not asked for are not computed (upstream computes all, so their BatchNorm buffers move).
"""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from for_paddle.layers import init_conv_kaiming, resize_bilinear, resize_nearest, spatial_mean
from for_paddle.models.stdcnet import Layers, STDCNet
from for_paddle.norm import BatchNorm2d, InPlaceABN

BOUNDARIES: tuple[str, ...] = ("boundary2", "boundary4", "boundary8", "boundary16")
BOUNDARY_HEADS = ("conv_out_sp16", "conv_out_sp8", "conv_out_sp4", "conv_out_sp2")
CLASSIFIER = ("cp.backbone.conv_last", "cp.backbone.fc", "cp.backbone.bn", "cp.backbone.linear")


class ConvABNReLU(nn.Layer):
    """Convolution without bias, InPlaceABN without activation, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, padding: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2D(
            in_channels, out_channels, kernel_size=kernel_size, padding=padding, bias_attr=False
        )
        self.bn = InPlaceABN(out_channels, activation="identity")
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        return self.relu(self.bn(self.conv(x)))


class AttentionRefinementModule(nn.Layer):
    """3x3 convolution whose channels are weighed by an attention over the whole map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvABNReLU(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv_atten = nn.Conv2D(out_channels, out_channels, kernel_size=1, bias_attr=False)
        self.bn_atten = InPlaceABN(out_channels, activation="identity")
        self.sigmoid_atten = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        feature = self.conv(x)
        attention = self.conv_atten(spatial_mean(feature))
        attention = self.sigmoid_atten(self.bn_atten(attention))
        return feature * attention


class FeatureFusionModule(nn.Layer):
    """Concatenate two maps, mix them, and add the channels that an attention picks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convblk = ConvABNReLU(in_channels, out_channels, kernel_size=1, padding=0)
        self.conv1 = nn.Conv2D(out_channels, out_channels // 4, kernel_size=1, bias_attr=False)
        self.conv2 = nn.Conv2D(out_channels // 4, out_channels, kernel_size=1, bias_attr=False)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two maps (N, ., H, W) with in channels together, the spatial first -> (N, out, H, W)."""
        feature = self.convblk(paddle.concat([spatial, context], axis=1))
        attention = self.relu(self.conv1(spatial_mean(feature)))
        attention = self.sigmoid(self.conv2(attention))
        return feature * attention + feature


class BiSeNetOutput(nn.Layer):
    """Output head: logits at the resolution of its input."""

    def __init__(self, in_channels: int, mid_channels: int, *, classes: int) -> None:
        super().__init__()
        self.conv = ConvABNReLU(in_channels, mid_channels, kernel_size=3, padding=1)
        self.conv_out = nn.Conv2D(mid_channels, classes, kernel_size=1, bias_attr=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, classes, H, W)."""
        return self.conv_out(self.conv(x))


class ContextPath(nn.Layer):
    """STDC backbone with two refinement modules and a global branch, brought back to 1/8."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.backbone = STDCNet(layers)
        self.arm16 = AttentionRefinementModule(512, 128)
        self.arm32 = AttentionRefinementModule(1024, 128)
        self.conv_head32 = ConvABNReLU(128, 128, kernel_size=3, padding=1)
        self.conv_head16 = ConvABNReLU(128, 128, kernel_size=3, padding=1)
        self.conv_avg = ConvABNReLU(1024, 128, kernel_size=1, padding=0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the backbone's features and the context, in the order of upstream.

        Args:
            image: (N, 3, H, W).

        Returns:
            Features at 1/2, 1/4, 1/8, 1/16 with 32, 64, 256, 512 channels; context at 1/8 and
            1/16 with 128.
        """
        feature2, feature4, feature8, feature16, feature32 = self.backbone(image)
        average = self.conv_avg(spatial_mean(feature32))
        context32 = self.arm32(feature32) + average
        context16 = self.conv_head32(resize_nearest(context32, size_hw=size_of(feature16)))
        merged16 = self.arm16(feature16) + context16
        context8 = self.conv_head16(resize_nearest(merged16, size_hw=size_of(feature8)))
        return feature2, feature4, feature8, feature16, context8, context16


class STDCSeg(nn.Layer):
    """The whole network.

    Attributes:
        name: the key of MODELS it was built as; empty if it was not built by build_model.
        classes: number of classes.
        heads: names of the outputs, the main one first.
        head_modules: children that the recipe trains with a multiplied learning rate.
        ungrouped: parameters that the recipe leaves out of the optimizer: never updated.
        unused: layers that are never run, and so neither trained nor their statistics moved.
        aux_in_eval: True computes the auxiliary and boundary heads in eval mode too.
    """

    name: str = ""

    def __init__(
        self,
        classes: int,
        *,
        layers: Layers,
        aux_heads: bool = True,
        use_boundary_2: bool = False,
        use_boundary_4: bool = False,
        use_boundary_8: bool = True,
        use_boundary_16: bool = False,
    ) -> None:
        """Build the network, initialised by upstream's rules.

        Args:
            classes: number of classes, the channels of every output but the boundaries.
            layers: number of the backbone's blocks at 1/8, 1/16 and 1/32.
            aux_heads: False leaves out the heads that only training uses.
            use_boundary_2: compute the boundary head at 1/2; as for the others, its weights
                are there in any case.
            use_boundary_4: at 1/4.
            use_boundary_8: at 1/8, the published setting.
            use_boundary_16: at 1/16.
        """
        super().__init__()
        self.classes = classes
        self.cp = ContextPath(layers)
        self.ffm = FeatureFusionModule(256 + 128, 256)
        self.conv_out = BiSeNetOutput(256, 256, classes=classes)
        self.boundaries: tuple[str, ...] = ()
        self.heads: tuple[str, ...] = ("main",)
        self.head_modules: tuple[str, ...] = ("ffm", "conv_out")
        self.unused: tuple[str, ...] = CLASSIFIER
        self.aux_heads = aux_heads
        self.aux_in_eval = False
        if aux_heads:
            # named after the paper's stages; the maps they see are at 1/8 and 1/16
            self.conv_out16 = BiSeNetOutput(128, 64, classes=classes)
            self.conv_out32 = BiSeNetOutput(128, 64, classes=classes)
            add_boundary_heads(self)
            self.boundaries = boundary_names(
                use_boundary_2, use_boundary_4, use_boundary_8, use_boundary_16
            )
            self.heads = ("main", "aux16", "aux32", *self.boundaries)
            self.head_modules = (*self.head_modules, "conv_out16", "conv_out32", *BOUNDARY_HEADS)
            self.unused = (*CLASSIFIER, *heads_not_asked(self.boundaries))
        self.ungrouped = plain_batch_norm_parameters(self)
        init_outside_backbone(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits of every active head.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size.

        Returns:
            "main", then "aux16" and "aux32" when they are active: (N, classes, H, W) each. Then
            the boundaries that are asked for, "boundary2" to "boundary16": one channel, at their
            own resolution.
        """
        feature2, feature4, feature8, feature16, context8, context16 = self.cp(image)
        fused = self.ffm(feature8, context8)
        outputs = {"main": enlarge(self.conv_out(fused), image)}
        if self.aux_heads and (self.training or self.aux_in_eval):
            outputs["aux16"] = enlarge(self.conv_out16(context8), image)
            outputs["aux32"] = enlarge(self.conv_out32(context16), image)
            features = (feature2, feature4, feature8, feature16)
            outputs |= boundary_logits(self, self.boundaries, features=features)
        return outputs


def add_boundary_heads(model: nn.Layer) -> None:
    """Give a network its four boundary heads, whichever of them are asked for.

    Children conv_out_sp16 to conv_out_sp2, for features with 512, 256, 64 and 32 channels.
    """
    for head, channels in zip(BOUNDARY_HEADS, (512, 256, 64, 32), strict=True):
        setattr(model, head, BiSeNetOutput(channels, 64, classes=1))


def boundary_names(
    use_boundary_2: bool, use_boundary_4: bool, use_boundary_8: bool, use_boundary_16: bool
) -> tuple[str, ...]:
    """Return the names of the boundary outputs that are asked for, the finest first."""
    asked = (use_boundary_2, use_boundary_4, use_boundary_8, use_boundary_16)
    return tuple(name for name, use in zip(BOUNDARIES, asked, strict=True) if use)


def boundary_logits(
    model: nn.Layer, boundaries: tuple[str, ...], *, features: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Run the boundary heads that are asked for.

    Args:
        model: after add_boundary_heads.
        boundaries: what boundary_names returned.
        features: what the heads see, the finest first, (N, 32 | 64 | 256 | 512, h, w).

    Returns:
        (N, 1, h, w) logits by output name.
    """
    seen = dict(zip(BOUNDARIES, features, strict=True))
    return {name: getattr(model, boundary_head(name))(seen[name]) for name in boundaries}


def boundary_head(name: str) -> str:
    """Return the child that computes a boundary output: conv_out_sp4 gives "boundary4"."""
    return name.replace("boundary", "conv_out_sp")


def heads_not_asked(boundaries: tuple[str, ...]) -> tuple[str, ...]:
    """Return the boundary heads without an output."""
    asked = [boundary_head(name) for name in boundaries]
    return tuple(head for head in BOUNDARY_HEADS if head not in asked)


def size_of(x: Tensor) -> tuple[int, int]:
    """Return (H, W) of (N, C, H, W)."""
    return x.shape[2], x.shape[3]


def enlarge(logits: Tensor, image: Tensor) -> Tensor:
    """Resize class logits to the image; here the published models align the corner pixels."""
    return resize_bilinear(logits, size_hw=size_of(image), align_corners=True)


def plain_batch_norm_parameters(model: nn.Layer) -> tuple[str, ...]:
    """Return the names of weights and biases of BatchNorm layers that are no InPlaceABN.

    Upstream's recipe collects BatchNorm parameters by asking for its InPlaceABN class, and so
    forgets the backbone's: they stay as they are, while their running statistics move.
    """
    return tuple(
        f"{name}.{parameter}"
        for name, layer in model.named_sublayers()
        if isinstance(layer, BatchNorm2d)
        for parameter in ("weight", "bias")
    )


def init_outside_backbone(model: nn.Layer) -> None:
    """Draw the convolutions outside cp.backbone by kaiming_normal with a=1."""
    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.Conv2D) and not name.startswith("cp.backbone."):
            init_conv_kaiming(layer)
