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
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common import pdparams
from common.checkpoints import Checkpoint, checkpoint_from
from common.errors import WeightsError
from common.files import atomic_path
from common.weight_names import canonical_to_paddle, is_batch_counter, turn_linear

SUFFIX = ".safetensors"
PADDLE_SUFFIX = ".pdparams"
SUFFIXES = (SUFFIX, PADDLE_SUFFIX)
TORCH_SUFFIXES = (".pth", ".pt", ".tar")
"""Files of torch.save; STDC's ImageNet weights are called .tar."""

_MODEL_KEY = "bisenet.model"


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
        return checkpoint_from(
            pdparams.decode(content, where=str(path)), where=str(path), paddle=True
        )
    try:
        arrays = load(content)
    except (SafetensorError, KeyError) as error:
        raise WeightsError(
            f"{path}: truncated or damaged, {len(content)} bytes do not hold what its header says "
            f"({error}); write or download it again"
        ) from None
    return checkpoint_from(arrays, where=str(path), model=_model_of(content))


def write_weights(path: Path, arrays: Mapping[str, NDArray[Any]], *, model: str = "") -> None:
    """Write a weights file; readers see the old file or the whole new one, never a part.

    Args:
        path: where; .safetensors or .pdparams. Its folder is made if need be.
        arrays: canonical name -> array; batch counters are not written.
        model: name of our model, kept in a .safetensors.

    Raises:
        WeightsError: the path has another suffix.
        InputError: its folder cannot be written.
    """
    _require_suffix(path)
    weights = {name: array for name, array in arrays.items() if not is_batch_counter(name)}
    if path.suffix == PADDLE_SUFFIX:
        content = pdparams.encode(
            {canonical_to_paddle(name): turn_linear(name, a) for name, a in weights.items()}
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
) -> None:
    """Require that arrays hold exactly the expected names with the expected shapes.

    Args:
        expected: the model's canonical names and shapes.
        arrays: what was read; batch counters (num_batches_tracked) are passed over.
        hint: what to do about it, put into the message.

    Raises:
        WeightsError: listing every missing, left-over and misshapen name.
    """
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
    if problems:
        raise WeightsError(
            f"the weights do not fit the model, {len(problems)} of {len(expected)} names differ; "
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
