"""Results by (mutant, digest of what decides), one line of JSON each: nothing is lost if stopped.

A line is appended and flushed when a mutant is done. The last line of a killed run can be cut off;
it is left out when the file is read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.source_audit.trial import Finding


class Store:
    """The results of one digest.

    Args:
        path: the file; it holds those of other digests, too.
        digest: of what decides.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self.found: dict[str, Finding] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            row: dict[str, Any] = json.loads(line)
            if row.pop("digest") == self.digest:
                finding = Finding(**row)
                self.found[finding.mutant] = finding
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            # half a line, or one of an earlier form: it is made again
            return

    def add(self, finding: Finding) -> None:
        """Keep a result."""
        self.found[finding.mutant] = finding
        self.path.parent.mkdir(parents=True, exist_ok=True)
        needs_end = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as stream:
            if needs_end and self.path.stat().st_size:
                stream.write("\n")
            stream.write(json.dumps({"digest": self.digest, **asdict(finding)}) + "\n")
