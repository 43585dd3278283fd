"""Files that are either complete or absent: write beside, then rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, else it is removed.

    Raises:
        InputError: the folder cannot be created or written, naming it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a log is meant to be read by others
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path, *, prefix: str) -> Generator[Path]:
    """Yield a new folder inside ``parent``, which is made if need be; it is removed at the end.

    Raises:
        InputError: ``parent`` cannot be created or written, naming it.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise InputError(_cannot_write(parent, error)) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"cannot write {path}: {error.strerror}{where}; "
        "choose another folder or mend its permissions"
    )


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tree_digest(folders: list[Path], *, pattern: str = "*.py") -> str:
    """Return the sha256 over relative names and contents of all matching files below folders."""
    return contents_digest(
        (path.relative_to(folder.parent).as_posix(), path.read_bytes())
        for folder in folders
        for path in sorted(folder.rglob(pattern))
    )


def contents_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Return the sha256 over names and contents, in the order given."""
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
