"""What is recorded to explain the deliberate faults, and what becomes of records that fail."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT

from common.config import Config, load_config
from pipeline.audit import shown_in
from pipeline.fault_exams import FaultExams
from pipeline.faults import FAULTS, Fault, fault_named
from pipeline.judge import Result
from pipeline.records import write_arrays
from pipeline.steps import Dtype, step_named
from pipeline.verdicts import Verdict


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT / "configs" / "bisenetv1_cityscapes.yml")


def test_passes_are_recorded_for_the_faults_that_show_in_them(
    tmp_path: Path, config: Config
) -> None:
    (tmp_path / "inputs").mkdir()
    write_arrays(tmp_path / "inputs" / "forward.npz", {"image": np.ones(3), "odd33x65": np.ones(3)})
    names = ["bn_eps", "padding_same", "odd_size_padding", "bn_momentum", "bn_eps_float32"]
    names += ["loss_weight", "images_float16"]
    faults: list[tuple[Fault, Dtype]] = [
        (fault_named(name), shown_in(fault_named(name))) for name in names
    ]
    elsewhere = replace(fault_named("bn_eps"), name="elsewhere", where="init/*")
    exams = FaultExams(config, tmp_path, [*faults, (elsewhere, "float64")])
    kept = {name: one.exam.contexts for name, one in exams.passes.items()}
    assert kept == {
        "bn_eps": ["eval"],
        "padding_same": ["eval"],
        "odd_size_padding": ["odd33x65"],
        "bn_momentum": [],
        "bn_eps_float32": ["eval"],
    }
    # the two faults of one pass share Torch's record; float32 is recorded in float64, too
    torch = [(run.step, run.dtype, run.folder.parent.name) for run in exams.torch_runs()]
    assert torch == [
        ("forward", "float64", "forward_float64_eval"),
        ("forward", "float64", "forward_float64_odd"),
        ("backward", "float64", "backward_float64_"),
        ("forward", "float32", "forward_float32_eval"),
        ("forward", "float64", "forward_float32_eval"),
    ]
    runs = exams.paddle_runs(fault_named("bn_eps_float32"))
    assert [(run.dtype, run.fault) for run in runs] == [
        ("float32", "bn_eps_float32"),
        ("float64", "bn_eps_float32"),
    ]
    assert {run.exam.reference for run in runs if run.exam} == {
        tmp_path / "exams" / "forward_float32_eval" / "own"
    }
    assert exams.paddle_runs(fault_named("loss_weight")) == []
    assert exams.is_recorded(fault_named("loss_weight"))
    assert not exams.is_recorded(fault_named("bn_eps"))


def test_without_a_record_nothing_is_explained(tmp_path: Path, config: Config) -> None:
    exams = FaultExams(config, tmp_path, [])
    result = Result(step_named("loss"), "float64", Verdict.FAIL)
    found = exams.explain(fault_named("loss_weight"), result)
    assert (found.relation, found.residual) == ("", None)
    assert found.blamed.startswith("(no failure case: FileNotFoundError")
    result = Result(step_named("forward"), "float64", Verdict.FAIL)
    assert exams.explain(fault_named("bn_eps"), result).blamed == "not in a layer"


def test_every_relation_that_is_expected_is_documented() -> None:
    told = (ROOT / "docs/explanations.md").read_text(encoding="utf-8")
    expected = {fault.why for fault in FAULTS if fault.why is not None}
    assert [relation for relation in expected if f"`{relation}`" not in told] == []
    # all but these are explained; a training is not bisected for it
    without = {f.name for f in FAULTS if f.why is None and f.step != "training"}
    assert without == {
        "sigmoid_float16",
        "ce_features_missing",
        "bga_multiplied",
        "stdc_aux_levels",
        "stdc_boundary_on_fused",
        "bisestdc_boundary_on_trunk",
    }
