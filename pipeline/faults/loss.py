"""Wrong losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import Fault, Patch, replaced


def _loss_with(change: Callable[[Any], None]) -> Patch:
    """Return a patch that changes the criterion after it is built."""

    def make(right: Any, side: Any) -> Any:
        def build(*args: Any, **options: Any) -> Any:
            loss = right(*args, **options)
            change(loss)
            return loss

        return build

    return replaced(lambda side: side.losses, "build_loss", make)


def _set(**values: Any) -> Callable[[Any], None]:
    def change(loss: Any) -> None:
        for name, value in values.items():
            setattr(loss.criterion, name, value)

    return change


def _void_as_class(loss: Any) -> None:
    right = loss.forward

    def forward(outputs: Any, label: Any) -> Any:
        return right(outputs, label * (label != loss.criterion.ignore_index).astype(label.dtype))

    loss.forward = forward


def _halve_aux(loss: Any) -> None:
    loss.head_weights.update({"aux16": 0.5, "aux32": 0.5})


def _drop_aux32(loss: Any) -> None:
    loss.head_weights.update({"aux32": 0.0})


def _mean_over_all(loss: Any) -> None:
    def mean(losses: Any, hard: int, n_min: int) -> Any:
        return losses.sum() / len(losses)

    loss.criterion._mean_of_hardest = mean


LOSS = (
    Fault(
        "void_as_class",
        "loss",
        "*/loss/main",
        "void pixels count as class 0",
        _loss_with(_void_as_class),
        why="ignore-index",
    ),
    Fault(
        "ohem_threshold",
        "loss",
        "*/loss/main",
        "0.7 taken as a loss, not as a probability",
        _loss_with(_set(hard_loss=0.7)),
        why="ohem-threshold",
    ),
    Fault(
        "ohem_n_min",
        "loss",
        "*/loss/main",
        "n_min from all pixels instead of the valid ones",
        _loss_with(_set(rule="pixel_fraction")),
        why="ohem-rule",
    ),
    Fault(
        "ohem_min_kept",
        "loss",
        "*/loss/main",
        "PaddleSeg's rule: min_kept pixels and another mean",
        _loss_with(_set(rule="min_kept", min_kept=1000)),
        why="ohem-rule",
    ),
    Fault(
        "ohem_missing",
        "loss",
        "*/loss/main",
        "plain cross entropy",
        _loss_with(_set(rule="none")),
        why="ohem-missing",
    ),
    Fault(
        "mean_over_all",
        "loss",
        "*/loss/main",
        "sum over all pixels, void included",
        _loss_with(_mean_over_all),
        why="ignore-index-in-mean",
    ),
    Fault(
        "loss_weight",
        "loss",
        "*/loss/total",
        "auxiliary losses weigh 0.5",
        _loss_with(_halve_aux),
        why="term-weight",
    ),
    Fault(
        "loss_term_dropped",
        "loss",
        "*/loss/total",
        "the third head is not in the loss",
        _loss_with(_drop_aux32),
        why="dropped-term",
    ),
)
