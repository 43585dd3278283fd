"""SGD with momentum, its parameter groups and the schedule; and what they really are, read back.

The update is v = momentum * v + (gradient + weight_decay * w); w = w - lr * v, the same in both
frameworks. Order of calls: ``optimizer.step()``, then ``scheduler.step()``.

Paddle copies a group's multiplier onto its parameters (``optimize_attr``) and turns its weight
decay into ``regularization_coeff``, which the kernel is called with; those are what is read back.
There is no public reader for groups and velocities, hence ``vars(optimizer)``.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle.optimizer import Momentum
from paddle.optimizer.lr import LambdaDecay

from common.config_sections import OptimizerConfig, ScheduleConfig
from common.param_groups import assign_groups, group_table
from common.schedule import lr_factor
from common.weight_names import turn_linear
from for_paddle.backend import to_numpy, trainable_parameters


def build_optimizer(
    model: nn.Layer, *, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> tuple[Momentum, LambdaDecay]:
    """Return the optimizer over all trainable parameters, and its attached schedule.

    Groups without parameters are left out. A group's "learning_rate" multiplies the schedule's.
    """
    members = members_by_group(model)
    groups = [
        {
            "name": group.name,
            "params": members[group.name],
            "learning_rate": group.lr_mult,
            # an int 0 is a TypeError in Paddle
            "weight_decay": float(group.weight_decay),
        }
        for group in group_table(optimizer).values()
        if group.name in members
    ]
    decay = LambdaDecay(optimizer.base_lr, lambda iteration: lr_factor(iteration, schedule))
    momentum = Momentum(
        decay,
        parameters=groups,
        momentum=optimizer.momentum,
        use_nesterov=optimizer.nesterov,
    )
    return momentum, decay


def members_by_group(model: nn.Layer) -> dict[str, list[Tensor]]:
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


def learning_rates(optimizer: Momentum) -> dict[str, float]:
    """Return the rate that the next step uses, by group name, read from the optimizer."""
    scheduled = float(optimizer.get_lr())
    # a group's parameters share their multiplier: group_options checks that
    return {
        group["name"]: scheduled * group["params"][0].optimize_attr["learning_rate"]
        for group in vars(optimizer)["_param_groups"]
    }


def parameter_groups(optimizer: Momentum, model: nn.Layer) -> dict[str, str]:
    """Return the group name of every parameter that the optimizer updates, read from it."""
    names = {id(parameter): name for name, parameter in trainable_parameters(model).items()}
    return {
        names[id(parameter)]: group["name"]
        for group in vars(optimizer)["_param_groups"]
        for parameter in group["params"]
    }


def group_options(optimizer: Momentum) -> dict[str, dict[str, float | bool]]:
    """Return lr_mult, weight_decay, momentum and nesterov in force, by group name."""
    options: dict[str, dict[str, float | bool]] = {}
    for group in vars(optimizer)["_param_groups"]:
        multipliers = {parameter.optimize_attr["learning_rate"] for parameter in group["params"]}
        if len(multipliers) > 1:
            raise RuntimeError(
                f"the parameters of group {group['name']} have multipliers {multipliers}: "
                "another optimizer was built on the same model; build this one anew"
            )
        in_force = {**vars(optimizer)["_default_dict"], **group}
        options[group["name"]] = {
            "lr_mult": multipliers.pop(),
            "weight_decay": in_force["regularization_coeff"],
            "momentum": in_force["momentum"],
            "nesterov": in_force["use_nesterov"],
        }
    return options


def momentum_buffers(optimizer: Momentum, model: nn.Layer) -> dict[str, NDArray[np.floating]]:
    """Return the momentum buffer of every parameter that has been updated."""
    velocities = vars(optimizer)["_accumulators"]["velocity"]
    return {
        name: turn_linear(name, to_numpy(velocities[parameter.name]))
        for name, parameter in trainable_parameters(model).items()
        if parameter.name in velocities
    }


def adopt_kernel_constants(optimizer: Momentum) -> None:
    """Do nothing: Paddle's kernel stores momentum and weight decay as float32 already."""
    del optimizer
