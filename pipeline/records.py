"""Records: what one side computed in one step, as npz without pickle and a JSON side-car.

The side-car is written last, so a record without one is not there yet.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zipfile
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
    """Read a record written by write_record, arrays in the order they were recorded.

    The arrays are views of the file, read-only; it may be removed while they are in use.
    """
    meta: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return Record(arrays=_map_arrays(folder / f"{name}.npz"), meta=meta)


LOCAL_HEADER = 30
"""Bytes of a zip member's own header before its name; the last four tell what follows it."""


def _map_arrays(path: Path) -> dict[str, Array]:
    """Return views of an uncompressed npz file's arrays.

    np.load copies each member twice and sums it up: for the snapshots of a training that takes
    three times as long as comparing them.
    """
    arrays: dict[str, Array] = {}
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{path}: member {member.filename} is compressed; np.savez is not")
            start = member.header_offset + LOCAL_HEADER
            name, extra = struct.unpack("<HH", content[start - 4 : start])
            arrays[member.filename.removesuffix(".npy")] = _view(content, start + name + extra)
    return arrays


def _view(content: mmap.mmap, offset: int) -> Array:
    """Return the array whose .npy header is at the offset."""
    content.seek(offset)
    # our own writer makes version 1 for any name and shape there is
    if np.lib.format.read_magic(content) != (1, 0):  # pyright: ignore[reportArgumentType]
        raise ValueError(f"an array header of another version than 1.0 at byte {offset}")
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = np.lib.format.read_array_header_1_0(
        content
    )  # pyright: ignore[reportArgumentType]
    shape, fortran_order, dtype = header
    if dtype.hasobject:
        raise ValueError(f"an array of objects at byte {offset}; records hold numbers and text")
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(content, dtype, count, content.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def remove_record(folder: Path, name: str) -> None:
    """Delete a record; the side-car first, so that no half record is left to be read."""
    (folder / f"{name}.json").unlink(missing_ok=True)
    (folder / f"{name}.npz").unlink(missing_ok=True)
