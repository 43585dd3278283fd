"""From two records to a step's result: provenance, values, and what must have moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.compare import all_keys, compare_records, compare_zero, missing_row
from pipeline.diagnose import Blame, Divergence, first_divergence
from pipeline.differences import magnitude
from pipeline.records import Array, Record
from pipeline.rounding import compare_draws, compare_tensor_float32
from pipeline.steps import SIDES, Step
from pipeline.verdicts import Allowance, Row, Verdict, bound_for, matching, overall


@dataclass(frozen=True)
class Result:
    """Verdict of one step in one dtype."""

    step: Step
    dtype: str
    verdict: Verdict
    rows: tuple[Row, ...] = ()
    divergence: Divergence | None = None
    message: str = ""
    """Why there are no rows: the recorder's error, or what stopped the run."""
    meta: Mapping[str, Mapping[str, Any]] | None = None
    """Side-cars by side."""
    seconds: Mapping[str, float] | None = None
    """Recording time by side."""
    blames: tuple[Blame, ...] = ()
    """What is itself wrong, the first in the order of the computation first."""
    investigation: str = ""
    """What else the investigation has to say: that it found nothing, or failed."""

    @property
    def worst(self) -> Row | None:
        """The row that fails, or that uses most of its bound."""
        return max(self.rows, key=lambda row: row.severity, default=None)


def judge(step: Step, dtype: str, pair: Sequence[Record], rows: Sequence[Row]) -> Result:
    """Combine the rows of all parts of a step into its result.

    Args:
        step: the row of the table.
        dtype: "float64" or "float32".
        pair: (torch, paddle) records of the step; their side-cars give the provenance.
        rows: all comparisons.
    """
    problems = [*provenance_problems(pair, dtype), *rows]
    return Result(
        step,
        dtype,
        overall(problems),
        tuple(problems),
        first_divergence(step.name, problems),
        meta={side: record.meta for side, record in zip(SIDES, pair, strict=True)},
    )


def provenance_problems(pair: Sequence[Record], dtype: str) -> list[Row]:
    """Return a failing row for everything that makes the two records incomparable."""
    rows: list[Row] = []
    for side, record in zip(SIDES, pair, strict=True):
        if record.meta["side"] != side or list(record.meta["frameworks"]) != [side]:
            text = f"the record says {record.meta['side']} with {record.meta['frameworks']} loaded"
            rows.append(Row(f"provenance/{side}", Verdict.ERROR, text))
        if record.meta["dtype"] != dtype:
            text = f"recorded in {record.meta['dtype']}, expected {dtype}"
            rows.append(Row(f"provenance/{side}", Verdict.ERROR, text))
    for key in ("config", "inputs", "data", "weights", "seed"):
        values = [record.meta[key] for record in pair]
        if values[0] != values[1]:
            text = f"torch used {values[0]}, paddle {values[1]}"
            rows.append(Row(f"provenance/{key}", Verdict.ERROR, text))
    return rows


def compare_float64(
    step: Step, pair: Sequence[Mapping[str, Array]], *, ignore_index: int
) -> list[Row]:
    """Compare (torch, paddle) arrays at the step's bounds, and check what must not be empty."""
    rows = compare_records(*pair, bounds=step.bounds, constants=step.constants)
    rows = _with_zeros(step, rows, pair, limit=ZERO_FLOAT64)
    return _with_vacuous(step, rows, pair, ignore_index)


def compare_float32(
    step: Step,
    pair32: Sequence[Mapping[str, Array]],
    pair64: Sequence[Mapping[str, Array]],
    *,
    ignore_index: int,
) -> list[Row]:
    """Compare (torch, paddle) float32 arrays against the rounding floor."""
    rows: list[Row] = []
    for key in all_keys(*pair32):
        row = missing_row(key, *pair32)
        limit = bound_for(key, step.rounding).relative
        if row is None and key.startswith("rounding/"):
            row = compare_draws(key, pair32[0][key], pair32[1][key], self_limit=limit)
        if row is None and any(key not in arrays for arrays in pair64):
            text = "not in the float64 records: its rounding floor is unknown"
            row = Row(key, Verdict.MISSING, text)
        if row is None:
            row = compare_tensor_float32(
                key,
                (pair32[0][key], pair32[1][key]),
                (pair64[0][key], pair64[1][key]),
                may_be_constant=any(matching(rule.pattern, key) for rule in step.constants),
                self_limit=limit,
            )
        rows.append(row)
    rows = _with_zeros(step, rows, pair32, limit=ZERO_FLOAT32)
    if not rows:
        rows.append(Row("(record)", Verdict.VACUOUS, "empty record: nothing was compared"))
    return _with_vacuous(step, rows, pair32, ignore_index)


ZERO_FLOAT64, ZERO_FLOAT32 = 1e-12, 1e-4
"""Share of the largest neighbour up to which a value that is zero by algebra passes as rounding."""


def _with_zeros(
    step: Step, rows: Sequence[Row], pair: Sequence[Mapping[str, Array]], *, limit: float
) -> list[Row]:
    """Judge anew the keys whose exact value is zero: beside their neighbours, not themselves."""
    judged: list[Row] = []
    for row in rows:
        rule = zero_rule(step, row.key)
        if rule is None or any(row.key not in arrays for arrays in pair):
            judged.append(row)
            continue
        folder = row.key.rpartition("/")[0] + "/"
        largest = max(magnitude(a) for key, a in pair[0].items() if key.startswith(folder))
        reference, actual = pair[0][row.key], pair[1][row.key]
        judged.append(
            compare_zero(
                row.key, reference, actual, largest=largest, limit=limit, reason=rule.reason
            )
        )
    return judged


def zero_rule(step: Step, key: str) -> Allowance | None:
    """Return the rule by which a key's exact value is zero, if there is one."""
    return next((rule for rule in step.zeros if matching(rule.pattern, key)), None)


def _with_vacuous(
    step: Step, rows: Sequence[Row], pair: Sequence[Mapping[str, Array]], ignore_index: int
) -> list[Row]:
    return [
        replace(row, verdict=Verdict.VACUOUS, detail=reason)
        if row.verdict.passed and (reason := _why_vacuous(step, row.key, pair, ignore_index))
        else row
        for row in rows
    ]


def _why_vacuous(
    step: Step, key: str, pair: Sequence[Mapping[str, Array]], ignore_index: int
) -> str:
    """Return why a passing row proves nothing, or an empty text."""
    if zero_rule(step, key) is not None:
        return ""
    for rule in step.nonzero if pair[0][key].dtype != np.float32 else ():
        # in float32 a small update can be less than the last place: float64 has proven it
        if matching(rule.pattern, key) and not all(np.any(arrays[key]) for arrays in pair):
            return f"all zero: {rule.reason}"
    allowed = any(matching(rule.pattern, key) for rule in step.constants)
    for pattern in step.labels:
        if matching(pattern, key) and not allowed:
            values = np.unique(pair[0][key])
            if len(values[values != ignore_index]) < 2:
                return f"the labels hold only {values.tolist()}: one class exercises no branch"
    return ""
