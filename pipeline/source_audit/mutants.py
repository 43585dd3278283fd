"""All mutants: one changed place each, with an id that outlives changes elsewhere in the file."""

from __future__ import annotations

import ast
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from pipeline.source_audit.operators import Change, changes
from pipeline.source_audit.scope import Place, places, raising_functions
from pipeline.source_audit.source import Source, Span

FILES = (
    "models/*.py", "layers.py", "norm.py", "losses.py", "detail_loss.py", "metrics.py", "optim.py",
    "data.py", "evaluate.py", "train.py",
)  # fmt: skip
"""What is changed, below the package."""

SHOWN = 70


@dataclass(frozen=True)
class Mutant:
    """One change of one place."""

    id: str
    """Twelve hexadecimal digits from the file, the place and the change; no line number."""
    file: str
    scope: str
    """Qualified name of the function or class; empty for the module."""
    operator: str
    line: int
    code: str
    """The line at which the change begins, without indentation."""
    old: str
    new: str
    span: Span
    block: tuple[int, int]
    """First and last line of the statement, of a compound one its head: what must be executed."""

    @property
    def change(self) -> str:
        """The change in a few words: what stood there -> what stands there."""
        return f"{_short(self.old)} -> {_short(self.new) or '(nothing)'}"

    @property
    def title(self) -> str:
        """File, line and change, as a person wants it."""
        return f"{self.file}:{self.line}: {self.change}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[: SHOWN - 3]}..."


def mutants_of(source: Source, *, checks: frozenset[str] = frozenset()) -> list[Mutant]:
    """Return every mutant of a file, in the order of the source.

    Args:
        source: the file.
        checks: names of functions that only raise errors.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    found: list[Mutant] = []
    for place in places(source.tree, checks=checks):
        for change in changes(source, place):
            if source.text(change.span) != change.text:
                found.append(_mutant(source, place, change, seen))
    return found


def changed_text(source: Source, span: Span, text: str) -> str:
    """Return the file with another text at the span."""
    data = source.data[: span[0]] + text.encode("utf-8") + source.data[span[1] :]
    return data.decode("utf-8")


def _mutant(source: Source, place: Place, change: Change, seen: Counter[tuple[str, ...]]) -> Mutant:
    line = source.line_number(change.span[0])
    code = source.line(line)
    what = (
        source.name,
        place.scope,
        code,
        str(source.column(change.span[0])),
        source.text(change.span),
        change.text,
    )
    # the same line twice in one function: the first, the second
    key = "\0".join((*what, str(seen[what])))
    seen[what] += 1
    return Mutant(
        id=hashlib.sha256(key.encode()).hexdigest()[:12],
        file=source.name,
        scope=place.scope,
        operator=change.operator,
        line=line,
        code=code,
        old=source.text(change.span),
        new=change.text,
        span=change.span,
        block=_block(place.statement),
    )


def _block(statement: ast.stmt) -> tuple[int, int]:
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    body: list[ast.stmt] = getattr(statement, "body", [])
    return first, max(first, body[0].lineno - 1) if body else last


def audited_files(package: Path, patterns: Sequence[str] = FILES) -> list[str]:
    """Return the files below the package that match, in order."""
    names = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def all_mutants(package: Path, *, shared: Sequence[Path] = ()) -> Iterator[Mutant]:
    """Yield the mutants of all audited files.

    Args:
        package: folder for_paddle.
        shared: folders of other sources, whose functions that only raise errors are known by name.
    """
    paths = [path for folder in (package, *shared) for path in sorted(folder.rglob("*.py"))]
    checks = raising_functions(ast.parse(path.read_text(encoding="utf-8")) for path in paths)
    for name in audited_files(package):
        yield from mutants_of(Source.read(package, name), checks=checks)


def sampled(mutants: Sequence[Mutant], count: int | None, *, seed: int) -> list[Mutant]:
    """Return so many of the mutants, each as likely as any other, in their order; None: all."""
    if count is None or count >= len(mutants):
        return list(mutants)
    chosen = np.random.default_rng(seed).choice(len(mutants), size=count, replace=False)
    return [mutants[index] for index in sorted(chosen.tolist())]


def write_mutated(mutant: Mutant, *, package: Path, folder: Path) -> Path:
    """Copy the package into the folder, change the place, and return the copy's parent."""
    copy = folder / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = Source.read(package, mutant.file)
    (copy / mutant.file).write_text(changed_text(source, mutant.span, mutant.new), encoding="utf-8")
    return folder
