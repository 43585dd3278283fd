"""The table of deliberate faults, and the audit that must catch each at its place."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.config import Config, load_config
from common.errors import ConfigError
from pipeline.audit import finding_of, judge_folders, narrow, select_faults, shown_in
from pipeline.faults import FAULTS, Fault, fault_named, inject
from pipeline.findings import AuditOutcome, Explanation, Finding, matrix_text
from pipeline.judge import Result
from pipeline.records import record_name, write_record
from pipeline.steps import SIDES, STEP_NAMES, STEPS, step_named
from pipeline.verdicts import Verdict

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


def test_faults_of_float32_alone_are_in_every_step_that_runs_in_both() -> None:
    short = [fault for fault in FAULTS if narrow(fault)]
    assert len(short) >= 6
    assert {fault.dtype for fault in FAULTS} == {None, "float32"}
    assert {fault.step for fault in short} == {s.name for s in STEPS if len(s.dtypes) == 2}
    for fault in FAULTS:
        decides = step_named(fault.step).dtypes[0]
        assert shown_in(fault) == ("float32" if fault in short else decides)


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


def test_faults_are_injected_together_and_taken_back() -> None:
    side = SimpleNamespace(losses=SimpleNamespace(pixel_losses="right"))
    side.layers = SimpleNamespace(F=None)
    side.train = SimpleNamespace(train_step="right")
    with inject("log_softmax_float16,images_float16", side):
        assert side.losses.pixel_losses != "right" != side.train.train_step
    assert side.losses.pixel_losses == side.train.train_step == "right"


FAULT = Fault("made_up", "lr_schedule", "lr/*", "the rate is doubled", nullcontext)
RATES = {"lr/decay": np.linspace(1.0, 2.0, 9), "options/decay/momentum": np.asarray(0.9)}


def write(folder: Path, side: str, arrays: dict[str, Any], **changes: Any) -> None:
    meta = {"side": side, "frameworks": [side], "dtype": "float64", "config": "c", "inputs": None}
    meta |= {"data": "d", "weights": "by rule", "seed": 0, **changes}
    write_record(folder, record_name("lr_schedule", "float64", side), arrays, meta)


def found_with(
    work: Path, config: Config, actual: dict[str, Any], meta: dict[str, Any] | None = None
) -> Finding:
    write(work, "torch", RATES)
    write(work / FAULT.name, "paddle", actual, **(meta or {}))
    return finding_of(FAULT, work, config)


def test_a_fault_that_shows_where_it_should_is_caught(tmp_path: Path, config: Config) -> None:
    finding = found_with(tmp_path, config, {**RATES, "lr/decay": RATES["lr/decay"] * 2})
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
    finding = found_with(tmp_path, config, actual, meta)
    assert (finding.found, finding.caught) == (start, False)


def test_a_key_that_is_lost_at_the_expected_place_is_caught(tmp_path: Path, config: Config) -> None:
    actual = {key: array for key, array in RATES.items() if key != "lr/decay"}
    finding = found_with(tmp_path, config, actual)
    assert (finding.found, finding.caught) == ("lr/decay", True)


def test_a_crash_is_no_finding(tmp_path: Path, config: Config) -> None:
    write(tmp_path, "torch", RATES)
    name = record_name("lr_schedule", "float64", "paddle")
    folder = tmp_path / FAULT.name
    folder.mkdir()
    (folder / f"{name}.error.txt").write_text("RuntimeError('boom')\n\nTraceback ...")
    finding = finding_of(FAULT, tmp_path, config)
    assert (finding.caught, finding.found, finding.text) == (False, "", "RuntimeError('boom')")


# a fault of float32 alone: judged by Torch's float64 record and Paddle's, which lies elsewhere
NARROW = replace(FAULT, name="short", step="optimizer", where="step1/param/*", dtype="float32")
WEIGHTS = {"step1/param/a": np.linspace(1.0, 2.0, 999), "step1/momentum/a": np.linspace(0, 1, 99)}


def write_weights(folder: Path, side: str, dtype: str, *, digits: str | None = None) -> None:
    arrays = {key: array.astype(dtype) for key, array in WEIGHTS.items()}
    if digits is not None:
        arrays["step1/param/a"] = arrays["step1/param/a"].astype(digits).astype(dtype)
    meta = {"side": side, "frameworks": [side], "dtype": dtype, "config": "c", "inputs": None}
    meta |= {"data": "d", "weights": "by rule", "seed": 0}
    write_record(folder, record_name(NARROW.step, dtype, side), arrays, meta)


def narrow_finding(work: Path, config: Config, digits: str, **options: Any) -> Finding:
    for dtype in ("float64", "float32"):
        write_weights(work, "torch", dtype)
    write_weights(work / "wide", "paddle", "float64")
    write_weights(work / NARROW.name, "paddle", "float32", digits=digits)
    return finding_of(NARROW, work, config, floor=work / "wide", **options)


def test_a_fault_of_float32_alone_is_caught_by_its_rounding(tmp_path: Path, config: Config) -> None:
    finding = narrow_finding(tmp_path, config, "float16")
    assert (finding.caught, finding.found, finding.dtype) == (True, "step1/param/a", "float32")
    # 2**-11 in the place of 2**-24
    assert finding.rounding is not None
    assert 1000 < finding.rounding < 10000
    # the others of the step need the float64 records
    assert sorted(path.name for path in tmp_path.rglob("*.npz")) == [
        "optimizer.float32.torch.npz",
        "optimizer.float64.paddle.npz",
        "optimizer.float64.torch.npz",
    ]


def test_a_fault_that_rounds_as_torch_does_survives(tmp_path: Path, config: Config) -> None:
    finding = narrow_finding(tmp_path, config, "float32")
    assert (finding.caught, finding.found, finding.text) == (False, "", "")


def test_what_float64_sees_proves_nothing_about_float32(tmp_path: Path, config: Config) -> None:
    finding = narrow_finding(tmp_path, config, "float16", wrong_wide="step1, param, a")
    assert (finding.caught, finding.found) == (False, "step1/param/a")
    assert finding.text == "float64 sees it too: step1, param, a"


@pytest.mark.parametrize("missing", [("torch", "."), ("paddle", "wide")])
def test_without_a_float64_record_there_is_no_floor(
    tmp_path: Path, config: Config, missing: tuple[str, str]
) -> None:
    narrow_finding(tmp_path, config, "float16")
    write_weights(tmp_path / NARROW.name, "paddle", "float32", digits="float16")
    side, folder = missing
    (tmp_path / folder / f"{record_name(NARROW.step, 'float64', side)}.json").unlink()
    finding = finding_of(NARROW, tmp_path, config, floor=tmp_path / "wide")
    assert (finding.caught, finding.found, finding.text) == (False, "", "no record was made")


@pytest.mark.parametrize("present", [[], ["torch"], ["paddle"]])
def test_a_record_that_was_not_made_is_an_error(
    tmp_path: Path, config: Config, present: list[str]
) -> None:
    for side in present:
        write(tmp_path, side, RATES)
    result = judge_folders(step_named("lr_schedule"), "float64", tmp_path, tmp_path, config=config)
    assert (result.verdict, result.message) == (Verdict.ERROR, "no record was made")


CAUGHT = Finding(
    "bisenetv1",
    "a",
    "loss",
    "float64",
    "title",
    "*/loss/main",
    "x/loss/main",
    "x, loss, main",
    True,
    0.5,
)
SURVIVED = replace(CAUGHT, fault="b", found="", text="", caught=False, relative=0.0)
EXPLAINED = replace(CAUGHT, why="term-weight", explanation="term-weight", residual=3e-17)
MISJUDGED = replace(EXPLAINED, fault="c", explanation="dropped-term", blamed="term total")


@pytest.mark.parametrize(
    ("findings", "clean", "code"),
    [
        ((CAUGHT, CAUGHT), {"bisenetv1 loss": "PASS"}, 0),
        ((CAUGHT, SURVIVED), {"bisenetv1 loss": "PASS"}, 1),
        ((CAUGHT, EXPLAINED), {"bisenetv1 loss": "PASS"}, 0),
        ((EXPLAINED, MISJUDGED), {"bisenetv1 loss": "PASS"}, 1),
        # nothing was found, where something should be
        ((replace(EXPLAINED, explanation=""),), {"bisenetv1 loss": "PASS"}, 1),
        # nothing was asked
        ((replace(EXPLAINED, explanation=None),), {"bisenetv1 loss": "PASS"}, 0),
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


def test_wrong_explanations_are_told_next() -> None:
    findings = (EXPLAINED, MISJUDGED, SURVIVED)
    outcome = AuditOutcome(findings, {"bisenetv1 loss": "PASS"}, {"commit": "c"}, 61.2)
    lines = matrix_text(outcome).splitlines()
    verdicts = ("caught", "SURVIVED", "MISJUDGED")
    told = [line.split()[0] for line in lines if line.startswith(verdicts)]
    assert told == ["SURVIVED", "MISJUDGED", "caught"]
    assert any("expected the explanation term-weight of: term total" in line for line in lines)
    last = "2 of 3 faults caught, 1 of 2 with the expected explanation, 61 s"
    assert lines[-1] == last
    rows = outcome.as_json()["findings"]
    assert [row["explained"] for row in rows] == [True, False, True]
    assert [row["residual"] for row in rows] == ["3.0e-17", "3.0e-17", None]


def test_what_explains_a_fault_is_kept(tmp_path: Path, config: Config) -> None:
    write(tmp_path, "torch", RATES)
    write(tmp_path / FAULT.name, "paddle", {**RATES, "lr/decay": RATES["lr/decay"] * 2})

    def explain(fault: Fault, result: Result) -> Explanation:
        # the records are still there
        assert (fault.name, result.verdict) == (FAULT.name, Verdict.FAIL)
        assert list((tmp_path / FAULT.name).iterdir())
        return Explanation("rate of group decay", "lr-multiplier", 0.0)

    fault = replace(FAULT, why="lr-multiplier")
    finding = finding_of(fault, tmp_path, config, explain=explain)
    assert (finding.caught, finding.explained, finding.blamed) == (
        True,
        True,
        "rate of group decay",
    )
    assert not (tmp_path / FAULT.name).exists()


def test_a_small_audit_from_end_to_end(tmp_path: Path) -> None:
    names = ["void_as_class", "loss_weight", "bn_eps", "log_softmax_float16"]
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
    assert "4 of 4 faults caught, 4 of 4 with the expected explanation" in done.stdout
    matrix = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert [finding["fault"] for finding in matrix["findings"]] == names
    assert all(finding["caught"] for finding in matrix["findings"])
    assert [finding["dtype"] for finding in matrix["findings"]] == ["float64"] * 3 + ["float32"]
    relations = ["ignore-index", "term-weight", "eps", "dtype"]
    assert [finding["explanation"] for finding in matrix["findings"]] == relations
    assert all(float(finding["residual"]) < 1e-6 for finding in matrix["findings"])
    clean = ("forward float64", "loss float64", "loss float32")
    assert matrix["clean"] == {f"bisenetv1 {run}": "PASS" for run in clean}
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
