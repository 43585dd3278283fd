"""The recorder: one process, one framework, a list of runs. Started by the runner, not by hand.

    python -m pipeline.record PLAN.json

Each run is one step in one dtype, with deliberate faults if an audit asks for them. Progress goes
to standard output as one JSON object a line; what a run computed goes to files that appear when
complete.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from common.config import Config, load_config
from common.errors import InputError
from common.files import file_digest, write_text
from pipeline import probes
from pipeline.cases import Case, Part, Probe
from pipeline.data_probe import data_key, probe_data
from pipeline.examine import Exam
from pipeline.examine_training import examine
from pipeline.records import read_arrays, record_name, write_record
from pipeline.steps import SIDES, Side
from pipeline.training import probe_training

MODULES = (
    "backend",
    "norm",
    "layers",
    "models",
    "losses",
    "metrics",
    "optim",
    "data",
    "train",
    "evaluate",
    "forcing",
    "describe",
)


PROBES: Mapping[str, Probe] = {
    "data": probe_data,
    "forward": probes.probe_forward,
    "metric": probes.probe_metric,
    "loss": probes.probe_loss,
    "backward": probes.probe_backward,
    "lr_schedule": probes.probe_lr_schedule,
    "optimizer": probes.probe_optimizer,
    "training": probe_training,
}


class Run(BaseModel):
    """One step in one dtype."""

    step: str
    dtype: str
    fault: str | None = None
    """Names of deliberate faults, separated by commas."""
    folder: Path
    """Where its record goes."""
    exam: Exam | None = None
    """An investigation's question, in place of the step's own probe."""


class Job(BaseModel):
    """The runs of one configuration."""

    name: str
    config: Path
    """Resolved configuration."""
    inputs: Path
    """Folder of the steps' saved inputs."""
    runs: list[Run]
    weights: Path | None = None
    real_frames: bool = False
    data: str = ""
    """Digest of the data set's files."""
    after: Path | None = None
    """Begin when this folder has gone: the records of an earlier job, which have been judged."""

    def with_faults(self, names: str | None) -> Job:
        """Return the job with these deliberate faults in all its runs."""
        runs = [run.model_copy(update={"fault": names}) for run in self.runs]
        return self.model_copy(update={"runs": runs})

    def put_aside(self, folder: Path) -> Job:
        """Move configuration and inputs to a new folder; the records can then be deleted."""
        folder.mkdir()
        config = self.config.rename(folder / "config.yml")
        # a training works on no saved inputs
        inputs = self.inputs.rename(folder / "inputs") if self.inputs.is_dir() else folder
        return self.model_copy(update={"config": config, "inputs": inputs})


class Plan(BaseModel):
    """What one recorder does."""

    side: Side
    jobs: list[Job]
    device: str = "cpu"
    threads: int = 1


def load_side(name: Side) -> SimpleNamespace:
    """Import one side; its modules become attributes (side.models, side.losses, ...)."""
    package = f"for_{name}"
    modules = {module: importlib.import_module(f"{package}.{module}") for module in MODULES}
    return SimpleNamespace(name=name, **modules)


def frameworks_loaded() -> list[str]:
    """Return which of the two frameworks this process has imported."""
    return [name for name in SIDES if name in sys.modules]


