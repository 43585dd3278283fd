"""A real wrong port, recorded on one side: its first failure case is explained by what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load_config
from pipeline.cases import Case
from pipeline.explain import loss, metric, schedule
from pipeline.faults import fault_named, inject
from pipeline.inputs import prepare_inputs
from pipeline.judge import compare_float64, judge
from pipeline.record import PROBES
from pipeline.records import Record, read_arrays
from pipeline.step_cases import step_cases
from pipeline.steps import step_named

CONFIG = Path(__file__).parents[2] / "configs/bisenetv1_cityscapes.yml"
EXPLAIN = {
    "loss": loss.explain_loss,
    "logits_gradient": loss.explain_logits_gradient,
    "series": schedule.explain_series,
    "option": schedule.explain_option,
    "metric": metric.explain_metric,
}


@lru_cache
def small() -> Config:
    config = load_config(CONFIG)
    verify = config.verify.model_copy(update={"image_hw": (32, 64), "batch_size": 2})
    short = config.schedule.model_copy(update={"max_iters": 60, "warmup_iters": 20})
    return config.model_copy(update={"verify": verify, "schedule": short})


RIGHT: dict[str, dict[str, Any]] = {}
"""What a step records without a fault, by step."""


def recorded(side: Any, step: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    ((_, arrays),) = PROBES[step](side, Case(small(), "float64", inputs))
    return {key: np.asarray(array) for key, array in arrays.items()}


@pytest.mark.filterwarnings("ignore:the batch has no labelled pixel")
@pytest.mark.parametrize(
    "name",
    [
        *("ohem_missing", "mean_over_all", "loss_term_dropped"),
        *("lr_off_by_one", "head_lr_mult", "head_module_forgotten"),
        *("matrix_transposed", "miou_averaging"),
    ],
)
def test_a_wrong_port_is_explained(side: Any, name: str, tmp_path: Path) -> None:
    fault, config = fault_named(name), small()
    prepare_inputs(tmp_path, config, steps=[fault.step], real_frames=False)
    saved = tmp_path / f"{fault.step}.npz"
    inputs = read_arrays(saved) if saved.is_file() else {}
    if fault.step not in RIGHT:
        RIGHT[fault.step] = recorded(side, fault.step, inputs)
    right = RIGHT[fault.step]
    with inject(name, side):
        wrong = recorded(side, fault.step, inputs)
    same = dict.fromkeys(("config", "inputs", "data", "seed"), "x")
    same |= {"dtype": "float64", "weights": "by rule"}
    pair = (
        Record(right, {**same, "side": "torch", "frameworks": ["torch"]}),
        Record(wrong, {**same, "side": "paddle", "frameworks": ["paddle"]}),
    )
    step = step_named(fault.step)
    rows = compare_float64(step, [right, wrong], ignore_index=config.data.ignore_index)
    case = step_cases(judge(step, "float64", pair, rows), pair, inputs, config)[0]
    hints = EXPLAIN[case.kind](case)
    assert hints, f"{case.where} is not explained"
    assert hints[0].relation == fault.why, [hint.text for hint in hints]
