"""A user's own pair of networks: where its files are and what they say, without running them.

A configuration names one class (or function) of each framework as ``FILE.py:NAME``. What is found
out here, from the source text alone, needs neither framework: that the files are there, define the
names, and stay on their side; and the digest of each file that a verification depends on. The code
is imported by own_pair_import.py, in that side's process only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import ConfigError
from common.files import file_digest

Side = Literal["torch", "paddle"]
_OTHER: dict[Side, Side] = {"torch": "paddle", "paddle": "torch"}


@dataclass(frozen=True)
class Reference:
    """A class, or a function that returns a network, in a file."""

    path: Path
    name: str

    @property
    def where(self) -> str:
        """The reference without the folders of this machine, for messages and digests."""
        return f"{self.path.name}:{self.name}"


def parse_reference(text: str) -> Reference:
    """Return what ``folder/file.py:NAME`` refers to.

    Raises:
        ConfigError: the text has another form.
    """
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise ConfigError(
            f"{text!r}: expected FILE.py:CLASS, for example torch_model.py:FastSCNN; a network of "
            "an installed package is named in a file of yours that imports it"
        )
    return Reference(Path(path), name)


def own_sources(reference: Reference, side: Side) -> dict[str, str]:
    """Return the sha256 of the file and of those of its own folder that it imports, by name.

    Args:
        reference: what the configuration names.
        side: the framework it is for.

    Raises:
        ConfigError: a file is missing, is no Python, imports the other framework, or does not
            define the name.
    """
    return {name: file_digest(path) for name, path in own_files(reference, side).items()}


def own_files(reference: Reference, side: Side) -> dict[str, Path]:
    """Return the files of own_sources: name below the reference's folder -> path."""
    path = reference.path
    if not path.is_file():
        folder = "" if path.parent.is_dir() else f"; the folder {path.parent} does not exist either"
        raise ConfigError(
            f"model.pair.{side} names {path}, which is no file{folder}; paths count from the "
            "configuration's own folder"
        )
    tree = _parse(path)
    defined = set(_top_level_names(tree))
    if reference.name not in defined:
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        raise ConfigError(
            f"model.pair.{side}: {path} defines no {reference.name}; "
            f"its classes: {', '.join(classes) or 'none'}"
        )
    files: dict[str, Path] = {}
    pending = [path]
    while pending:
        current = pending.pop()
        name = current.relative_to(path.parent).as_posix()
        if name not in files:
            files[name] = current
            pending += _imported_files(current, path.parent, side)
    return dict(sorted(files.items()))


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{path}{line}: no valid Python ({error})") from None


def _top_level_names(tree: ast.Module) -> Iterator[str]:
    # also below a top-level if or try, where an import may stand
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _imported_files(path: Path, folder: Path, side: Side) -> list[Path]:
    """Return the files below the folder that a file imports.

    Raises:
        ConfigError: it imports the other framework, or relatively out of the folder.
    """
    found: list[Path] = []
    for node in ast.walk(_parse(path)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        base = folder
        if isinstance(node, ast.ImportFrom) and node.level:
            base = _relative_base(path, folder, node)
        for dotted in _dotted_names(node):
            if base is folder:
                _refuse_other_side(path, node.lineno, dotted, side)
            found += _files_of(dotted, base)
    return found


def _relative_base(path: Path, folder: Path, node: ast.ImportFrom) -> Path:
    base = path.parents[node.level - 1]
    if path.parent == folder or folder not in (base, *base.parents):
        raise ConfigError(
            f"{path}:{node.lineno}: imports relatively, but {folder.name}/ is no package here; "
            "name the module without the dot: `from layers import Block`"
        )
    return base


def _dotted_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = node.module or ""
    # what is imported can be a module itself
    names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
    return [module, *names] if module else names


def _refuse_other_side(path: Path, line: int, dotted: str, side: Side) -> None:
    other = _OTHER[side]
    top = dotted.partition(".")[0]
    if top in (other, f"for_{other}"):
        raise ConfigError(
            f"{path}:{line}: imports {top}, but model.pair.{side} names this file: each side runs "
            "in a process with its own framework alone. Are model.pair.torch and model.pair.paddle "
            "exchanged, or does a helper need a file of its own?"
        )


def _files_of(dotted: str, base: Path) -> list[Path]:
    """Return the files that importing a dotted name runs, as far as they are below the base."""
    parts = dotted.split(".")
    places = [base.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    candidates = [c for place in places for c in (place.with_suffix(".py"), place / "__init__.py")]
    return [candidate for candidate in candidates if candidate.is_file()]
