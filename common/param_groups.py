"""Which parameter belongs to which optimizer group, and the options of each group.

The recipe of CoinCheung/BiSeNet@6b4b67a: weights of convolutions and linear layers are decayed;
BatchNorm parameters and biases, all one-dimensional, are not; modules that are not pre-trained
(feature fusion and output heads) learn with a multiplied rate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common.config_sections import OptimizerConfig

# convolution and linear weights; the only ranks, besides 1, that the networks have
_WEIGHT_RANKS = (2, 4)


@dataclass(frozen=True)
class ParameterGroup:
    """Options of one optimizer group."""

    name: str
    lr_mult: float
    """Factor on the scheduled learning rate."""
    weight_decay: float


def group_table(optimizer: OptimizerConfig) -> dict[str, ParameterGroup]:
    """Return the four groups by name, in the order they are handed to the optimizer."""
    one_dim_decay = optimizer.weight_decay if optimizer.decay_norm_and_bias else 0.0
    groups = (
        ParameterGroup("decay", 1.0, optimizer.weight_decay),
        ParameterGroup("no_decay", 1.0, one_dim_decay),
        ParameterGroup("head_decay", optimizer.head_lr_mult, optimizer.weight_decay),
        ParameterGroup("head_no_decay", optimizer.head_lr_mult, one_dim_decay),
    )
    return {group.name: group for group in groups}


def assign_groups(
    parameters: Mapping[str, int],
    *,
    head_modules: Collection[str],
    ungrouped: Collection[str] = (),
) -> dict[str, str]:
    """Return the group name of every parameter that is updated.

    Args:
        parameters: number of dimensions by parameter name ("ffm.conv.weight": 4).
        head_modules: top-level child names whose rate is multiplied ("ffm", "conv_out").
        ungrouped: names of parameters that the recipe never updates.

    Raises:
        ValueError: a parameter that no rule covers; it would silently never be updated. Or a
            name in ungrouped that is no parameter.
    """
    if not parameters:
        raise ValueError("no trainable parameters; expected at least one")
    unknown = sorted(set(ungrouped) - set(parameters))
    if unknown:
        raise ValueError(f"ungrouped names {', '.join(unknown)}; expected names of parameters")
    updated = {name: rank for name, rank in parameters.items() if name not in set(ungrouped)}
    groups: dict[str, str] = {}
    for name, rank in updated.items():
        if rank == 1:
            kind = "no_decay"
        elif rank in _WEIGHT_RANKS:
            kind = "decay"
        else:
            raise ValueError(
                f"parameter {name} has {rank} dimensions and is covered by no group; expected 1 "
                f"(BatchNorm, bias) or {_WEIGHT_RANKS} (linear, convolution): add a rule for it"
            )
        is_head = name.partition(".")[0] in head_modules
        groups[name] = f"head_{kind}" if is_head else kind
    return groups
