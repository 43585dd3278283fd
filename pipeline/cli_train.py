"""``bisenet train``: tools/train.py in this process's place.

Training is one process with one framework, and this one has none loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from common.errors import InputError

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "train.py"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "train",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(train_command)


def train_command(context: typer.Context) -> None:
    """Train a network with one process; `bisenet train --help` lists the options."""
    if not SCRIPT.is_file():
        raise InputError(
            f"{SCRIPT}: no such file; bisenet train runs from a checkout of the repository"
        )
    # not a child: signals, exit code and terminal are the training's own
    os.execv(sys.executable, [sys.executable, str(SCRIPT), *context.args])
