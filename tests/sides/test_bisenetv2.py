"""BiSeNetV2: its parameter groups, its fresh layers and its dropout.

What it shares with the other networks is in test_golden_models.py and test_any_network.py.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import noise

from common.config_sections import OptimizerConfig, ScheduleConfig


@pytest.mark.parametrize("name", ["bisenetv2", "bisenetv2_2020"])
def test_optimizer_groups_are_upstreams(side: Any, golden: Path, name: str) -> None:
    published = json.loads((golden / "param_groups.json").read_text())[name]["params"]
    model = side.models.build_model(name, classes=19)
    optimizer, _ = side.optim.build_optimizer(
        model,
        optimizer=OptimizerConfig(base_lr=5e-3, weight_decay=5e-4, head_lr_mult=10),
        schedule=ScheduleConfig(max_iters=10),
    )
    options = side.optim.group_options(optimizer)
    assert len(options) == {"bisenetv2": 4, "bisenetv2_2020": 2}[name]
    members = side.optim.parameter_groups(optimizer, model)
    found = {
        # the multiplier is read back as a quotient of two rates
        key: {
            "lr_mult": round(options[group]["lr_mult"], 9),
            "weight_decay": options[group]["weight_decay"],
        }
        for key, group in members.items()
    }
    assert found == published


def test_a_fresh_layer_of_stride_1_passes_its_input(side: Any) -> None:
    """Weight 0 of the last BatchNorm: relu(0 + x) of an x that a ReLU made."""
    model = side.models.build_model("bisenetv2", classes=4)
    model.eval()
    with side.backend.no_grad(), side.backend.capture_outputs(model) as layers:
        model(side.backend.to_tensor(noise(1, 3, 32, 32)))
    np.testing.assert_array_equal(layers["segment.S5_4.3"], layers["segment.S5_4.0"])
    assert layers["segment.S5_4.0"].max() > 0


@pytest.mark.parametrize("name", ["bisenetv2", "bisenetv2_2020"])
def test_every_head_drops_a_tenth_in_training(side: Any, name: str) -> None:
    side.backend.seed_everything(0)
    model = side.models.build_model(name, classes=4)
    model.train()
    with side.backend.no_grad(), side.backend.capture_outputs(model) as layers:
        model(side.backend.to_tensor(noise(2, 3, 64, 64)))
    for head in ("head", "aux2", "aux3", "aux4", "aux5_4"):
        before, after = layers[f"{head}.conv"], layers[f"{head}.drop"]
        alive = before > 0
        kept = after[alive] > 0
        # 0.9 are kept, within five times the sampling error, and scaled so that the mean stays
        assert abs(kept.mean() - 0.9) <= 5 * math.sqrt(0.09 / kept.size), head
        np.testing.assert_allclose(after[alive][kept], before[alive][kept] / 0.9, rtol=1e-6)
    model.eval()
    model.aux_in_eval = True
    with side.backend.no_grad(), side.backend.capture_outputs(model) as layers:
        model(side.backend.to_tensor(noise(2, 3, 32, 32)))
    np.testing.assert_array_equal(layers["aux4.drop"], layers["aux4.conv"])
