"""What a preparation did: counts, lists, and every failure with its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from common.files import write_text
from common.prepare.jobs import Failure

REPORT = "prepare.json"


@dataclass
class Report:
    """Outcome of ``bisenet prepare``."""

    dataset: str
    root: Path
    written: int = 0
    """Label files written."""
    kept: int = 0
    """Label files that were complete already."""
    checked: int = 0
    """Label files used as they are, their values looked at."""
    lists: dict[str, int] = field(default_factory=dict[str, int])
    """List file -> number of lines."""
    notes: list[str] = field(default_factory=list[str])
    failures: list[Failure] = field(default_factory=list[Failure])

    @property
    def exit_code(self) -> int:
        """0 if every file could be used, else 1."""
        return 1 if self.failures else 0

    def text(self) -> str:
        """Return the outcome for a person, a line per failure at the end."""
        counts = ((self.written, "written"), (self.kept, "kept"), (self.checked, "checked"))
        shown = [f"{count} labels {word}" for count, word in counts if count]
        lines = [f"{self.dataset}: {', '.join(shown) or 'no labels'}"]
        lines += [f"  {name}: {count} lines" for name, count in self.lists.items()]
        lines += [f"  {note}" for note in self.notes]
        if self.failures:
            lines.append(f"{len(self.failures)} failed:")
            lines += [f"  {failure}" for failure in self.failures]
        return "\n".join(lines)

    def write(self, folder: Path) -> Path:
        """Write the outcome as JSON into the folder; return the file."""
        content = {
            "dataset": self.dataset,
            **{"written": self.written, "kept": self.kept, "checked": self.checked},
            **{"lists": self.lists, "notes": self.notes},
            "failures": [{"file": str(f.file), "reason": f.reason} for f in self.failures],
        }
        path = folder / REPORT
        write_text(path, json.dumps(content, indent=1) + "\n")
        return path
