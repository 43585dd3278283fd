"""A file of JSON lines that is only ever appended to, and survives its writer's death.

A process killed while it writes leaves a torn last line; readers here pass over what is no line.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import TrainingError
from common.files import write_text

_logger = logging.getLogger(__name__)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines; a damaged line is left out with a warning.

    Raises:
        TrainingError: the file is missing or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path}: the log cannot be read ({error.strerror})") from None
    found: list[dict[str, Any]] = []
    for number, raw in enumerate(content.splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            line: Any = json.loads(raw)
        except ValueError:
            line = None
        if isinstance(line, dict):
            found.append(line)
        else:
            _logger.warning("%s: line %d is damaged and left out", path, number)
    return found


def cut_lines(path: Path, *, past: int, repeated: str | None = None) -> int:
    """Rewrite a log without the lines past an iteration; return how many were dropped.

    Done atomically: a kill leaves the old log or the new one.

    Args:
        path: the log.
        past: the last iteration that is kept.
        repeated: lines of this kind are dropped at that iteration, too: they come again.

    Raises:
        InputError: the file cannot be read or written.
    """
    lines = read_lines(path)

    def stays(line: Mapping[str, Any]) -> bool:
        iteration = line.get("iteration", 0)
        again = iteration == past and repeated is not None and line.get("kind") == repeated
        return iteration <= past and not again

    kept = [line for line in lines if stays(line)]
    write_text(path, "".join(_text(line) for line in kept))
    return len(lines) - len(kept)


def set_aside(path: Path) -> Path | None:
    """Rename a file to ``name.1.jsonl``, or the next free number; return the new path."""
    if not path.exists():
        return None
    numbered = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in range(1, 10_000))
    target = next(candidate for candidate in numbered if not candidate.exists())
    path.rename(target)
    return target


class LineWriter:
    """Appends JSON lines. A disk that takes none is warned of once; it never ends the training.

    (The next checkpoint, which needs the disk more, is what stops a run on a full one.)

    Raises:
        TrainingError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = False
        self._warned = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: what a full disk refused must not be tried again later, out of order
            self._stream = path.open("ab", buffering=0)
        except OSError as error:
            raise TrainingError(
                f"{path}: the log cannot be written ({error.strerror}); choose another --save_dir "
                "or mend its permissions"
            ) from None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one object; numbers that JSON lacks (NaN, Inf) become texts."""
        text = _text(line).encode()
        if self._torn:
            text = b"\n" + text
        reason = "it takes a part of a line only"
        try:
            self._torn = self._stream.write(text) != len(text)
        except OSError as error:
            self._torn, reason = True, error.strerror
        if self._torn and not self._warned:
            self._warned = True
            _logger.warning("%s: the log is not written any more (%s)", self.path, reason)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(_sayable(line), allow_nan=False, ensure_ascii=False) + "\n"


def _sayable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _sayable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(item) for item in value]
    return value
