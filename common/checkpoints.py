"""What a weights file of any origin holds, brought to canonical names and layout.

Published and self-made files wrap their state dict ("state_dict", "model", ...), carry a prefix
("module." of distributed training), hold every backbone tensor of STDC twice, or are a dict of one
state dict per child (BiSeNetV2's backbone). All of that is undone here, and told in notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from common.errors import WeightsError
from common.weight_names import is_batch_counter, paddle_to_canonical, turn_linear

Array = NDArray[Any]

WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")
"""Keys under which training scripts put the state dict beside their other state."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Put before every name by distributed training, torch.compile and a wrapping module."""
PADDLE_EXTRAS = ("StructuredToParameterName@@",)
"""paddle.save's own table beside the weights."""
PADDLE_SPLIT = "UnpackBigParamInfor@@"
"""paddle.save's mark that it cut arrays into slices, which protocols 2 and 3 need above 4 GB."""

# STDC registers its stages a second time: x8.0.2 is features.2, SPx8.0.2 is featuresSP.2
_ALIAS = re.compile(r"(^|\.)(SP)?x(?:2|4|8|16|32)\.0\.(?=\d+\.)")


@dataclass(frozen=True)
class Checkpoint:
    """Weights of any origin under canonical names, in canonical layout."""

    where: str
    """The file's name, for messages."""
    arrays: dict[str, Array]
    """Everything but batch counters; floating point."""
    counters: dict[str, Array]
    """Batch counters (num_batches_tracked)."""
    notes: tuple[str, ...] = ()
    """What was undone on the way, in words."""
    counted: bool = False
    """True for a file type that keeps batch counters: their absence then means InPlaceABN."""
    model: str = ""
    """Name of our model the file was written for, if the file tells."""


def checkpoint_from(
    content: object,
    *,
    where: str,
    paddle: bool = False,
    counted: bool = False,
    model: str = "",
    widened: int = 0,
) -> Checkpoint:
    """Unwrap, flatten and rename what a weights file holds.

    Args:
        content: nested dicts of arrays, as read.
        where: the file's name, for messages.
        paddle: names and layout are Paddle's.
        counted: the file type keeps batch counters.
        model: name of our model the file was written for, if known.
        widened: number of bfloat16 tensors in it that were read as float32.

    Raises:
        WeightsError: there is no state dict in it, entries are no weights, two names become one,
            or aliases of one tensor disagree; all are listed.
    """
    notes: list[str] = []
    if widened:
        notes.append(f"{widened} bfloat16 tensors are float32 now, which holds them exactly")
    flat = _only_arrays(_flattened(_unwrapped(content, where, notes), notes), where)
    flat = _without_prefixes(flat, notes)
    if paddle:
        flat = _renamed(
            ((paddle_to_canonical(name), turn_linear(name, a)) for name, a in flat.items()), where
        )
    flat = _without_aliases(flat, where, notes)
    arrays = {name: array for name, array in flat.items() if not is_batch_counter(name)}
    if not arrays:
        raise WeightsError(f"{where}: holds no weights; expected a state dict, name -> array")
    wrong = [
        f"  {name}: {array.dtype}" for name, array in arrays.items() if array.dtype.kind != "f"
    ]
    if wrong:
        # to numpy, Paddle's bfloat16 are uint16
        half = paddle and any(array.dtype == np.uint16 for array in arrays.values())
        how = ". Paddle keeps bfloat16 as uint16, not to be told from integers: save float32"
        raise WeightsError(
            f"{where}: {len(wrong)} entries are not of a floating type; expected float16, float32 "
            f"or float64 weights{how if half else ''}\n" + "\n".join(wrong)
        )
    counters = {name: array for name, array in flat.items() if is_batch_counter(name)}
    return Checkpoint(where, arrays, counters, tuple(notes), counted, model)


def alias_owner(name: str) -> str:
    """Return the name under which our models keep a tensor: ``x8.0.2...`` -> ``features.2...``."""
    return _ALIAS.sub(lambda match: f"{match[1]}features{match[2] or ''}.", name)


