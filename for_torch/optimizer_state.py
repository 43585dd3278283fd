"""What a checkpoint holds of the optimizer and its schedule: free to differ.

Momentum buffers go by canonical parameter name, so that a checkpoint does not depend on the order
of groups. The schedule is a number: how many steps it has taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from common.errors import WeightsError
from for_torch.backend import trainable_parameters
from for_torch.optim import momentum_buffers


def momentum_arrays(optimizer: SGD, model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return the momentum buffer of every parameter that has been updated, by canonical name."""
    return dict(momentum_buffers(optimizer, model))


def load_momentum(optimizer: SGD, model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give a new optimizer the momentum buffers of momentum_arrays.

    Raises:
        WeightsError: a buffer for a parameter that the model does not have.
    """
    parameters = trainable_parameters(model)
    _require_known(arrays, parameters)
    for name, array in arrays.items():
        parameter = parameters[name]
        buffer = torch.tensor(array, dtype=parameter.dtype, device=parameter.device)
        # the layout that the optimizer itself would have given it
        buffer = buffer.to(memory_format=_format_of(parameter))
        optimizer.state[parameter]["momentum_buffer"] = buffer


def schedule_steps(scheduler: LambdaLR) -> int:
    """Return how many steps the schedule has taken."""
    return int(scheduler.last_epoch)


def set_schedule_steps(optimizer: SGD, scheduler: LambdaLR, steps: int) -> None:
    """Put a new schedule where it is after so many steps, and its rates into the optimizer."""
    rates = [
        base * rule(steps)
        for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    state = {"last_epoch": steps, "_step_count": steps + 1, "_last_lr": rates}
    scheduler.load_state_dict({**scheduler.state_dict(), **state})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _require_known(
    arrays: Mapping[str, NDArray[Any]], parameters: Mapping[str, torch.Tensor]
) -> None:
    unknown = sorted(set(arrays) - set(parameters))
    if unknown:
        raise WeightsError(
            f"momentum buffers for {', '.join(unknown[:5])} ({len(unknown)} in all), which the "
            "model does not have; resume with the configuration that the checkpoint was made with"
        )


def _format_of(parameter: torch.Tensor) -> torch.memory_format:
    if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
