"""Wrong updates."""

from __future__ import annotations

from typing import Any

from pipeline.faults.patching import Fault, optimizer_options, replaced


def _decoupled(right: Any, side: Any) -> Any:
    def build(model: Any, *, optimizer: Any, schedule: Any) -> Any:
        undecayed = optimizer.model_copy(update={"weight_decay": 0.0})
        built, scheduler = right(model, optimizer=undecayed, schedule=schedule)
        step = built.step

        def decayed_step() -> None:
            rate = float(built.get_lr())
            for parameter in side.backend.trainable_parameters(model).values():
                if parameter.ndim > 1:
                    factor = 1 - rate * optimizer.weight_decay
                    parameter.set_value(parameter.detach() * factor)
            step()

        built.step = decayed_step
        return built, scheduler

    return build


OPTIMIZER = (
    Fault(
        "decay_decoupled",
        "optimizer",
        "step1/*",
        "weight decay decoupled from the gradient",
        replaced(lambda side: side.optim, "build_optimizer", _decoupled),
        why="decoupled-decay",
    ),
    Fault(
        "nesterov",
        "optimizer",
        "step1/param/*",
        "Nesterov momentum",
        optimizer_options(nesterov=True),
        why="nesterov",
    ),
    Fault(
        "momentum",
        "optimizer",
        "step5/*",
        "momentum 0.95",
        optimizer_options(momentum=0.95),
        why="momentum",
    ),
    Fault(
        "weight_decay",
        "optimizer",
        "step1/*",
        "weight decay 1e-4 for 5e-4",
        optimizer_options(weight_decay=1e-4),
        why="weight-decay",
    ),
)
