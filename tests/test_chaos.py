"""Chaos or bug: the band of Torch's perturbed runs, by hand."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.chaos import BAND_FACTOR, LEAD, band_of, compare_band, perturbation_rows
from pipeline.steps import step_named
from pipeline.training import nudged
from pipeline.verdicts import Verdict

TORCH = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25], np.float32)
AWAY = np.array([0.0, 0.0, 0.125, 0.0, 0.25, 0.0], np.float32)
RUNS = {"up/loss/main": TORCH + AWAY, "down/loss/main": TORCH - AWAY / 2}


def test_the_band_is_the_largest_distance_so_far_and_two_iterations_on() -> None:
    assert LEAD == 2
    band = band_of(TORCH, list(RUNS.values()))
    assert band.tolist() == [0.125, 0.125, 0.25, 0.25, 0.25, 0.25]


def test_equal_runs_leave_the_last_place() -> None:
    band = band_of(TORCH, [TORCH, TORCH])
    assert band == pytest.approx([2 * 2.0**-23 * 8] * 6)


def test_a_single_iteration_has_a_band() -> None:
    assert band_of(TORCH[:1], [TORCH[:1] + np.float32(0.5)]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("bands", "verdict", "word"),
    [(BAND_FACTOR - 1, Verdict.PASS, "chaos"), (BAND_FACTOR + 1, Verdict.FAIL, "bug")],
)
def test_paddle_may_be_so_many_bands_away(bands: float, verdict: Verdict, word: str) -> None:
    paddle = TORCH.copy()
    paddle[3] += np.float32(bands * 0.25)
    row = compare_band("loss/main", TORCH, paddle, RUNS)
    assert (row.key, row.verdict, row.index) == ("band/loss/main", verdict, (3,))
    assert row.detail.startswith(f"{word}: {bands:.1f} times as far from Torch")
    assert row.relative == pytest.approx(bands * 0.25 / 8)
    assert row.bound == pytest.approx(BAND_FACTOR * 0.25 / 8)
    assert row.first == (() if verdict.passed else (3,))


def test_a_loss_that_is_not_finite_fails() -> None:
    paddle = TORCH.copy()
    paddle[2] = np.nan
    row = compare_band("loss/main", TORCH, paddle, RUNS)
    assert row.verdict is Verdict.FAIL
    assert "1 NaN or Inf" in row.detail


def test_a_perturbed_run_that_broke_off_is_no_band() -> None:
    short = {**RUNS, "up/loss/main": TORCH[:3]}
    assert compare_band("loss/main", TORCH, TORCH, short).verdict is Verdict.FAIL
    lost = {"up/loss/main": TORCH}
    assert compare_band("loss/main", TORCH, TORCH, lost).verdict is Verdict.MISSING


def test_only_a_training_has_a_band(tmp_path: Path) -> None:
    pair = [{"loss/main": TORCH}, {"loss/main": TORCH}]
    assert perturbation_rows(step_named("loss"), pair, tmp_path) == []
    (row,) = perturbation_rows(step_named("training"), pair, tmp_path)
    assert row.verdict is Verdict.MISSING


def test_nudged_weights_are_the_neighbouring_numbers() -> None:
    state = {"a": np.array([1.0, -1.0, 0.5], np.float32), "b": np.array(2.0)}
    up, down = nudged(state, towards=np.inf), nudged(state, towards=-np.inf)
    eps = 2.0**-23
    assert up["a"].dtype == np.float32
    assert up["a"].tolist() == [1 + eps, -1 + eps / 2, 0.5 + eps / 2]
    assert down["a"].tolist() == [1 - eps / 2, -1 - eps, 0.5 - eps / 4]
    assert up["b"].item() == 2 + 2.0**-51
