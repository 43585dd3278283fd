"""What the report page draws, saved beside the logs as ``evidence.json``.

The records of a run are gone when it ends: a training alone leaves gigabytes. So while a step is
judged, with both sides' arrays at hand, the few numbers and small pictures that a reviewer looks at
are kept. The page is made from this file, summary.json and audit.json, at any later time again and
without a framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from common.config import Config
from common.errors import InputError
from common.files import write_text
from pipeline.chaos import BAND
from pipeline.differences import Array
from pipeline.evidence_pictures import PicturePair, prediction_pairs, sample_pairs
from pipeline.evidence_series import (
    Curve,
    Number,
    Rates,
    Saved,
    Scores,
    curves_of,
    metric_scores,
    number,
    rates_of,
    training_scores,
)
from pipeline.judge import Result
from pipeline.verdicts import Row, Verdict, one_row_per_tensor, tensor_of

FILE = "evidence.json"
LISTED = 420
"""Tensors that are kept of a step at most; of a family run, as many as its logs list."""
_PASS = Verdict.PASS.value


class Line(NamedTuple):
    """One tensor in one dtype."""

    verdict: str
    relative: Number
    """Largest difference over the largest |reference|."""
    bound: Number
    floor: Number = None
    """float32: what the two sides round, over the largest |reference|."""
    ratio: Number = None
    """float32: Paddle's own rounding over Torch's."""
    detail: str = ""


class Tensor(NamedTuple):
    """One tensor of a step, as a flat row: a file has hundreds."""

    key: str
    verdict64: str | None
    """"" for PASS; None where the step has no float64."""
    relative64: Number
    bound64: Number
    verdict32: str | None
    relative32: Number
    bound32: Number
    floor: Number
    ratio: Number
    detail: str
    """Of both dtypes."""

    @property
    def lines(self) -> dict[str, Line]:
        """By dtype."""
        found: dict[str, Line] = {}
        if self.verdict64 is not None:
            found["float64"] = Line(
                self.verdict64 or _PASS, self.relative64, self.bound64, detail=self.detail
            )
        if self.verdict32 is not None:
            verdict = self.verdict32 or _PASS
            values = (self.relative32, self.bound32, self.floor, self.ratio)
            found["float32"] = Line(verdict, *values, detail=self.detail)
        return found


class Count(Saved):
    """How much was compared in one step and dtype."""

    step: str
    dtype: str
    tensors: int
    comparisons: int
    elements: int


class Evidence(Saved):
    """The whole file."""

    version: Literal[1]
    tensors: dict[str, list[Tensor]]
    """Step -> tensors in the order in which they are computed."""
    left_out: dict[str, int] = Field(default_factory=dict[str, int])
    """Step -> tensors that pass and are not listed."""
    counts: list[Count] = Field(default_factory=list[Count])
    rates: list[Rates] = Field(default_factory=list[Rates])
    curves: list[Curve] = Field(default_factory=list[Curve])
    scores: list[Scores] = Field(default_factory=list[Scores])
    predictions: list[PicturePair] = Field(default_factory=list[PicturePair])
    samples: list[PicturePair] = Field(default_factory=list[PicturePair])


@dataclass
class Collector:
    """Gathers the evidence of one configuration while its steps are judged."""

    results: list[Result] = field(default_factory=list[Result])
    rates: list[Rates] = field(default_factory=list[Rates])
    curves: list[Curve] = field(default_factory=list[Curve])
    scores: list[Scores] = field(default_factory=list[Scores])
    predictions: list[PicturePair] = field(default_factory=list[PicturePair])
    samples: list[PicturePair] = field(default_factory=list[PicturePair])

    def add(
        self, result: Result, pair: Sequence[Mapping[str, Array]], *, work: Path, config: Config
    ) -> Result:
        """Keep what is drawn of a step, and return its result.

        Args:
            result: the judged step in one dtype.
            pair: (torch, paddle) arrays of its record.
            work: folder of the records.
            config: as it is run.
        """
        self.results.append(result)
        step = result.step.name
        if step == "data":
            self.samples += sample_pairs(pair, config)
        elif step == "forward":
            inputs = work / "inputs" / "forward.npz"
            self.predictions += prediction_pairs(pair, result.dtype, config, inputs=inputs)
        elif step == "metric":
            self.scores += metric_scores(pair, config)
        elif step == "lr_schedule":
            self.rates += rates_of(pair)
        elif step == "training":
            self.curves += curves_of(pair, result.dtype, work)
            self.scores += training_scores(pair, result.dtype, config)
        return result

    def evidence(self, *, listed: int | None) -> Evidence:
        """Return what is to be saved, with so many tensors of a step at most."""
        kept: dict[str, list[Tensor]] = {}
        left_out: dict[str, int] = {}
        for step in dict.fromkeys(result.step.name for result in self.results):
            own = [result for result in self.results if result.step.name == step]
            kept[step], left_out[step] = _tensors(own, min(listed or LISTED, LISTED))
        return Evidence(
            version=1,
            tensors=kept,
            left_out=left_out,
            counts=[_count(result) for result in self.results],
            rates=self.rates,
            curves=self.curves,
            scores=self.scores,
            predictions=self.predictions,
            samples=self.samples,
        )


def _count(result: Result) -> Count:
    return Count(
        step=result.step.name,
        dtype=result.dtype,
        tensors=len({tensor_of(row.key) for row in result.rows}),
        comparisons=len(result.rows),
        elements=sum(row.size for row in result.rows),
    )


WORST_ONLY: Mapping[str, int] = {
    "data": 12,
    "metric": 12,
    "lr_schedule": 12,
    "loss": 12,
    "optimizer": 12,
    "training": 16,
}
"""Steps without an order of layers: only so many of the worst tensors are kept."""


def _tensors(results: Sequence[Result], limit: int) -> tuple[list[Tensor], int]:
    """Return the tensors of a step in computation order, the failing and worst if too many."""
    limit = min(limit, WORST_ONLY.get(results[0].step.name, limit))
    worst: dict[str, dict[str, Row]] = {}
    for result in results:
        rows, _ = one_row_per_tensor(result.rows)
        by_key = {tensor_of(row.key): row for row in rows}
        # the order of the rows, which one_row_per_tensor sorts by severity
        for key in dict.fromkeys(tensor_of(row.key) for row in result.rows):
            worst.setdefault(key, {})[result.dtype] = by_key[key]
    ranked = sorted(worst, key=lambda k: max(r.severity for r in worst[k].values()), reverse=True)
    failing = sum(any(not r.verdict.passed for r in rows.values()) for rows in worst.values())
    chosen = set(ranked[: max(limit, min(failing, LISTED))])
    # chaos or bug is told whatever the rest is
    chosen |= {key for key in worst if key.startswith(BAND)}
    tensors = [
        _tensor(key, rows.get("float64"), rows.get("float32"))
        for key, rows in worst.items()
        if key in chosen
    ]
    return tensors, len(worst) - len(tensors)


def _tensor(key: str, wide: Row | None, narrow: Row | None) -> Tensor:
    details = [row.detail for row in (wide, narrow) if row is not None and row.detail]
    return Tensor(
        key,
        *_judged(wide),
        *_judged(narrow),
        _optional(narrow.floor if narrow else None),
        _optional(narrow.self_ratio if narrow else None),
        "; ".join(dict.fromkeys(details)),
    )


def _judged(row: Row | None) -> tuple[str | None, Number, Number]:
    if row is None:
        return None, None, None
    verdict = "" if row.verdict is Verdict.PASS else row.verdict.value
    return verdict, number(row.relative), number(row.bound, 2)


def _optional(value: float | None) -> Number:
    return None if value is None else number(value, 2)


def write_evidence(path: Path, evidence: Evidence) -> str:
    """Write the file and return its text, for the summary's digests."""
    text = evidence.model_dump_json(exclude_defaults=True) + "\n"
    write_text(path, text)
    return text


def read_evidence(path: Path) -> Evidence | None:
    """Read the file, or return None where a run has left none.

    Raises:
        InputError: it is damaged.
    """
    try:
        return Evidence.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        first: Any = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged evidence ({first}); verify again") from error
