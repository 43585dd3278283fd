"""Why a fault shows as it does: what a verification's investigation says of it (investigate.py).

Of forward and backward Torch records each pass once more, cut at its layers, and Paddle is forced
by that record once per fault. Of the other steps the records themselves say it. A training is not
explained: bisecting it takes longer than all other faults together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from common.config import Config
from pipeline.blame import blame
from pipeline.examine import Exam
from pipeline.failure import FailureCase
from pipeline.faults import Fault
from pipeline.findings import Explanation
from pipeline.investigate import FORCED, explained, nobody, read_traces
from pipeline.judge import Result
from pipeline.record import Run
from pipeline.records import has_record, read_arrays, read_record, record_name
from pipeline.step_cases import step_cases
from pipeline.steps import SIDES, Dtype
from pipeline.trace_cases import About, case_of


@dataclass(frozen=True)
class _Pass:
    """What Torch records for all faults that show in it."""

    step: str
    dtype: Dtype
    exam: Exam
    own: Path
    wide: Path
    """float32 only: the same numbers in float64."""


class FaultExams:
    """The exams of one network's faults.

    Args:
        config: the network's, as it is run.
        work: folder of Torch's records, of a folder "inputs", and of one per fault.
        faults: (fault, the dtype that must show it).
    """

    def __init__(self, config: Config, work: Path, faults: Sequence[tuple[Fault, Dtype]]) -> None:
        self.config, self.work = config, work
        self.passes: dict[str, _Pass] = {}
        """By the fault's name; one whose place is not in a layer has none."""
        for fault, dtype in faults:
            contexts = self._contexts(fault)
            if contexts is None:
                continue
            head = fault.where.partition("/")[0].strip("*") if contexts else ""
            folder = work / "exams" / f"{fault.step}_{dtype}_{head}"
            exam = Exam(contexts=contexts, dtype=dtype)
            self.passes[fault.name] = _Pass(
                fault.step, dtype, exam, folder / "own", folder / "wide"
            )

    def _contexts(self, fault: Fault) -> list[str] | None:
        """Return the forward passes in which a fault shows; none are named of a backward pass."""
        if fault.step not in FORCED:
            return None
        if fault.step == "backward":
            return []
        saved = read_arrays(self.work / "inputs" / "forward.npz")
        sizes = [key for key in saved if key.startswith(("odd", "frame"))]
        head = fault.where.partition("/")[0]
        return [c for c in ("eval", "train", *sizes) if fnmatchcase(c, head)] or None

    def torch_runs(self) -> list[Run]:
        """Return what Torch records: each pass once."""
        runs: list[Run] = []
        for one in {str(one.own): one for one in self.passes.values()}.values():
            runs.append(Run(step=one.step, dtype=one.dtype, folder=one.own, exam=one.exam))
            if one.dtype == "float32":
                runs.append(Run(step=one.step, dtype="float64", folder=one.wide, exam=_by(one)))
        return runs

    def paddle_runs(self, fault: Fault) -> list[Run]:
        """Return what Paddle records with a fault, forced by Torch's pass."""
        one = self.passes.get(fault.name)
        if one is None:
            return []
        dtypes: list[Dtype] = [one.dtype, "float64"] if one.dtype == "float32" else [one.dtype]
        return [
            Run(
                step=one.step,
                dtype=dtype,
                fault=fault.name,
                folder=self._forced(fault, dtype),
                exam=_by(one),
            )
            for dtype in dtypes
        ]

    def _forced(self, fault: Fault, dtype: str) -> Path:
        return self.work / fault.name / f"exam_{dtype}"

    def is_recorded(self, fault: Fault) -> bool:
        """Tell whether both sides have recorded what a fault's explanation needs."""
        one = self.passes.get(fault.name)
        if one is None:
            return True
        needed = [(one.own, record_name(one.step, one.dtype, "torch"))]
        if one.dtype == "float32":
            needed.append((one.wide, record_name(one.step, "float64", "torch")))
        needed += [
            (run.folder, record_name(run.step, run.dtype, "paddle"))
            for run in self.paddle_runs(fault)
        ]
        return all(has_record(folder, name) for folder, name in needed)

    def explain(self, fault: Fault, result: Result) -> Explanation:
        """Return what is to blame for a failing result, and the relation that reproduces it."""
        try:
            case, text = self._first_case(fault, result)
        except Exception as error:
            # a missing or damaged record, or a bug of the search: told, and counted as unexplained
            return Explanation(blamed=f"(no failure case: {error!r})".splitlines()[0])
        if case is None:
            return Explanation(blamed=text)
        case, note = explained(case)
        if not case.hints:
            return Explanation(blamed=f"{case.where} {note}".strip())
        best = case.hints[0]
        return Explanation(blamed=case.where, relation=best.relation, residual=best.residual)

    def _first_case(self, fault: Fault, result: Result) -> tuple[FailureCase | None, str]:
        step, dtype = result.step.name, result.dtype
        if step not in FORCED:
            names = [record_name(step, dtype, side) for side in SIDES]
            pair = (
                read_record(self.work, names[0]),
                read_record(self.work / fault.name, names[1]),
            )
            saved = self.work / "inputs" / f"{step}.npz"
            inputs = read_arrays(saved) if saved.is_file() else {}
            cases = step_cases(result, pair, inputs, self.config)
            return (cases[0], "") if cases else (None, "")
        one = self.passes.get(fault.name)
        if one is None:
            return None, "not in a layer"
        wide = (one.wide, self._forced(fault, "float64")) if dtype == "float32" else None
        traces = read_traces(step, dtype, own=one.own, forced=self._forced(fault, dtype), wide=wide)
        found = blame(traces)
        if not found:
            return None, nobody(traces)
        about = About(step, dtype, self.config, fault.name)
        return case_of(found[0], traces, about), ""


def _by(one: _Pass) -> Exam:
    return one.exam.model_copy(update={"reference": one.own})
