"""Runs a verification: prepares inputs, starts one recorder per side, judges what they record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.config import Config
from common.datasets import load_samples
from common.errors import ConfigError, InputError
from common.files import scratch_folder, write_text
from common.provenance import code_digest
from common.weights import read_weights
from fake_data import scenes
from pipeline.chaos import perturbation_rows
from pipeline.evidence import Collector
from pipeline.inputs import DATA_STEPS, data_digest, prepare_inputs
from pipeline.investigate import Scene, investigate
from pipeline.judge import Result, compare_float32, compare_float64, judge
from pipeline.record import Job, Run, frameworks_loaded
from pipeline.recording import Progress, Recording
from pipeline.records import Record, has_record, read_record, record_name, remove_record
from pipeline.steps import SIDES, STEPS, Side, Step, step_named, with_cancelled, with_given_weights
from pipeline.training import FLOOR_PART, SNAPSHOT_KEYS, floor_part, snapshot_part
from pipeline.verdicts import Row, Verdict
from pipeline.waivers import waive, waivers_of

SCENES_HW = (256, 512)
SCENES_TRAIN, SCENES_VAL = 8, 4


@dataclass(frozen=True)
class Options:
    """What the user asked for besides the configuration."""

    out: Path
    """Folder of the logs, logs/<config>."""
    steps: tuple[str, ...]
    data: Path | None = None
    """Folder of real data, replacing data.root."""
    weights: Path | None = None
    waivers: Path | None = None
    """File of waivers; None: waivers.yml in ``out``, if there is one."""
    device: str = "cpu"
    keep_going: bool = False
    command: str = "bisenet verify"
    """The command line, for the logs: whoever reads them can run it again."""
    artefacts: bool = True
    """Keep the arrays of reprod_log's files; of many networks they take gigabytes."""
    listed: int | None = None
    """Tensors that a log lists per step and dtype, worst first, failing ones always; None: all."""
    inject: str | None = None
    """Deliberate faults of the Paddle side, comma-separated: to see what a failure looks like."""
    scratch: Path = Path("data/fake")
    """Where generated data sets are kept between runs."""


