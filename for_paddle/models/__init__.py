"""The networks by name: one line per model."""

from __future__ import annotations

from common.errors import ConfigError
from for_paddle.models.bisenetv1 import BiSeNetV1

MODELS: dict[str, type[BiSeNetV1]] = {
    "bisenetv1": BiSeNetV1,
}


def build_model(name: str, *, classes: int, aux_heads: bool = True) -> BiSeNetV1:
    """Build a network on the current device, in the default dtype, with fresh weights.

    Args:
        name: a key of MODELS.
        classes: number of classes.
        aux_heads: False leaves out the heads that only training uses.

    Raises:
        ConfigError: the name is not a key of MODELS.
    """
    if name not in MODELS:
        raise ConfigError(f"model.name is {name!r}; expected one of {', '.join(MODELS)}")
    return MODELS[name](classes, aux_heads=aux_heads)
