"""A diverging training, bisected to (iteration, phase, layer).

The snapshots and the series of the run say between which iterations it starts; both sides run once
more and record every phase of these; the first iteration that differs is then recorded whole by
Torch, and forced on Paddle after its own run up to there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.blame import blame
from pipeline.compare import compare_tensor
from pipeline.examine import Exam
from pipeline.examine_training import PHASES
from pipeline.failure import FailureCase
from pipeline.investigate import Scene, cases_of, forced_traces, nobody
from pipeline.judge import Result
from pipeline.records import Array, read_record, record_name
from pipeline.rounding import compare_tensor_float32
from pipeline.steps import SIDES, Side
from pipeline.trace_cases import About
from pipeline.verdicts import Row

_SNAPSHOT = re.compile(r"^iteration(\d+)/")
_SERIES = ("order/", "lr/", "loss/")
LIMITS: Mapping[str, float] = {
    "data": 0.0,
    "schedule": 1e-14,
    "forward": 1e-11,
    "backward": 1e-11,
    "optimizer": 1e-11,
}
"""Largest relative difference of a phase in float64; of the others LIMIT. As in steps.py."""
LIMIT = 1e-12
AMPLIFIED = {"float64": 1e-9, "float32": 1e-3}
"""What rounding can have become when no layer is wrong by itself. A larger difference is shown as
it was seen."""
NARROW_LIMIT = 100.0
"""float32: how many times Torch's own rounding Paddle's may be. Where a ReLU flips on one side a
layer's error jumps; the layers of the iteration that is found are then judged one by one."""


@dataclass(frozen=True)
class Start:
    """Where a training starts to differ, before its layers are looked at."""

    iteration: int
    phase: str
    name: str
    row: Row
    arrays: Mapping[str, Array]
    """reference and actual: a sample of the tensor."""


def suspected_window(rows: Sequence[Row], *, last: int) -> tuple[int, int]:
    """Return the first and last iteration, from 1, in which the difference can have started.

    Args:
        rows: of the failing result.
        last: iterations of the whole run.
    """
    passing: set[int] = set()
    failing = {last}
    for row in rows:
        if found := _SNAPSHOT.match(row.key):
            (passing if row.verdict.passed else failing).add(int(found[1]))
        elif row.key.startswith(_SERIES) and not row.verdict.passed and len(row.first) == 1:
            # what iteration i + 1 (from 1) shows was computed in it, or in one before
            failing.add(row.first[0] + 1)
    end = min(failing)
    agreed = {i for i in passing if i < end}
    return max(agreed, default=0) + 1, end


def training_cases(result: Result, scene: Scene) -> tuple[list[FailureCase], str]:
    """Return the failure cases of a training, and what else is to be said."""
    verify, dtype = scene.config.verify, result.dtype
    last = verify.train_iters if dtype == "float64" else verify.train_iters_float32
    window = suspected_window(result.rows, last=last)
    start = first_difference(scene, dtype, window)
    if start is None:
        return [], (
            f"no phase of the iterations {window[0]} to {window[1]} differs beyond its bound: "
            "rounding that the training amplifies, or the evaluation after it"
        )
    about = scene.about("training", dtype, start.iteration)
    note = f"starts in iteration {start.iteration}, phase {start.phase}, at {start.name}"
    if start.phase in ("data", "schedule"):
        return [_window_case(start, about)], note
    exam = Exam(iteration=start.iteration, dtype=dtype)
    traces = forced_traces(scene, "training", dtype, exam)
    cases = cases_of(blame(traces), traces, about)
    if not cases and start.row.relative <= AMPLIFIED[dtype]:
        return [], f"{note} ({start.row.relative:.0e}); {nobody(traces)}"
    return cases or [_window_case(start, about)], note


def first_difference(scene: Scene, dtype: str, window: tuple[int, int]) -> Start | None:
    """Record a window of iterations on both sides and return its first differing tensor."""
    folder = scene.work / f"window_{dtype}"
    dtypes = [dtype] if dtype == "float64" else [dtype, "float64"]
    runs: dict[Side, list[tuple[str, Path, Exam]]] = {
        side: [(one, folder, Exam(window=window, dtype=one)) for one in dtypes] for side in SIDES
    }
    scene.examine("training", runs)
    pair, *wide = (
        [read_record(folder, record_name("training", one, side)).arrays for side in SIDES]
        for one in dtypes
    )
    for key, reference in pair[0].items():
        iteration, phase, name = key.split("/", 2)
        floor = [arrays[key] for arrays in wide[0]] if wide else []
        row = _row(key, phase, [reference, pair[1].get(key)], floor)
        if row is not None and not row.verdict.passed:
            number = int(iteration.removeprefix("iteration"))
            actual = pair[1].get(key, reference * 0)
            arrays = {"reference": reference, "actual": actual}
            return Start(number, phase, name, row, arrays)
    return None


def _row(key: str, phase: str, pair: Sequence[Array | None], wide: Sequence[Array]) -> Row | None:
    reference, actual = pair
    assert reference is not None
    if actual is None:
        # a momentum or gradient that one framework keeps as zeros and the other not at all
        return None
    if phase not in PHASES:
        raise ValueError(f"{key}: {phase} is no phase of an iteration; expected one of {PHASES}")
    if wide:
        return compare_tensor_float32(
            key,
            (reference, actual),
            (wide[0], wide[1]),
            may_be_constant=True,
            self_limit=NARROW_LIMIT,
        )
    limit = LIMITS.get(phase, LIMIT)
    return compare_tensor(key, reference, actual, limit=limit, may_be_constant=True)


def _window_case(start: Start, about: About) -> FailureCase:
    """Return the case of a tensor of the window: data, a rate, or what no layer explains."""
    config = about.config
    kinds = {"data": "sample", "schedule": "series", "loss": "loss", "buffers": "buffer"}
    kinds |= {"forward": "layer", "backward": "layer_gradient", "optimizer": "update"}
    text = {"data": "batch", "schedule": "rate of group", "optimizer": "weights,"}
    case = FailureCase(
        step="training",
        dtype=about.dtype,
        key=f"{start.phase}/{start.name}",
        kind=kinds[start.phase],
        name=start.name,
        where=f"{text.get(start.phase, start.phase)} {start.name}",
        arrays=start.arrays,
        mode="train",
        iteration=start.iteration,
        phase=start.phase,
        settings={
            "schedule": config.schedule.model_dump(mode="json"),
            "data": config.data.model_dump(mode="json", exclude={"root", "train_list", "val_list"}),
            "sampled": True,
        },
    )
    if about.inject:
        case = replace(case, settings={**case.settings, "inject": about.inject})
    return case
