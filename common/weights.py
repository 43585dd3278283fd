"""Weights files: named arrays, read and written without executing anything.

The format is safetensors. Names inside are canonical (common/weight_names.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import WeightsError
from common.weight_names import is_batch_counter

SUFFIX = ".safetensors"


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Read a weights file: canonical name -> array.

    Raises:
        WeightsError: the file is missing, of another type, truncated or damaged.
    """
    _require_suffix(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    if not content:
        raise WeightsError(f"{path}: the weights file is empty; write or download it again")
    try:
        return load(content)
    except (SafetensorError, KeyError) as error:
        raise WeightsError(
            f"{path}: truncated or damaged, {len(content)} bytes do not hold what its header says "
            f"({error}); write or download it again"
        ) from None


def write_weights(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a weights file; readers see the old file or the whole new one, never a part.

    Raises:
        WeightsError: the path has another suffix, or its folder cannot be written.
    """
    _require_suffix(path)
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Require that arrays hold exactly the expected names with the expected shapes.

    Args:
        expected: the model's canonical names and shapes.
        arrays: what was read; batch counters (num_batches_tracked) are passed over.

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
            "expected the same model and number of classes\n" + "\n".join(problems)
        )


def _require_suffix(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise WeightsError(
            f"{path}: weights files of type {path.suffix or '(no suffix)'!r} are not supported; "
            f"expected {SUFFIX}"
        )