@dataclass
class Outcome:
    """All results of a run, and what it took."""

    config: Config
    options: Options
    results: list[Result]
    seconds: float = 0.0
    code: str = field(default_factory=code_digest)
    """Digest of the code when the recorders were started."""
    peak_mib: dict[str, int] = field(default_factory=dict[str, int])
    artefacts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Arrays for the reprod_log files: name -> side -> array."""
    evidence: Collector = field(default_factory=Collector)
    """What the report page draws."""
    failed: dict[tuple[str, str], tuple[Record, Record]] = field(
        default_factory=dict[tuple[str, str], tuple[Record, Record]]
    )
    """Records of the failing results by (step, dtype), until they have been investigated."""

    @property
    def exit_code(self) -> int:
        """0 all passed, 3 a recorder failed, 1 anything else."""
        verdicts = {result.verdict for result in self.results}
        if Verdict.ERROR in verdicts:
            return 3
        return 0 if verdicts and all(verdict.passed for verdict in verdicts) else 1


def resolve_data(config: Config, options: Options) -> Config:
    """Point the configuration at the data of this run, generating street scenes if need be.

    Raises:
        InputError: real data is asked for and not there, or cannot be generated for this set.
    """
    if options.data is not None:
        if not options.data.is_dir():
            raise InputError(
                f"--data {options.data}: no such folder; expected the {config.data.dataset} data"
            )
        root = options.data
    elif config.data.dataset == "cityscapes":
        root = options.scratch / f"scenes_{SCENES_HW[0]}x{SCENES_HW[1]}_seed{config.verify.seed}"
        scenes.generate(
            root,
            seed=config.verify.seed,
            train=SCENES_TRAIN,
            val=SCENES_VAL,
            size_hw=SCENES_HW,
        )
    else:
        raise InputError(
            f"data.dataset is {config.data.dataset!r}: scenes can be generated for cityscapes "
            "only; name the folder of the real data with --data"
        )
    update: dict[str, Any] = {"root": root.resolve()}
    if options.data is None:
        update |= {"train_list": None, "val_list": None}
    data = config.data.model_copy(update=update)
    if options.data is not None:
        # both splits, before any process is started: lists, folders, that every file exists
        load_samples(data, "train")
        load_samples(data, "val")
    return config.model_copy(update={"data": data})


def selected_steps(names: Sequence[str]) -> list[Step]:
    """Return the named steps in the table's order.

    Raises:
        ConfigError: a name is unknown.
    """
    known = {step.name for step in STEPS}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"unknown step(s) {', '.join(unknown) or '(none named)'}; "
            f"steps: {', '.join(step.name for step in STEPS)}"
        )
    return [step for step in STEPS if step.name in names]


def verify(config: Config, options: Options, *, progress: Progress) -> Outcome:
    """Record and compare all selected steps of one configuration; see verify_all."""
    return verify_all([(config, options)], logs=options.out, progress=progress)[0]


def verify_all(
    experiments: Sequence[tuple[Config, Options]], *, logs: Path, progress: Progress
) -> list[Outcome]:
    """Record and compare all selected steps of several configurations, with two recorders in all.

    Args:
        experiments: configurations, as loaded, and what to run of each. All on one device.
        logs: folder of the recorders' error output.
        progress: told about every event.

    Returns:
        One outcome per experiment, its results in the table's order. Nothing is written to the
        ``out`` folders but the recorders' own logs; records are temporary.

    Raises:
        InputError: data, weights or folders cannot be used, found here or by a recorder.
    """
    outcomes: list[Outcome] = []
    code = code_digest()
    with scratch_folder(logs, prefix="records.") as work:
        prepared = [
            _prepare(config, options, work / str(number))
            for number, (config, options) in enumerate(experiments)
        ]
        jobs = [job for _, job in prepared]
        for job, earlier in zip(jobs[2:], jobs, strict=False):
            job.after = earlier.inputs.parent
        device = experiments[0][1].device
        scenes: list[Scene] = []
        sides: dict[Side, list[Job]] = {
            "torch": jobs,
            "paddle": [
                job.with_faults(options.inject)
                for job, (_, options) in zip(jobs, experiments, strict=True)
            ],
        }
        with Recording(sides, work=work, logs=logs, device=device, progress=progress) as recording:
            for (config, job), (_, options) in zip(prepared, experiments, strict=True):
                started = time.perf_counter()
                outcome = Outcome(config, options, [], code=code)
                Judging(recording, outcome, job).run()
                failing = any(r.rows and not r.verdict.passed for r in outcome.results)
                place = work / f"kept{len(scenes)}"
                kept = job.put_aside(place) if failing else job
                scenes.append(_scene(outcome, kept, place, progress))
                shutil.rmtree(job.inputs.parent, ignore_errors=True)
                outcome.seconds = time.perf_counter() - started
                outcomes.append(outcome)
            _collect_peaks(recording, outcomes)
        for outcome, scene in zip(outcomes, scenes, strict=True):
            started = time.perf_counter()
            outcome.results = investigate(outcome.results, scene)
            outcome.failed.clear()
            shutil.rmtree(scene.work, ignore_errors=True)
            outcome.seconds += time.perf_counter() - started
    if loaded := frameworks_loaded():
        raise RuntimeError(f"the comparing process has loaded {loaded}; its verdict is void")
    return outcomes


def _prepare(config: Config, options: Options, folder: Path) -> tuple[Config, Job]:
    """Resolve the data, write the inputs, and return the job of both recorders."""
    steps = selected_steps(options.steps)
    config = resolve_data(config, options)
    # a wrong file is told before anything is recorded
    waivers_of(options.out, options.waivers)
    if options.weights is not None:
        read_weights(options.weights)
    real = options.data is not None
    names = [step.name for step in steps]
    prepare_inputs(folder / "inputs", config, steps=names, real_frames=real)
    write_text(folder / "config.yml", config.dump_yaml())
    return config, Job(
        name=options.out.name,
        config=folder / "config.yml",
        inputs=folder / "inputs",
        runs=[
            Run(step=step.name, dtype=dtype, folder=folder)
            for step in steps
            for dtype in step.dtypes
        ],
        weights=options.weights,
        real_frames=real,
        data=data_digest(config) if set(names) & set(DATA_STEPS) else "not used",
    )


def _scene(outcome: Outcome, job: Job, folder: Path, progress: Progress) -> Scene:
    """Return what an investigation needs of a run."""
    options = outcome.options
    return Scene(
        outcome.config,
        job,
        options.out,
        folder / "exam",
        progress,
        device=options.device,
        inject=options.inject,
        records=outcome.failed,
    )


def _collect_peaks(recording: Recording, outcomes: Sequence[Outcome]) -> None:
    """Wait for the recorders' last events: their peak memory. A dead or stopped one has none."""
    verdicts = {result.verdict for outcome in outcomes for result in outcome.results}
    deadline = time.perf_counter() + 20
    while len(recording.ended) < len(SIDES) and time.perf_counter() < deadline:
        if verdicts & {Verdict.NOT_RUN, Verdict.ERROR}:
            break
        recording.pump(0.2)
    for outcome in outcomes:
        outcome.peak_mib = recording.peak_mib


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
