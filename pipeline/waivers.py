"""Differences that are known and accepted for a while: ``waivers.yml`` beside a run's logs.

    - tensor: eval/layer/cp.arm32*     # record key, or a shell pattern of keys
      step: forward
      dtype: float64
      relation: {kind: factor, value: 1.001}
      reason: the published weights were trained with this factor
      lifted_by: whoever publishes weights without it
      expires: 2027-01-31

A waiver is no looser number. It says what Paddle computes instead, as a relation to Torch's
numbers, and the relation is computed and must hold to the tensor's own bound; only ``difference``
is a number, for what no relation describes. A waiver that is expired, or that nothing needs, is a
failure, so that none outlives its cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import InputError
from pipeline.differences import Array, kind, measure, structural_row
from pipeline.verdicts import Row, Verdict, matching

FILE = "waivers.yml"
StepName = Literal[
    "data", "forward", "metric", "loss", "backward", "lr_schedule", "optimizer", "training"
]


class Relation(BaseModel):
    """What Paddle's numbers are to Torch's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["factor", "offset", "shift", "difference"]
    """factor: value times Torch's; offset: Torch's plus value; shift: a series that lags value
    entries behind, the first ones repeated; difference: anything within value, relative to Torch's
    largest number."""
    value: float

    @property
    def text(self) -> str:
        """In words."""
        words = {
            "factor": "is {:g} times Torch's",
            "offset": "is Torch's plus {:g}",
            "shift": "lags {:g} entries behind Torch's",
            "difference": "is within {:g} of Torch's largest value",
        }
        return words[self.kind].format(self.value)

    def expected(self, reference: Array) -> Array:
        """Return what Paddle should have computed."""
        if self.kind == "factor":
            return np.asarray(reference * np.asarray(self.value, reference.dtype))
        if self.kind == "offset":
            return np.asarray(reference + np.asarray(self.value, reference.dtype))
        if self.kind == "shift":
            lag = int(self.value)
            return reference[np.clip(np.arange(len(reference)) - lag, 0, len(reference) - 1)]
        return reference


class Waiver(BaseModel):
    """One row of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str = Field(min_length=1)
    step: StepName
    dtype: Literal["float64", "float32"]
    relation: Relation
    reason: str = Field(min_length=10)
    lifted_by: str = Field(min_length=2)
    """Who can make it unnecessary."""
    expires: date

    @property
    def key(self) -> str:
        """Key of the row that tells about the waiver itself."""
        return f"waiver/{self.tensor}"


def waivers_of(out: Path, given: Path | None) -> tuple[Waiver, ...]:
    """Return the waivers of a run.

    Args:
        out: folder of its logs; ``waivers.yml`` there counts.
        given: another file, named on the command line.

    Raises:
        InputError: the file cannot be read, or a row of it is wrong; naming row and key.
    """
    path = given or out / FILE
    if given is None and not path.is_file():
        return ()
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return tuple(TypeAdapter(list[Waiver]).validate_python(content or []))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: waiver {place or '(the file)'}: {first['msg']}; expected a list of tensor, "
            "step, dtype, relation, reason, lifted_by, expires"
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: waivers cannot be read ({error})") from error


def waive(
    waivers: Sequence[Waiver],
    rows: Sequence[Row],
    pair: Sequence[Mapping[str, Array]],
    *,
    step: str,
    dtype: str,
    today: date | None = None,
) -> list[Row]:
    """Return the rows, those WAIVED whose difference is exactly what a waiver says.

    A failing row is added for every waiver of this step and dtype that is expired or unused.

    Args:
        waivers: of the run.
        rows: of the step in this dtype.
        pair: (torch, paddle) arrays of the same; snapshots of a training are not among them, and
            cannot be waived.
        step: name of the step.
        dtype: of the record.
        today: the day that expiry is judged by; None: now, UTC.
    """
    today = today or datetime.now(timezone.utc).date()
    judged = list(rows)
    for waiver in waivers:
        if (waiver.step, waiver.dtype) != (step, dtype):
            continue
        if waiver.expires < today:
            text = f"expired on {waiver.expires}; {waiver.lifted_by} can lift it, or renew it"
            judged.append(Row(waiver.key, Verdict.FAIL, text))
            continue
        meant = [row.verdict is Verdict.FAIL and matching(waiver.tensor, row.key) for row in judged]
        if not any(meant):
            text = "unused: no failing tensor of this name; remove the waiver"
            judged.append(Row(waiver.key, Verdict.FAIL, text))
        judged = [
            _waived(row, waiver, pair) if means else row
            for row, means in zip(judged, meant + [False] * len(judged), strict=False)
        ]
    return judged


def _waived(row: Row, waiver: Waiver, pair: Sequence[Mapping[str, Array]]) -> Row:
    """Return the row as WAIVED if the waiver's relation holds, else as it is, saying so."""
    if any(row.key not in arrays for arrays in pair):
        return replace(row, detail=f"{row.detail}; not waived: it is not in the final record")
    reference, actual = (arrays[row.key] for arrays in pair)
    problem = structural_row(row.key, reference, actual)
    if problem is not None or kind(reference) == "text":
        return replace(row, detail=f"{row.detail}; not waived: this has no relation in numbers")
    relation = waiver.relation
    limit = relation.value if relation.kind == "difference" else row.bound
    found = measure(row.key, relation.expected(reference), actual, limit)
    if not found.verdict.passed:
        text = f"not waived: it is not so that it {relation.text}, off by {found.relative:.1e}"
        return replace(row, detail=f"{row.detail}; {text}")
    text = f"waived until {waiver.expires}: {relation.text} (to {found.relative:.1e})"
    return replace(row, verdict=Verdict.WAIVED, detail=f"{text}; {waiver.reason}")
