"""Runs a verification: prepares inputs, starts one recorder per side, judges what they record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import Config
from common.datasets import load_samples
from common.errors import ConfigError, InputError
from common.files import scratch_folder, write_text
from common.provenance import code_digest
from common.weights import read_weights
from fake_data import scenes
from pipeline.inputs import DATA_STEPS, data_digest, prepare_inputs
from pipeline.investigate import Scene, investigate
from pipeline.judging import Judging
from pipeline.outcome import Options, Outcome
from pipeline.record import Job, Run, frameworks_loaded
from pipeline.recording import Progress, Recording
from pipeline.steps import SIDES, STEPS, Side, Step
from pipeline.verdicts import Verdict
from pipeline.waivers import waivers_of

SCENES_HW = (256, 512)
SCENES_TRAIN, SCENES_VAL = 8, 4


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