def emit(event: str, **fields: Any) -> None:
    """Tell the runner something, as one line of JSON on standard output."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else repr(error)


def emit_failed(job: Job, run: Run, error: Exception) -> None:
    """Tell the runner that a run will leave no record, and whether the user can mend it."""
    emit(
        "failed",
        job=job.name,
        step=run.step,
        dtype=run.dtype,
        fault=run.fault,
        message=_message(error),
        input_error=isinstance(error, InputError),
    )


class Recorder:
    """Executes a plan's jobs one after the other, with one side loaded."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.data: dict[str, list[Part]] = {}
        """The data step's last record by what it depends on: networks share a recipe's data."""
        self.side = load_side(plan.side)
        self.side.backend.set_device(plan.device)
        self.side.backend.set_threads(plan.threads)
        loaded = frameworks_loaded()
        if loaded != [plan.side]:
            raise RuntimeError(f"the {plan.side} recorder has loaded {loaded}; expected one")

    def execute(self, job: Job) -> bool:
        """Record all runs of a job; False when one failed."""
        _wait_until_gone(job.after)
        try:
            config = load_config(job.config)
            if job.weights is not None:
                # steps that need no weights would pass with another network's
                case = Case(config, "float32", inputs={}, weights=job.weights)
                probes.build(self.side, case)
        except InputError as error:
            for run in job.runs:
                emit_failed(job, run, error)
            return False
        return all([self._execute(job, run, config) for run in job.runs])

    def _execute(self, job: Job, run: Run, config: Config) -> bool:
        """Record one run; a failure is written down, and reported by returning False."""
        name = record_name(run.step, run.dtype, self.plan.side)
        where = {"job": job.name, "step": run.step, "dtype": run.dtype, "fault": run.fault}
        started = time.perf_counter()
        emit("start", **where)
        try:
            with self._fault(run.fault):
                self._record(job, run, config)
        except Exception as error:
            text = traceback.format_exc()
            sys.stderr.write(f"{job.name} {run.step} {run.dtype} {run.fault or ''}\n{text}\n")
            write_text(run.folder / f"{name}.error.txt", f"{_message(error)}\n\n{text}")
            emit_failed(job, run, error)
            return False
        emit("done", **where, seconds=round(time.perf_counter() - started, 2))
        return True

    def _fault(self, name: str | None) -> AbstractContextManager[Any]:
        if name is None:
            return nullcontext()
        # only the audit asks for faults; a verification never loads them
        from pipeline.faults import inject

        return inject(name, self.side)

    def _record(self, job: Job, run: Run, config: Config) -> None:
        saved = job.inputs / f"{run.step}.npz"
        case = Case(
            config=config,
            dtype=run.dtype,
            inputs=read_arrays(saved) if saved.is_file() else {},
            weights=job.weights,
            real_frames=job.real_frames,
        )
        meta = {
            "side": self.plan.side,
            "step": run.step,
            "dtype": run.dtype,
            "fault": run.fault,
            "frameworks": frameworks_loaded(),
            "versions": self.side.backend.versions(),
            "device": self.plan.device,
            "threads": self.plan.threads,
            "seed": config.verify.seed,
            "config": config.digest(),
            "inputs": file_digest(saved) if saved.is_file() else "by rule",
            "data": job.data,
            "weights": file_digest(job.weights) if job.weights else "by rule",
        }
        for part, arrays in self._probe(run, case):
            name = record_name(run.step, run.dtype, self.plan.side, part)
            write_record(run.folder, name, arrays, {**meta, "part": part})

    def _probe(self, run: Run, case: Case) -> Iterable[Part]:
        """Run the step's probe; of the data step, take the last record if it would be the same."""
        if run.exam is not None:
            return examine(self.side, case, run.exam, step=run.step)
        if run.step != "data" or run.fault is not None:
            return PROBES[run.step](self.side, case)
        key = data_key(case)
        if key not in self.data:
            self.data = {key: list(probe_data(self.side, case))}
        return self.data[key]


def _wait_until_gone(folder: Path | None) -> None:
    """Keep a fast side from filling the disk with records that the other side is far from."""
    while folder is not None and folder.exists():
        time.sleep(0.1)


def _end_with_parent(parent: int) -> None:
    """End this process group soon after the runner has gone, however it went."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> int:
    """Execute the plan named on the command line; 0 when every run was recorded, else 2 or 3."""
    watcher = threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True)
    watcher.start()
    plan = Plan.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        recorder = Recorder(plan)
    except InputError as error:
        for job in plan.jobs:
            for run in job.runs:
                emit_failed(job, run, error)
        return 2
    recorded = [recorder.execute(job) for job in plan.jobs]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    emit("end", peak_mib=round(peak), frameworks=frameworks_loaded())
    return 0 if all(recorded) else 3


if __name__ == "__main__":
    sys.exit(main())
