"""Folders that are complete or absent: put under their name, replaced and removed by renames.

A file system replaces a file by a rename, a folder with files in it not. So the old folder is set
aside first, hidden beside its place, and removed once the new one has the name. A process killed in
between leaves the old one set aside and complete; ``in_place`` finds it there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from common.checkpoint_files import flush_folder

_PART, _ASIDE, _GONE = ".part.", ".aside.", ".gone."
"""Prefixes of the hidden folders: being written, set aside while replaced, being removed."""


def new_part(target: Path) -> Path:
    """Make the hidden folder that is to become ``target``."""
    part = Path(tempfile.mkdtemp(prefix=f"{_PART}{target.name}.", dir=target.parent))
    # mkdtemp makes folders private
    part.chmod(0o755)
    return part


def put(part: Path, target: Path) -> None:
    """Give a complete folder its name, in place of the folder that has it.

    The folder that had the name stays set aside, for ``remove_aside``.

    Raises:
        OSError: it cannot be renamed; the old folder is back in its place.
    """
    aside = _aside(target)
    if target.exists():
        if aside.exists():
            remove(aside)
        target.rename(aside)
    try:
        part.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    flush_folder(target.parent)


def remove_aside(target: Path) -> None:
    """Remove the folder that ``put`` has set aside, if there was one."""
    if _aside(target).exists():
        remove(_aside(target))


def in_place(target: Path) -> Path | None:
    """Return the folder that counts as ``target``: itself, or the one set aside; else None."""
    return next((folder for folder in (target, _aside(target)) if folder.is_dir()), None)


def shown_name(folder: Path) -> str:
    """Return the name that a folder has, or had before it was set aside."""
    return folder.name.removeprefix(_ASIDE)


def remove(folder: Path) -> None:
    """Remove a folder; it is never seen half removed under its own name."""
    gone = folder.with_name(_GONE + folder.name.lstrip("."))
    if gone.exists():
        shutil.rmtree(gone)
    folder.rename(gone)
    shutil.rmtree(gone)


def tidy(parent: Path) -> None:
    """Remove what killed processes left in a folder, and put back what one had set aside."""
    for path in sorted(parent.iterdir()):
        if path.name.startswith((_PART, _GONE)):
            shutil.rmtree(path)
    for path in sorted(parent.iterdir()):
        if not path.name.startswith(_ASIDE):
            continue
        target = path.with_name(shown_name(path))
        if target.exists():
            remove(path)
        else:
            path.rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(_ASIDE + target.name)
