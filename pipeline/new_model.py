"""``bisenet new-model NAME``: lays the files of a pair of one's own, ready to be verified.

    bisenet new-model enet
    bisenet verify --config enet/enet.yml

The files are those of examples/minimal under the new name: a small network that passes every step
as it is, to be replaced layer by layer. docs/add_a_model.md goes on from there.
"""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from common.errors import InputError
from common.files import write_text
from pipeline.catalogue import FAMILY
from pipeline.display import console

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "minimal"
EXAMPLE_NAME = "minimal"
FILES = ("torch_model.py", "paddle_model.py", "minimal.yml", "README.md")
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST_NAME = 60
"""Characters; folders and logs carry the name."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("new-model")(new_model_command)


def new_model_command(
    name: Annotated[str, typer.Argument(help="Name of the network: lower case, as fast_scnn.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to lay the files in; default: one named NAME, here.")
    ] = None,
) -> None:
    """Lay the files of a network of your own in both frameworks: docs/add_a_model.md."""
    paths = lay_files(name, out or Path(name))
    for path in paths:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    config = next(path for path in paths if path.suffix == ".yml")
    console.print("they pass as they are; put your network in their place. Next:")
    command = shlex.join(["bisenet", "verify", "--config", str(config)])
    console.print(f"  {command}", highlight=False, soft_wrap=True)


def lay_files(name: str, folder: Path) -> list[Path]:
    """Write the example's files under a new name, and return their paths.

    Args:
        name: of the network; the configuration and the class are called after it.
        folder: made if need be; other files in it are left alone.

    Raises:
        InputError: the name cannot be used, a file is there already, or the folder cannot be
            written. Then nothing is written.
    """
    _check_name(name)
    if not EXAMPLE.is_dir():
        raise InputError(
            f"{EXAMPLE}: no such folder; bisenet new-model runs from a checkout of the repository"
        )
    originals = {file: (EXAMPLE / file).read_text(encoding="utf-8") for file in FILES}
    _check_class(name, originals.values())
    texts = {
        folder / _renamed(file, name): _renamed(text, name) for file, text in originals.items()
    }
    taken = [str(path) for path in texts if path.exists() or path.is_symlink()]
    if taken:
        raise InputError(
            f"{', '.join(taken)}: there already, and nothing is overwritten; choose another name, "
            "or another folder with --out"
        )
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def class_name(name: str) -> str:
    """Return the class that a network's name stands for: ``fast_scnn`` -> ``FastScnn``."""
    return "".join(part.capitalize() for part in name.split("_"))


def _renamed(text: str, name: str) -> str:
    return text.replace(class_name(EXAMPLE_NAME), class_name(name)).replace(EXAMPLE_NAME, name)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME or keyword.iskeyword(name):
        raise InputError(
            f"NAME {name!r}: expected lower-case letters, digits and single underscores, a letter "
            f"first, at most {LONGEST_NAME} of them, and no word of Python's; for example fast_scnn"
        )
    if name in FAMILY:
        raise InputError(f"NAME {name!r} is a network of the family; choose another name")


def _check_class(name: str, texts: Iterable[str]) -> None:
    """See that the class gets a name that nothing else in the files has."""
    used = {word for text in texts for word in re.findall(r"\w+", text)}
    if class_name(name) in used - {class_name(EXAMPLE_NAME)}:
        raise InputError(
            f"NAME {name!r} makes a class {class_name(name)}, which the files use for something "
            "else; choose another name"
        )
