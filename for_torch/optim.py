"""SGD with momentum, its parameter groups and the schedule; and what they really are, read back.

The update is v = momentum * v + (gradient + weight_decay * w); w = w - lr * v, the same in both
frameworks. Order of calls: ``optimizer.step()``, then ``scheduler.step()``.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from common.config_sections import OptimizerConfig, ScheduleConfig
from common.param_groups import assign_groups, group_table
from common.schedule import lr_factor
from for_torch.backend import to_numpy, trainable_parameters


def build_optimizer(
    model: nn.Module, *, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> tuple[SGD, LambdaLR]:
    """Return the optimizer over all trainable parameters, and its attached schedule.

    Groups without parameters are left out. A group's "lr" is absolute.
    """
    members = members_by_group(model)
    groups = [
        {
            "name": group.name,
            "params": members[group.name],
            "lr": optimizer.base_lr * group.lr_mult,
            "weight_decay": group.weight_decay,
        }
        for group in group_table(optimizer).values()
        if group.name in members
    ]
    sgd = SGD(
        groups,
        lr=optimizer.base_lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
    )
    return sgd, LambdaLR(sgd, lambda iteration: lr_factor(iteration, schedule))


def members_by_group(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return the parameters of every group that has any, in model order.

    Those that the model names in ``ungrouped`` are in none.
    """
    parameters = trainable_parameters(model)
    ranks = {name: parameter.ndim for name, parameter in parameters.items()}
    head_modules = cast("tuple[str, ...]", model.head_modules)
    ungrouped = cast("tuple[str, ...]", getattr(model, "ungrouped", ()))
    assigned = assign_groups(ranks, head_modules=head_modules, ungrouped=ungrouped)
    members: dict[str, list[Tensor]] = {}
    for name, group in assigned.items():
        members.setdefault(group, []).append(parameters[name])
    return members


def learning_rates(optimizer: SGD) -> dict[str, float]:
    """Return the rate that the next step uses, by group name, read from the optimizer."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}


def parameter_groups(optimizer: SGD, model: nn.Module) -> dict[str, str]:
    """Return the group name of every parameter that the optimizer updates, read from it."""
    names = {id(parameter): name for name, parameter in trainable_parameters(model).items()}
    return {
        names[id(parameter)]: group["name"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def group_options(optimizer: SGD) -> dict[str, dict[str, float | bool]]:
    """Return lr_mult, weight_decay, momentum and nesterov in force, by group name."""
    base_lr = optimizer.defaults["lr"]
    return {
        group["name"]: {
            "lr_mult": group["initial_lr"] / base_lr,
            "weight_decay": group["weight_decay"],
            "momentum": group["momentum"],
            "nesterov": group["nesterov"],
        }
        for group in optimizer.param_groups
    }


def momentum_buffers(optimizer: SGD, model: nn.Module) -> dict[str, NDArray[np.floating]]:
    """Return the momentum buffer of every parameter that has been updated."""
    return {
        name: to_numpy(optimizer.state[parameter]["momentum_buffer"])
        for name, parameter in trainable_parameters(model).items()
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    }


def adopt_kernel_constants(optimizer: SGD) -> None:
    """Round momentum and weight decay to float32, as Paddle's kernel stores them.

    For float64 comparisons only: with the plain values, 50 steps differ by 3.5e-8. The learning
    rate is float64 on both sides and stays.
    """
    for group in optimizer.param_groups:
        group["momentum"] = float(np.float32(group["momentum"]))
        group["weight_decay"] = float(np.float32(group["weight_decay"]))
