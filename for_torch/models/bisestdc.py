"""BiSeSTDC: STDC-Seg with a spatial branch of its own, fused and segmented at 1/4.

Source: bearking79/BiSeSTDC@06f8733, nets/bisestdcnet.py and models/model_stages.py (names, shapes,
numbers).

Departures from upstream: those of stdcseg.py. The spatial branch starts as the published recipe
leaves it: its rules for training from scratch do not run, because the trunk starts from
ImageNet weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from for_torch.layers import init_conv_kaiming, init_conv_uniform, resize_nearest, spatial_mean
from for_torch.models.stdcnet import (
    STDC1_LAYERS,
    CatBottleneck,
    ConvX,
    init_stdc,
    run_stages,
    stage_ends,
    stdc_features,
)
from for_torch.models.stdcseg import (
    BOUNDARY_HEADS,
    CLASSIFIER,
    AttentionRefinementModule,
    BiSeNetOutput,
    ConvABNReLU,
    FeatureFusionModule,
    add_boundary_heads,
    boundary_logits,
    boundary_names,
    enlarge,
    heads_not_asked,
    init_outside_backbone,
    plain_batch_norm_parameters,
    size_of,
)
from for_torch.norm import BatchNorm2d

Strides = tuple[int, int, int]

BISESTDC_STRIDES: Strides = (2, 1, 2)
"""BiSeSTDCNet, the network of the published recipe: the branch starts with 32 channels at 1/2."""
BISESTDC2_STRIDES: Strides = (1, 2, 2)
"""BiSeSTDC2, the network of the published figure: 64 channels at full resolution."""


class BiSeSTDCNet(nn.Module):
    """The trunk and classifier of STDC1, a spatial branch, and the fusion of both at 1/4."""

    def __init__(self, *, spatial_base: int, spatial_strides: Strides) -> None:
        """Build the backbone.

        Args:
            spatial_base: channels of the branch's second layer; its first has half, its third
                four times as many.
            spatial_strides: of its three layers.
        """
        super().__init__()
        self.features = stdc_features(STDC1_LAYERS, base=64, blocks=4, block_type="cat")
        self.stage_ends = stage_ends(STDC1_LAYERS)
        first, second, third = spatial_strides
        self.featuresSP = nn.ModuleList(
            [
                ConvX(3, spatial_base // 2, stride=first),
                ConvX(spatial_base // 2, spatial_base, stride=second),
                CatBottleneck(spatial_base, spatial_base * 4, blocks=4, stride=third),
            ]
        )
        # the classifier of the published weights, not used here; see STDCNet
        self.conv_last = ConvX(1024, 1024, kernel_size=1)
        self.fc = nn.Linear(1024, 1024, bias=False)
        self.bn = BatchNorm2d(1024)
        self.linear = nn.Linear(1024, 1000, bias=False)
        self.ffm = FeatureFusionModule(spatial_base * 4 + 64, 256)
        self._init_weights()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the trunk's features at 1/2 to 1/32, and (N, 256, H/4, W/4) fused ones."""
        features = run_stages(self.features, image, ends=self.stage_ends)
        spatial = image
        for layer in self.featuresSP:
            spatial = layer(spatial)
        return *features, self.ffm(spatial, features[1])

    def _init_weights(self) -> None:
        init_stdc(self)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                if name.startswith("featuresSP."):
                    init_conv_uniform(layer)
                elif name.startswith("ffm."):
                    init_conv_kaiming(layer)