def with_aliases(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Add the second names under which STDC's own code expects its backbone.

    Args:
        arrays: a whole model's, or a backbone's, in state-dict order.

    Returns:
        The same arrays, aliases after the backbone's own names, where STDC's own code has them.
        Weights without an STDC backbone are returned unchanged.
    """
    aliases = _stage_aliases(arrays)
    if not aliases:
        return dict(arrays)
    backbone = next(iter(aliases)).rpartition("x2.0.0.")[0]
    inside = [name for name in arrays if name.startswith(backbone)]
    # BiSeSTDC's inner fusion module is registered after the stages
    last = next((name for name in inside if name.startswith(f"{backbone}ffm.")), "")
    position = inside.index(last) if last else len(inside)
    own = {name: arrays[name] for name in inside[:position]}
    own |= {alias: arrays[name] for alias, name in aliases.items()}
    own |= {name: arrays[name] for name in inside[position:]}
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        found |= own if name == inside[0] else {name: array}
    return found


def _stage_aliases(names: Iterable[str]) -> dict[str, str]:
    """Alias -> name, stage by stage, of every tensor in STDC's features and featuresSP."""
    found: dict[str, str] = {}
    parts = [re.match(r"((?:.*\.)?)features(SP)?\.(\d+)\.(.*)", name) for name in names]
    matches = [match for match in parts if match is not None]
    # the block that halves the resolution opens a stage; it alone has an avd_layer
    opening = {int(m[3]) for m in matches if not m[2] and m[4].startswith("avd_layer.")}
    stages = {0: 2, 1: 4} | {index: 8 << n for n, index in enumerate(sorted(opening))}
    for trunk in (None, "SP"):
        for match in (match for match in matches if match[2] == trunk):
            index = int(match[3])
            # in the spatial branch every entry is a stage of its own
            stage = 2 << index if trunk else stages[max(i for i in stages if i <= index)]
            found[f"{match[1]}{trunk or ''}x{stage}.0.{index}.{match[4]}"] = match[0]
    return found


def _unwrapped(content: object, where: str, notes: list[str]) -> dict[str, object]:
    while True:
        if not isinstance(content, Mapping):
            raise WeightsError(
                f"{where}: holds a {type(content).__name__}; expected a state dict, name -> array"
            )
        names = {
            str(key): value
            for key, value in cast("Mapping[object, object]", content).items()
            if key not in PADDLE_EXTRAS
        }
        if PADDLE_SPLIT in names:
            raise WeightsError(
                f"{where}: paddle.save has cut its arrays into slices (protocol 2 or 3, over 4 GB);"
                " save it again with protocol=4"
            )
        wrappers = [key for key in WRAPPERS if isinstance(names.get(key), Mapping)]
        if not wrappers:
            return names
        if len(wrappers) > 1:
            raise WeightsError(
                f"{where}: holds several state dicts ({', '.join(wrappers)}); expected one of them"
            )
        beside = ", ".join(key for key in names if key != wrappers[0])
        notes.append(f"unwrapped {wrappers[0]!r}" + (f"; beside it: {beside}" if beside else ""))
        content = names[wrappers[0]]


def _flattened(names: dict[str, object], notes: list[str]) -> dict[str, object]:
    """Join a dict of one state dict per child into one."""
    children = [key for key, value in names.items() if isinstance(value, Mapping)]
    if not children or len(children) < len(names):
        return names
    notes.append(f"joined the state dicts of {', '.join(children)}")
    return {
        f"{child}.{name}": value
        for child in children
        for name, value in cast("Mapping[str, object]", names[child]).items()
    }


def _only_arrays(names: dict[str, object], where: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    others: list[str] = []
    for name, value in names.items():
        # paddle.save keeps a tensor inside other state as (parameter's own name, array)
        item = value[1] if isinstance(value, tuple) and len(value) == 2 else value
        if isinstance(item, np.ndarray):
            found[name] = item
        else:
            others.append(f"  {name}: {type(value).__name__}")
    if others:
        raise WeightsError(
            f"{where}: {len(others)} of {len(names)} entries are no arrays; expected a state dict, "
            f"alone or under one of {', '.join(WRAPPERS)}\n" + "\n".join(others)
        )
    return found


def _without_prefixes(arrays: dict[str, Array], notes: list[str]) -> dict[str, Array]:
    while arrays:
        common = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in arrays)]
        if not common:
            break
        notes.append(f"removed the prefix {common[0]!r}")
        arrays = {name.removeprefix(common[0]): array for name, array in arrays.items()}
    return arrays


def _renamed(pairs: Iterable[tuple[str, Array]], where: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, array in pairs:
        if name in found:
            raise WeightsError(f"{where}: two entries are both {name}; expected one")
        found[name] = array
    return found


def _without_aliases(arrays: dict[str, Array], where: str, notes: list[str]) -> dict[str, Array]:
    found = {name: array for name, array in arrays.items() if alias_owner(name) == name}
    aliases = {name: alias_owner(name) for name in arrays if alias_owner(name) != name}
    different: list[str] = []
    for name, owner in aliases.items():
        if not _same(found.setdefault(owner, arrays[name]), arrays[name]):
            different.append(f"  {name} differs from {owner}")
    if different:
        raise WeightsError(
            f"{where}: {len(different)} tensors are there twice and differ; the two names are one "
            "tensor of the model, so the file is damaged or was edited\n" + "\n".join(different)
        )
    if aliases:
        notes.append(f"{len(aliases)} second names of backbone tensors agree with the first")
    return found


def _same(one: Array, other: Array) -> bool:
    """Tell whether two arrays are equal to the bit: NaN included, -0 and 0 apart."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tobytes() == other.tobytes()
