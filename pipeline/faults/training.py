"""Wrong training loops."""

from __future__ import annotations

from typing import Any
from unittest import mock

from pipeline.faults.patching import Fault, replaced


def _scheduler_first(right: Any, side: Any) -> Any:
    def train_step(model: Any, loss: Any, optimizer: Any, scheduler: Any, **batch: Any) -> Any:
        scheduler.step()
        return right(model, loss, optimizer, mock.Mock(), **batch)

    return train_step


def _gradients_kept(right: Any, side: Any) -> Any:
    def train_step(model: Any, loss: Any, optimizer: Any, scheduler: Any, **batch: Any) -> Any:
        with mock.patch.object(optimizer, "clear_grad", lambda: None):
            return right(model, loss, optimizer, scheduler, **batch)

    return train_step


def _eval_mode(right: Any, side: Any) -> Any:
    def train_step(model: Any, loss: Any, optimizer: Any, scheduler: Any, **batch: Any) -> Any:
        model.eval()
        model.aux_in_eval = True
        return right(model, loss, optimizer, scheduler, **batch)

    return train_step


def _train(side: Any) -> Any:
    return side.train


TRAINING = (
    Fault(
        "scheduler_first",
        "training",
        "loss/*",
        "the scheduler steps before the optimizer",
        replaced(_train, "train_step", _scheduler_first),
    ),
    Fault(
        "gradients_kept",
        "training",
        "loss/*",
        "gradients add up over iterations",
        replaced(_train, "train_step", _gradients_kept),
    ),
    Fault(
        "trained_in_eval_mode",
        "training",
        "loss/*",
        "BatchNorm in evaluation mode",
        replaced(_train, "train_step", _eval_mode),
    ),
)
