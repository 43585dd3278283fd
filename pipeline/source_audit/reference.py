"""What mutants are held against: Torch's records, and what the unchanged Paddle side does.

Both are made once and kept under data/source_audit/<digest of what decides>.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.config import Config
from common.errors import InputError
from common.files import write_text
from common.provenance import ROOT
from pipeline import record
from pipeline.audit import judge_folders
from pipeline.inputs import prepare_inputs
from pipeline.judge import Result
from pipeline.record import Job, Plan
from pipeline.records import has_record, record_name, remove_record
from pipeline.source_audit.experiments import Experiment, Run
from pipeline.source_audit.mutants import Mutant
from pipeline.source_audit.pool import on_workers
from pipeline.source_audit.workers import Request, Worker
from pipeline.steps import step_named

Say = Callable[[str], None]
CLEAN_SECONDS = 600.0
"""Time limit of a run of the unchanged package."""


class Reference:
    """The records of all experiments.

    Args:
        folder: where they are kept; of this digest alone.
        experiments: what is run.
        configs: the loaded configuration of each, in the same order.
    """

    def __init__(
        self, folder: Path, experiments: Sequence[Experiment], configs: Sequence[Config]
    ) -> None:
        self.folder = folder
        self.configs = {one.name: config for one, config in zip(experiments, configs, strict=True)}
        self.runs = [run for experiment in experiments for run in experiment.runs()]
        self.seconds: dict[Run, float] = {}
        """How long each takes with the unchanged package."""
        self._executed: dict[Run, Mapping[str, Mapping[str, list[int]]]] = {}

    def of(self, experiment: str) -> Path:
        """Return the folder of an experiment's records."""
        return self.folder / experiment

    def prepare(self, workers: Sequence[Worker], say: Say) -> None:
        """Make what is not there yet.

        Raises:
            InputError: a side cannot record, or the unchanged package does not pass.
        """
        for name, config in self.configs.items():
            self._write_inputs(name, config)
        missing = [run for run in self.runs if not has_record(*self._record(run, "torch"))]
        if missing:
            say(f"recording Torch: {len(missing)} runs")
            self._record_torch(missing)
        unknown = [run for run in self.runs if not self._facts(run).is_file()]
        # float32 is judged by what float64 has left
        for dtype in ("float64", "float32"):
            on_workers(
                [run for run in unknown if run.dtype == dtype],
                workers,
                self._record_clean,
                done=lambda run, _: say(f"the unchanged Paddle side: {run.name} passes"),
            )
        for run in self.runs:
            facts: dict[str, Any] = json.loads(self._facts(run).read_text(encoding="utf-8"))
            self.seconds[run] = facts["seconds"]
            self._executed[run] = facts["executed"]

    def _write_inputs(self, name: str, config: Config) -> None:
        folder = self.of(name)
        if (folder / "config.yml").is_file():
            return
        steps = sorted({run.step for run in self.runs if run.experiment == name})
        prepare_inputs(folder / "inputs", config, steps=steps, real_frames=False)
        write_text(folder / "config.yml", config.dump_yaml())

    def job(self, runs: Sequence[Run], folder: Path | None = None) -> Job:
        """Return the recorder's job of runs of one experiment; records go to the folder."""
        own = self.of(runs[0].experiment)
        return Job(
            name=runs[0].experiment,
            config=own / "config.yml",
            inputs=own / "inputs",
            runs=[record.Run(step=r.step, dtype=r.dtype, folder=folder or own) for r in runs],
        )

    def request(self, run: Run, *, package: Path, folder: Path, seconds: float) -> Request:
        """Return the request to record a run with the package below that folder."""
        plan = Plan(side="paddle", jobs=[self.job([run], folder)])
        return Request(
            package=str(package),
            plan=plan.model_dump(mode="json"),
            errors=str(folder / "import.error.txt"),
            seconds=seconds,
        )

    def judge(self, run: Run, folder: Path) -> Result:
        """Judge Paddle's record of a run, which is in the folder."""
        own = self.of(run.experiment)
        config = self.configs[run.experiment]
        # what float32 rounds is measured with the unchanged package: float64 has passed before
        return judge_folders(step_named(run.step), run.dtype, own, folder, config=config, floor=own)

    def executing(self, mutant: Mutant) -> list[Run]:
        """Return the runs in which the mutant's place is executed, by the unchanged package."""
        first, last = mutant.block
        lines = set(range(first, last + 1))
        at_run = [run for run in self.runs if lines & self._lines(run, "run", mutant.file)]
        if at_run:
            return at_run
        # a constant, a default, a table: it counts wherever something of its file is executed
        return [
            run
            for run in self.runs
            if lines & self._lines(run, "import", mutant.file)
            and self._lines(run, "run", mutant.file)
        ]

    def _lines(self, run: Run, when: str, file: str) -> set[int]:
        return set(self._executed[run][when].get(file, ()))

    def _record(self, run: Run, side: str) -> tuple[Path, str]:
        return self.of(run.experiment), record_name(run.step, run.dtype, side)

    def _facts(self, run: Run) -> Path:
        return self.of(run.experiment) / f"{run.step}.{run.dtype}.facts.json"

    def _record_torch(self, runs: Sequence[Run]) -> None:
        by_experiment: dict[str, list[Run]] = {}
        for run in runs:
            by_experiment.setdefault(run.experiment, []).append(run)
        jobs = [self.job(own) for own in by_experiment.values()]
        plan = self.folder / "torch.plan.json"
        write_text(plan, Plan(side="torch", jobs=jobs).model_dump_json())
        log = self.folder / "recorder_torch.log"
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.record", str(plan)],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                # it ends its own group when this process has gone
                start_new_session=True,
            )
            try:
                code = process.wait()
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
        if code != 0:
            raise InputError(f"the Torch side could not be recorded; see {log}")

    def _record_clean(self, run: Run, worker: Worker) -> None:
        own, name = self._record(run, "paddle")
        executed = own / f"{name}.executed.json"
        request = self.request(run, package=ROOT, folder=own, seconds=CLEAN_SECONDS)
        reply = worker.ask(request.model_copy(update={"executed": str(executed)}))
        result = self.judge(run, own)
        if reply.status != "recorded" or not result.verdict.passed:
            where = result.divergence.text if result.divergence else result.message
            raise InputError(
                f"the unchanged package does not pass {run.name} ({reply.status}, "
                f"{result.verdict.value}: {where}); run bisenet verify first"
            )
        lines = json.loads(executed.read_text(encoding="utf-8"))
        facts = {"seconds": reply.seconds, "executed": lines}
        write_text(self._facts(run), json.dumps(facts))
        if not self._is_floor(run):
            remove_record(own, name)

    def _is_floor(self, run: Run) -> bool:
        """Tell whether a float32 run is judged by this record."""
        return run.dtype == "float64" and any(
            other.experiment == run.experiment
            and other.step == run.step
            and other.dtype == "float32"
            for other in self.runs
        )


def remove_other_digests(root: Path, keep: str) -> None:
    """Delete the records of earlier code: they take gigabytes and can be made again."""
    for folder in root.glob("records.*"):
        if folder.name != f"records.{keep}":
            shutil.rmtree(folder, ignore_errors=True)
