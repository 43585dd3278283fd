"""Wrong ports of BiSeNetV2: its layers, its heads, its parameter groups.

How a fresh network starts (weight 0 of the last BatchNorm, fan_out) and how much the heads drop
cannot show here, because every step starts from given weights without dropout:
tests/sides/test_any_network.py and test_bisenetv2.py hold them.
"""

from __future__ import annotations

from typing import Any

from pipeline.faults.patching import (
    Fault,
    Make,
    Patch,
    at,
    faults_of,
    forward_of,
    functional,
    identity,
    in_model,
    replaced,
    resized_to,
    swapped_heads,
    then_relu,
)


def _convolved(**options: Any) -> Make:
    def make(layer: Any, side: Any) -> Any:
        return lambda x: functional(side).conv2d(x, layer.weight, **options)

    return make


def _tiled_channels(layer: Any, side: Any) -> Any:
    # right: the six outputs of a channel lie side by side
    groups = layer.weight.shape[0]
    convolve = _convolved(stride=2, padding=1, groups=groups)(layer, side)
    return lambda x: convolve(x.tile([1, groups // x.shape[1], 1, 1]))


def _stride_in_second(model: Any, side: Any) -> None:
    for path, stride in (("dwconv1.0", 1), ("dwconv2.0", 2)):
        layer = at(model, f"segment.S4.0.{path}")
        groups = 32 if path == "dwconv1.0" else 192
        layer.forward = _convolved(stride=stride, padding=1, groups=groups)(layer, side)


def _added_after_relu(layer: Any, side: Any) -> Any:
    return lambda x: layer.relu(layer.conv2(layer.dwconv(layer.conv1(x)))) + x


def _same_padding(layer: Any, side: Any) -> Any:
    convolve = _convolved(stride=2, padding=0)(layer, side)
    return lambda x: convolve(functional(side).pad(x, [0, 1, 0, 1]))


def _halves_swapped(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda x: right(x.roll(x.shape[1] // 2, axis=1))


def _mean_for_max(layer: Any, side: Any) -> Any:
    return lambda x: functional(side).avg_pool2d(x, 3, stride=2, padding=1, exclusive=False)


def _norm_after_convolution(layer: Any, side: Any) -> Any:
    mean = side.layers.spatial_mean
    return lambda x: layer.conv_last(layer.bn(layer.conv_gap(mean(x))) + x)


def _context_alone(layer: Any, side: Any) -> Any:
    mean = side.layers.spatial_mean
    return lambda x: layer.conv_last(layer.conv_gap(layer.bn(mean(x))).expand_as(x))


def _bilinear_twice(layer: Any, side: Any) -> Any:
    return lambda x: functional(side).interpolate(x, scale_factor=2, mode="bilinear")


def _after_context(layer: Any, side: Any) -> Any:
    right = layer.forward

    def forward(image: Any) -> Any:
        features = right(image)
        return (*features[:3], features[4], features[4])

    return forward


def _own_dropout(layer: Any, side: Any) -> Any:
    return lambda x: functional(side).dropout(x, 0.1, training=layer.training)


def _input_detached(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda x, size_hw: right(x.detach(), size_hw)


def _heads_multiplied(*names: str) -> Patch:
    def change(model: Any, side: Any) -> None:
        model.head_modules = names

    return in_model(change)


def _depthwise_undecayed(right: Any, side: Any) -> Any:
    def assign(parameters: Any, **options: Any) -> Any:
        groups = right(parameters, **options)
        depthwise = [name for name in groups if "dwconv" in name]
        return {**groups, **dict.fromkeys(depthwise, "no_decay")}

    return assign


_fault = faults_of("bisenetv2")
_fault_2020 = faults_of("bisenetv2_2020")


_LAYERS = (
    _fault(
        "detail_padding_same",
        "forward",
        "eval/layer/detail.S2.0.conv",
        "stride-2 convolution pads right and bottom only, as padding='same' does",
        forward_of("detail.S2.0.conv", _same_padding),
        why="padding-side",
    ),
    _fault(
        "stem_pool_mean",
        "forward",
        "eval/layer/segment.S1S2.right",
        "the stem pools the mean",
        forward_of("segment.S1S2.right", _mean_for_max),
        why="average-for-max",
    ),
    _fault(
        "stem_concat_order",
        "forward",
        "eval/layer/segment.S1S2.fuse.conv",
        "the stem concatenates the pooled features first",
        forward_of("segment.S1S2.fuse", _halves_swapped),
        why="swapped-channels",
    ),
    _fault(
        "ge_channel_order",
        "forward",
        "eval/layer/segment.S3.0.dwconv1.0",
        "outputs of the expanding depthwise convolution belong to channel k % in, not k // 6",
        forward_of("segment.S3.0.dwconv1.0", _tiled_channels),
        why="groups",
    ),
    _fault(
        "ge_stride_in_second",
        "forward",
        "eval/layer/segment.S4.0.dwconv1.0",
        "the stride sits in the second depthwise convolution",
        in_model(_stride_in_second),
        why="stride",
    ),
    _fault(
        "ge_relu_between",
        "forward",
        "eval/layer/segment.S4.0.dwconv1",
        "ReLU between the two depthwise convolutions",
        forward_of("segment.S4.0.dwconv1", then_relu),
        why="extra-activation",
    ),
    _fault(
        "ge_relu_of_the_paper",
        "forward",
        "eval/layer/segment.S3.1.dwconv.2",
        "no ReLU after the depthwise convolution, as in the paper",
        forward_of("segment.S3.1.dwconv.2", identity),
        why="missing-activation",
    ),
    _fault(
        "ge_add_after_relu",
        "forward",
        "eval/layer/segment.S4.1.relu",
        "the input is added after the activation",
        forward_of("segment.S4.1", _added_after_relu),
        why="missing-residual",
    ),
    _fault(
        "ge_shortcut_relu",
        "forward",
        "eval/layer/segment.S5_4.0.shortcut.1",
        "ReLU inside the shortcut",
        forward_of("segment.S5_4.0.shortcut.1", then_relu),
        why="extra-activation",
    ),
    _fault(
        "ce_order",
        "forward",
        "eval/layer/segment.S5_5.bn",
        "context embedding normalises after the convolution",
        forward_of("segment.S5_5", _norm_after_convolution),
        why="other-part",
    ),
    _fault(
        "ce_features_missing",
        "forward",
        "eval/layer/segment.S5_5.conv_last.conv",
        "the context replaces the features instead of being added",
        forward_of("segment.S5_5", _context_alone),
    ),
    _fault(
        "ce_relu_of_the_paper",
        "forward",
        "eval/layer/segment.S5_5.conv_last.relu",
        "the last convolution without activation, as in the paper",
        forward_of("segment.S5_5.conv_last.relu", identity),
        why="missing-activation",
    ),
)
_HEADS = (
    _fault(
        "aux5_4_after_context",
        "forward",
        "eval/layer/segment.3",
        "the deepest auxiliary head sees the context embedding",
        forward_of("segment", _after_context),
        why="other-part",
    ),
    _fault(
        "aux_enlarged_bilinearly",
        "forward",
        "eval/layer/aux2.conv_out.0.0",
        "auxiliary features enlarged bilinearly",
        forward_of("aux2.conv_out.0.0", _bilinear_twice),
        why="bilinear-for-nearest",
    ),
    _fault(
        "aux_order",
        "forward",
        "eval/head/aux3",
        "aux3 and aux4 swapped in the output",
        swapped_heads("aux3", "aux4"),
        why="swapped-heads",
    ),
    _fault(
        "dropout_of_its_own",
        "forward",
        "train/layer/head.drop",
        "dropout that cannot be switched off for the comparison",
        forward_of("head.drop", _own_dropout),
        why="dropout",
    ),
    _fault(
        "aux_detached",
        "backward",
        "layer/segment.*",
        "an auxiliary head trains nothing but itself",
        forward_of("aux4", _input_detached),
        why="detached-branch",
    ),
)
_GROUPS = (
    _fault(
        "aux_rate_forgotten",
        "lr_schedule",
        "group/aux2*",
        "auxiliary heads in the base group",
        _heads_multiplied("head"),
        why="parameter-group",
    ),
    _fault(
        "depthwise_undecayed",
        "lr_schedule",
        "group/segment.S3.0.dwconv1.0.weight",
        "depthwise convolutions not decayed",
        replaced(lambda side: side.optim, "assign_groups", _depthwise_undecayed),
        why="parameter-group",
    ),
)
_FORM_OF_2020 = (
    _fault_2020(
        "bilinear_ratio_2020",
        "forward",
        "eval/layer/head.up",
        "Paddle's own bilinear kernel: it keeps the ratio of the sizes as float32",
        forward_of("head.up", resized_to(mode="bilinear", align_corners=True)),
        why="dtype-float32",
    ),
    _fault_2020(
        "head_rate_2020",
        "lr_schedule",
        "group/head*",
        "heads at a multiplied rate, which came later",
        _heads_multiplied("head", "aux2", "aux3", "aux4", "aux5_4"),
        why="parameter-group",
    ),
)

BISENETV2: tuple[Fault, ...] = (*_LAYERS, *_HEADS, *_GROUPS, *_FORM_OF_2020)
