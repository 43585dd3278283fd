"""``bisenet replay``: one failing tensor alone.

    bisenet replay logs/bisenetv1_cityscapes/failures/01_forward_float64

Exit codes: 0 the difference has gone, 1 it persists, 2 no case, or one that cannot be replayed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.blame_lines import hint_text
from pipeline.display import console
from pipeline.replay import Replay, replay


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("replay")(replay_command)


def replay_command(
    folder: Annotated[Path, typer.Argument(help="A folder below failures/ of a run's logs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not the table.")] = False,
) -> None:
    """Compute one failing layer again, from its saved input, on both sides."""
    found = replay(folder)
    if as_json:
        sys.stdout.write(json.dumps(found.as_json(), indent=1) + "\n")
    else:
        _show(found)
    raise typer.Exit(found.exit_code)


def _show(found: Replay) -> None:
    case = found.case
    place = f"iteration {case.iteration}, {case.phase}: " if case.iteration is not None else ""
    console.print(f"{case.step} {case.dtype}: {place}{case.where}", highlight=False)
    for side, spec in case.spec.items():
        options = ", ".join(f"{key} {value}" for key, value in spec.items())
        console.print(f"  {side:7} {options}", highlight=False, soft_wrap=True)
    if case.settings.get("inject"):
        console.print(f"  with the deliberate fault {case.settings['inject']}", highlight=False)
    table = Table(
        title="computed again" if found.rerun else "as it was saved", title_justify="left"
    )
    table.add_column("compared", no_wrap=True)
    table.add_column("relative difference", justify="right", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for row in found.comparisons:
        table.add_row(row.what, f"{row.relative:.1e}", row.detail)
    console.print(table)
    for hint in found.hints:
        console.print(f"because: {hint_text(hint)}", highlight=False, soft_wrap=True)
    if found.note:
        console.print(found.note, highlight=False)
    console.print("the difference persists" if found.persists else "verdict: gone")
