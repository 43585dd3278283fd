"""Which code a result comes from: a digest of the sources, and the commit."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path, PurePosixPath

from common.files import contents_digest, tree_digest

CODE_FOLDERS = ("common", "for_paddle", "for_torch", "pipeline", "fake_data")
ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages."""


def code_digest(root: Path | None = None) -> str:
    """Return the sha256 over all source files that a verdict depends on.

    Args:
        root: folder that holds CODE_FOLDERS; None: the one that this code runs from.
    """
    return tree_digest([(root or ROOT) / folder for folder in CODE_FOLDERS])


def committed_code_digest(commit: str, *, root: Path | None = None) -> str:
    """Return what code_digest was in a clean checkout of a commit.

    Args:
        commit: hash of the commit.
        root: a folder of the repository; None: the one that this code runs from.

    Returns:
        The sha256, or an empty text when there is no git or it does not know the commit.
    """
    # an option could not be told from a commit by git
    if not commit.isalnum():
        return ""
    command = ["git", "-C", str(root or ROOT), "archive", "--format=tar", commit, *CODE_FOLDERS]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return ""
    if done.returncode != 0:
        return ""
    sources: dict[PurePosixPath, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith(".py") else None
            if stream is not None:
                sources[PurePosixPath(member.name)] = stream.read()
    return contents_digest(
        (path.as_posix(), sources[path])
        for folder in CODE_FOLDERS
        for path in sorted(path for path in sources if path.parts[0] == folder)
    )


def git_commit(root: Path | None = None) -> str:
    """Return the commit of the working tree, marked when the code differs from it.

    Args:
        root: a folder of the repository; None: the one that this code runs from.

    Returns:
        Twelve hex digits with ``+changes`` where the code differs, or ``unknown`` without git.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root or ROOT), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
        changed = git("status", "--porcelain", "--", *CODE_FOLDERS)
    except OSError:
        # a machine that only trains may lack git
        return "unknown"
    return f"{commit}+changes" if changed else commit
