"""Runs a verification: prepares inputs, starts one recorder per side, judges what they record."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from common.config import Config
from common.errors import ConfigError, InputError
from common.files import write_text
from common.weights import read_weights
from fake_data import scenes
from pipeline.compare import Row, Verdict
from pipeline.inputs import prepare_inputs
from pipeline.judge import Result, compare_float32, compare_float64, judge
from pipeline.record import Plan, Run, frameworks_loaded
from pipeline.records import Record, has_record, read_record, record_name, remove_record
from pipeline.steps import SIDES, STEPS, Side, Step
from pipeline.training import FLOOR_PART, snapshot_part

SCENES_HW = (256, 512)
SCENES_TRAIN, SCENES_VAL = 8, 4

Progress = Callable[[Mapping[str, Any]], None]
"""Called with the recorders' events and with {"event": "judged", ...} for every result."""


@dataclass(frozen=True)
class Options:
    """What the user asked for besides the configuration."""

    out: Path
    """Folder of the logs, logs/<config>."""
    steps: tuple[str, ...]
    data: Path | None = None
    """Folder of real data, replacing data.root."""
    weights: Path | None = None
    device: str = "cpu"
    keep_going: bool = False
    scratch: Path = Path("data/fake")
    """Where generated data sets are kept between runs."""


@dataclass
class Outcome:
    """All results of a run, and what it took."""

    config: Config
    options: Options
    results: list[Result]
    seconds: float = 0.0
    peak_mib: dict[str, int] = field(default_factory=dict[str, int])
    artefacts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Arrays for the reprod_log files: name -> side -> array."""

    @property
    def exit_code(self) -> int:
        """0 all passed, 3 a recorder failed, 1 anything else."""
        verdicts = {result.verdict for result in self.results}
        if Verdict.ERROR in verdicts:
            return 3
        return 0 if verdicts == {Verdict.PASS} else 1


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
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


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
    """Record and compare all selected steps.

    Args:
        config: the experiment, as loaded.
        options: what to run and where the logs go.
        progress: told about every event.

    Returns:
        Results in the table's order; nothing is written to ``options.out`` but the recorders'
        own logs. Records are kept in a temporary folder and removed.

    Raises:
        InputError: data, weights or folders cannot be used.
    """
    steps = selected_steps(options.steps)
    started = time.perf_counter()
    config = resolve_data(config, options)
    if options.weights is not None:
        read_weights(options.weights)
    outcome = Outcome(config, options, [])
    options.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="records.", dir=options.out))
    try:
        runs = [
            Run(step=step.name, dtype=dtype, folder=work) for step in steps for dtype in step.dtypes
        ]
        with Recording(
            config, options, {side: runs for side in SIDES}, work, progress=progress
        ) as recording:
            Judging(recording, outcome, steps).run()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if loaded := frameworks_loaded():
        raise RuntimeError(f"the comparing process has loaded {loaded}; its verdict is void")
    outcome.seconds = time.perf_counter() - started
    return outcome


class Recording:
    """The two recorder processes of a run and their events."""

    def __init__(
        self,
        config: Config,
        options: Options,
        runs: Mapping[Side, Sequence[Run]],
        work: Path,
        *,
        progress: Progress,
    ) -> None:
        self.config, self.options, self.work = config, options, work
        self.progress = progress
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.failed: dict[tuple[Side, str, str], str] = {}
        self.seconds: dict[tuple[str, str], dict[str, float]] = {}
        self.peak_mib: dict[str, int] = {}
        self.ended: dict[Side, int] = {}
        self.processes: dict[Side, subprocess.Popen[str]] = {}
        names = sorted({run.step for side in SIDES for run in runs[side]})
        prepare_inputs(work / "inputs", config, steps=names, real_frames=options.data is not None)
        write_text(work / "config.yml", config.dump_yaml())
        for side in SIDES:
            self._start(side, list(runs[side]))

    def _start(self, side: Side, runs: list[Run]) -> None:
        plan = Plan(
            side=side,
            config=self.work / "config.yml",
            inputs=self.work / "inputs",
            runs=runs,
            weights=self.options.weights,
            real_frames=self.options.data is not None,
            device=self.options.device,
            threads=recorder_threads(),
        )
        path = self.work / f"plan_{side}.json"
        write_text(path, plan.model_dump_json())
        log = (self.options.out / f"recorder_{side}.log").open("w", encoding="utf-8")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.record", str(path)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=recorder_environment(),
                # a group of its own: Ctrl-C reaches this process only, which then ends the group
                # with all its loader processes
                start_new_session=True,
            )
        self.processes[side] = process
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(side, process.stdout), daemon=True)
        reader.start()

    def _read(self, side: Side, stream: IO[str]) -> None:
        for line in stream:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                # a library that prints: not ours to judge
                continue
            if isinstance(event, dict):
                self.events.put({**event, "side": side})
        code = self.processes[side].wait()
        self.events.put({"event": "exit", "side": side, "code": code})

    def pump(self, seconds: float) -> None:
        """Take in one event, waiting at most that long."""
        try:
            event = self.events.get(timeout=seconds)
        except queue.Empty:
            return
        side: Side = event["side"]
        if event["event"] == "failed":
            self.failed[(side, event["step"], event["dtype"])] = event["message"]
        elif event["event"] == "done":
            times = self.seconds.setdefault((event["step"], event["dtype"]), {})
            times[side] = event["seconds"]
        elif event["event"] == "end":
            self.peak_mib[side] = event["peak_mib"]
        elif event["event"] == "exit":
            self.ended[side] = event["code"]
        self.progress(event)

    def problem(self, step: str, dtype: str) -> str:
        """Return why a step's records will never come, or an empty text."""
        for side in SIDES:
            message = self.failed.get((side, step, dtype))
            if message is not None:
                return f"{side} recorder: {message}"
            if side in self.ended and side not in self.seconds.get((step, dtype), {}):
                code = self.ended[side]
                how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"{side} recorder {how}; see {self.options.out}/recorder_{side}.log"
        return ""

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            # the whole group, even when the recorder itself has gone: its loader processes
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


