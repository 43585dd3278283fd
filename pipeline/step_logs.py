"""Reads the step logs back: what ``<step>_diff.log`` itself says, not what a summary says of it.

pipeline/report.py writes these files; the acceptance review and the comparison of two runs read
them with nothing but this module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from pipeline.verdicts import Verdict, tensor_of

_KIND_DEPTH = {"forward": 2, "loss": 2, "optimizer": 2}
"""How many parts of a key say what kind of tensor it is; the rest is its name. Others: one."""
_SECTION = re.compile(r"^== (?P<step>\w+) in (?P<dtype>\w+): (?P<verdict>[A-Za-z ]+) ==$")
_COUNTS = re.compile(r"^(?P<comparisons>\d+) comparisons of (?P<tensors>\d+) tensors, worst first")
_MORE = re.compile(r"^(?P<count>\d+) more tensors pass, each with at most (?P<share>[\d.]+)% ")
_RECORD = re.compile(
    r"^record of (?P<side>\w+): sha256 (?P<digest>\S+?)(?:, with (?P<loaded>.*) loaded)?$"
)
_VERDICTS = "|".join(verdict.value for verdict in Verdict)
_NUMBER = r"\s+(-?[\d.]+e[+-]\d+|inf|-inf|nan)"
_ROW = re.compile(
    rf"^(?P<verdict>{_VERDICTS})\s*{_NUMBER * 5}\s+(?P<over>\d+)\s+(?P<size>\d+)  (?P<key>\S+)"
    r"(?: (?P<rest>.*))?$"
)
_ROUNDED = re.compile(r"floor (\S+) paddle/torch rounding (\S+)")
_MERGED = re.compile(r"\(worst of (\d+)\)")


@dataclass(frozen=True)
class LogRow:
    """One tensor as its line in the log says."""

    key: str
    verdict: str
    relative: float
    bound: float
    max_abs: float
    mean_abs: float
    max_rel: float
    size: int
    floor: float | None = None
    rounding: float | None = None
    """Paddle's own rounding over Torch's."""
    snapshots: int = 1
    """Of how many snapshots of a training this is the worst."""
    detail: str = ""

    @property
    def tensor(self) -> str:
        """The key without the snapshot that it was taken from."""
        return tensor_of(self.key)


@dataclass(frozen=True)
class Section:
    """One step in one dtype."""

    step: str
    dtype: str
    verdict: str
    comparisons: int = 0
    tensors: int = 0
    kinds: dict[str, int] = field(default_factory=dict[str, int])
    """Number of tensors by kind, as the log counts them; empty in a log of older code."""
    rows: tuple[LogRow, ...] = ()
    more: int = 0
    """Passing tensors that are not listed."""
    inputs: str = ""
    data: str = ""
    weights: str = ""
    records: dict[str, str] = field(default_factory=dict[str, str])
    """Side -> sha256 of its record."""
    frameworks: dict[str, str] = field(default_factory=dict[str, str])
    """Side -> what was loaded in its process; empty in a log of older code."""
    rules: tuple[str, ...] = ()
    """The lines that give the bounds."""
    official: str = ""
    unread: tuple[str, ...] = ()
    """Lines of no known form: a message of a failing step."""


@dataclass(frozen=True)
class StepLog:
    """A whole ``<step>_diff.log``."""

    step: str
    head: tuple[str, ...]
    """The "key: value" lines before the first section."""
    sections: tuple[Section, ...]
    verdict: str
    """Of the last line; empty when it is missing."""
    closing: str
    """The step that the last line names."""


def kind_of(step: str, key: str) -> str:
    """Return what kind of tensor a key names: "grad" of backward, "eval/layer" of forward."""
    parts = tensor_of(key).split("/")
    return "/".join(parts[: min(_KIND_DEPTH.get(step, 1), len(parts))])


def count_kinds(step: str, keys: Iterable[str]) -> dict[str, int]:
    """Return how many keys there are of each kind."""
    return dict(sorted(Counter(kind_of(step, key) for key in keys).items()))


def kinds_line(step: str, keys: Iterable[str]) -> str:
    """Return the line of a log that counts its tensors by kind, the unlisted ones included."""
    counts = count_kinds(step, keys).items()
    return "tensors by kind: " + ", ".join(f"{kind} {count}" for kind, count in counts)


def read_step_log(path: Path) -> StepLog:
    """Read a step's log.

    Raises:
        ValueError: it is not a step's log.
        OSError: it cannot be read.
    """
    return parse_step_log(path.read_text(encoding="utf-8"))


def parse_step_log(text: str) -> StepLog:
    """Take a step's log apart.

    Raises:
        ValueError: it does not begin as a step's log does.
    """
    lines = text.split("\n")
    begin = re.match(r"^step (\w+): ", lines[0])
    if begin is None:
        raise ValueError(f"it begins with {lines[0][:60]!r}, expected 'step NAME: TITLE'")
    starts = [i for i, line in enumerate(lines) if _SECTION.match(line)]
    last = re.search(r"^verdict of step (\w+): ([A-Z ]+)\n\Z", text, re.MULTILINE)
    bodies = [lines[start:end] for start, end in pairwise([*starts, len(lines)])]
    return StepLog(
        step=begin[1],
        head=tuple(line for line in lines[1 : (starts or [len(lines)])[0]] if line),
        sections=tuple(_section(body) for body in bodies),
        verdict=last[2] if last else "",
        closing=last[1] if last else "",
    )


def _section(lines: Sequence[str]) -> Section:
    found = _SECTION.match(lines[0])
    assert found is not None
    section = Section(found["step"], found["dtype"], found["verdict"])
    rows: list[LogRow] = []
    for line in lines[1:]:
        if row := _row(line):
            rows.append(row)
        elif line and not line.startswith(("verdict  ", "verdict of step ", "starts at: ")):
            section = _with_line(section, line)
    return replace(section, rows=tuple(rows))


def _with_line(section: Section, line: str) -> Section:
    """Return the section with what one line before or after its rows says."""
    if found := _COUNTS.match(line):
        comparisons, tensors = int(found["comparisons"]), int(found["tensors"])
        return replace(section, comparisons=comparisons, tensors=tensors)
    if found := _MORE.match(line):
        return replace(section, more=int(found["count"]))
    if found := _RECORD.match(line):
        side, loaded = found["side"], found["loaded"] or ""
        return replace(
            section,
            records={**section.records, side: found["digest"]},
            frameworks={**section.frameworks, **({side: loaded} if loaded else {})},
        )
    word, colon, rest = line.partition(": ")
    fields = {"inputs": "inputs", "data set": "data", "weights": "weights"}
    if colon and word in fields:
        return replace(section, **{fields[word]: rest})
    if colon and word == "tensors by kind":
        return replace(section, kinds=dict(_counted(rest)))
    if line.startswith("official threshold"):
        return replace(section, official=line)
    if line.startswith(("bound ", "rule: ", "  at most ")):
        return replace(section, rules=(*section.rules, line))
    return replace(section, unread=(*section.unread, line))


def _counted(text: str) -> Iterator[tuple[str, int]]:
    for part in text.split(", "):
        kind, _, count = part.rpartition(" ")
        if count.isdigit():
            yield kind, int(count)


def _row(line: str) -> LogRow | None:
    found = _ROW.match(line)
    if found is None:
        return None
    relative, bound, max_abs, mean_abs, max_rel = (float(found[i]) for i in range(2, 7))
    columns = " ".join(f"{value:9.2e}" for value in (relative, bound, max_abs, mean_abs, max_rel))
    counts = f"{int(found['over']):7d} {int(found['size']):9d}"
    if not line.startswith(f"{found['verdict']:8} {columns} {counts}  {found['key']}"):
        # a row that our own writer would not have written
        return None
    rest = found["rest"] or ""
    rounded, merged = _ROUNDED.search(rest), _MERGED.search(rest)
    return LogRow(
        key=found["key"],
        verdict=found["verdict"],
        relative=relative,
        bound=bound,
        max_abs=max_abs,
        mean_abs=mean_abs,
        max_rel=max_rel,
        size=int(found["size"]),
        floor=float(rounded[1]) if rounded else None,
        rounding=float(rounded[2]) if rounded else None,
        snapshots=int(merged[1]) if merged else 1,
        detail=rest,
    )
