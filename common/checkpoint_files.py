"""One checkpoint: a folder of files and the manifest that tells whether they are whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.files import file_digest

MANIFEST = "manifest.json"
FORMAT = 1
"""Number of the manifest's format."""

Writer = Callable[[Path], None]
"""Writes one file of a checkpoint at the path it is given; OSError or InputError if it cannot."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    folder: Path
    iteration: int
    """Iterations done; the next one has this 0-based number."""
    files: dict[str, Path]
    """Name -> path, as named when it was saved."""
    meta: dict[str, Any]
    warnings: tuple[str, ...] = ()
    """What was passed over to find it: damaged newer checkpoints."""


def fill_folder(
    folder: Path, iteration: int, files: Mapping[str, Writer], *, meta: Mapping[str, Any]
) -> None:
    """Write the files of a checkpoint into an empty folder and flush them; the manifest is last.

    Raises:
        OSError: the disk does not take them.
        ValueError: a file's name is no plain name.
        RuntimeError: a writer has left no file.
    """
    described: dict[str, Any] = {}
    for name, write in files.items():
        if name in ("", "..", MANIFEST) or Path(name).name != name:
            raise ValueError(f"file name {name!r}; expected a plain name other than {MANIFEST}")
        path = folder / name
        write(path)
        if not path.is_file():
            raise RuntimeError(f"the writer of {name} has left no file of that name")
        _flush(path)
        described[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    content: dict[str, Any] = {
        "format": FORMAT,
        "iteration": iteration,
        "files": described,
        "meta": dict(meta),
    }
    # read back, for JSON turns the keys of a dict into texts
    content = json.loads(json.dumps(content))
    content["sha256"] = _content_digest(content)
    with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    flush_folder(folder)


def read_folder(folder: Path) -> Checkpoint:
    """Read a checkpoint and compare every file with the manifest.

    Raises:
        CheckpointError: listing everything that is wrong.
    """
    manifest = _read_manifest(folder)
    wrong = [
        f"  {text}"
        for name, entry in manifest["files"].items()
        if (text := _damage(folder / name, entry)) is not None
    ]
    if wrong:
        raise CheckpointError(
            f"{folder}: the checkpoint is damaged, {len(wrong)} of {len(manifest['files'])} files "
            "are not as its manifest says\n" + "\n".join(wrong)
        )
    files = {name: folder / name for name in manifest["files"]}
    return Checkpoint(folder, manifest["iteration"], files, manifest["meta"])


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def flush_folder(folder: Path) -> None:
    """Have the disk hold a folder's entries, so that a rename outlives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _content_digest(content: Mapping[str, Any]) -> str:
    told = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint, there is no {MANIFEST} in it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise CheckpointError(f"{path}: the checkpoint is damaged, this is no JSON") from None
    if not isinstance(content, dict) or content.get("sha256") != _content_digest(content):
        raise CheckpointError(f"{path}: the checkpoint is damaged, its manifest was changed")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {content['format']!r}; this version reads format {FORMAT}"
        )
    return content


def _damage(path: Path, entry: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a file, or None."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path.name}: {size} bytes; expected {entry['bytes']}"
        if file_digest(path) != entry["sha256"]:
            return f"{path.name}: its bytes were changed (sha256)"
    except FileNotFoundError:
        return f"{path.name}: missing"
    except OSError as error:
        return f"{path.name}: cannot be read ({error.strerror})"
    return None
