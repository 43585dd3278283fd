"""Probes of what a recipe does not reach: host and device agree, and every branch is entered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import load_config
from pipeline.branches import (
    PROTOCOLS,
    initial_weights,
    loss_branches,
    metric_branches,
    other_options,
    protocol_scores,
    without_auxiliary_heads,
)
from pipeline.cases import Array, Case
from pipeline.inputs import prepare_inputs
from pipeline.records import read_arrays

CONFIG = Path(__file__).parents[2] / "configs" / "bisenetv2_cityscapes.yml"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("inputs")
    small = ["verify.image_hw=[32, 32]", "verify.batch_size=3", "model.classes=7"]
    config = load_config(CONFIG, overrides=small)
    steps = ("forward", "loss", "metric")
    prepare_inputs(folder, config, steps=steps, real_frames=False)
    return {s: Case(config, "float64", read_arrays(folder / f"{s}.npz")) for s in steps}


def assert_same(arrays: dict[str, Array], one: str, other: str) -> int:
    """Compare every key that has the first word with its twin; return how many there were."""
    keys = [key for key in arrays if f"/{one}" in key]
    for key in keys:
        twin = arrays[key.replace(f"/{one}", f"/{other}")]
        np.testing.assert_allclose(arrays[key], twin, rtol=1e-12, atol=1e-15, err_msg=key)
    return len(keys)


@pytest.mark.filterwarnings("ignore:the batch has no labelled pixel")
def test_a_devices_loss_is_the_hosts(side: Any, cases: dict[str, Case]) -> None:
    side.backend.set_default_dtype("float64")
    case = cases["loss"]
    arrays = loss_branches(side, case)
    tied = {key for key in arrays if "/tied/" in key and key.startswith("rule/")}
    assert {key.split("/")[2] for key in tied} == {"host"}
    # of the two images' equal losses the first one's is kept
    first, second = arrays["rule/valid_fraction/host/tied/grad"]
    assert (np.abs(first).sum(0) > 0).sum() == (np.abs(second).sum(0) > 0).sum() + 1
    # four rules, six kinds of labels, a loss and a gradient
    others = {key: array for key, array in arrays.items() if key not in tied}
    assert assert_same(others, "host", "device") == 4 * 6 * 2
    kept = 2 * 32 * 32 // 2 + 1
    labels = {n: case.inputs[f"{n}/label"][-2:] for n in ("mostly_hard", "heavy_void")}
    valid = {name: int((label != 255).sum()) for name, label in labels.items()}
    assert valid["heavy_void"] < kept < valid["mostly_hard"]
    rules = {r: float(arrays[f"rule/{r}/host/mostly_easy/loss/0"]) for r in ("none", "min_kept")}
    assert rules["none"] != rules["min_kept"]
    # void and frame take edges away: the loss is another one
    found = {float(a) for k, a in arrays.items() if k.endswith("mostly_hard/loss/1")}
    assert len(found) == 4


def test_a_devices_counts_are_the_hosts(side: Any, cases: dict[str, Case]) -> None:
    arrays = metric_branches(side, cases["metric"])
    assert assert_same(arrays, "host", "device") == 3
    np.testing.assert_array_equal(
        arrays["scores/matrix"], arrays["images/host/matrices"].sum(axis=0)
    )
    # twice image by image, and twice as a device's batch
    np.testing.assert_array_equal(arrays["images/together"], 4 * arrays["scores/matrix"])


def test_scores_do_not_depend_on_how_they_are_made(side: Any, cases: dict[str, Case]) -> None:
    side.backend.set_default_dtype("float64")
    arrays = protocol_scores(side, cases["forward"])
    assert assert_same(arrays, "host", "device") == 2 * len(PROTOCOLS)
    few, many = (f"{pixels}/" for pixels in (5000, 2**18))
    assert assert_same(arrays, few, many) == 2 * len(PROTOCOLS)
    assert all(array.shape == (2, 4, 40, 76) for array in arrays.values())


def test_initial_weights_are_told(side: Any, cases: dict[str, Case]) -> None:
    side.backend.set_default_dtype("float64")
    arrays = initial_weights(side, cases["forward"])
    # a gather-and-expansion layer starts as its shortcut
    assert arrays["init/constant/segment.S3.1.conv2.1.weight"] == 0
    assert arrays["init/constant/detail.S1.0.bn.weight"] == 1
    # upstream's rule: sqrt(2 / fan out), 64 channels of 3x3
    spread = float(arrays["init/many/spread/detail.S1.1.conv.weight"])
    assert spread == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    assert arrays["init/many/tail/detail.S1.1.conv.weight"] == 2.5
    assert arrays["init/aux_in_eval"] == 0


def test_the_deployed_network_has_one_head(side: Any, cases: dict[str, Case]) -> None:
    side.backend.set_default_dtype("float64")
    arrays = without_auxiliary_heads(side, cases["forward"])
    assert [key for key in arrays if "/head/" in key] == ["deployed/head/main"]
    assert arrays["deployed/head/main"].shape == (1, 7, 72, 104)
    assert not any(key.startswith("deployed/parameter/aux") for key in arrays)


def test_other_settings_are_in_force(side: Any, cases: dict[str, Case]) -> None:
    arrays = other_options(side, cases["forward"])
    found = {key.removeprefix("options/other/"): float(array) for key, array in arrays.items()}
    # the recipe: momentum 0.9, no Nesterov, heads ten times as fast, norms and biases not decayed
    assert found["head_decay/lr_mult"] == 20
    assert found["decay/momentum"] == 0.75
    assert found["decay/nesterov"] == 1
    assert found["no_decay/weight_decay"] == pytest.approx(5e-4)
