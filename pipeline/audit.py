"""The verifier verifies itself: every deliberate fault must be caught in its step, at its place.

Where a relation fits, it must be named as the explanation, too (fault_exams.py).

Torch records each step once. Paddle records a step once per fault, in one process, and at the end
every step without a fault: that run must pass, or a patch has leaked.

A fault is recorded in the dtype that decides its step. Those that only float32 can show are
recorded each in float32, and all those of a step together in float64: that must pass, and is their
rounding floor.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.config import Config
from common.errors import ConfigError
from common.files import scratch_folder, write_text
from common.provenance import code_digest, git_commit
from pipeline.chaos import perturbation_rows
from pipeline.fault_exams import FaultExams
from pipeline.faults import FAULTS, Fault
from pipeline.findings import AuditOutcome, Explanation, Finding
from pipeline.inputs import prepare_inputs
from pipeline.judge import Result, compare_float32, compare_float64, judge
from pipeline.outcome import Options
from pipeline.record import Job, Run
from pipeline.recording import Progress, Recording
from pipeline.records import has_record, read_record, record_name
from pipeline.runner import resolve_data
from pipeline.steps import SIDES, STEPS, Dtype, Side, Step, step_named
from pipeline.training import floor_part
from pipeline.verdicts import Verdict, matching

# a wrong training shows within a few iterations; all other steps are as large as in verify
SHORT = {"train_iters": 6, "train_iters_float32": 4, "train_warmup_iters": 2, "check_every": 2}


SHORT_SCHEDULE = {"max_iters": 2000, "warmup_iters": 200}


def select_faults(names: str, *, models: Sequence[str]) -> list[Fault]:
    """Return the comma-separated faults, or all that the networks can have.

    Raises:
        ConfigError: a name is unknown, or a fault is of none of these networks.
    """
    wanted = [word.strip() for word in names.split(",") if word.strip()]
    possible = {fault.name: fault for fault in FAULTS if fault.model in models}
    unknown = [name for name in wanted if name not in possible]
    if unknown or not possible:
        raise ConfigError(
            f"unknown fault(s) {', '.join(unknown) or '(any)'} of {', '.join(models)}; "
            f"faults: {', '.join(possible) or 'none'}"
        )
    return [possible[name] for name in wanted] if wanted else list(possible.values())


def audit(
    configs: Sequence[Config],
    faults: Sequence[Fault],
    *,
    folder: Path,
    progress: Progress,
    explain: bool = True,
) -> AuditOutcome:
    """Record every fault and judge it against its network's one Torch record of the step.

    Args:
        configs: one per network.
        faults: what to put in.
        folder: for the recorders' logs and, meanwhile, the records.
        progress: told about every event.
        explain: whether each must be explained, too.
    """
    started = time.perf_counter()
    parts: list[_Part] = []
    with scratch_folder(folder, prefix="audit.") as work:
        for config in configs:
            own = [fault for fault in faults if fault.model == config.model.name]
            if own:
                parts.append(
                    _Part(_shortened(config, folder), own, work / config.model.name, explain)
                )
        jobs: dict[Side, list[Job]] = {
            "torch": [part.torch_job() for part in parts],
            "paddle": [part.job_with_faults() for part in parts],
        }
        with Recording(jobs, work=work, logs=folder, device="cpu", progress=progress) as recording:
            while len(recording.ended) < len(SIDES):
                recording.pump(0.5)
                for part in parts:
                    part.judge_recorded()
                if recording.ended.get("torch") not in (None, 0, 3):
                    # killed: Paddle must not wait for what will never be recorded
                    break
        findings = [finding for part in parts for finding in part.findings()]
        clean = {key: verdict for part in parts for key, verdict in part.clean().items()}
    head = {"commit": git_commit(), "code_digest": code_digest()}
    for part in parts:
        head[f"config_digest of {part.config.model.name}"] = part.config.digest()
    return AuditOutcome(tuple(findings), clean, head, time.perf_counter() - started)


def _shortened(config: Config, folder: Path) -> Config:
    short = config.model_copy(
        update={
            "verify": config.verify.model_copy(update=SHORT),
            "schedule": config.schedule.model_copy(update=SHORT_SCHEDULE),
        }
    )
    return resolve_data(short, Options(out=folder, steps=()))


def shown_in(fault: Fault) -> Dtype:
    """Return the dtype that must show the fault."""
    return fault.dtype or step_named(fault.step).dtypes[0]


def narrow(fault: Fault) -> bool:
    """Tell whether float32 alone shows the fault."""
    return shown_in(fault) != step_named(fault.step).dtypes[0]


class _Part:
    """The faults of one network."""

    def __init__(self, config: Config, faults: Sequence[Fault], work: Path, explain: bool) -> None:
        self.config, self.faults, self.work, self.explain = config, faults, work, explain
        self.found: dict[str, Finding] = {}
        self.narrow: dict[str, list[str]] = {}
        """Faults that float32 alone shows, by step."""
        for fault in filter(narrow, faults):
            self.narrow.setdefault(fault.step, []).append(fault.name)
        self.wrong_wide: dict[str, str] = {}
        """What float64 says with all of them, by step; empty if it is right."""
        steps = [step for step in STEPS if step.name in {fault.step for fault in faults}]
        self.runs: list[tuple[Step, Dtype]] = [
            (step, dtype)
            for step in steps
            for dtype in (step.dtypes if step.name in self.narrow else step.dtypes[:1])
        ]
        names = [step.name for step in steps]
        prepare_inputs(work / "inputs", config, steps=names, real_frames=False)
        write_text(work / "config.yml", config.dump_yaml())
        examined: list[tuple[Fault, Dtype]] = [
            (fault, shown_in(fault)) for fault in faults if explain
        ]
        self.exams = FaultExams(config, work, examined)

    def torch_job(self) -> Job:
        """Return the job without faults, and the passes that explain them."""
        job = self.job()
        return job.model_copy(update={"runs": [*job.runs, *self.exams.torch_runs()]})

    def job(self) -> Job:
        """Return the job without faults."""
        return Job(
            name=self.config.model.name,
            config=self.work / "config.yml",
            inputs=self.work / "inputs",
            runs=[Run(step=step.name, dtype=dtype, folder=self.work) for step, dtype in self.runs],
        )

    def job_with_faults(self) -> Job:
        """Return the faults, and after them each step without one."""
        together = [
            Run(step=step, dtype="float64", fault=",".join(names), folder=self.wide(step))
            for step, names in self.narrow.items()
        ]
        alone: list[Run] = []
        for fault in self.faults:
            folder, dtype = self.work / fault.name, shown_in(fault)
            alone.append(Run(step=fault.step, dtype=dtype, fault=fault.name, folder=folder))
            alone += self.exams.paddle_runs(fault)
        job = self.job()
        return job.model_copy(update={"runs": [*together, *alone, *job.runs]})

    def wide(self, step: str) -> Path:
        """Return the folder of the float64 record with a step's faults of float32 alone."""
        return self.work / f"{step}.float64"

    def judge_recorded(self) -> None:
        """Judge what is there and delete it: a hundred faults would fill a disk."""
        for fault in self.faults:
            if fault.name not in self.found and self._is_recorded(fault):
                self.found[fault.name] = self._finding(fault)
        if len(self.found) == len(self.faults):
            shutil.rmtree(self.work / "exams", ignore_errors=True)

    def _is_recorded(self, fault: Fault) -> bool:
        needed = [(shown_in(fault), self.work / fault.name)]
        if narrow(fault):
            needed.append(("float64", self.wide(fault.step)))
        return self.exams.is_recorded(fault) and all(
            has_record(place, record_name(fault.step, dtype, side))
            for dtype, folder in needed
            for place, side in zip((self.work, folder), SIDES, strict=True)
        )

    def _finding(self, fault: Fault) -> Finding:
        explain = self._explain if self.explain else None
        if not narrow(fault):
            return finding_of(fault, self.work, self.config, explain=explain)
        wide = self.wide(fault.step)
        if fault.step not in self.wrong_wide:
            # what float64 sees proves nothing about the float32 rule
            result = judge_folders(
                step_named(fault.step), "float64", self.work, wide, config=self.config
            )
            text = result.divergence.text if result.divergence else result.message
            self.wrong_wide[fault.step] = "" if result.verdict.passed else text
        wrong = self.wrong_wide[fault.step]
        return finding_of(
            fault, self.work, self.config, floor=wide, wrong_wide=wrong, explain=explain
        )

    def _explain(self, fault: Fault, result: Result) -> Explanation:
        if result.verdict.passed or result.verdict is Verdict.ERROR:
            return Explanation(blamed="")
        return self.exams.explain(fault, result)

    def findings(self) -> list[Finding]:
        """Return what became of every fault; one without a record is judged as it is."""
        return [self.found.get(fault.name) or self._finding(fault) for fault in self.faults]

    def clean(self) -> dict[str, str]:
        """Judge the runs without a fault."""
        return {
            f"{self.config.model.name} {step.name} {dtype}": judge_folders(
                step, dtype, self.work, self.work, config=self.config
            ).verdict.value
            for step, dtype in self.runs
        }


