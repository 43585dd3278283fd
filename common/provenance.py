"""Which code a result comes from: a digest of the sources, and the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from common.files import tree_digest

CODE_FOLDERS = ("common", "for_paddle", "for_torch", "pipeline", "fake_data")
ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages."""


def code_digest(root: Path | None = None) -> str:
    """Return the sha256 over all source files that a verdict depends on.

    Args:
        root: folder that holds CODE_FOLDERS; None: the one that this code runs from.
    """
    return tree_digest([(root or ROOT) / folder for folder in CODE_FOLDERS])


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
