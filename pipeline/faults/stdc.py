"""Wrong ports that only the STDC family can have: its blocks, heads, boundary loss and groups.

How a fresh network starts, and what its classifier computes, cannot show here: every step starts
from given weights, and segmentation does not run the classifier (tests/sides/test_stdcnet.py).
The sign of an InPlaceABN weight cannot show either, because weights by rule are positive
(tests/sides/test_stdcseg.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import Fault, Patch, at, forward_of, functional, in_model, replaced

Make = Callable[[Any, Any], Any]


def _module(name: str) -> Callable[[Any], Any]:
    """Return how to find a module of the side's package by its dotted name."""
    return lambda side: sys.modules[f"{side.losses.__name__.partition('.')[0]}.{name}"]


# ---- blocks -----------------------------------------------------------------------------------
def _pool_without_padding(layer: Any, side: Any) -> Any:
    return lambda x: functional(side).avg_pool2d(x, 3, stride=2, padding=1, exclusive=True)


def _then_relu(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda x: functional(side).relu(right(x))


def _neighbouring_channel(layer: Any, side: Any) -> Any:
    # a depthwise convolution whose channels are paired with the wrong kernels
    right = layer.forward
    return lambda x: right(x.roll(1, axis=1))


def _parts_reversed(layer: Any, side: Any) -> Any:
    right, half = layer.forward, layer.conv_list[0].conv.weight.shape[0]
    # the first part is half of the channels; it goes last
    return lambda x: right(x).roll(half, axis=1)


def _avd_concatenated(layer: Any, side: Any) -> Any:
    # as the "add" block does: the strided convolution, not the pool, enters the concatenation
    right, kept = layer.forward, []

    def forward(x: Any) -> Any:
        output = right(x)
        carried = kept.pop()
        half = carried.shape[1]
        output[:, :half] = carried
        return output

    layer.avd_layer.register_forward_post_hook(lambda _l, _i, carried: kept.append(carried))
    return forward


# ---- heads ------------------------------------------------------------------------------------
def _plain_batch_norm(layer: Any, side: Any) -> Any:
    def forward(x: Any) -> Any:
        # the layer's own parameters, |weight| + 1e-5 left out
        return functional(side).batch_norm(
            x,
            layer._mean,
            layer._variance,
            weight=layer.weight,
            bias=layer.bias,
            training=layer.training,
            epsilon=layer.EPS,
        )

    return forward


def _leaky(model: Any, side: Any) -> None:
    at(model, "cp.arm16.bn_atten").activation = "leaky_relu"


def _swap_arguments(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda spatial, context: right(context, spatial)


def _identity(layer: Any, side: Any) -> Any:
    return lambda x: x


def _without_corners(right: Any, side: Any) -> Any:
    return lambda x, *, size_hw, align_corners: right(x, size_hw=size_hw, align_corners=False)


def _bilinear(right: Any, side: Any) -> Any:
    resize = side.layers.resize_bilinear
    return lambda x, *, size_hw: resize(x, size_hw=size_hw, align_corners=True)


def _fixed_scale(right: Any, side: Any) -> Any:
    # right for sizes that divide by 32; a map of odd size gets one row or column of zeros
    def resize(x: Any, *, size_hw: tuple[int, int]) -> Any:
        doubled = functional(side).interpolate(x, scale_factor=2, mode="nearest")
        H, W = size_hw
        doubled = functional(side).pad(doubled, [0, 1, 0, 1])[:, :, :H, :W]
        return doubled.flip(axis=[3]) if W % 2 else doubled

    return resize


def _contexts_by_name(model: Any, side: Any) -> None:
    # conv_out16 sees the map at 1/16, as its name says
    maps: list[Any] = []
    model.cp.register_forward_post_hook(lambda _l, _i, out: maps.append(out))
    right16, right32 = model.conv_out16.forward, model.conv_out32.forward
    model.conv_out16.forward = lambda x: right16(maps[-1][5])
    model.conv_out32.forward = lambda x: right32(maps[-1][4])


def _fed_by(path: str, part: int | None = None) -> Callable[[Any, Any], None]:
    """Return a change that feeds the boundary head from another layer's output."""

    def change(model: Any, side: Any) -> None:
        maps: list[Any] = []
        at(model, path).register_forward_post_hook(lambda _l, _i, out: maps.append(out))
        right = model.conv_out_sp8.forward
        model.conv_out_sp8.forward = lambda x: right(maps[-1] if part is None else maps[-1][part])

    return change


def _boundary_enlarged(layer: Any, side: Any) -> Any:
    # every head is enlarged to twice its size, the boundary too
    right = layer.forward
    return lambda x: side.layers.resize_bilinear(right(x), scale=2)


# ---- boundary loss ----------------------------------------------------------------------------
def _detail(change: Callable[[Any], None]) -> Patch:
    """Return a patch that changes the boundary criterion after it is built."""

    def make(right: Any, side: Any) -> Any:
        def build(*args: Any, **options: Any) -> Any:
            loss = right(*args, **options)
            change(loss.detail)
            return loss

        return build

    return replaced(lambda side: side.losses, "build_loss", make)


def _random_fusion(detail: Any) -> None:
    # one of the draws that an untouched initialiser can make
    detail.fusion[:, 0], detail.fusion[:, 1], detail.fusion[:, 2] = -0.2, 0.4, 0.7


def _decayed_fusion(detail: Any) -> None:
    # what weight decay leaves of it half way through the published schedule
    detail.fusion.set_value(detail.fusion * 0.3)


def _in_float64(detail: Any) -> None:
    for name in ("laplacian", "neighbourhood", "fusion"):
        setattr(detail, name, getattr(detail, name).astype("float64"))


def _void_ignored(detail: Any) -> None:
    detail.ignore_void = True


def _frame_ignored(detail: Any) -> None:
    detail.ignore_frame = True


def _negative_laplacian(detail: Any) -> None:
    detail.laplacian.set_value(-detail.laplacian)


def _at_or_above(right: Any, side: Any) -> Any:
    return lambda x, threshold: (x >= threshold).astype(x.dtype)


def _squared_dice(right: Any, side: Any) -> Any:
    def dice(logits: Any, target: Any, counted: Any) -> Any:
        p, t = functional(side).sigmoid(logits).flatten(1), target.flatten(1)
        union = (p * p).sum(1) + (t * t).sum(1)
        return (1.0 - (2.0 * (p * t).sum(1) + 1.0) / (union + 1.0)).mean()

    return dice


def _dice_of_the_batch(right: Any, side: Any) -> Any:
    return lambda logits, target, counted: right(
        logits.reshape([1, -1]), target.reshape([1, -1]), counted
    )


def _summed(right: Any, side: Any) -> Any:
    return lambda logits, target, counted: right(logits, target, counted) * len(logits)


def _without_weights(right: Any, side: Any) -> Any:
    def build(*args: Any, **options: Any) -> Any:
        loss = right(*args, **options)
        loss.head_weights = {}
        return loss

    return build


# ---- groups -----------------------------------------------------------------------------------
def _all_grouped(model: Any, side: Any) -> None:
    model.ungrouped = ()


def _inner_fusion_as_head(right: Any, side: Any) -> Any:
    def assign(parameters: Any, **options: Any) -> Any:
        groups = right(parameters, **options)
        return {k: f"head_{g}" if k.startswith("cp.backbone.ffm") else g for k, g in groups.items()}

    return assign


def _sp(spatial_strides: tuple[int, int]) -> Callable[[Any, Any], None]:
    """Return a change of the strides of the spatial branch's first two layers."""

    def change(model: Any, side: Any) -> None:
        for index, stride in enumerate(spatial_strides):
            conv = at(model, f"cp.backbone.featuresSP.{index}.conv")
            conv.forward = _convolution(functional(side), conv, stride)

    return change


def _convolution(functions: Any, layer: Any, stride: int) -> Any:
    return lambda x: functions.conv2d(x, layer.weight, stride=stride, padding=1)


def _fault(name: str, step: str, where: str, title: str, patch: Patch) -> Fault:
    return Fault(f"stdc_{name}", step, where, title, patch, model="stdc1")


def _fault_bise(name: str, step: str, where: str, title: str, patch: Patch) -> Fault:
    return Fault(f"bisestdc_{name}", step, where, title, patch, model="bisestdc")


_BLOCKS = (
    _fault(
        "pool_exclusive",
        "forward",
        "eval/layer/cp.backbone.features.2.skip",
        "average pooling that leaves the padding out of the count, Paddle's default",
        forward_of("cp.backbone.features.2.skip", _pool_without_padding),
    ),
    _fault(
        "avd_relu",
        "forward",
        "eval/layer/cp.backbone.features.4.avd_layer",
        "activation after the strided depthwise convolution",
        forward_of("cp.backbone.features.4.avd_layer", _then_relu),
    ),
    _fault(
        "avd_channels",
        "forward",
        "eval/layer/cp.backbone.features.6.avd_layer.0",
        "depthwise kernels on their neighbours' channels",
        forward_of("cp.backbone.features.6.avd_layer.0", _neighbouring_channel),
    ),
    _fault(
        "avd_in_concatenation",
        "forward",
        "eval/layer/cp.backbone.features.2",
        "the strided convolution enters the concatenation, as in the other block type",
        forward_of("cp.backbone.features.2", _avd_concatenated),
    ),
    _fault(
        "concatenation_order",
        "forward",
        "eval/layer/cp.backbone.features.3",
        "the widest part of a block is concatenated last",
        forward_of("cp.backbone.features.3", _parts_reversed),
    ),
)
_HEADS = (
    _fault(
        "abn_weight",
        "forward",
        "eval/layer/ffm.convblk.bn",
        "plain BatchNorm in the place of InPlaceABN",
        forward_of("ffm.convblk.bn", _plain_batch_norm),
    ),
    _fault(
        "abn_activation",
        "forward",
        "eval/layer/cp.arm16.bn_atten",
        "InPlaceABN keeps its default activation, LeakyReLU",
        in_model(_leaky),
    ),
    _fault(
        "ffm_order",
        "forward",
        "eval/layer/ffm.convblk.conv",
        "the fusion module concatenates context before detail",
        forward_of("ffm", _swap_arguments),
    ),
    _fault(
        "ffm_relu",
        "forward",
        "eval/layer/ffm.relu",
        "no activation between the attention's convolutions",
        forward_of("ffm.relu", _identity),
    ),
    _fault(
        "aux_levels",
        "forward",
        "eval/layer/conv_out16.conv.conv",
        "conv_out16 on the context at 1/16, conv_out32 on the one at 1/8",
        in_model(_contexts_by_name),
    ),
    _fault(
        "boundary_on_fused",
        "forward",
        "eval/layer/conv_out_sp8.conv.conv",
        "the boundary head sees the fused features instead of the backbone's",
        in_model(_fed_by("ffm")),
    ),
    _fault(
        "boundary_enlarged",
        "forward",
        "eval/layer/conv_out_sp8",
        "boundary logits enlarged in the network",
        forward_of("conv_out_sp8", _boundary_enlarged),
    ),
    _fault(
        "align_corners",
        "forward",
        "eval/head/main",
        "class logits enlarged with align_corners=False",
        replaced(_module("models.stdcseg"), "resize_bilinear", _without_corners),
    ),
    _fault(
        "context_bilinear",
        "forward",
        "eval/layer/cp.conv_head32.conv",
        "context enlarged bilinearly",
        replaced(_module("models.stdcseg"), "resize_nearest", _bilinear),
    ),
    _fault(
        "context_fixed_scale",
        "forward",
        "odd*/head/main",
        "context enlarged by two and cut, instead of to the size that is needed",
        replaced(_module("models.stdcseg"), "resize_nearest", _fixed_scale),
    ),
)
_DETAIL = (
    _fault(
        "fusion_random",
        "loss",
        "*/loss/boundary8_bce",
        "the scales are fused by weights of a default initialiser",
        _detail(_random_fusion),
    ),
    _fault(
        "fusion_decayed",
        "loss",
        "*/loss/boundary8_bce",
        "the scales are fused by weights that have decayed",
        _detail(_decayed_fusion),
    ),
    _fault(
        "target_float64",
        "loss",
        "*/loss/boundary8_bce",
        "targets in float64, where the coarsest scale alone exceeds the threshold",
        _detail(_in_float64),
    ),
    _fault(
        "threshold_inclusive",
        "loss",
        "*/loss/boundary8_bce",
        "an edge is at or above the threshold",
        replaced(_module("detail_loss"), "above", _at_or_above),
    ),
    _fault(
        "target_scale",
        "loss",
        "*/loss/boundary8_bce",
        "edges at steps 1, 4 and 8",
        replaced(_module("detail_loss"), "STRIDES", lambda right, side: (1, 4, 8)),
    ),
    _fault(
        "edge_side",
        "loss",
        "*/loss/boundary8_bce",
        "edges on the side of the lower number",
        _detail(_negative_laplacian),
    ),
    _fault(
        "void_ignored",
        "loss",
        "*/loss/boundary8_bce",
        "void makes no edges and does not count",
        _detail(_void_ignored),
    ),
    _fault(
        "frame_ignored",
        "loss",
        "*/loss/boundary8_bce",
        "labels replicated beyond the frame",
        _detail(_frame_ignored),
    ),
    _fault(
        "boundary_corners",
        "loss",
        "*/loss/boundary8_bce",
        "boundary logits enlarged with align_corners=False",
        replaced(_module("detail_loss"), "resize_bilinear", _without_corners),
    ),
    _fault(
        "bce_summed",
        "loss",
        "*/loss/boundary8_bce",
        "cross entropy summed over the images",
        replaced(_module("detail_loss"), "binary_cross_entropy", _summed),
    ),
    _fault(
        "dice_squared",
        "loss",
        "*/loss/boundary8_dice",
        "squares in the denominator of the Dice loss",
        replaced(_module("detail_loss"), "dice_loss", _squared_dice),
    ),
    _fault(
        "dice_of_the_batch",
        "loss",
        "*/loss/boundary8_dice",
        "one Dice loss for the batch, not one per image",
        replaced(_module("detail_loss"), "dice_loss", _dice_of_the_batch),
    ),
)
_GROUPS = (
    _fault(
        "backbone_norm_trained",
        "lr_schedule",
        "group/cp.backbone.features.0.bn.weight",
        "the backbone's BatchNorm weights and biases are optimised",
        in_model(_all_grouped),
    ),
)
_BISESTDC = (
    _fault_bise(
        "spatial_strides",
        "forward",
        "eval/layer/cp.backbone.featuresSP.0.conv",
        "spatial branch with the strides of the published figure: 1, 2, 2",
        in_model(_sp((1, 2))),
    ),
    _fault_bise(
        "inner_ffm_order",
        "forward",
        "eval/layer/cp.backbone.ffm.convblk.conv",
        "the inner fusion concatenates the trunk before the spatial branch",
        forward_of("cp.backbone.ffm", _swap_arguments),
    ),
    _fault_bise(
        "boundary_on_trunk",
        "forward",
        "eval/layer/conv_out_sp8.conv.conv",
        "the boundary head sees the trunk's features at 1/8, as in STDC-Seg",
        in_model(_fed_by("cp", 2)),
    ),
    _fault_bise(
        "aux_weights",
        "loss",
        "*/loss/total",
        "auxiliary losses weigh 1 instead of 0.3",
        replaced(lambda side: side.losses, "build_loss", _without_weights),
    ),
    _fault_bise(
        "inner_ffm_as_head",
        "lr_schedule",
        "group/cp.backbone.ffm.convblk.conv.weight",
        "the inner fusion learns with the heads' multiplied rate",
        replaced(lambda side: side.optim, "assign_groups", _inner_fusion_as_head),
    ),
)

STDC: tuple[Fault, ...] = (*_BLOCKS, *_HEADS, *_DETAIL, *_GROUPS, *_BISESTDC)