def judge_folders(
    step: Step,
    dtype: Dtype,
    reference: Path,
    actual: Path,
    *,
    config: Config,
    floor: Path | None = None,
) -> Result:
    """Judge one dtype of a step by the records of two folders, as a verification does.

    Args:
        step: the row of the table.
        dtype: what to judge.
        reference: folder of Torch's records, those in float64 included.
        actual: folder of Paddle's.
        config: for the ignored label.
        floor: folder of Paddle's float64 record if that is another.
    """
    names = [record_name(step.name, dtype, side) for side in SIDES]
    needed = list(zip((reference, actual), names, strict=True))
    wide = step.dtypes[0]
    if dtype != wide:
        floors = [record_name(step.name, wide, side, floor_part(step.name)) for side in SIDES]
        needed += zip((reference, floor or actual), floors, strict=True)
    for folder, name in needed:
        if not has_record(folder, name):
            error = folder / f"{name}.error.txt"
            text = error.read_text(encoding="utf-8") if error.is_file() else "no record was made"
            return Result(step, dtype, Verdict.ERROR, message=text.strip().splitlines()[0])
    records = [read_record(folder, name) for folder, name in needed]
    pair, arrays = records[:2], [record.arrays for record in records]
    ignore_index = config.data.ignore_index
    if dtype != wide:
        rows = compare_float32(step, arrays[:2], arrays[2:], ignore_index=ignore_index)
        rows += perturbation_rows(step, arrays[:2], reference)
    else:
        rows = compare_float64(step, arrays, ignore_index=ignore_index)
    return judge(step, dtype, pair, rows)


