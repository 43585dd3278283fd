"""Compares two runs of the pipeline: two commits, two Paddle versions, two devices.

Read from the step logs, which list every tensor (of a run over the family the worst 300), and from
summary.json what they do not hold: seconds and memory. A regression is a verdict that passed in the
first run and does not in the second, or a step that the second has not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from pipeline import chain
from pipeline.review_evidence import Evidence, load_evidence
from pipeline.step_logs import LogRow, Section
from pipeline.steps import STEPS
from pipeline.verdicts import Verdict

FACTOR = 10.0
"""A relative error that grew or shrank by more is told."""
PROVENANCE = (
    *("commit", "code_digest", "recipe_digest", "config_digest", "command", "date", "model"),
    *("weights", "data", "device", "seed", "machine", "verify", "versions"),
)
_ABSENT = "(none)"


@dataclass(frozen=True)
class Changed:
    """One thing that is not the same in both runs."""

    what: str
    first: str
    second: str


@dataclass(frozen=True)
class TensorChange:
    """A tensor whose error is of another size."""

    step: str
    dtype: str
    tensor: str
    first: float
    second: float

    @property
    def factor(self) -> float:
        """How many times larger the second is; below 1 if smaller, by the last place at least."""
        least = float(np.finfo(self.dtype).eps)
        return max(self.second, least) / max(self.first, least)


@dataclass(frozen=True)
class StepDiff:
    """One step in one dtype, in both runs."""

    step: str
    dtype: str
    first: str
    """Verdict, or "(none)"."""
    second: str
    worst_first: str = ""
    """The tensor that uses most of its bound."""
    worst_second: str = ""
    changes: tuple[TensorChange, ...] = ()
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()
    records: str = ""
    """Sides whose records are the same bytes in both runs: "torch, paddle" is a full repetition."""
    bounds: tuple[Changed, ...] = ()
    """Rules by which it was judged, where they differ."""

    @property
    def regressed(self) -> bool:
        """True when it passed in the first run and does not in the second."""
        return self.first == Verdict.PASS.value and self.second != Verdict.PASS.value

    @property
    def differs(self) -> bool:
        """True when there is anything to tell."""
        moved = self.first != self.second or self.worst_first != self.worst_second
        return moved or bool(self.changes or self.only_first or self.only_second or self.bounds)


@dataclass(frozen=True)
class RunDiff:
    """Two runs of one configuration."""

    name: str
    provenance: tuple[Changed, ...] = ()
    steps: tuple[StepDiff, ...] = ()
    timing: tuple[Changed, ...] = ()
    missing: str = ""
    """Which of the two folders has no logs of this configuration; empty: both have."""

    @property
    def regressed(self) -> bool:
        """True when a step regressed, or the second run has no logs of it."""
        return self.missing == "second" or any(step.regressed for step in self.steps)


@dataclass(frozen=True)
class Comparison:
    """All configurations of two folders of logs."""

    first: str
    second: str
    factor: float
    runs: tuple[RunDiff, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """0: nothing that passed in the first fails in the second; else 1."""
        return int(any(run.regressed for run in self.runs))


def compare_runs(first: Path, second: Path, *, factor: float = FACTOR) -> Comparison:
    """Compare two folders of logs, or two folders of one configuration each.

    Args:
        first: the run to start from.
        second: the run that is asked about.
        factor: how much larger or smaller an error must be to be told, above 1.

    Raises:
        InputError: a folder is missing, holds no logs, or logs that cannot be read.
    """
    if factor <= 1:
        raise InputError(f"--factor {factor:g}: expected more than 1")
    single = [_is_one(path) for path in (first, second)]
    if all(single):
        runs = [_diff(load_readable(first), load_readable(second), factor)]
    elif any(single):
        one, many = (first, second) if single[0] else (second, first)
        raise InputError(
            f"{one} holds the logs of one configuration, {many} a folder of each; "
            f"compare {one} with {many / one.name}"
        )
    else:
        runs = list(_family(first, second, factor))
    return Comparison(str(first), str(second), factor, tuple(runs))


def _is_one(path: Path) -> bool:
    if (path / chain.SUMMARY).is_file():
        return True
    if not path.is_dir() or not chain.configuration_folders(path):
        raise InputError(f"{path}: no logs; expected summary.json in it or in its folders")
    return False


def load_readable(folder: Path) -> Evidence:
    """Read a configuration's logs; a run of some steps only is fine.

    Raises:
        InputError: a file is damaged, or there is no summary.
    """
    evidence = load_evidence(folder)
    damaged = [text for text in evidence.unreadable if not text.endswith(": missing")]
    if damaged or not evidence.summary:
        raise InputError(f"{folder}: {'; '.join(damaged) or 'no summary.json'}")
    return evidence


def _family(first: Path, second: Path, factor: float) -> Iterator[RunDiff]:
    names = [[folder.name for folder in chain.configuration_folders(p)] for p in (first, second)]
    for name in dict.fromkeys([*names[0], *names[1]]):
        if name in names[0] and name in names[1]:
            yield _diff(load_readable(first / name), load_readable(second / name), factor)
        else:
            yield RunDiff(name, missing="second" if name in names[0] else "first")


def _diff(first: Evidence, second: Evidence, factor: float) -> RunDiff:
    return RunDiff(
        second.name,
        tuple(_provenance(first.summary, second.summary)),
        tuple(_steps(first, second, factor)),
        tuple(_timing(first, second)),
    )


def _provenance(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Changed]:
    for key in PROVENANCE:
        leaves = [dict(_leaves(summary.get(key, _ABSENT), key)) for summary in (first, second)]
        for name in dict.fromkeys([*leaves[0], *leaves[1]]):
            old, new = (found.get(name, _ABSENT) for found in leaves)
            if old != new:
                yield Changed(name, old, new)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, str(value)


def _steps(first: Evidence, second: Evidence, factor: float) -> Iterator[StepDiff]:
    old, new = first.sections, second.sections
    for step in STEPS:
        for dtype in step.dtypes:
            pair = (old.get((step.name, dtype)), new.get((step.name, dtype)))
            if any(pair):
                yield _step(step.name, dtype, pair[0], pair[1], factor)


def _step(
    step: str, dtype: str, first: Section | None, second: Section | None, factor: float
) -> StepDiff:
    if first is None or second is None:
        verdicts = [section.verdict if section else _ABSENT for section in (first, second)]
        return StepDiff(step, dtype, verdicts[0], verdicts[1])
    rows = [{row.tensor: row for row in section.rows} for section in (first, second)]
    changes = [
        TensorChange(step, dtype, key, rows[0][key].relative, rows[1][key].relative)
        for key in rows[0]
        if key in rows[1]
    ]
    told = [change for change in changes if not 1 / factor <= change.factor <= factor]
    return StepDiff(
        step,
        dtype,
        first.verdict,
        second.verdict,
        _worst(first),
        _worst(second),
        changes=tuple(sorted(told, key=lambda change: -abs(np.log(change.factor)))),
        # what a shortened log does not list may be there
        only_first=() if second.more else tuple(key for key in rows[0] if key not in rows[1]),
        only_second=() if first.more else tuple(key for key in rows[1] if key not in rows[0]),
        records=", ".join(
            side for side, digest in first.records.items() if digest == second.records.get(side)
        ),
        bounds=tuple(_rules(first, second)),
    )


def _worst(section: Section) -> str:
    # the log is sorted by the share of the bound that is used
    worst: LogRow | None = section.rows[0] if section.rows else None
    # where all agree to the bit, the first of them says nothing
    return worst.tensor if worst and (worst.relative or worst.verdict != "PASS") else ""


def _rules(first: Section, second: Section) -> Iterator[Changed]:
    """Yield the bounds that differ, without their reasons."""
    pair = [[rule.partition(": ")[0] for rule in section.rules] for section in (first, second)]
    for rule in pair[0]:
        if rule not in pair[1]:
            yield Changed("bound", rule.strip(), _ABSENT)
    for rule in pair[1]:
        if rule not in pair[0]:
            yield Changed("bound", _ABSENT, rule.strip())


def _timing(first: Evidence, second: Evidence) -> Iterator[Changed]:
    """Yield seconds of each step and side, and peak memory, as they are: no machine is quiet."""
    tables = [dict(_measured(evidence)) for evidence in (first, second)]
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        yield Changed(name, tables[0].get(name, _ABSENT), tables[1].get(name, _ABSENT))


def _measured(evidence: Evidence) -> Iterator[tuple[str, str]]:
    yield "seconds", str(evidence.summary.get("seconds", _ABSENT))
    peaks: Any = evidence.summary.get("peak_mib")
    for side, peak in peaks.items() if isinstance(peaks, dict) else ():
        yield f"peak MiB {side}", str(peak)
    for (step, dtype), result in evidence.results.items():
        seconds: Any = result.get("seconds")
        for side, value in sorted(seconds.items()) if isinstance(seconds, dict) else ():
            yield f"seconds {step} {dtype} {side}", str(value)


def as_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON holds it."""
    content = asdict(found)
    for run, told in zip(found.runs, content["runs"], strict=True):
        told["regressed"] = run.regressed
        for step, inner in zip(run.steps, told["steps"], strict=True):
            inner["regressed"] = step.regressed
            for change, line in zip(step.changes, inner["changes"], strict=True):
                numbers = {"factor": change.factor, "first": change.first, "second": change.second}
                line |= {k: v if np.isfinite(v) else str(v) for k, v in numbers.items()}
    return {"exit_code": found.exit_code, **content}
