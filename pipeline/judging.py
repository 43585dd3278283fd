"""Judges records as the two recorders complete them."""

from __future__ import annotations

from dataclasses import replace

from common.config import Config
from pipeline.chaos import perturbation_rows
from pipeline.judge import Result, compare_float32, compare_float64, judge
from pipeline.outcome import Outcome
from pipeline.record import Job
from pipeline.recording import Recording
from pipeline.records import Record, has_record, read_record, record_name, remove_record
from pipeline.steps import (
    SIDES,
    Step,
    step_named,
    with_cancelled,
    with_decayed_biases,
    with_given_weights,
)
from pipeline.training import FLOOR_PART, SNAPSHOT_KEYS, floor_part, snapshot_part
from pipeline.verdicts import Row, Verdict
from pipeline.waivers import waive, waivers_of


def snapshot_parts(config: Config) -> dict[str, str]:
    """Return the snapshots that a float64 training records before its end: label -> part.

    The state where the float32 training stops is one of them, under its own name.
    """
    verify = config.verify
    done = range(verify.check_every, verify.train_iters, verify.check_every)
    return {
        snapshot_part(i): FLOOR_PART if i == verify.train_iters_float32 else snapshot_part(i)
        for i in done
    }


class Judging:
    """Compares records as they appear, and deletes them when they are no longer needed."""

    def __init__(self, recording: Recording, outcome: Outcome, job: Job) -> None:
        self.recording, self.outcome, self.job = recording, outcome, job
        self.work = job.inputs.parent
        self.pending = [(step_named(run.step), run.dtype) for run in job.runs]
        if job.weights is not None:
            self.pending = [(with_given_weights(step), dtype) for step, dtype in self.pending]
        if (pair := outcome.config.model.pair) is not None:
            names = pair.cancelled
            self.pending = [(with_cancelled(step, names), dtype) for step, dtype in self.pending]
        optimizer = outcome.config.optimizer
        if optimizer.decay_norm_and_bias and optimizer.weight_decay:
            self.pending = [(with_decayed_biases(step), dtype) for step, dtype in self.pending]
        self.snapshot_rows: list[Row] = []
        self.snapshots_due = snapshot_parts(outcome.config)
        self.ignore_index = outcome.config.data.ignore_index

    def run(self) -> None:
        """Judge everything, or stop at the first failure unless told to keep going."""
        while self.pending:
            self.recording.pump(0.2)
            self._snapshots()
            while self.pending and (result := self._next()) is not None:
                self._accept(result)

    def _accept(self, result: Result) -> None:
        self.pending.pop(0)
        self.outcome.results.append(result)
        self.recording.progress({"event": "judged", "job": self.job.name, "result": result})
        if result.verdict.passed or self.outcome.options.keep_going:
            return
        for step, dtype in self.pending:
            text = f"stopped after {result.step.name} ({result.dtype}); --keep-going runs on"
            self.outcome.results.append(Result(step, dtype, Verdict.NOT_RUN, message=text))
        self.pending.clear()

    def _next(self) -> Result | None:
        """Return the result of the first pending run, or None while it is being recorded."""
        step, dtype = self.pending[0]
        names = [record_name(step.name, dtype, side) for side in SIDES]
        work = self.work
        times = self.recording.seconds.get((self.job.name, step.name, dtype), {})
        if len(times) < len(SIDES):
            problem = self.recording.problem(self.job.name, step.name, dtype)
            return Result(step, dtype, Verdict.ERROR, message=problem) if problem else None
        self._snapshots()
        pair = [read_record(work, name) for name in names]
        result = self._judge(step, dtype, pair)
        if not result.verdict.passed:
            self.outcome.failed[(step.name, dtype)] = (pair[0], pair[1])
        if self.outcome.options.artefacts:
            self._collect(step, dtype, pair)
        if dtype == step.dtypes[-1]:
            for other in step.dtypes:
                for side in SIDES:
                    remove_record(work, record_name(step.name, other, side))
        return replace(result, seconds=times)

    def _judge(self, step: Step, dtype: str, pair: list[Record]) -> Result:
        arrays = [record.arrays for record in pair]
        if dtype == "float32" and "float64" in step.dtypes:
            work = self.work
            part = floor_part(step.name)
            names = [record_name(step.name, "float64", side, part) for side in SIDES]
            if not all(has_record(work, name) for name in names):
                text = "the float64 run failed: there is no rounding floor to judge by"
                return Result(step, dtype, Verdict.ERROR, message=text)
            wide = [read_record(work, name).arrays for name in names]
            rows = compare_float32(step, arrays, wide, ignore_index=self.ignore_index)
            rows += perturbation_rows(step, arrays, work)
        else:
            rows = compare_float64(step, arrays, ignore_index=self.ignore_index)
            if step.name == "training":
                text = "this snapshot of the training was not recorded by both sides"
                missing = [Row(part, Verdict.MISSING, text) for part in self.snapshots_due]
                rows = [*self.snapshot_rows, *missing, *rows]
        waivers = waivers_of(self.outcome.options.out, self.outcome.options.waivers)
        rows = waive(waivers, rows, arrays, step=step.name, dtype=dtype)
        result = judge(step, dtype, pair, rows)
        config = self.outcome.config
        return self.outcome.evidence.add(result, arrays, work=self.work, config=config)

    def _snapshots(self) -> None:
        """Compare the training's snapshots as soon as both sides have written them."""
        step = next((step for step, _ in self.pending if step.name == "training"), None)
        if step is None:
            return
        work = self.work
        for label, part in list(self.snapshots_due.items()):
            names = [record_name("training", "float64", side, part) for side in SIDES]
            if not all(has_record(work, name) for name in names):
                continue
            pair = [read_record(work, name).arrays for name in names]
            prefixed = [
                {f"{label}/{k}": v for k, v in arrays.items() if k.startswith(SNAPSHOT_KEYS)}
                for arrays in pair
            ]
            rows = compare_float64(step, prefixed, ignore_index=self.ignore_index)
            self.snapshot_rows.extend(rows)
            del self.snapshots_due[label]
            if part != FLOOR_PART:
                for name in names:
                    remove_record(work, name)

    def _collect(self, step: Step, dtype: str, pair: list[Record]) -> None:
        """Keep the few arrays that reviewers of Paddle ports expect as .npy pairs."""
        from pipeline.reprod import artefact_arrays

        for side, record in zip(SIDES, pair, strict=True):
            arrays = artefact_arrays(step.name, dtype, record.arrays)
            self.outcome.artefacts.setdefault(step.name, {}).setdefault(side, {}).update(arrays)
