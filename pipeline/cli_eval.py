"""``bisenet eval``: tools/eval.py in this process's place.

An evaluation is one process with one framework, and this one has none loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from common.errors import InputError

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "eval.py"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "eval",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(eval_command)


def eval_command(context: typer.Context) -> None:
    """Evaluate weights by a published protocol; `bisenet eval --help` lists the options."""
    if not SCRIPT.is_file():
        raise InputError(
            f"{SCRIPT}: no such file; bisenet eval runs from a checkout of the repository"
        )
    # not a child: signals, exit code and terminal are the evaluation's own
    os.execv(sys.executable, [sys.executable, str(SCRIPT), *context.args])