def finding_of(
    fault: Fault,
    work: Path,
    config: Config,
    *,
    floor: Path | None = None,
    wrong_wide: str = "",
    explain: Callable[[Fault, Result], Explanation] | None = None,
) -> Finding:
    """Judge a fault by its records, and delete them.

    Args:
        fault: the row of the table.
        work: folder of Torch's records; Paddle's are in the one below that has the fault's name.
        config: of both.
        floor: see judge_folders.
        wrong_wide: for a fault of float32 alone, what float64 says about it: it should be silent.
        explain: says what explains a result; without it no explanation is asked for.
    """
    dtype = shown_in(fault)
    result = judge_folders(
        step_named(fault.step), dtype, work, work / fault.name, config=config, floor=floor
    )
    why = explain(fault, result) if explain is not None else None
    shutil.rmtree(work / fault.name, ignore_errors=True)
    found = result.divergence.key if result.divergence else ""
    text = result.divergence.text if result.divergence else result.message
    row = next((row for row in result.rows if row.key == found), None)
    return Finding(
        model=fault.model,
        fault=fault.name,
        step=fault.step,
        dtype=dtype,
        title=fault.title,
        expected=fault.where,
        found=found,
        text=f"float64 sees it too: {wrong_wide}" if wrong_wide else text,
        # a crash is no finding: the verifier must see the wrong number
        caught=bool(found)
        and not wrong_wide
        and not result.verdict.passed
        and result.verdict is not Verdict.ERROR
        and matching(fault.where, found),
        relative=row.relative if row else 0.0,
        rounding=row.self_ratio if row else None,
        why=fault.why,
        blamed=why.blamed if why else "",
        explanation=why.relation if why else None,
        residual=why.residual if why else None,
    )
