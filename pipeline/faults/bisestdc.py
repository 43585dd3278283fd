"""Wrong ports of BiSeSTDC: its spatial branch, its inner fusion, its weights and groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import (
    Fault,
    at,
    faults_of,
    forward_of,
    functional,
    in_model,
    replaced,
    swapped_arguments,
)
from pipeline.faults.stdc import boundary_fed_by


def _without_weights(right: Any, side: Any) -> Any:
    def build(*args: Any, **options: Any) -> Any:
        loss = right(*args, **options)
        loss.head_weights = {}
        return loss

    return build


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


_fault = faults_of("bisestdc", prefix="bisestdc_")


BISESTDC: tuple[Fault, ...] = (
    _fault(
        "spatial_strides",
        "forward",
        "eval/layer/cp.backbone.featuresSP.0.conv",
        "spatial branch with the strides of the published figure: 1, 2, 2",
        in_model(_sp((1, 2))),
        why="stride",
    ),
    _fault(
        "inner_ffm_order",
        "forward",
        "eval/layer/cp.backbone.ffm.convblk.conv",
        "the inner fusion concatenates the trunk before the spatial branch",
        forward_of("cp.backbone.ffm", swapped_arguments),
        why="concat-order",
    ),
    _fault(
        "boundary_on_trunk",
        "forward",
        "eval/layer/conv_out_sp8.conv.conv",
        "the boundary head sees the trunk's features at 1/8, as in STDC-Seg",
        in_model(boundary_fed_by("cp", 2)),
    ),
    _fault(
        "aux_weights",
        "loss",
        "*/loss/total",
        "auxiliary losses weigh 1 instead of 0.3",
        replaced(lambda side: side.losses, "build_loss", _without_weights),
        why="term-weight",
    ),
    _fault(
        "inner_ffm_as_head",
        "lr_schedule",
        "group/cp.backbone.ffm.convblk.conv.weight",
        "the inner fusion learns with the heads' multiplied rate",
        replaced(lambda side: side.optim, "assign_groups", _inner_fusion_as_head),
        why="parameter-group",
    ),
)
