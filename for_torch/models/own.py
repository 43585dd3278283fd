"""Builds the Torch side of a user's own pair, and gives it what the pipeline asks of a network.

The network stays the object that the user's class made, under the user's names: its outputs are
named by a hook on it, and a few attributes are set. Torch's names are the canonical ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from common.config_pair import PairConfig
from common.errors import ConfigError
from common.layer_names import check_patterns
from common.own_pair import parse_reference
from common.own_pair_import import construct, load_own, named_outputs, own_settings, settle


def build_own(
    pair: PairConfig,
    *,
    name: str,
    classes: int,
    aux_heads: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    """Build this side's network of a pair, in the default dtype, with its own initialisation.

    Args:
        pair: which file and class, and what its outputs are called.
        name: what the configuration calls the network.
        classes: the first argument of its constructor.
        aux_heads: handed on where the constructor has an argument of that name.
        options: further arguments of its constructor.

    Raises:
        ConfigError: the file cannot be imported, the class cannot be called so or makes no
            torch.nn.Module, or what the pair says of its layers does not fit.
    """
    where = parse_reference(pair.torch).where
    model = construct(
        load_own(pair, "torch"), where=where, classes=classes, aux_heads=aux_heads, options=options
    )
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{where} makes a {type(model).__module__}.{type(model).__name__}; expected a "
            "torch.nn.Module"
        )
    if pair.names:
        known = [*(layer for layer, _ in model.named_modules() if layer), *model.state_dict()]
        check_patterns(list(pair.names), known, where=where)
    settle(model, own_settings(pair, name=name, classes=classes), where=where)

    def name_outputs(network: nn.Module, _inputs: Any, output: Any) -> dict[str, Any]:
        return named_outputs(output, pair.heads, training=network.training, where=where)

    model.register_forward_hook(name_outputs)
    return model
