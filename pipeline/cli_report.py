"""``bisenet report``: the report pages made again from saved evidence.

    bisenet report
    bisenet report logs/bisenetv1_cityscapes

Neither framework is loaded and nothing is run anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.display import console
from pipeline.page.index import write_pages


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("report")(report_command)


def report_command(
    logs: Annotated[
        Path, typer.Argument(help="Folder of all logs, or of one configuration's.")
    ] = Path("logs"),
) -> None:
    """Make report.html of every configuration, and the index of them all, from their logs."""
    for path in write_pages(logs):
        console.print(f"  {path}", highlight=False)
