"""What a checkpoint holds of the optimizer and its schedule: free to differ.

Momentum buffers go by canonical parameter name, so that a checkpoint does not depend on Paddle's
generated names. The schedule is a number: how many steps it has taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle.optimizer import Momentum
from paddle.optimizer.lr import LambdaDecay

from common.errors import WeightsError
from common.weight_names import turn_linear
from for_paddle.backend import to_numpy, trainable_parameters


def momentum_arrays(optimizer: Momentum, model: nn.Layer) -> dict[str, NDArray[Any]]:
    """Return the momentum buffer of every parameter that has been updated, by canonical name."""
    velocities = vars(optimizer)["_accumulators"]["velocity"]
    return {
        name: np.ascontiguousarray(turn_linear(name, to_numpy(velocities[key])))
        for name, key in _velocity_owners(optimizer, model).items()
        if key in velocities
    }


def load_momentum(optimizer: Momentum, model: nn.Layer, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give a new optimizer the momentum buffers of momentum_arrays.

    Raises:
        WeightsError: a buffer for a parameter that the model does not have.
    """
    if not arrays:
        return
    owners = _velocity_owners(optimizer, model)
    _require_known(arrays, owners)
    buffers: dict[str, Any] = {
        # the name under which the optimizer looks for it at its first step; it raises if not found
        f"{owners[name]}_velocity_0": paddle.to_tensor(
            np.ascontiguousarray(turn_linear(name, array))
        )
        for name, array in arrays.items()
    }
    masters = vars(optimizer).get("_master_weights")
    if masters:
        buffers["master_weights"] = masters
    # Paddle 2.6 insists on the schedule's state, which set_schedule_steps gives it anyway
    buffers["LR_Scheduler"] = vars(optimizer)["_learning_rate"].state_dict()
    optimizer.set_state_dict(buffers)


def schedule_steps(scheduler: LambdaDecay) -> int:
    """Return how many steps the schedule has taken."""
    return int(scheduler.last_epoch)


def set_schedule_steps(optimizer: Momentum, scheduler: LambdaDecay, steps: int) -> None:
    """Put a new schedule where it is after so many steps, and its rates into the optimizer."""
    del optimizer
    # the optimizer asks the schedule for its rate
    scheduler.step(steps)


def _require_known(arrays: Mapping[str, NDArray[Any]], parameters: Mapping[str, object]) -> None:
    unknown = sorted(set(arrays) - set(parameters))
    if unknown:
        raise WeightsError(
            f"momentum buffers for {', '.join(unknown[:5])} ({len(unknown)} in all), which the "
            "model does not have; resume with the configuration that the checkpoint was made with"
        )


def _velocity_owners(optimizer: Momentum, model: nn.Layer) -> dict[str, str]:
    """Canonical name -> Paddle's name of what has the velocity: a master weight, if there is."""
    masters: dict[str, Tensor] = vars(optimizer).get("_master_weights", {})
    return {
        name: masters[tensor.name].name if tensor.name in masters else tensor.name
        for name, tensor in trainable_parameters(model).items()
    }
