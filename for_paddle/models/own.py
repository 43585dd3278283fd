"""Builds the Paddle side of a user's own pair, and gives it what the pipeline asks of a network.

The network stays the object that the user's class made: its outputs are named by a hook on it, and
a few attributes are set. Where ``model.pair.names`` says that its layers are named otherwise than
Torch's, its listings tell the names of Torch, which are the canonical ones.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

from paddle import Tensor, nn

from common.config_pair import PairConfig
from common.errors import ConfigError
from common.layer_names import check_one_to_one, check_patterns, renaming
from common.own_pair import parse_reference
from common.own_pair_import import construct, load_own, named_outputs, own_settings, settle


def build_own(
    pair: PairConfig,
    *,
    name: str,
    classes: int,
    aux_heads: bool,
    options: Mapping[str, Any],
) -> nn.Layer:
    """Build this side's network of a pair, in the default dtype, with its own initialisation.

    Args:
        pair: which file and class, and what its outputs are called.
        name: what the configuration calls the network.
        classes: the first argument of its constructor.
        aux_heads: handed on where the constructor has an argument of that name.
        options: further arguments of its constructor.

    Raises:
        ConfigError: the file cannot be imported, the class cannot be called so or makes no
            paddle.nn.Layer, or what the pair says of its layers does not fit.
    """
    where = parse_reference(pair.paddle).where
    model = construct(
        load_own(pair, "paddle"), where=where, classes=classes, aux_heads=aux_heads, options=options
    )
    if not isinstance(model, nn.Layer):
        raise ConfigError(
            f"{where} makes a {type(model).__module__}.{type(model).__name__}; expected a "
            "paddle.nn.Layer"
        )
    if pair.names:
        known = [*(layer for layer, _ in model.named_sublayers() if layer), *model.state_dict()]
        check_patterns(list(pair.names.values()), known, where=where)
        rename = renaming(pair.names)
        check_one_to_one(known, rename, where=where)
        _rename(model, rename)
    settle(model, own_settings(pair, name=name, classes=classes), where=where)

    def name_outputs(network: nn.Layer, _inputs: Any, output: Any) -> dict[str, Any]:
        return named_outputs(output, pair.heads, training=network.training, where=where)

    model.register_forward_post_hook(name_outputs)
    return model


def _rename(model: nn.Layer, rename: Callable[[str], str]) -> None:
    """Let a network list its layers, parameters and buffers under other names."""
    plain = type(model)

    class Renamed(plain):
        """The same network; only its listings differ."""

        def named_sublayers(
            self, prefix: str = "", include_self: bool = False, layers_set: Any = None
        ) -> Generator[tuple[str, nn.Layer], None, None]:
            found = super().named_sublayers("", include_self, layers_set)
            return ((_joined(prefix, rename(name)), layer) for name, layer in found)

        def named_parameters(
            self, prefix: str = "", include_sublayers: bool = True
        ) -> Generator[tuple[str, Tensor], None, None]:
            seen: set[int] = set()
            layers = super().named_sublayers("", True) if include_sublayers else [("", self)]
            for path, layer in layers:
                own = nn.Layer.named_parameters(cast("nn.Layer", layer), include_sublayers=False)
                for name, parameter in own:
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        yield _joined(prefix, rename(_joined(path, name))), parameter

        def state_dict(self, *arguments: Any, **options: Any) -> Any:
            state = super().state_dict(*arguments, **options)
            return type(state)((rename(name), tensor) for name, tensor in state.items())

    Renamed.__name__, Renamed.__qualname__ = plain.__name__, plain.__qualname__
    model.__class__ = Renamed


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
