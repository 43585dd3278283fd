"""Refuse files that do not belong into the repository: too large, or with sloppy ends.

    python tools/check_added_files.py FILE...

Used by pre-commit, which names the files that a commit adds or changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT_BYTES = 250 * 1024


def problems(path: Path) -> list[str]:
    """Return what is wrong with a file, in words."""
    content = path.read_bytes()
    found: list[str] = []
    if len(content) > LIMIT_BYTES:
        found.append(f"{path}: {len(content)} bytes; expected at most {LIMIT_BYTES}")
    if b"\0" not in content and content:
        if not content.endswith(b"\n"):
            found.append(f"{path}: does not end with a newline")
        if any(line.rstrip(b"\r\n") != line.rstrip() for line in content.splitlines(keepends=True)):
            found.append(f"{path}: has white space at the end of a line")
    return found


def main() -> int:
    """Check the files named on the command line."""
    found = [text for name in sys.argv[1:] for text in problems(Path(name))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
