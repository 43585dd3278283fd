"""Where a failing step starts, and why: examined anew, written down as failure cases, explained.

Called when a verdict has been given, and only for steps that failed. Of forward, backward and
training both sides are run once more, Paddle teacher-forced by Torch (pipeline/examine.py,
pipeline/blame.py); of the other steps the records themselves say it (pipeline/step_cases.py).
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.config import Config
from pipeline.blame import Blamed, Traces, blame
from pipeline.diagnose import Blame
from pipeline.examine import Exam
from pipeline.failure import FailureCase, Hint, write_case
from pipeline.judge import Result
from pipeline.record import Job, Run
from pipeline.recording import Progress, Recording
from pipeline.records import Array, Record, has_record, read_arrays, read_record, record_name
from pipeline.steps import SIDES, Side
from pipeline.trace_cases import About, case_of
from pipeline.traces import TraceRecord, unpack
from pipeline.verdicts import Verdict

FOLDER = "failures"
CASES = 5
"""Cases that are written of a step."""
ALIKE = 2
"""Of them, those of one kind of tensor of one kind of layer."""
FORCED = ("forward", "backward")


@dataclass
class Scene:
    """What an investigation has of the run: it can be done again, and what it recorded."""

    config: Config
    job: Job
    """With the inputs and configuration of the run, still in their place."""
    out: Path
    """Folder of the logs; the cases go below it."""
    work: Path
    """A folder for the examinations' records."""
    progress: Progress
    device: str = "cpu"
    inject: str | None = None
    """Deliberate faults of the Paddle side."""
    records: Mapping[tuple[str, str], tuple[Record, Record]] = field(
        default_factory=dict[tuple[str, str], tuple[Record, Record]]
    )
    """(Torch's, Paddle's) records of the failing results by (step, dtype)."""

    def about(self, step: str, dtype: str, iteration: int | None = None) -> About:
        """Return what a case says about this run."""
        return About(step, dtype, self.config, self.inject, iteration)

    def examine(self, step: str, runs: Mapping[Side, Sequence[tuple[str, Path, Exam]]]) -> None:
        """Have the sides record these (dtype, folder, exam).

        Raises:
            RuntimeError: a recorder failed; the text is its error.
        """
        jobs: dict[Side, list[Job]] = {
            side: [
                self.job.model_copy(
                    update={
                        "after": None,
                        "runs": [
                            Run(
                                step=step,
                                dtype=dtype,
                                folder=folder,
                                exam=exam,
                                fault=self.inject if side == "paddle" else None,
                            )
                            for dtype, folder, exam in wanted
                        ],
                    }
                )
            ]
            for side, wanted in runs.items()
        }
        self.work.mkdir(parents=True, exist_ok=True)
        with Recording(
            jobs, work=self.work, logs=self.work, device=self.device, progress=lambda _: None
        ) as recording:
            while len(recording.ended) < len(jobs) and not any(recording.ended.values()):
                recording.pump(0.2)
        for side, wanted in runs.items():
            for dtype, folder, _ in wanted:
                name = record_name(step, dtype, side)
                if not has_record(folder, name):
                    raise RuntimeError(_problem(folder, self.work, name, side))


def _problem(folder: Path, work: Path, name: str, side: str) -> str:
    for path in (folder / f"{name}.error.txt", work / f"recorder_{side}.log"):
        if path.is_file() and (text := path.read_text(encoding="utf-8", errors="replace").strip()):
            lines = text.splitlines()
            return f"{side}: {lines[0 if path.suffix == '.txt' else -1]}"
    return f"{side}: the recorder left no record"


def investigate(results: Sequence[Result], scene: Scene) -> list[Result]:
    """Return the results, the failing ones with what is to blame; write the cases.

    Whatever goes wrong here is told in ``Result.investigation`` and changes no verdict. Of a step
    that fails in float64, float32 is not looked at: it is the same program.
    """
    shutil.rmtree(scene.out / FOLDER, ignore_errors=True)
    done: list[Result] = []
    number = 0
    for result in results:
        if result.verdict in (Verdict.PASS, Verdict.NOT_RUN, Verdict.ERROR):
            done.append(result)
            continue
        name, dtype = result.step.name, result.dtype
        if any(earlier.step.name == name and not earlier.verdict.passed for earlier in done):
            text = f"not investigated: what is wrong in {result.step.dtypes[0]} is wrong here"
            done.append(replace(result, investigation=text))
            continue
        if not any(row.verdict in (Verdict.FAIL, Verdict.MISSING) for row in result.rows):
            text = "nothing differs: what fails is that too little was compared"
            done.append(replace(result, investigation=text))
            continue
        scene.progress(
            {"event": "investigating", "job": scene.job.name, "step": name, "dtype": dtype}
        )
        try:
            cases, note = find_cases(result, scene)
            blames: list[Blame] = []
            for case in chosen(cases):
                number += 1
                blames.append(_written(case, scene.out, number))
            if rest := len(cases) - len(blames):
                note = f"{note}; " * bool(note) + f"{rest} more places of the same kinds are wrong"
            done.append(replace(result, blames=tuple(blames), investigation=note))
        except Exception as error:
            text = f"the investigation failed, the verdict stands: {error}"
            done.append(replace(result, investigation=text.splitlines()[0]))
    return done


def chosen(cases: Sequence[FailureCase]) -> list[FailureCase]:
    """Return the first cases, few of a kind: what every layer does wrong is told by two."""
    kept: list[FailureCase] = []
    counts: dict[tuple[str, ...], int] = {}
    for case in cases:
        what = str(case.spec.get("torch", {}).get("kind", ""))
        kind = (case.kind, what, case.name.rpartition(".")[2] if case.kind != "layer" else "")
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= ALIKE and len(kept) < CASES:
            kept.append(case)
    return kept


