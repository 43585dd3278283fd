"""Weights files: named arrays, read and written without executing anything.

Names inside a .safetensors are canonical (common/weight_names.py); a .pdparams has Paddle's names
and layout, turned on the way. Torch's .pth needs torch, and ``bisenet convert``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from common import pdparams
from common.checkpoints import Checkpoint, checkpoint_from
from common.errors import WeightsError
from common.files import atomic_path
from common.weight_names import BATCH_COUNTER, canonical_to_paddle, is_batch_counter, turn_linear

SUFFIX = ".safetensors"
PADDLE_SUFFIX = ".pdparams"
SUFFIXES = (SUFFIX, PADDLE_SUFFIX)
TORCH_SUFFIXES = (".pth", ".pt", ".tar")
"""Files of torch.save; STDC's ImageNet weights are called .tar."""

_MODEL_KEY = pdparams.MODEL_KEY
_BFLOAT16 = "BF16"
_DTYPES = {
    **{f"F{8 * n}": f"<f{n}" for n in (2, 4, 8)},
    **{f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
    "BOOL": "?",
    _BFLOAT16: "<u2",
}
"""What safetensors calls the types that numpy has, and bfloat16's bits."""


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Read a weights file: canonical name -> array in canonical layout.

    Raises:
        WeightsError: the file is missing, of another type, truncated, damaged, or refused because
            it holds more than data.
    """
    return read_checkpoint(path).arrays


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors or .pdparams file of any origin; see read_weights."""
    _require_suffix(path)
    content = _read_bytes(path)
    if path.suffix == PADDLE_SUFFIX:
        state, model = pdparams.without_model(pdparams.decode(content, where=str(path)))
        return checkpoint_from(state, where=str(path), paddle=True, model=model)
    try:
        entries = deserialize(content)
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: truncated or damaged, {len(content)} bytes do not hold what its header says "
            f"({error}); write or download it again"
        ) from None
    others = [f"  {name}: {e['dtype']}" for name, e in entries if e["dtype"] not in _DTYPES]
    if others:
        raise WeightsError(
            f"{path}: {len(others)} tensors are of a type that is not read here; expected F16, "
            "BF16, F32 or F64\n" + "\n".join(others)
        )
    return checkpoint_from(
        {name: _array(entry) for name, entry in entries},
        where=str(path),
        model=_model_of(content),
        widened=sum(entry["dtype"] == _BFLOAT16 for _, entry in entries),
    )


def write_weights(path: Path, arrays: Mapping[str, NDArray[Any]], *, model: str = "") -> None:
    """Write a weights file; readers see the old file or the whole new one, never a part.

    Args:
        path: where; .safetensors or .pdparams. Its folder is made if need be.
        arrays: canonical name -> array; batch counters are not written.
        model: name of our model, kept in the file; empty if unknown.

    Raises:
        WeightsError: the path has another suffix.
        InputError: its folder cannot be written.
    """
    _require_suffix(path)
    weights = {name: array for name, array in arrays.items() if not is_batch_counter(name)}
    if path.suffix == PADDLE_SUFFIX:
        content = pdparams.encode(
            {canonical_to_paddle(name): turn_linear(name, a) for name, a in weights.items()},
            model=model,
        )
    else:
        metadata = {_MODEL_KEY: model} if model else None
        content = save({n: np.array(a, order="C") for n, a in weights.items()}, metadata=metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, NDArray[Any]],
    *,
    hint: str = "expected the same model and number of classes",
    counters: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Require that arrays hold exactly the expected names with the expected shapes.

    Args:
        expected: the model's canonical names and shapes.
        arrays: what was read; batch counters (num_batches_tracked) are passed over.
        hint: what to do about it, put into the message.
        counters: batch counters that are to be scalars beside a running mean of the model.

    Raises:
        WeightsError: listing every missing, left-over and misshapen name.
    """
    counters = counters or {}
    problems = [
        f"  missing: {name}, {shape}" for name, shape in expected.items() if name not in arrays
    ]
    problems += [
        f"  left over: {name}, {tuple(array.shape)}"
        for name, array in arrays.items()
        if name not in expected and not is_batch_counter(name)
    ]
    problems += [
        f"  shape: {name} is {tuple(arrays[name].shape)}, the model has {shape}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    for name, array in counters.items():
        if f"{name.removesuffix(BATCH_COUNTER)}running_mean" not in expected:
            problems.append(f"  left over: {name}, {tuple(array.shape)}")
        elif array.shape != ():
            problems.append(f"  shape: {name} is {tuple(array.shape)}, the model has ()")
    if problems:
        names = expected.keys() | {n for n in arrays if not is_batch_counter(n)} | counters.keys()
        raise WeightsError(
            f"the weights do not fit the model, {len(problems)} of {len(names)} names differ; "
            f"{hint}\n" + "\n".join(problems)
        )


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    if not content:
        raise WeightsError(f"{path}: the weights file is empty; write or download it again")
    return content


def _array(entry: dict[str, Any]) -> NDArray[Any]:
    """Return a tensor of a .safetensors; bfloat16 as float32, which holds its values exactly."""
    flat = np.frombuffer(entry["data"], dtype=_DTYPES[entry["dtype"]])
    if entry["dtype"] == _BFLOAT16:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(entry["shape"])


def _model_of(safetensors: bytes) -> str:
    """Return the model's name that write_weights has put into the header, or an empty text."""
    # the header is JSON, its length the first 8 bytes; load has checked both
    length = int.from_bytes(safetensors[:8], "little")
    metadata: Any = json.loads(safetensors[8 : 8 + length]).get("__metadata__", {})
    return str(metadata.get(_MODEL_KEY, ""))


def _require_suffix(path: Path) -> None:
    if path.suffix in SUFFIXES:
        return
    how = ""
    if path.suffix in TORCH_SUFFIXES:
        how = (
            f". Convert it first: bisenet convert {path.name} {path.with_suffix(SUFFIX).name} "
            "--model NAME"
        )
    raise WeightsError(
        f"{path}: weights files of type {path.suffix or '(no suffix)'!r} are not supported; "
        f"expected {' or '.join(SUFFIXES)}{how}"
    )
