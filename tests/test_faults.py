"""The table of deliberate faults, and the audit that must catch each at its place."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load_config
from common.errors import ConfigError
from pipeline.audit import AuditOutcome, Finding, _finding, _judge, matrix_text, select_faults
from pipeline.compare import Verdict
from pipeline.faults import FAULTS, Fault, fault_named
from pipeline.records import record_name, write_record
from pipeline.steps import SIDES, STEP_NAMES, STEPS, step_named

ROOT = Path(__file__).resolve().parent.parent
CITYSCAPES = ROOT / "configs" / "bisenetv1_cityscapes.yml"


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CITYSCAPES)


def test_the_table() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(FAULTS) >= 25
    assert len(set(names)) == len(names)
    assert {fault.step for fault in FAULTS} == set(STEP_NAMES)
    assert len({(fault.model, fault.title) for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert fault.name.isidentifier()
        assert fault.title
        # a pattern that any key matches would call every difference caught
        assert fault.where.strip("*/")
        assert callable(fault.patch)


def test_the_steps_of_the_faults_are_run_in_their_deciding_dtype() -> None:
    assert all(step.dtypes[0] == "float64" for step in STEPS if step.name != "data")


def test_faults_are_selected_by_name() -> None:
    models = sorted({fault.model for fault in FAULTS})
    assert select_faults("", models=models) == list(FAULTS)
    own = [fault for fault in FAULTS if fault.model == "bisenetv1"]
    assert select_faults("", models=["bisenetv1"]) == own
    chosen = select_faults(f" {own[3].name}, {own[0].name},", models=["bisenetv1"])
    assert chosen == [own[3], own[0]]
    with pytest.raises(ConfigError, match=r"unknown fault\(s\) nonsense, x of bisenetv1; faults: "):
        select_faults(f"nonsense,{own[0].name},x", models=["bisenetv1"])
    with pytest.raises(ConfigError, match=r"unknown fault\(s\) \(any\) of nothing; faults: none"):
        select_faults("", models=["nothing"])
    assert fault_named(FAULTS[0].name) is FAULTS[0]
    with pytest.raises(LookupError, match="no fault 'nonsense'; faults: "):
        fault_named("nonsense")


FAULT = Fault("made_up", "lr_schedule", "lr/*", "the rate is doubled", nullcontext)
RATES = {"lr/decay": np.linspace(1.0, 2.0, 9), "options/decay/momentum": np.asarray(0.9)}


def write(folder: Path, side: str, arrays: dict[str, Any], **changes: Any) -> None:
    meta = {"side": side, "frameworks": [side], "dtype": "float64", "config": "c", "inputs": None}
    meta |= {"data": "d", "weights": "by rule", "seed": 0, **changes}
    write_record(folder, record_name("lr_schedule", "float64", side), arrays, meta)


def finding_of(
    work: Path, config: Config, actual: dict[str, Any], meta: dict[str, Any] | None = None
) -> Finding:
    write(work, "torch", RATES)
    write(work / FAULT.name, "paddle", actual, **(meta or {}))
    return _finding(FAULT, work, config)


def test_a_fault_that_shows_where_it_should_is_caught(tmp_path: Path, config: Config) -> None:
    finding = finding_of(tmp_path, config, {**RATES, "lr/decay": RATES["lr/decay"] * 2})
    assert finding.caught
    assert (finding.found, finding.relative) == ("lr/decay", 1.0)
    # its records are not needed any more, the reference's are
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npz"]


@pytest.mark.parametrize(
    ("actual", "meta", "start"),
    [
        # a harmless fault
        (RATES, {}, ""),
        # a difference somewhere else
        ({**RATES, "options/decay/momentum": np.asarray(0.8)}, {}, "options/decay/momentum"),
        # records that cannot be compared are no finding
        (RATES, {"seed": 1}, "provenance/seed"),
        ({**RATES, "lr/decay": RATES["lr/decay"] * 2}, {"config": "other"}, "lr/decay"),
    ],
)
def test_anything_else_survives(
    tmp_path: Path, config: Config, actual: dict[str, Any], meta: dict[str, Any], start: str
) -> None:
    finding = finding_of(tmp_path, config, actual, meta)
    assert (finding.found, finding.caught) == (start, False)


def test_a_key_that_is_lost_at_the_expected_place_is_caught(tmp_path: Path, config: Config) -> None:
    actual = {key: array for key, array in RATES.items() if key != "lr/decay"}
    finding = finding_of(tmp_path, config, actual)
    assert (finding.found, finding.caught) == ("lr/decay", True)


def test_a_crash_is_no_finding(tmp_path: Path, config: Config) -> None:
    write(tmp_path, "torch", RATES)
    name = record_name("lr_schedule", "float64", "paddle")
    folder = tmp_path / FAULT.name
    folder.mkdir()
    (folder / f"{name}.error.txt").write_text("RuntimeError('boom')\n\nTraceback ...")
    finding = _finding(FAULT, tmp_path, config)
    assert (finding.caught, finding.found, finding.text) == (False, "", "RuntimeError('boom')")


@pytest.mark.parametrize("present", [[], ["torch"], ["paddle"]])
def test_a_record_that_was_not_made_is_an_error(
    tmp_path: Path, config: Config, present: list[str]
) -> None:
    for side in present:
        write(tmp_path, side, RATES)
    result = _judge(step_named("lr_schedule"), tmp_path, tmp_path, config)
    assert (result.verdict, result.message) == (Verdict.ERROR, "no record was made")


CAUGHT = Finding(
    "bisenetv1", "a", "loss", "title", "*/loss/main", "x/loss/main", "x, loss, main", True, 0.5
)
SURVIVED = replace(CAUGHT, fault="b", found="", text="", caught=False, relative=0.0)


@pytest.mark.parametrize(
    ("findings", "clean", "code"),
    [
        ((CAUGHT, CAUGHT), {"bisenetv1 loss": "PASS"}, 0),
        ((CAUGHT, SURVIVED), {"bisenetv1 loss": "PASS"}, 1),
        ((CAUGHT,), {"loss": "FAIL"}, 1),
        ((CAUGHT,), {"loss": "PASS", "data": "VACUOUS"}, 1),
        ((CAUGHT,), {"loss": "PASS", "data": "ERROR"}, 3),
        ((), {}, 1),
    ],
)
def test_exit_codes_of_the_audit(
    findings: tuple[Finding, ...], clean: dict[str, str], code: int
) -> None:
    outcome = AuditOutcome(findings, clean, {"commit": "c"}, 1.0)
    assert outcome.exit_code == code
    assert outcome.all_caught == (code == 0)


def test_survivors_are_told_first() -> None:
    outcome = AuditOutcome((CAUGHT, SURVIVED), {"bisenetv1 loss": "PASS"}, {"commit": "c"}, 61.2)
    lines = matrix_text(outcome).splitlines()
    verdicts = [line.split()[0] for line in lines if line.startswith(("caught", "SURVIVED"))]
    assert verdicts == ["SURVIVED", "caught"]
    assert any("expected the difference to start at */loss/main" in line for line in lines)
    assert lines[-2] == "without a fault, after all of them: bisenetv1 loss PASS"
    assert lines[-1] == "1 of 2 faults caught, 61 s"
    assert [f["fault"] for f in json.loads(json.dumps(outcome.as_json()))["findings"]] == ["a", "b"]


def test_a_small_audit_from_end_to_end(tmp_path: Path) -> None:
    names = ["void_as_class", "loss_weight", "loss_term_dropped"]
    words = ["--faults", ",".join(names), "--out", str(tmp_path / "out")]
    words += ["--set", "verify.image_hw=[32,64]", "--set", "verify.batch_size=2"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "audit", "--config", str(CITYSCAPES), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 of 3 faults caught" in done.stdout
    matrix = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert [finding["fault"] for finding in matrix["findings"]] == names
    assert all(finding["caught"] for finding in matrix["findings"])
    assert matrix["clean"] == {"bisenetv1 loss": "PASS"}
    assert (tmp_path / "out" / "audit.log").read_text() == done.stdout
    logs = ["audit.json", "audit.log", *(f"recorder_{side}.log" for side in sorted(SIDES))]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == logs


def test_faults_are_listed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "audit", "--config", str(CITYSCAPES), "--list"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0
    listed = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    own = {(fault.model, fault.name) for fault in FAULTS if fault.model == "bisenetv1"}
    assert listed == own
    assert list(tmp_path.iterdir()) == []