def find_cases(result: Result, scene: Scene) -> tuple[list[FailureCase], str]:
    """Return the failure cases of a failing result, and what else is to be said."""
    if result.step.name in FORCED:
        return _forced(result, scene)
    if result.step.name == "training":
        from pipeline.investigate_training import training_cases

        return training_cases(result, scene)
    pair = scene.records.get((result.step.name, result.dtype))
    function = _optional("pipeline.step_cases", "step_cases")
    if function is None or pair is None:
        return [], ""
    saved = scene.job.inputs / f"{result.step.name}.npz"
    inputs = read_arrays(saved) if saved.is_file() else {}
    cases: list[FailureCase] = function(result, pair, inputs, scene.config)
    return [_with_fault(case, scene.inject) for case in cases], ""


def _with_fault(case: FailureCase, inject: str | None) -> FailureCase:
    return replace(case, settings={**case.settings, "inject": inject}) if inject else case


def _optional(module: str, name: str) -> Callable[..., Any] | None:
    """Return a function of a module that may not be there; a broken one is an error."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def explained(case: FailureCase) -> tuple[FailureCase, str]:
    """Return the case with the relations that reproduce its difference, or why there are none."""
    try:
        explain = _optional("pipeline.explain", "explain")
        hints: list[Hint] = explain(case) if explain is not None else []
    except Exception as error:
        return case, f"(the explanation failed: {error!r})"
    return replace(case, hints=tuple(hints)), ""


def _written(case: FailureCase, out: Path, number: int) -> Blame:
    """Explain a case, write it, and return what the logs say of it."""
    case, note = explained(case)
    folder = f"{FOLDER}/{number:02d}_{case.step}_{case.dtype}"
    write_case(out / folder, case)
    return Blame(
        key=case.key,
        kind=case.kind,
        name=case.name,
        where=case.where,
        folder=folder,
        hints=tuple(case.hints),
        iteration=case.iteration,
        phase=case.phase,
        note=note,
    )


def failing_contexts(result: Result) -> list[str]:
    """Return the forward step's passes that have failing tensors: eval, train, odd33x65, ..."""
    failing = [row.key.partition("/")[0] for row in result.rows if not row.verdict.passed]
    known = [row.key.partition("/")[0] for row in result.rows if "/head/" in row.key]
    found = [context for context in dict.fromkeys(failing) if context in known]
    # training moves the running statistics that evaluation uses
    return sorted(found or ["eval", "train"], key=lambda context: context == "train")


def _forced(result: Result, scene: Scene) -> tuple[list[FailureCase], str]:
    step, dtype = result.step.name, result.dtype
    contexts = failing_contexts(result) if step == "forward" else []
    traces = forced_traces(scene, step, dtype, Exam(contexts=contexts, dtype=dtype))
    found = blame(traces)
    cases = cases_of(found, traces, scene.about(step, dtype))
    return cases, "" if cases else nobody(traces)


def cases_of(found: Sequence[Blamed], traces: Traces, about: About) -> list[FailureCase]:
    """Return the cases of what is blamed, and as many more without arrays as were found."""
    return [case_of(blamed, traces, about) for blamed in found]


def nobody(traces: Traces) -> str:
    """Say that no layer is wrong by itself."""
    count = len(traces.reference.arrays)
    return (
        f"no layer is wrong by itself: {count} tensors agree when each layer works on Torch's "
        "numbers; the difference is rounding that the layers amplify, or lies outside the network"
    )


def forced_traces(scene: Scene, step: str, dtype: str, exam: Exam) -> Traces:
    """Record Torch's pass, force Paddle's by it, and of float32 both in float64.

    Args:
        scene: the run.
        step: what is examined.
        dtype: the dtype that fails.
        exam: what to trace, without a reference.
    """
    own, forced, wide = (
        scene.work / f"{step}_{dtype}" / name for name in ("own", "forced", "wide")
    )
    by = exam.model_copy(update={"reference": own})
    runs: dict[Side, list[tuple[str, Path, Exam]]] = {
        "torch": [(dtype, own, exam)],
        "paddle": [(dtype, forced, by)],
    }
    if dtype == "float32":
        for side in SIDES:
            runs[side].append(("float64", wide, by))
    scene.examine(step, runs)
    own_pair = scene.config.model.pair
    return read_traces(
        step,
        dtype,
        own=own,
        forced=forced,
        wide=(wide, wide) if dtype == "float32" else None,
        cancelled=own_pair.cancelled if own_pair is not None else (),
    )


def read_traces(
    step: str,
    dtype: str,
    *,
    own: Path,
    forced: Path,
    wide: tuple[Path, Path] | None,
    cancelled: tuple[str, ...] = (),
) -> Traces:
    """Read a recorded and a forced pass.

    Args:
        step: what was examined.
        dtype: the dtype that fails.
        own: folder of Torch's record.
        forced: folder of Paddle's.
        wide: of float32, the folders of both in float64.
        cancelled: see Traces.
    """
    torch = unpack(read_record(own, record_name(step, dtype, "torch")).arrays)

    def forced_trace(folder: Path, side: Side, kept: str) -> TraceRecord:
        arrays: Mapping[str, Array] = read_record(folder, record_name(step, kept, side)).arrays
        return unpack(arrays, reference=torch.arrays)

    pair = None
    if wide is not None:
        pair = (
            forced_trace(wide[0], "torch", "float64"),
            forced_trace(wide[1], "paddle", "float64"),
        )
    return Traces(torch, forced_trace(forced, "paddle", dtype), pair, cancelled)
