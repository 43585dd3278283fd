"""Records: what one side computed in one step, as npz without pickle and a JSON side-car.

The side-car is written last, so a record without one is not there yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import atomic_path, file_digest, write_text

Array = NDArray[Any]


@dataclass(frozen=True)
class Record:
    """Named arrays of one side, and where they come from."""

    arrays: Mapping[str, Array]
    meta: Mapping[str, Any]


def record_name(step: str, dtype: str, side: str, part: str = "") -> str:
    """Return the file stem of a record; ``part`` names a snapshot within the step."""
    return ".".join(word for word in (step, dtype, side, part) if word)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as npz, atomically. Object arrays are refused: they would need pickle."""
    for key, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"record key {key} has dtype {array.dtype}; expected numbers or text")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        # NumPy 1.26 would store an allow_pickle=False as one more array
        np.savez(stream, **dict(arrays))  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path) -> dict[str, Array]:
    """Read an npz file; pickled content is refused."""
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def write_record(
    folder: Path, name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]
) -> None:
    """Write ``folder/name.npz`` and then ``folder/name.json``."""
    data = folder / f"{name}.npz"
    write_arrays(data, arrays)
    full = {**meta, "keys": list(arrays), "digest": file_digest(data)}
    write_text(folder / f"{name}.json", json.dumps(full, indent=1))


def has_record(folder: Path, name: str) -> bool:
    """Tell whether the record is complete."""
    return (folder / f"{name}.json").is_file()


def read_record(folder: Path, name: str) -> Record:
    """Read a record written by write_record, arrays in the order they were recorded."""
    meta: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return Record(arrays=read_arrays(folder / f"{name}.npz"), meta=meta)


def remove_record(folder: Path, name: str) -> None:
    """Delete a record; the side-car first, so that no half record is left to be read."""
    (folder / f"{name}.json").unlink(missing_ok=True)
    (folder / f"{name}.npz").unlink(missing_ok=True)
