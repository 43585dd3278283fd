"""The public checkpoints of the family, recognised by the names in them.

Sources: CoinCheung/BiSeNet@6b4b67a and its ``old/`` (2020), @2d6d8f1 (2019); MichaelFan01/STDC-Seg
@59ff37f; bearking79/BiSeSTDC@06f8733; PaddlePaddle/PaddleSeg@d7975e7; torchvision's ResNet18.
Where the structure is ours, the names are ours, too; so recognising a file says what it is, which
model it belongs to, what its backbone's names lack, and why it cannot be loaded if it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.checkpoints import Checkpoint


@dataclass(frozen=True)
class Origin:
    """One kind of file."""

    title: str
    models: tuple[str, ...]
    """Our models that it fits; none if its structure is not ours."""
    has: tuple[str, ...]
    """Names that are all there."""
    lacks: tuple[str, ...] = ()
    """Names none of which is there."""
    counters: bool | None = None
    """True (False): it has (has no) batch counters, where the file type keeps them."""
    prefix: str = ""
    """Put before its names to get ours: a backbone's own file."""
    backbone: bool = False
    """True: it is a backbone alone."""
    drops: tuple[str, ...] = ()
    """Beginnings of names that our backbone has no use for."""
    remark: str = ""


@dataclass(frozen=True)
class Backbone:
    """Which part of a model is pretrained."""

    prefixes: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Beginnings of names that a backbone's file may lack: no published one has them, or the
    forward pass does not use them."""


RESNET = "cp.resnet.conv1.weight"
STDC = "cp.backbone.features.0.conv.weight"
STDC2_ONLY = "features.13.conv_list.0.conv.weight"
SPATIAL = "cp.backbone.featuresSP.0.conv.weight"

V1_MODELS = (
    "bisenetv1",
    "bisenetv1_2019",
    "bisenetv1_2020",
    "bisenetv1_diss",
    "bisenetv1_diss_bn",
    "bisenetv1_fp16_2020",
)
STDC_MODELS = ("stdc1", "stdc2", "bisestdc", "bisestdc2")

BACKBONES: dict[str, Backbone] = {
    RESNET: Backbone(("cp.resnet.",)),
    STDC: Backbone(
        ("cp.backbone.",),
        optional=tuple(
            f"cp.backbone.{part}."
            for part in ("conv_last", "fc", "bn", "linear", "featuresSP", "ffm")
        ),
    ),
    "detail.S1.0.conv.weight": Backbone(("detail.", "segment.", "bga.")),
}
"""A name that tells the family -> its backbone."""

_ACTIVATION = "it was trained with LeakyReLU(0.01), the plain BatchNorm models have ReLU"
_STDC_OTHERS = "biases in its heads, and average pooling that leaves out the border"

ORIGINS: tuple[Origin, ...] = (
    Origin(
        "BiSeNetV1, 2019 (CoinCheung/BiSeNet@2d6d8f1)",
        ("bisenetv1_2019",),
        has=(RESNET, "cp.conv_cat.conv.weight"),
    ),
    Origin(
        "BiSeNetV1, current (CoinCheung/BiSeNet since July 2021)",
        ("bisenetv1",),
        has=(RESNET, "sp.conv1.conv.weight", "ffm.conv.weight"),
    ),
    Origin(
        "BiSeNetV1 of 2020/2021 with the old fusion module (model_final_v1_*.pth)",
        (),
        has=(RESNET, "sp.conv1.conv.weight", "ffm.conv1.weight", "conv_out.conv_out.bias"),
        remark="its fusion module was replaced upstream; take the checkpoint named *_new.pth",
    ),
    Origin(
        "BiSeNetV1, 2020, InPlaceABN (CoinCheung/BiSeNet, old/)",
        ("bisenetv1_2020",),
        has=(RESNET, "sp.conv1.conv.weight", "ffm.conv1.weight"),
        counters=False,
        remark=_ACTIVATION,
    ),
    Origin(
        "BiSeNetV1, 2020, fp16 variant with plain BatchNorm (CoinCheung/BiSeNet, old/fp16)",
        ("bisenetv1_fp16_2020",),
        has=(RESNET, "sp.conv1.conv.weight", "ffm.conv1.weight"),
        counters=True,
    ),
    Origin(
        "BiSeNetV1, 2020, without spatial path, InPlaceABN (CoinCheung/BiSeNet, old/diss)",
        ("bisenetv1_diss",),
        has=(RESNET, "ffm.conv1.weight"),
        lacks=("sp.conv1.conv.weight",),
        counters=False,
        remark=_ACTIVATION,
    ),
    Origin(
        "BiSeNetV1 without spatial path, plain BatchNorm (face-parsing.PyTorch)",
        ("bisenetv1_diss_bn",),
        has=(RESNET, "ffm.conv1.weight"),
        lacks=("sp.conv1.conv.weight",),
        counters=True,
    ),
    Origin(
        "BiSeNetV2, current (CoinCheung/BiSeNet)",
        ("bisenetv2",),
        has=("detail.S1.0.conv.weight", "head.conv_out.1.weight"),
    ),
    Origin(
        "BiSeNetV2, 2020 (CoinCheung/BiSeNet, old/)",
        ("bisenetv2_2020",),
        has=("detail.S1.0.conv.weight", "head.conv_out.weight"),
    ),
    Origin(
        "BiSeNetV2's backbone (backbone_v2.pth)",
        ("bisenetv2", "bisenetv2_2020"),
        has=("detail.S1.0.conv.weight", "segment.S1S2.conv.conv.weight"),
        lacks=("head.conv.conv.weight",),
        backbone=True,
    ),
    Origin(
        "BiSeSTDC (bearking79/BiSeSTDC)",
        ("bisestdc", "bisestdc2"),
        has=(STDC, SPATIAL, "conv_out8.conv_out.weight"),
    ),
    *(
        Origin(
            f"PaddleSeg's STDC{size}Seg",
            (),
            has=(STDC, "cp.arm16.conv._conv.weight", *has),
            lacks=lacks,
            remark=f"its network differs ({_STDC_OTHERS}); its backbone fits with --backbone-only",
        )
        for size, has, lacks in (
            (2, (f"cp.backbone.{STDC2_ONLY}",), ()),
            (1, (), (f"cp.backbone.{STDC2_ONLY}",)),
        )
    ),
    Origin(
        "STDC2-Seg (MichaelFan01/STDC-Seg)",
        ("stdc2",),
        has=(STDC, f"cp.backbone.{STDC2_ONLY}", "conv_out.conv_out.weight"),
    ),
    Origin(
        "STDC1-Seg (MichaelFan01/STDC-Seg)",
        ("stdc1",),
        has=(STDC, "conv_out.conv_out.weight"),
        lacks=(SPATIAL, f"cp.backbone.{STDC2_ONLY}"),
    ),
    Origin(
        "STDC2's ImageNet weights (STDCNet1446)",
        ("stdc2",),
        has=("features.0.conv.weight", STDC2_ONLY),
        prefix="cp.backbone.",
        backbone=True,
    ),
    Origin(
        "STDC1's ImageNet weights (STDCNet813M)",
        ("stdc1", "bisestdc", "bisestdc2"),
        has=("features.0.conv.weight", "features.2.conv_list.0.conv.weight"),
        prefix="cp.backbone.",
        backbone=True,
    ),
    Origin(
        "ResNet18's ImageNet weights (torchvision, paddle.vision)",
        V1_MODELS,
        has=("conv1.weight", "bn1.weight", "layer4.1.conv2.weight"),
        lacks=("layer1.2.conv1.weight", "layer1.0.conv3.weight"),
        prefix="cp.resnet.",
        backbone=True,
        drops=("fc.",),
    ),
    *(
        Origin(
            "a backbone under our names", models, has=(name,), lacks=("ffm.convblk.conv.weight",)
        )
        for name, models in ((RESNET, V1_MODELS), (STDC, STDC_MODELS))
    ),
    Origin(
        "PaddleSeg's BiSeNetV1",
        (),
        has=("backbone.conv1_1._conv.weight", "spatial_path.conv_7x7._conv.weight"),
        remark="its network differs (ResNet18_vd at 1/8, another attention); no model here has it",
    ),
    Origin(
        "PaddleSeg's BiSeNetV2",
        (),
        has=("db.convs.0._conv.weight", "sb.stem.conv._conv.weight"),
        remark="its network differs (padding 'same', biases, other heads); no model here has it",
    ),
)

UNKNOWN = Origin("not a published file known here", (), has=())


def recognise(checkpoint: Checkpoint, *, model: str) -> Origin:
    """Tell what a file is.

    Args:
        checkpoint: as read.
        model: our model that it is meant for; decides where the file itself does not tell (a file
            without batch counters may be of an InPlaceABN model or its plain twin).

    Returns:
        A row of ORIGINS, its title naming the twin as well where nothing tells the two apart;
        a row made for a file of ours whose names are in none; or UNKNOWN.
    """
    found = [origin for origin in ORIGINS if _matches(origin, checkpoint)]
    # names that none of our models has decide, whatever model is asked for
    foreign = [o for o in found if not o.models]
    preferred = [o for o in found if (checkpoint.model or model) in o.models]
    own = Origin(f"written for our {checkpoint.model}", (checkpoint.model,), has=())
    unknown = own if checkpoint.model else UNKNOWN
    origin = next(iter([*foreign, *preferred, *found]), unknown)
    if checkpoint.model or origin.counters is None:
        return origin
    twins = [
        o.title
        for o in found
        if (o.has, o.lacks) == (origin.has, origin.lacks) and o.counters is not origin.counters
    ]
    return replace(origin, title=", or ".join([origin.title, *twins]))


def backbone_of(names: Sequence[str]) -> Backbone:
    """Return which of a model's names are its pretrained part."""
    known = set(names)
    return next(backbone for name, backbone in BACKBONES.items() if name in known)


def _matches(origin: Origin, checkpoint: Checkpoint) -> bool:
    if not all(name in checkpoint.arrays for name in origin.has):
        return False
    if any(name in checkpoint.arrays for name in origin.lacks):
        return False
    return not checkpoint.counted or origin.counters in (None, bool(checkpoint.counters))
