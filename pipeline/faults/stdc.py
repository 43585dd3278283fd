"""Wrong ports of STDC-Seg's network: its blocks, heads and groups.

How a fresh network starts, and what its classifier computes, cannot show here: every step starts
from given weights, and segmentation does not run the classifier (tests/sides/test_stdcnet.py).
The sign of an InPlaceABN weight cannot show either, because weights by rule are positive
(tests/sides/test_golden_models.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import (
    Fault,
    at,
    faults_of,
    forward_of,
    functional,
    identity,
    in_model,
    module_named,
    replaced,
    swapped_arguments,
    then_relu,
)


def _pool_without_padding(layer: Any, side: Any) -> Any:
    return lambda x: functional(side).avg_pool2d(x, 3, stride=2, padding=1, exclusive=True)


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


def without_corners(right: Any, side: Any) -> Any:
    """Resize with align_corners=False whatever is asked for."""
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


def boundary_fed_by(path: str, part: int | None = None) -> Callable[[Any, Any], None]:
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


def _all_grouped(model: Any, side: Any) -> None:
    model.ungrouped = ()


_fault = faults_of("stdc1", prefix="stdc_")


_BLOCKS = (
    _fault(
        "pool_exclusive",
        "forward",
        "eval/layer/cp.backbone.features.2.skip",
        "average pooling that leaves the padding out of the count, Paddle's default",
        forward_of("cp.backbone.features.2.skip", _pool_without_padding),
        why="count-include-pad",
    ),
    _fault(
        "avd_relu",
        "forward",
        "eval/layer/cp.backbone.features.4.avd_layer",
        "activation after the strided depthwise convolution",
        forward_of("cp.backbone.features.4.avd_layer", then_relu),
        why="extra-activation",
    ),
    _fault(
        "avd_channels",
        "forward",
        "eval/layer/cp.backbone.features.6.avd_layer.0",
        "depthwise kernels on their neighbours' channels",
        forward_of("cp.backbone.features.6.avd_layer.0", _neighbouring_channel),
        why="swapped-channels",
    ),
    _fault(
        "avd_in_concatenation",
        "forward",
        "eval/layer/cp.backbone.features.2",
        "the strided convolution enters the concatenation, as in the other block type",
        forward_of("cp.backbone.features.2", _avd_concatenated),
        why="other-part",
    ),
    _fault(
        "concatenation_order",
        "forward",
        "eval/layer/cp.backbone.features.3",
        "the widest part of a block is concatenated last",
        forward_of("cp.backbone.features.3", _parts_reversed),
        why="concat-order",
    ),
)
_HEADS = (
    _fault(
        "abn_weight",
        "forward",
        "eval/layer/ffm.convblk.bn",
        "plain BatchNorm in the place of InPlaceABN",
        forward_of("ffm.convblk.bn", _plain_batch_norm),
        why="plain-weight",
    ),
    _fault(
        "abn_activation",
        "forward",
        "eval/layer/cp.arm16.bn_atten",
        "InPlaceABN keeps its default activation, LeakyReLU",
        in_model(_leaky),
        why="extra-activation",
    ),
    _fault(
        "ffm_order",
        "forward",
        "eval/layer/ffm.convblk.conv",
        "the fusion module concatenates context before detail",
        forward_of("ffm", swapped_arguments),
        why="concat-order",
    ),
    _fault(
        "ffm_relu",
        "forward",
        "eval/layer/ffm.relu",
        "no activation between the attention's convolutions",
        forward_of("ffm.relu", identity),
        why="missing-activation",
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
        in_model(boundary_fed_by("ffm")),
    ),
    _fault(
        "boundary_enlarged",
        "forward",
        "eval/layer/conv_out_sp8",
        "boundary logits enlarged in the network",
        forward_of("conv_out_sp8", _boundary_enlarged),
        why="other-combination",
    ),
    _fault(
        "align_corners",
        "forward",
        "eval/head/main",
        "class logits enlarged with align_corners=False",
        replaced(module_named("models.stdcseg"), "resize_bilinear", without_corners),
        why="align-corners",
    ),
    _fault(
        "context_bilinear",
        "forward",
        "eval/layer/cp.conv_head32.conv",
        "context enlarged bilinearly",
        replaced(module_named("models.stdcseg"), "resize_nearest", _bilinear),
        why="bilinear-for-nearest",
    ),
    _fault(
        "context_fixed_scale",
        "forward",
        "odd*/head/main",
        "context enlarged by two and cut, instead of to the size that is needed",
        replaced(module_named("models.stdcseg"), "resize_nearest", _fixed_scale),
        why="flip",
    ),
)
_GROUPS = (
    _fault(
        "backbone_norm_trained",
        "lr_schedule",
        "group/cp.backbone.features.0.bn.weight",
        "the backbone's BatchNorm weights and biases are optimised",
        in_model(_all_grouped),
        why="parameter-group",
    ),
)

STDC: tuple[Fault, ...] = (*_BLOCKS, *_HEADS, *_GROUPS)