class ContextPath(nn.Module):
    """As in STDC-Seg, with one more refinement that brings the context back to 1/4."""

    def __init__(self, *, spatial_base: int, spatial_strides: Strides) -> None:
        super().__init__()
        self.backbone = BiSeSTDCNet(spatial_base=spatial_base, spatial_strides=spatial_strides)
        self.arm16 = AttentionRefinementModule(512, 128)
        self.arm8 = AttentionRefinementModule(256, 128)
        self.arm32 = AttentionRefinementModule(1024, 128)
        self.conv_head32 = ConvABNReLU(128, 128, kernel_size=3, padding=1)
        self.conv_head16 = ConvABNReLU(128, 128, kernel_size=3, padding=1)
        self.conv_head8 = ConvABNReLU(128, 128, kernel_size=3, padding=1)
        self.conv_avg = ConvABNReLU(1024, 128, kernel_size=1, padding=0)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's features and the context, in the order of upstream.

        Args:
            image: (N, 3, H, W).

        Returns:
            Features at 1/2, 1/4, 1/8, 1/16 with 32, 64, 256, 512 channels; context at 1/4, 1/8
            and 1/16 with 128; fused spatial features at 1/4 with 256.
        """
        feature2, feature4, feature8, feature16, feature32, spatial4 = self.backbone(image)
        average = self.conv_avg(spatial_mean(feature32))
        context32 = self.arm32(feature32) + average
        context16 = self.conv_head32(resize_nearest(context32, size_hw=size_of(feature16)))
        merged16 = self.arm16(feature16) + context16
        context8 = self.conv_head16(resize_nearest(merged16, size_hw=size_of(feature8)))
        merged8 = self.arm8(feature8) + context8
        context4 = self.conv_head8(resize_nearest(merged8, size_hw=size_of(feature4)))
        return feature2, feature4, feature8, feature16, context4, context8, context16, spatial4


class BiSeSTDC(nn.Module):
    """The whole network; attributes as STDCSeg."""

    name: str = ""

    def __init__(
        self,
        classes: int,
        *,
        spatial_base: int,
        spatial_strides: Strides,
        aux_heads: bool = True,
        use_boundary_2: bool = False,
        use_boundary_4: bool = False,
        use_boundary_8: bool = True,
        use_boundary_16: bool = False,
    ) -> None:
        """Build the network, initialised by upstream's rules.

        Args:
            classes: number of classes, the channels of every output but the boundaries.
            spatial_base: see BiSeSTDCNet.
            spatial_strides: see BiSeSTDCNet.
            aux_heads: False leaves out the heads that only training uses.
            use_boundary_2: compute the boundary head at 1/2; as for the others, its weights
                are there in any case.
            use_boundary_4: on the trunk's features at 1/4.
            use_boundary_8: the published setting; on the fused spatial features, at 1/4 too.
            use_boundary_16: at 1/16.
        """
        super().__init__()
        self.classes = classes
        self.cp = ContextPath(spatial_base=spatial_base, spatial_strides=spatial_strides)
        self.ffm = FeatureFusionModule(256 + 128, 256)
        self.conv_out = BiSeNetOutput(256, 256, classes=classes)
        self.boundaries: tuple[str, ...] = ()
        self.heads: tuple[str, ...] = ("main",)
        self.head_modules: tuple[str, ...] = ("ffm", "conv_out")
        self.unused: tuple[str, ...] = CLASSIFIER
        self.aux_heads = aux_heads
        self.aux_in_eval = False
        if aux_heads:
            # named after the paper's stages; the maps they see are at 1/4, 1/8 and 1/16
            self.conv_out8 = BiSeNetOutput(128, 128, classes=classes)
            self.conv_out16 = BiSeNetOutput(128, 64, classes=classes)
            self.conv_out32 = BiSeNetOutput(128, 64, classes=classes)
            add_boundary_heads(self)
            self.boundaries = boundary_names(
                use_boundary_2, use_boundary_4, use_boundary_8, use_boundary_16
            )
            auxiliary = ("conv_out8", "conv_out16", "conv_out32")
            self.heads = ("main", "aux8", "aux16", "aux32", *self.boundaries)
            self.head_modules = (*self.head_modules, *auxiliary, *BOUNDARY_HEADS)
            self.unused = (*CLASSIFIER, *heads_not_asked(self.boundaries))
        self.ungrouped = plain_batch_norm_parameters(self)
        init_outside_backbone(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits of every active head.

        Args:
            image: (N, 3, H, W), RGB, normalised; any size.

        Returns:
            "main", then "aux8", "aux16" and "aux32" when they are active: (N, classes, H, W)
            each. Then the boundaries that are asked for, "boundary2" to "boundary16": one channel,
            at their own resolution.
        """
        found = self.cp(image)
        feature2, feature4, _, feature16, context4, context8, context16, spatial4 = found
        fused = self.ffm(spatial4, context4)
        outputs = {"main": enlarge(self.conv_out(fused), image)}
        if self.aux_heads and (self.training or self.aux_in_eval):
            outputs["aux8"] = enlarge(self.conv_out8(context4), image)
            outputs["aux16"] = enlarge(self.conv_out16(context8), image)
            outputs["aux32"] = enlarge(self.conv_out32(context16), image)
            features = (feature2, feature4, spatial4, feature16)
            outputs |= boundary_logits(self, self.boundaries, features=features)
        return outputs
