"""The verifier verifies itself: every deliberate fault must be caught in its step, at its place.

Torch records each step once. Paddle records a step once per fault, in one process, and at the end
every step without a fault: that run must pass, or a patch has leaked.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config import Config
from common.errors import ConfigError
from common.files import scratch_folder, write_text
from pipeline.compare import Verdict, matching
from pipeline.faults import FAULTS, Fault
from pipeline.inputs import prepare_inputs
from pipeline.judge import Result, compare_float64, judge
from pipeline.record import Job, Run
from pipeline.recording import Progress, Recording
from pipeline.records import has_record, read_record, record_name
from pipeline.report import code_digest, git_commit
from pipeline.runner import Options, resolve_data
from pipeline.steps import SIDES, STEPS, Side, Step, step_named

# a wrong training shows within a few iterations; all other steps are as large as in verify
SHORT = {"train_iters": 6, "train_iters_float32": 2, "train_warmup_iters": 2, "check_every": 2}


SHORT_SCHEDULE = {"max_iters": 2000, "warmup_iters": 200}


@dataclass(frozen=True)
class Finding:
    """What became of one fault."""

    model: str
    fault: str
    step: str
    title: str
    expected: str
    found: str
    """Key at which the difference starts; empty when nothing differs."""
    text: str
    """The same in words, or the recorder's error."""
    caught: bool
    relative: float
    """Largest difference at that key."""


@dataclass(frozen=True)
class AuditOutcome:
    """The whole matrix."""

    findings: tuple[Finding, ...]
    clean: Mapping[str, str]
    """"model step" -> verdict of the run without a fault after all the others."""
    head: Mapping[str, str]
    seconds: float

    @property
    def all_caught(self) -> bool:
        """True when every fault was caught and the fault-free runs passed."""
        return all(f.caught for f in self.findings) and set(self.clean.values()) == {"PASS"}

    @property
    def exit_code(self) -> int:
        """0 all caught, 3 a recorder failed without a fault, 1 a fault survived."""
        if Verdict.ERROR.value in self.clean.values():
            return 3
        return 0 if self.all_caught else 1

    def as_json(self) -> dict[str, Any]:
        """Return the matrix for audit.json."""
        return {
            **self.head,
            "seconds": round(self.seconds, 1),
            "clean": dict(self.clean),
            "findings": [
                {**asdict(finding), "relative": f"{finding.relative:.3e}"}
                for finding in self.findings
            ],
        }


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
    configs: Sequence[Config], faults: Sequence[Fault], *, folder: Path, progress: Progress
) -> AuditOutcome:
    """Record every fault and judge it against its network's one Torch record of the step."""
    started = time.perf_counter()
    parts: list[_Part] = []
    with scratch_folder(folder, prefix="audit.") as work:
        for config in configs:
            own = [fault for fault in faults if fault.model == config.model.name]
            if own:
                parts.append(_Part(_shortened(config, folder), own, work / config.model.name))
        jobs: dict[Side, list[Job]] = {
            "torch": [part.job() for part in parts],
            "paddle": [part.job_with_faults() for part in parts],
        }
        with Recording(jobs, work=work, logs=folder, device="cpu", progress=progress) as recording:
            while len(recording.ended) < len(SIDES):
                recording.pump(0.5)
                for part in parts:
                    part.judge_recorded()
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


