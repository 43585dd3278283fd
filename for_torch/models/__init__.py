"""The networks by name: one line per model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias, cast

from common.config_pair import PairConfig
from common.config_sections import Option
from common.errors import ConfigError
from for_torch.models.bisenetv1 import BiSeNetV1
from for_torch.models.bisenetv1_2019 import BiSeNetV1First
from for_torch.models.bisenetv2 import BiSeNetV2
from for_torch.models.bisestdc import BISESTDC2_STRIDES, BISESTDC_STRIDES, BiSeSTDC
from for_torch.models.own import build_own
from for_torch.models.stdcnet import STDC1_LAYERS, STDC2_LAYERS
from for_torch.models.stdcseg import STDCSeg

Network: TypeAlias = BiSeNetV1 | BiSeNetV1First | BiSeNetV2 | STDCSeg | BiSeSTDC

MODELS: dict[str, Callable[..., Network]] = {
    "bisenetv1": BiSeNetV1,
    "bisenetv1_2020": partial(BiSeNetV1, form="2020", norm="inplace_abn"),
    "bisenetv1_fp16_2020": partial(BiSeNetV1, form="2020"),
    "bisenetv1_diss": partial(BiSeNetV1, form="2020", norm="inplace_abn", spatial_path=False),
    "bisenetv1_diss_bn": partial(BiSeNetV1, form="2020", spatial_path=False),
    "bisenetv1_2019": BiSeNetV1First,
    "bisenetv2": BiSeNetV2,
    "bisenetv2_2020": partial(BiSeNetV2, form="2020"),
    "stdc1": partial(STDCSeg, layers=STDC1_LAYERS),
    "stdc2": partial(STDCSeg, layers=STDC2_LAYERS),
    "bisestdc": partial(BiSeSTDC, spatial_base=64, spatial_strides=BISESTDC_STRIDES),
    "bisestdc2": partial(BiSeSTDC, spatial_base=128, spatial_strides=BISESTDC2_STRIDES),
}


BOUNDARIES = ("use_boundary_2", "use_boundary_4", "use_boundary_8", "use_boundary_16")

OPTIONS: dict[str, tuple[str, ...]] = {
    "bisenetv1_2019": ("use_arm", "use_global_pooling"),
    "stdc1": BOUNDARIES,
    "stdc2": BOUNDARIES,
    "bisestdc": BOUNDARIES,
    "bisestdc2": BOUNDARIES,
}
"""The switches of the networks that have any, on or off with the same names and shapes of weights.

What makes a published network (form, norm, layers, spatial path) is no switch: it has a name.
"""


def build_model(
    name: str,
    *,
    classes: int,
    aux_heads: bool = True,
    options: Mapping[str, Option] | None = None,
    pair: PairConfig | None = None,
) -> Network:
    """Build a network on the current device, in the default dtype, with fresh weights.

    Args:
        name: a key of MODELS.
        classes: number of classes.
        aux_heads: False leaves out the heads that only training uses.
        options: the network's switches by name, keys of OPTIONS; one left out, or None for all,
            is as the network was published.
        pair: a user's own network, in place of those of MODELS; its options are free.

    Raises:
        ConfigError: the name is not a key of MODELS (or, with a pair, is one), the network has no
            such option, or the pair's class cannot be used.
    """
    if pair is not None:
        if name in MODELS:
            raise ConfigError(
                f"model.name is {name!r}, a network of the family, but model.pair names one of "
                "your own; give it another name"
            )
        own = build_own(
            pair, name=name, classes=classes, aux_heads=aux_heads, options=options or {}
        )
        return cast("Network", own)
    if name not in MODELS:
        raise ConfigError(f"model.name is {name!r}; expected one of {', '.join(MODELS)}")
    switches = dict(options or {})
    known = OPTIONS.get(name, ())
    unknown = [option for option in switches if option not in known]
    if unknown:
        raise ConfigError(
            f"model.options names {', '.join(unknown)}, which {name} does not have; "
            f"its options: {', '.join(known) or 'none'}"
        )
    model = MODELS[name](classes, aux_heads=aux_heads, **switches)
    model.name = name
    return model
