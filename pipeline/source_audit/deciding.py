"""What a mutant's verdict depends on, as one digest: the sources that recorder and judge import.

The command line, reports and pages are not among them: a change there must not cost an hour.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.config import Config
from common.files import file_digest
from common.provenance import ROOT

PACKAGES = ("common", "for_paddle", "for_torch", "fake_data", "pipeline")
ROOTS = (
    "pipeline.record", "pipeline.judge", "pipeline.source_audit.experiments",
    "pipeline.source_audit.server", "pipeline.source_audit.trial",
    *(f"for_{side}.{name}" for side in ("torch", "paddle") for name in (
        "backend", "norm", "layers", "models", "losses", "metrics", "optim", "data", "train",
        "evaluate",
    )),
)  # fmt: skip
LIBRARIES = ("torch", "paddlepaddle", "paddlepaddle-gpu", "numpy", "opencv-python-headless")


def imported_files(roots: Iterable[str] = ROOTS, *, root: Path = ROOT) -> list[Path]:
    """Return the files of all modules that these import when they are imported, and their own.

    Args:
        roots: dotted names of modules.
        root: folder of the packages.
    """
    waiting, found = list(roots), dict[str, Path]()
    while waiting:
        name = waiting.pop()
        path = _file_of(name, root)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += _imports(ast.parse(path.read_text(encoding="utf-8")))
    return sorted(set(found.values()))


def _file_of(name: str, root: Path) -> Path | None:
    if name.partition(".")[0] not in PACKAGES:
        return None
    base = root.joinpath(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.Module) -> Iterable[str]:
    # at the top only: what a function imports when it is called is for other commands
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # a name can be a module of a package
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def deciding_digest(configs: Sequence[Config], *, root: Path = ROOT) -> str:
    """Return the sha256 of the code, the configurations and the libraries' versions."""
    digest = hashlib.sha256()
    for path in imported_files(root=root):
        digest.update(f"{path.relative_to(root).as_posix()} {file_digest(path)}\n".encode())
    for config in configs:
        digest.update(f"{config.digest()}\n".encode())
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
