import json
from pathlib import Path
from typing import Any

import pytest

from common.config_sections import ScheduleConfig
from common.schedule import lr_factor


def schedule(**options: Any) -> ScheduleConfig:
    return ScheduleConfig(**options)


# series of golden/lr.json -> (base rate, constants); what each upstream scheduler was given
EXP = {"warmup_iters": 5, "max_iters": 20}
SERIES: dict[str, tuple[float, dict[str, Any]]] = {
    "coincheung_6b4b67a/small_exp": (1e-2, EXP),
    "coincheung_6b4b67a/small_linear": (1e-2, {**EXP, "warmup": "linear"}),
    "coincheung_6b4b67a/small_nowarm": (1e-2, {"max_iters": 20}),
    "coincheung_6b4b67a/small_default_ratio": (1e-2, {**EXP, "warmup_ratio": 5e-4}),
    "coincheung_6b4b67a/bisenetv1_city": (1e-2, {"max_iters": 80000, "warmup_iters": 1000}),
    "coincheung_6b4b67a/bisenetv2_city": (5e-3, {"max_iters": 150000, "warmup_iters": 1000}),
    "coincheung_a8ddd22/bisenetv2": (5e-2, {"max_iters": 151000, "warmup_iters": 1000}),
    "coincheung_a8ddd22/small": (1e-2, {**EXP, "warmup_ratio": 1e-3}),
    "coincheung_a8ddd22/bisenetv1": (
        1e-2,
        {"max_iters": 80000, "warmup_iters": 1000, "warmup_ratio": 1e-3},
    ),
    "coincheung_2d6d8f1/small": (2.5e-2, {**EXP, "warmup_ratio": 1e-5 / 2.5e-2}),
    "coincheung_2d6d8f1/bisenetv1": (
        2.5e-2,
        {"max_iters": 91000, "warmup_iters": 1000, "warmup_ratio": 1e-5 / 2.5e-2},
    ),
    "stdc_seg_59ff37f/small": (1e-2, {**EXP, "warmup_ratio": 1e-3}),
    "stdc_seg_59ff37f/stdc": (
        1e-2,
        {"max_iters": 60000, "warmup_iters": 1000, "warmup_ratio": 1e-3},
    ),
    "bisestdc_06f8733/bisestdc": (
        1e-2,
        {"max_iters": 160000, "warmup_iters": 1000, "warmup_ratio": 1e-3},
    ),
    "paddleseg_d7975e7/small": (1e-2, {"max_iters": 20}),
    "paddleseg_d7975e7/small_warmup": (
        1e-2,
        {**EXP, "warmup": "linear", "warmup_ratio": 1e-3},
    ),
    "paddleseg_d7975e7/bisenetv2_city": (5e-2, {"max_iters": 160000}),
    "paddleseg_d7975e7/bisenetv1_city": (1e-2, {"max_iters": 160000}),
    "paddleseg_d7975e7/stdcseg_city": (1e-2, {"max_iters": 80000}),
    "paddleseg_d7975e7/camvid_pp_liteseg": (
        1e-2,
        {"max_iters": 10000, "warmup_iters": 200, "warmup": "linear", "warmup_ratio": 1e-3},
    ),
}
# decays that no recipe of this repository uses
NOT_COVERED = {
    "coincheung_6b4b67a/small_exp_decay",
    "coincheung_6b4b67a/small_cosine",
    "coincheung_6b4b67a/small_step",
}


@pytest.mark.parametrize("name", SERIES)
def test_every_published_series(golden: Path, name: str) -> None:
    series = json.loads((golden / "lr.json").read_text())["series"][name]
    base_lr, options = SERIES[name]
    multipliers = [10.0 if group.endswith("_x10") else 1.0 for group in series["groups"]]
    for iteration, rates in zip(series["iterations"], series["lr"], strict=True):
        ours = base_lr * lr_factor(iteration, schedule(**options))
        # 16 digits; the 2019 and 2020 code raises a factor to the power i: 3e-14 at i = 990
        assert [ours * m for m in multipliers] == pytest.approx(rates, rel=1e-13, abs=0)


def test_no_golden_series_is_forgotten(golden: Path) -> None:
    names = set(json.loads((golden / "lr.json").read_text())["series"])
    assert names == set(SERIES) | NOT_COVERED


@pytest.mark.parametrize(
    ("warmup", "iteration", "expected"),
    [
        ("exp", 0, 0.01),
        ("exp", 2, 0.1),
        ("linear", 0, 0.01),
        ("linear", 2, 0.505),
        ("constant", 0, 0.01),
        ("constant", 3, 0.01),
        ("exp", 4, 1.0),
        ("linear", 4, 1.0),
        ("constant", 4, 1.0),
        ("exp", 7, 0.25),
        ("exp", 9, 1 / 36),
    ],
)
def test_hand_numbers(warmup: str, iteration: int, expected: float) -> None:
    constants = schedule(max_iters=10, warmup_iters=4, warmup=warmup, warmup_ratio=0.01, power=2.0)
    assert lr_factor(iteration, constants) == pytest.approx(expected, rel=1e-15)


def test_last_step_still_learns_and_the_rate_after_it_is_zero() -> None:
    constants = schedule(max_iters=10)
    assert lr_factor(9, constants) == pytest.approx(0.1**0.9, rel=1e-15)
    assert lr_factor(10, constants) == 0.0
    assert lr_factor(11, constants) == 0.0


def test_negative_iteration_is_refused() -> None:
    with pytest.raises(ValueError, match="iteration is -1"):
        lr_factor(-1, schedule(max_iters=10))
