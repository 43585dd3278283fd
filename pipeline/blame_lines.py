"""What an investigation found, as lines for the logs and the screen, and for summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.diagnose import Blame
from pipeline.failure import Hint
from pipeline.judge import Result


def replay_command(out: Path, blame: Blame) -> str:
    """Return the command that replays a case, without the folders of this machine."""
    place = out if not out.is_absolute() else Path(out.name)
    return f"bisenet replay {(place / blame.folder).as_posix()}"


def hint_text(hint: Hint) -> str:
    """Return a relation with what it explains of the difference."""
    return f"{hint.text} [{hint.relation}: difference {hint.before:.1e}, left {hint.residual:.1e}]"


def blame_lines(result: Result, out: Path) -> list[str]:
    """Return where a failing result starts by itself, why, and how to see it alone.

    Args:
        result: after the investigation.
        out: folder of the logs, as the commands shall name it.
    """
    lines: list[str] = []
    for blame in result.blames:
        lines.append(f"itself wrong: {blame.text}")
        lines += [f"  because: {hint_text(hint)}" for hint in blame.hints]
        if not blame.hints:
            lines.append(f"  because: no known relation reproduces it {blame.note}".rstrip())
        lines.append(f"  alone: {replay_command(out, blame)}")
    if result.investigation:
        lines.append(f"investigation: {result.investigation}")
    return lines


def blame_summary(blame: Blame, out: Path) -> dict[str, Any]:
    """Return a blame for summary.json; ``out`` as of blame_lines."""
    return {
        "where": blame.text,
        "kind": blame.kind,
        "name": blame.name,
        "tensor": blame.key,
        "iteration": blame.iteration,
        "phase": blame.phase,
        "folder": blame.folder,
        "replay": replay_command(out, blame),
        "note": blame.note,
        "hints": [
            {
                "relation": hint.relation,
                "text": hint.text,
                "before": f"{hint.before:.3e}",
                "residual": f"{hint.residual:.3e}",
            }
            for hint in blame.hints
        ],
    }