def recorder_threads() -> int:
    """Return the threads of one recorder: both run at the same time."""
    return max(1, (os.cpu_count() or 2) // len(SIDES))


def recorder_environment() -> dict[str, str]:
    """Return the children's environment: thread counts, and an allocator that keeps its memory.

    Giving large blocks back after each operation costs both frameworks a third of their time in
    page faults; spinning threads cost as much when the two recorders share two cores.
    """
    threads = str(recorder_threads())
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "20000000000",
        "PYTHONUNBUFFERED": "1",
    }


def snapshot_parts(config: Config) -> list[str]:
    """Return the names of the snapshots that a float64 training records before its end."""
    verify = config.verify
    done = range(verify.check_every, verify.train_iters, verify.check_every)
    return [snapshot_part(iteration) for iteration in done]


class Judging:
    """Compares records as they appear, and deletes them when they are no longer needed."""

    def __init__(self, recording: Recording, outcome: Outcome, steps: Sequence[Step]) -> None:
        self.recording, self.outcome = recording, outcome
        self.pending = [(step, dtype) for step in steps for dtype in step.dtypes]
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
        # the recorders' last events: their peak memory
        deadline = time.perf_counter() + 20
        while len(self.recording.ended) < len(SIDES) and time.perf_counter() < deadline:
            if any(result.verdict is Verdict.NOT_RUN for result in self.outcome.results):
                break
            self.recording.pump(0.2)
        self.outcome.peak_mib = self.recording.peak_mib

    def _accept(self, result: Result) -> None:
        self.pending.pop(0)
        self.outcome.results.append(result)
        self.recording.progress({"event": "judged", "result": result})
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
        work = self.recording.work
        times = self.recording.seconds.get((step.name, dtype), {})
        if len(times) < len(SIDES):
            problem = self.recording.problem(step.name, dtype)
            return Result(step, dtype, Verdict.ERROR, message=problem) if problem else None
        self._snapshots()
        pair = [read_record(work, name) for name in names]
        result = self._judge(step, dtype, pair)
        self._collect(step, dtype, pair)
        if dtype == step.dtypes[-1]:
            for other in step.dtypes:
                for side in SIDES:
                    remove_record(work, record_name(step.name, other, side))
        return replace(result, seconds=times)

    def _judge(self, step: Step, dtype: str, pair: list[Record]) -> Result:
        arrays = [record.arrays for record in pair]
        if dtype == "float32" and "float64" in step.dtypes:
            work = self.recording.work
            part = FLOOR_PART if step.name == "training" else ""
            names = [record_name(step.name, "float64", side, part) for side in SIDES]
            if not all(has_record(work, name) for name in names):
                text = "the float64 run failed: there is no rounding floor to judge by"
                return Result(step, dtype, Verdict.ERROR, message=text)
            wide = [read_record(work, name).arrays for name in names]
            rows = compare_float32(step, arrays, wide, ignore_index=self.ignore_index)
        else:
            rows = compare_float64(step, arrays, ignore_index=self.ignore_index)
            if step.name == "training":
                text = "this snapshot of the training was not recorded by both sides"
                missing = [Row(part, Verdict.MISSING, text) for part in self.snapshots_due]
                rows = [*self.snapshot_rows, *missing, *rows]
        return judge(step, dtype, pair, rows)

    def _snapshots(self) -> None:
        """Compare the training's snapshots as soon as both sides have written them."""
        step = next((step for step, _ in self.pending if step.name == "training"), None)
        work = self.recording.work
        for part in list(self.snapshots_due) if step else ():
            names = [record_name("training", "float64", side, part) for side in SIDES]
            if step is None or not all(has_record(work, name) for name in names):
                break
            pair = [read_record(work, name).arrays for name in names]
            prefixed = [{f"{part}/{k}": v for k, v in arrays.items()} for arrays in pair]
            rows = compare_float64(step, prefixed, ignore_index=self.ignore_index)
            self.snapshot_rows.extend(rows)
            self.snapshots_due.remove(part)
            for name in names:
                remove_record(work, name)

    def _collect(self, step: Step, dtype: str, pair: list[Record]) -> None:
        """Keep the few arrays that reviewers of Paddle ports expect as .npy pairs."""
        from pipeline.reprod import artefact_arrays

        for side, record in zip(SIDES, pair, strict=True):
            arrays = artefact_arrays(step.name, dtype, record.arrays)
            self.outcome.artefacts.setdefault(step.name, {}).setdefault(side, {}).update(arrays)
