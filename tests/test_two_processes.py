"""Two processes with half the batch each train as one with the whole, and Paddle as Torch.

Twenty iterations in float64 under the frameworks' own launchers, with synchronised BatchNorm: all
weights, buffers and momentum of the four runs are compared. Every image has the same number of
valid pixels and the loss is plain cross entropy: with void pixels, or hard example mining, each
rank takes the mean over its own pixels (docs/distributed.md), and two are not one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import run_alone, run_launched
from numpy.typing import NDArray

from common.config import load_config
from fake_data.rules import rule_state

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "bisenetv1_cityscapes"
BOUND = 1e-12
SIDES = ("torch", "paddle")

Arrays = dict[str, NDArray[Any]]
Runs = dict[tuple[str, str], Arrays]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """By (side, "one" or "two"); of two, those of rank 1 as "other"."""
    found: Runs = {}
    for side in SIDES:
        for name, run in (("one", run_alone), ("two", run_launched)):
            out = tmp_path_factory.mktemp(f"{side}_{name}")
            done = run(side, "train", out, f"config={CONFIG}", "iterations=20")
            assert done.code == 0, done.output
            found[side, name] = dict(np.load(out / f"train_{side}_0.npz"))
        found[side, "other"] = dict(np.load(out / f"train_{side}_1.npz"))
    return found


def _assert_close(reference: Arrays, actual: Arrays) -> None:
    assert set(actual) == set(reference)
    for key, array in reference.items():
        worst = np.abs(actual[key] - array).max()
        assert worst <= BOUND * np.abs(array).max(), f"{key}: {worst}"


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_two_processes_are_one(runs: Runs, side: str) -> None:
    _assert_close(runs[side, "one"], runs[side, "two"])


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_both_ranks_end_with_the_same_bits(runs: Runs, side: str) -> None:
    for key, array in runs[side, "two"].items():
        np.testing.assert_array_equal(runs[side, "other"][key], array, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["one", "two"])
def test_paddle_is_torch(runs: Runs, processes: str) -> None:
    _assert_close(runs["torch", processes], runs["paddle", processes])


@pytest.mark.slow
def test_the_runs_have_trained(runs: Runs) -> None:
    arrays = runs["torch", "two"]
    losses = arrays["loss"]
    assert losses.shape == (20,)
    assert losses.std() > 0
    assert losses[-5:].mean() < losses[:5].mean()
    assert load_config(ROOT / "configs" / f"{CONFIG}.yml").model.name == "bisenetv1"
    state = {name[len("state/") :]: a for name, a in arrays.items() if name.startswith("state/")}
    assert len(state) > 150
    start = rule_state({name: array.shape for name, array in state.items()})
    for name, array in state.items():
        assert np.abs(array - start[name]).max() > 1e-6, name
    assert all(np.abs(a).max() > 0 for name, a in arrays.items() if name.startswith("momentum/"))
