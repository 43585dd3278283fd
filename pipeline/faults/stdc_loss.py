"""Wrong boundary losses, which only the STDC family has: targets, cross entropy, Dice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import Fault, Patch, faults_of, functional, module_named, replaced
from pipeline.faults.stdc import without_corners


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
    # the third, of counted pixels, is there in some forms of the loss only
    return lambda *maps: right(*(None if m is None else m.reshape([1, -1]) for m in maps))


def _summed(right: Any, side: Any) -> Any:
    return lambda logits, target, counted: right(logits, target, counted) * len(logits)


_fault = faults_of("stdc1", prefix="stdc_")


STDC_LOSS: tuple[Fault, ...] = (
    _fault(
        "fusion_random",
        "loss",
        "*/loss/boundary8_bce",
        "the scales are fused by weights of a default initialiser",
        _detail(_random_fusion),
        why="boundary-fusion",
    ),
    _fault(
        "fusion_decayed",
        "loss",
        "*/loss/boundary8_bce",
        "the scales are fused by weights that have decayed",
        _detail(_decayed_fusion),
        why="boundary-fusion",
    ),
    _fault(
        "target_float64",
        "loss",
        "*/loss/boundary8_bce",
        "targets in float64, where the coarsest scale alone exceeds the threshold",
        _detail(_in_float64),
        why="boundary-fusion",
    ),
    _fault(
        "threshold_inclusive",
        "loss",
        "*/loss/boundary8_bce",
        "an edge is at or above the threshold",
        replaced(module_named("detail_loss"), "above", _at_or_above),
        why="boundary-fusion",
    ),
    _fault(
        "target_scale",
        "loss",
        "*/loss/boundary8_bce",
        "edges at steps 1, 4 and 8",
        replaced(module_named("detail_loss"), "STRIDES", lambda right, side: (1, 4, 8)),
        why="boundary-strides",
    ),
    _fault(
        "edge_side",
        "loss",
        "*/loss/boundary8_bce",
        "edges on the side of the lower number",
        _detail(_negative_laplacian),
        why="boundary-side",
    ),
    _fault(
        "void_ignored",
        "loss",
        "*/loss/boundary8_bce",
        "void makes no edges and does not count",
        _detail(_void_ignored),
        why="ignore-index",
    ),
    _fault(
        "frame_ignored",
        "loss",
        "*/loss/boundary8_bce",
        "labels replicated beyond the frame",
        _detail(_frame_ignored),
        why="boundary-frame",
    ),
    _fault(
        "boundary_corners",
        "loss",
        "*/loss/boundary8_bce",
        "boundary logits enlarged with align_corners=False",
        replaced(module_named("detail_loss"), "resize_bilinear", without_corners),
        why="align-corners",
    ),
    _fault(
        "bce_summed",
        "loss",
        "*/loss/boundary8_bce",
        "cross entropy summed over the images",
        replaced(module_named("detail_loss"), "binary_cross_entropy", _summed),
        why="reduction",
    ),
    _fault(
        "dice_squared",
        "loss",
        "*/loss/boundary8_dice",
        "squares in the denominator of the Dice loss",
        replaced(module_named("detail_loss"), "dice_loss", _squared_dice),
        why="dice",
    ),
    _fault(
        "dice_of_the_batch",
        "loss",
        "*/loss/boundary8_dice",
        "one Dice loss for the batch, not one per image",
        replaced(module_named("detail_loss"), "dice_loss", _dice_of_the_batch),
        why="dice",
    ),
)
