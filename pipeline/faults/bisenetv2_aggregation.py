"""Wrong ports of BiSeNetV2's aggregation of its two branches, in both published forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import (
    Fault,
    Make,
    Patch,
    faults_of,
    forward_of,
    functional,
    identity,
    resized_to,
    then_relu,
)


def _pooled(*, exclusive: bool) -> Make:
    def make(layer: Any, side: Any) -> Any:
        F = functional(side)
        return lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, exclusive=exclusive)

    return make


def _bga(combine: Callable[[Any, Any, Any, Any, Any], Any]) -> Patch:
    """``combine(layer, left1, left2, (right1, right2), size_hw)`` aggregates the branches."""

    def make(layer: Any, side: Any) -> Any:
        def forward(detail: Any, semantic: Any) -> Any:
            size_hw = (detail.shape[2], detail.shape[3])
            rights = layer.right1(semantic), layer.right2(semantic)
            return combine(layer, layer.left1(detail), layer.left2(detail), rights, size_hw)

        return forward

    return forward_of("bga", make)


def _detail_guides(layer: Any, left1: Any, left2: Any, rights: Any, size_hw: Any) -> Any:
    guided8 = layer.sigmoid1(left1) * layer.up1(rights[0], size_hw)
    guided32 = layer.up2(layer.sigmoid2(left2) * rights[1], size_hw)
    return layer.conv(guided8 + guided32)


def _multiplied(layer: Any, left1: Any, left2: Any, rights: Any, size_hw: Any) -> Any:
    guided8 = left1 * layer.sigmoid1(layer.up1(rights[0], size_hw))
    guided32 = layer.up2(left2 * layer.sigmoid2(rights[1]), size_hw)
    return layer.conv(guided8 * guided32)


def _sigmoid_first(layer: Any, left1: Any, left2: Any, rights: Any, size_hw: Any) -> Any:
    guided8 = left1 * layer.up1(layer.sigmoid1(rights[0]), size_hw)
    guided32 = layer.up2(left2 * layer.sigmoid2(rights[1]), size_hw)
    return layer.conv(guided8 + guided32)


def _output_detached(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda x: right(x).detach()


_fault = faults_of("bisenetv2")
_fault_2020 = faults_of("bisenetv2_2020")


AGGREGATION: tuple[Fault, ...] = (
    _fault(
        "bga_pool_exclusive",
        "forward",
        "eval/layer/bga.left2.2",
        "average pooling leaves the padding out, Paddle's default",
        forward_of("bga.left2.2", _pooled(exclusive=True)),
        why="count-include-pad",
    ),
    _fault(
        "bga_relu_inside",
        "forward",
        "eval/layer/bga.left1.1",
        "ReLU between depthwise and 1x1 convolution",
        forward_of("bga.left1.1", then_relu),
        why="extra-activation",
    ),
    _fault(
        "bga_bilinear",
        "forward",
        "eval/layer/bga.up1",
        "semantic features resized bilinearly",
        forward_of("bga.up1", resized_to(mode="bilinear", align_corners=False)),
        why="bilinear-for-nearest",
    ),
    _fault(
        "bga_sigmoid_missing",
        "forward",
        "eval/layer/bga.sigmoid2",
        "the guide at 1/32 without sigmoid",
        forward_of("bga.sigmoid2", identity),
        why="missing-activation",
    ),
    _fault(
        "bga_detail_guides",
        "forward",
        "eval/layer/bga.sigmoid1",
        "the sigmoid sits on the detail features",
        _bga(_detail_guides),
        why="other-part",
    ),
    _fault(
        "bga_multiplied",
        "forward",
        "eval/layer/bga.conv.0",
        "the two scales are multiplied instead of added",
        _bga(_multiplied),
    ),
    _fault(
        "bga_last_relu_missing",
        "forward",
        "eval/layer/bga.conv.2",
        "no activation after the aggregation, as in PaddleSeg",
        forward_of("bga.conv.2", identity),
        why="missing-activation",
    ),
    _fault(
        "pool_gradient_kernel",
        "backward",
        "layer/bga.left2.1",
        "Paddle's own average pooling: its gradient keeps 1/9 as float32",
        forward_of("bga.left2.2", _pooled(exclusive=False)),
        why="dtype-float32",
    ),
    _fault(
        "guide_detached",
        "backward",
        "layer/bga.sigmoid2",
        "no gradient flows through the guide at 1/32",
        forward_of("bga.sigmoid2", _output_detached),
        why="detached-branch",
    ),
    _fault_2020(
        "bga_corners_2020",
        "forward",
        "eval/layer/bga.up1",
        "semantic features resized without aligned corners",
        forward_of("bga.up1", resized_to(mode="bilinear", align_corners=False)),
        why="align-corners",
    ),
    _fault_2020(
        "bga_sigmoid_first_2020",
        "forward",
        "eval/layer/bga.up1",
        "sigmoid before the resizing (no fault in the current form: nearest commutes)",
        _bga(_sigmoid_first),
        why="other-part",
    ),
)
