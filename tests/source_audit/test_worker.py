"""The Paddle process: it records a copy of the package, changed or not, and outlives crashes."""

from __future__ import annotations

import json
from pathlib import Path

from common.config import load_config
from common.provenance import ROOT
from pipeline.record import Job, Plan, Run
from pipeline.records import read_record, record_name
from pipeline.source_audit.mutants import Mutant, all_mutants, write_mutated
from pipeline.source_audit.workers import Reply, Request, Worker

CONFIG = ROOT / "configs" / "bisenetv1_cityscapes.yml"


def request(folder: Path, config: Path, package: Path) -> Request:
    folder.mkdir(exist_ok=True)
    run = Run(step="lr_schedule", dtype="float64", folder=folder)
    job = Job(name="job", config=config, inputs=folder, runs=[run])
    return Request(
        package=str(package),
        plan=Plan(side="paddle", jobs=[job]).model_dump(mode="json"),
        errors=str(folder / "import.error.txt"),
        seconds=120.0,
    )


def head_rate(folder: Path) -> float:
    record = read_record(folder, record_name("lr_schedule", "float64", "paddle"))
    assert record.meta["frameworks"] == ["paddle"]
    return float(record.arrays["lr/head_decay"][0])


def test_changed_copies_and_the_unchanged_package(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    short = load_config(CONFIG, overrides=["schedule.max_iters=3", "schedule.warmup_iters=1"])
    config.write_text(short.dump_yaml(), encoding="utf-8")
    package = ROOT / "for_paddle"
    rates = [m for m in all_mutants(package) if m.scope == "learning_rates"]

    def tried(worker: Worker, mutant: Mutant) -> tuple[Reply, Path]:
        folder = tmp_path / mutant.id
        copy = write_mutated(mutant, package=package, folder=folder)
        return worker.ask(request(folder / "records", config, copy)), folder / "records"

    with Worker(tmp_path / "worker.log") as worker:
        divided, wrong = tried(worker, next(m for m in rates if m.operator == "arithmetic"))
        crashed, broken = tried(worker, next(m for m in rates if m.operator == "deleted statement"))
        executed = tmp_path / "executed.json"
        clean = tmp_path / "clean"
        asked = request(clean, config, ROOT).model_copy(update={"executed": str(executed)})
        unchanged = worker.ask(asked)
        late = worker.ask(asked.model_copy(update={"seconds": 0.01}))
    statuses = [reply.status for reply in (divided, crashed, unchanged, late)]
    assert statuses == ["recorded", "failed", "recorded", "timeout"]
    # a head's rate is ten times the base rate: divided by ten it is a hundredth of that
    assert head_rate(clean) == 100 * head_rate(wrong)
    assert "scheduled" in (broken / "lr_schedule.float64.paddle.error.txt").read_text()
    lines = json.loads(executed.read_text(encoding="utf-8"))
    assert "optim.py" in lines["run"]
    assert "metrics.py" not in lines["run"]
    assert "metrics.py" in lines["import"]
