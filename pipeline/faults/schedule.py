"""Wrong rates and parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import Fault, Patch, in_model, optimizer_options, replaced


def _factor(change: Callable[[Any, int, Any], float]) -> Patch:
    def make(right: Any, side: Any) -> Any:
        return lambda iteration, schedule: change(right, iteration, schedule)

    return replaced(lambda side: side.optim, "lr_factor", make)


def _forget_ffm(model: Any, side: Any) -> None:
    model.head_modules = tuple(name for name in model.head_modules if name != "ffm")


SCHEDULE = (
    Fault(
        "lr_off_by_one",
        "lr_schedule",
        "lr/decay",
        "the rate of the next iteration",
        _factor(lambda f, i, s: f(i + 1, s)),
        why="lr-shifted",
    ),
    Fault(
        "warmup_linear",
        "lr_schedule",
        "lr/decay",
        "linear instead of exponential warm-up",
        _factor(lambda f, i, s: f(i, s.model_copy(update={"warmup": "linear"}))),
        why="warmup-kind",
    ),
    Fault(
        "decay_from_zero",
        "lr_schedule",
        "lr/decay",
        "the decay counts the warm-up's iterations",
        _factor(
            lambda f, i, s: f(i, s) if i < s.warmup_iters else (1 - i / s.max_iters) ** s.power
        ),
        why="decay-start",
    ),
    Fault(
        "head_lr_mult",
        "lr_schedule",
        "options/head_decay/lr_mult",
        "heads at the base rate",
        optimizer_options(head_lr_mult=1.0),
        why="lr-multiplier",
    ),
    Fault(
        "decay_on_bn",
        "lr_schedule",
        "options/no_decay/weight_decay",
        "BatchNorm and biases decayed",
        optimizer_options(decay_norm_and_bias=True),
        why="weight-decay",
    ),
    Fault(
        "head_module_forgotten",
        "lr_schedule",
        "group/ffm*",
        "the fusion module in the base group",
        in_model(_forget_ffm),
        why="parameter-group",
    ),
)