class _Part:
    """The faults of one network."""

    def __init__(self, config: Config, faults: Sequence[Fault], work: Path) -> None:
        self.config, self.faults, self.work = config, faults, work
        self.found: dict[str, Finding] = {}
        names = {fault.step for fault in faults}
        self.steps = [step for step in STEPS if step.name in names]
        prepare_inputs(
            work / "inputs", config, steps=[step.name for step in self.steps], real_frames=False
        )
        write_text(work / "config.yml", config.dump_yaml())

    def job(self) -> Job:
        """Return the job without faults, which is all that Torch records."""
        return Job(
            name=self.config.model.name,
            config=self.work / "config.yml",
            inputs=self.work / "inputs",
            runs=[_run(step, self.work) for step in self.steps],
        )

    def job_with_faults(self) -> Job:
        """Return the faults, and after them each step without one."""
        runs = [
            _run(step_named(fault.step), self.work / fault.name, fault=fault.name)
            for fault in self.faults
        ]
        job = self.job()
        return job.model_copy(update={"runs": [*runs, *job.runs]})

    def judge_recorded(self) -> None:
        """Judge what is there and delete it: a hundred faults would fill a disk."""
        for fault in self.faults:
            step = step_named(fault.step)
            names = [record_name(step.name, step.dtypes[0], side) for side in SIDES]
            complete = has_record(self.work, names[0]) and has_record(
                self.work / fault.name, names[1]
            )
            if fault.name not in self.found and complete:
                self.found[fault.name] = _finding(fault, self.work, self.config)

    def findings(self) -> list[Finding]:
        """Return what became of every fault; one without a record is judged as it is."""
        return [
            self.found.get(fault.name) or _finding(fault, self.work, self.config)
            for fault in self.faults
        ]

    def clean(self) -> dict[str, str]:
        """Judge the runs without a fault."""
        return {
            f"{self.config.model.name} {step.name}": _judge(
                step, self.work, self.work, self.config
            ).verdict.value
            for step in self.steps
        }


def _run(step: Step, folder: Path, *, fault: str | None = None) -> Run:
    return Run(step=step.name, dtype=step.dtypes[0], fault=fault, folder=folder)


def _judge(step: Step, reference: Path, actual: Path, config: Config) -> Result:
    dtype = step.dtypes[0]
    names = [record_name(step.name, dtype, side) for side in SIDES]
    for folder, name in zip((reference, actual), names, strict=True):
        if not has_record(folder, name):
            error = folder / f"{name}.error.txt"
            text = error.read_text(encoding="utf-8") if error.is_file() else "no record was made"
            return Result(step, dtype, Verdict.ERROR, message=text.strip().splitlines()[0])
    pair = [read_record(reference, names[0]), read_record(actual, names[1])]
    arrays = [record.arrays for record in pair]
    rows = compare_float64(step, arrays, ignore_index=config.data.ignore_index)
    return judge(step, dtype, pair, rows)


def _finding(fault: Fault, work: Path, config: Config) -> Finding:
    result = _judge(step_named(fault.step), work, work / fault.name, config)
    shutil.rmtree(work / fault.name, ignore_errors=True)
    found = result.divergence.key if result.divergence else ""
    row = next((row for row in result.rows if row.key == found), None)
    return Finding(
        model=fault.model,
        fault=fault.name,
        step=fault.step,
        title=fault.title,
        expected=fault.where,
        found=found,
        text=result.divergence.text if result.divergence else result.message,
        # a crash is no finding: the verifier must see the wrong number
        caught=bool(found)
        and not result.verdict.passed
        and result.verdict is not Verdict.ERROR
        and matching(fault.where, found),
        relative=row.relative if row else 0.0,
    )


def matrix_text(outcome: AuditOutcome) -> str:
    """Return the matrix as text: one line per fault, survivors first."""
    lines = [
        "audit: deliberate wrong ports of the Paddle side, each against the step it belongs to"
    ]
    lines += [f"{key}: {value}" for key, value in outcome.head.items()]
    lines.append(f"{'verdict':9} {'model':14} {'step':12} {'fault':26} {'differs':>8}  starts at")
    for finding in sorted(outcome.findings, key=lambda f: f.caught):
        verdict = "caught" if finding.caught else "SURVIVED"
        where = finding.text or "nothing differs"
        lines.append(
            f"{verdict:9} {finding.model:14} {finding.step:12} {finding.fault:26} "
            f"{finding.relative:8.1e}  {where}"
        )
        if not finding.caught:
            lines.append(f"{'':9} expected the difference to start at {finding.expected}")
    caught = sum(finding.caught for finding in outcome.findings)
    clean = ", ".join(f"{step} {verdict}" for step, verdict in outcome.clean.items())
    lines.append(f"without a fault, after all of them: {clean}")
    lines.append(f"{caught} of {len(outcome.findings)} faults caught, {outcome.seconds:.0f} s")
    return "\n".join(lines) + "\n"
