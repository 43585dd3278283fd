"""Wrong layers: what the network computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import (
    Fault,
    at,
    forward_of,
    functional,
    identity,
    in_model,
    replaced,
    swapped_arguments,
    swapped_heads,
)


def _bn_eps(model: Any, side: Any) -> None:
    at(model, "cp.resnet.bn1").EPS = 1.1e-5


def _same_padding(layer: Any, side: Any) -> Any:
    F = functional(side)

    def forward(x: Any) -> Any:
        return F.conv2d(F.pad(x, [0, 1, 0, 1]), layer.weight, stride=2)

    return forward


def _stride_in_second(model: Any, side: Any) -> None:
    block, F = at(model, "cp.resnet.layer2.0"), functional(side)
    for layer, stride in ((block.conv1, 1), (block.conv2, 2)):
        layer.forward = _convolution(F, layer, stride)


def _convolution(functions: Any, layer: Any, stride: int) -> Any:
    return lambda x: functions.conv2d(x, layer.weight, stride=stride, padding=1)


def _ceil_mode_pool(layer: Any, side: Any) -> Any:
    return lambda x: functional(side).max_pool2d(x, 3, stride=2, padding=0, ceil_mode=True)


def _resize(**options: Any) -> Callable[[Any, Any], Any]:
    def make(layer: Any, side: Any) -> Any:
        F = functional(side)
        return lambda x: F.interpolate(x, scale_factor=layer.scale, **options)

    return make


def _leaky(layer: Any, side: Any) -> Any:
    return lambda x: functional(side).leaky_relu(x, negative_slope=0.01)


def _ffm_without_residual(layer: Any, side: Any) -> Any:
    right = layer.forward
    features: list[Any] = []
    layer.convblk.register_forward_post_hook(lambda _l, _i, out: features.append(out))

    def forward(spatial: Any, context: Any) -> Any:
        return right(spatial, context) - features.pop()

    return forward


def _no_average(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda x: right(x) * 0


def _replicate_padding(right: Any, side: Any) -> Any:
    def pad(x: Any, *, multiple: int) -> Any:
        bottom, right_side = -x.shape[2] % multiple, -x.shape[3] % multiple
        if not bottom and not right_side:
            return x
        return functional(side).pad(x, [0, right_side, 0, bottom], mode="replicate")

    return pad


def _float32_detour(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda x: right(x.astype("float32").astype(x.dtype))


def _bgr_stem(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda x: right(x.flip(axis=[1]))


def _module_of(side: Any) -> Any:
    """Return the module that defines the network's class."""
    build = side.models.build_model("bisenetv1", classes=2)
    return sys.modules[type(build).__module__]


FORWARD = (
    Fault(
        "bn_eps",
        "forward",
        "eval/layer/cp.resnet.bn1",
        "BatchNorm eps 1.1e-5",
        in_model(_bn_eps),
        why="eps",
    ),
    Fault(
        "padding_same",
        "forward",
        "eval/layer/sp.conv2.conv",
        "stride-2 convolution pads right and bottom only, as padding='same' does",
        forward_of("sp.conv2.conv", _same_padding),
        why="padding-side",
    ),
    Fault(
        "stride_in_second_conv",
        "forward",
        "eval/layer/cp.resnet.layer2.0.conv1",
        "the block's stride sits in its second convolution",
        in_model(_stride_in_second),
        why="stride",
    ),
    Fault(
        "pool_ceil_mode",
        "forward",
        "eval/layer/cp.resnet.maxpool",
        "max pooling with ceil_mode instead of padding",
        forward_of("cp.resnet.maxpool", _ceil_mode_pool),
        why="ceil-mode",
    ),
    Fault(
        "align_corners",
        "forward",
        "eval/layer/conv_out.up",
        "main logits resized with align_corners=True",
        forward_of("conv_out.up", _resize(mode="bilinear", align_corners=True)),
        why="align-corners",
    ),
    Fault(
        "align_mode",
        "forward",
        "eval/layer/conv_out.up",
        "main logits resized with align_mode=1",
        forward_of("conv_out.up", _resize(mode="bilinear", align_corners=False, align_mode=1)),
        why="align-mode",
    ),
    Fault(
        "nearest_for_bilinear",
        "forward",
        "eval/layer/conv_out16.up",
        "auxiliary logits resized by nearest neighbour",
        forward_of("conv_out16.up", _resize(mode="nearest")),
        why="nearest-for-bilinear",
    ),
    Fault(
        "bilinear_for_nearest",
        "forward",
        "eval/layer/cp.up16",
        "context features resized bilinearly",
        forward_of("cp.up16", _resize(mode="bilinear", align_corners=False)),
        why="bilinear-for-nearest",
    ),
    Fault(
        "relu_missing",
        "forward",
        "eval/layer/sp.conv3.relu",
        "no activation after the third spatial convolution",
        forward_of("sp.conv3.relu", identity),
        why="missing-activation",
    ),
    Fault(
        "relu_leaky",
        "forward",
        "eval/layer/ffm.convblk.relu",
        "LeakyReLU 0.01 in the fusion module",
        forward_of("ffm.convblk.relu", _leaky),
        why="activation-slope",
    ),
    Fault(
        "ffm_concat_order",
        "forward",
        "eval/layer/ffm.convblk.conv",
        "the fusion module concatenates context before detail",
        forward_of("ffm", swapped_arguments),
        why="concat-order",
    ),
    Fault(
        "ffm_residual_missing",
        "forward",
        "eval/layer/ffm",
        "the fusion module returns the weighed features only",
        forward_of("ffm", _ffm_without_residual),
        why="missing-residual",
    ),
    Fault(
        "sigmoid_missing",
        "forward",
        "eval/layer/cp.arm16.sigmoid_atten",
        "attention without sigmoid",
        forward_of("cp.arm16.sigmoid_atten", identity),
        why="missing-activation",
    ),
    Fault(
        "aux_heads_swapped",
        "forward",
        "eval/head/aux16",
        "aux16 and aux32 swapped in the output",
        swapped_heads("aux16", "aux32"),
        why="swapped-heads",
    ),
    Fault(
        "global_branch_missing",
        "forward",
        "eval/layer/cp.conv_avg",
        "the global average is not added",
        forward_of("cp.conv_avg", _no_average),
        why="zero",
    ),
    Fault(
        "odd_size_padding",
        "forward",
        "odd*/head/main",
        "images padded to a multiple of 32 by replication",
        replaced(_module_of, "pad_to_multiple", _replicate_padding),
        why="padding-mode",
    ),
    Fault(
        "float32_detour",
        "forward",
        "eval/layer/sp.conv_out.conv",
        "one layer's input passes through float32 in the float64 run",
        forward_of("sp.conv_out.conv", _float32_detour),
        why="dtype-float32",
    ),
    Fault(
        "stem_bgr",
        "forward",
        "eval/layer/sp.conv1.conv",
        "the spatial path sees BGR",
        forward_of("sp.conv1.conv", _bgr_stem),
        why="swapped-channels",
    ),
)
