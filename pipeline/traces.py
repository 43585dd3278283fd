"""A traced pass (for_*/forcing.py) as a record: what was handed over where, and who called whom.

Most of what a layer is given is what another one returned, and most of a forced pass is the
reference's numbers to the bit: such arrays are written once, or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.records import Array

ABOUT = "trace"
"""Record key of the description, JSON."""


@dataclass(frozen=True)
class TraceRecord:
    """One or several traced passes, their keys prefixed with "<context>/"."""

    arrays: Mapping[str, Array]
    """key -> array, in the order in which they were handed over."""
    callers: Mapping[str, Mapping[str, str]]
    """context -> call -> the call that made it; "" is the network itself."""
    arguments: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """context -> call -> position -> what a layer was given besides tensors."""
    layers: Mapping[str, Mapping[str, Any]]
    """Layer -> kind and options; "" is the network."""


def pack(
    arrays: Mapping[str, Array],
    about: Mapping[str, Any],
    *,
    reference: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Return the record of a trace: each array once, without those that are the reference's.

    Args:
        arrays: key -> array.
        about: the other fields of TraceRecord.
        reference: the arrays of Torch's record, which a forced pass started from.
    """
    stored: dict[str, Array] = {}
    aliases: dict[str, str] = {}
    seen: dict[str, str] = {}
    for key, array in arrays.items():
        if reference is not None and key in reference and _same(array, reference[key]):
            aliases[key] = "="
            continue
        digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
        name = f"{digest} {array.dtype} {array.shape}"
        if name in seen:
            aliases[key] = seen[name]
            continue
        seen[name] = key
        stored[key] = array
    text = json.dumps({**about, "keys": list(arrays), "aliases": aliases})
    return {**stored, ABOUT: np.asarray(text)}


def _same(array: Array, reference: Array) -> bool:
    if array is reference:
        return True
    return (array.dtype, array.shape) == (reference.dtype, reference.shape) and np.array_equal(
        array, reference
    )


def unpack(
    record: Mapping[str, Array], *, reference: Mapping[str, Array] | None = None
) -> TraceRecord:
    """Return what pack has written; the arrays of a recording may share their memory."""
    about: dict[str, Any] = json.loads(str(record[ABOUT]))
    aliases: dict[str, str] = about["aliases"]
    arrays: dict[str, Array] = {}
    for key in about["keys"]:
        source = aliases[key] if key in aliases else key  # noqa: SIM401 - typed
        if source == "=":
            assert reference is not None
            arrays[key] = reference[key]
        else:
            arrays[key] = record[source]
    return TraceRecord(arrays, about["callers"], about["arguments"], about["layers"])
