"""STDC-Seg and BiSeSTDC: parameter groups, five training steps, and their boundary heads.

What they share with the other networks is in test_golden_models.py and test_any_network.py.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import BOUNDARIES, BOUNDARY_FLAGS, BY_MODEL, logits_of, noise, rule_model
from numpy.typing import NDArray

from common.config_sections import LossConfig, OptimizerConfig, ScheduleConfig
from common.weight_names import is_batch_counter
from fake_data import rules

NAMES = [name for name, network in BY_MODEL.items() if network.boundaries]


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_those_of_the_published_recipe(side: Any, golden: Path, name: str) -> None:
    expected = json.loads((golden / "param_groups.json").read_text())[name]
    model = side.models.build_model(name, classes=19)
    optimizer, _ = side.optim.build_optimizer(
        model,
        optimizer=OptimizerConfig(base_lr=expected["base_lr"], weight_decay=5e-4),
        schedule=ScheduleConfig(max_iters=60000, warmup_iters=1000),
    )
    groups = side.optim.parameter_groups(optimizer, model)
    options = side.optim.group_options(optimizer)
    # upstream's fifth group is the fuse kernel of the boundary loss, here a constant
    del expected["params"]["(detail loss) fuse_kernel"]
    assert set(groups) == set(expected["params"])
    for parameter, wanted in expected["params"].items():
        found = options[groups[parameter]]
        assert found["lr_mult"] == pytest.approx(wanted["lr_mult"], rel=1e-15)
        assert found["weight_decay"] == wanted["weight_decay"]
    left = [key for key in side.backend.trainable_parameters(model) if key not in groups]
    assert left == list(model.ungrouped)
    assert left == expected["in_no_group_hence_never_updated"]
    sizes = [list(groups.values()).count(group) for group in options]
    assert sizes == [row["tensors"] for row in expected["groups_in_order"]][:4]


@pytest.mark.parametrize("name", ["stdc1", "bisestdc"])
def test_five_steps_of_the_original_training(side: Any, golden: Path, name: str) -> None:
    expected = json.loads((golden / f"optim/{name}.json").read_text())
    model = rule_model(side, name)
    loss = side.losses.build_loss(BY_MODEL[name].loss, classes=19, ignore_index=255)
    start = side.backend.state_arrays(model)
    optimizer, scheduler = side.optim.build_optimizer(
        model,
        optimizer=OptimizerConfig(base_lr=expected["base_lr"], weight_decay=5e-4),
        schedule=ScheduleConfig(
            max_iters=expected["max_iter"], warmup_iters=expected["warmup"], warmup_ratio=1e-3
        ),
    )
    model.train()
    worst: dict[str, float] = {}
    size = (expected["N"], expected["H"], expected["W"])
    for step in expected["steps"]:
        rates = side.optim.learning_rates(optimizer)
        assert list(rates.values()) == pytest.approx(step["lr"][:4], rel=1e-13, abs=0)
        terms = side.train.train_step(
            model,
            loss,
            optimizer,
            scheduler,
            image=side.backend.to_tensor(rules.image(step["seed"], *size)),
            label=side.backend.to_tensor(rules.labels(step["seed"], *size)),
        )
        found = float(side.backend.to_numpy(terms["total"]))
        _keep_worst(worst, "loss", found, step["loss"], step["loss"])
    end = side.backend.state_arrays(model)
    buffers = side.optim.momentum_buffers(optimizer, model)
    rows = expected["params_after"]["rows"]
    assert len(rows) == len(side.backend.trainable_parameters(model))
    for key, l2, total, change in rows:
        _keep_worst(worst, "l2", np.linalg.norm(end[key]), l2, l2)
        _keep_worst(worst, "sum", end[key].sum(), total, np.abs(end[key]).sum())
        if change == 0:
            # without gradient or in no group: neither moved nor decayed
            np.testing.assert_array_equal(end[key], start[key], err_msg=key)
            assert key not in buffers
        else:
            moved = np.linalg.norm(end[key] - start[key])
            _keep_worst(worst, "change", moved, change, change)
    for key, l2, _ in expected["buffers_after"]["rows"]:
        # upstream runs the boundary heads that nothing asks for
        if not is_batch_counter(key) and not key.startswith(
            ("conv_out_sp2", "conv_out_sp4", "conv_out_sp16")
        ):
            _keep_worst(worst, "buffer l2", np.linalg.norm(end[key]), l2, l2)
    # Paddle's kernel keeps momentum 0.9 as float32, 2.65e-8 off, which adds up over the steps
    bound = 1e-12 if side.name == "torch" else 5 * 2.65e-8
    assert {key: value for key, value in worst.items() if not value < bound} == {}


def _keep_worst(worst: dict[str, float], name: str, ours: Any, theirs: float, scale: float) -> None:
    worst[name] = float(np.fmax(worst.get(name, 0.0), abs(ours - theirs) / scale))


@pytest.mark.parametrize("name", ["stdc1", "bisestdc"])
def test_boundary_flags_work_in_every_combination(side: Any, name: str) -> None:
    heads = BY_MODEL[name].heads
    reference: dict[str, NDArray[Any]] = {}
    label = side.backend.to_tensor(np.arange(2 * 33 * 40).reshape(2, 33, 40) % 4)
    for flags in itertools.product((True, False), repeat=4):
        side.backend.seed_everything(0)
        model = side.models.MODELS[name](4, **dict(zip(BOUNDARY_FLAGS, flags, strict=True)))
        model.eval()
        assert list(logits_of(side, model, noise(1, 3, 33, 40))) == ["main"]
        model.aux_in_eval = True
        outputs = logits_of(side, model, noise(2, 3, 33, 40))
        asked = [boundary for boundary, flag in zip(BOUNDARIES, flags, strict=True) if flag]
        assert list(outputs) == [*heads, *asked] == list(model.heads)
        # a flag changes which outputs there are, never what they are
        reference = reference or outputs
        for head, value in outputs.items():
            np.testing.assert_array_equal(value, reference[head], err_msg=head)
        tensors = {head: side.backend.to_tensor(value) for head, value in outputs.items()}
        build = side.losses.build_loss
        terms = build(LossConfig(), classes=4, ignore_index=255)(tensors, label)
        expected = [f"{boundary}_{term}" for boundary in asked for term in ("bce", "dice")]
        assert list(terms) == ["total", *heads, *expected]
        assert np.isfinite(float(side.backend.to_numpy(terms["total"])))


@pytest.mark.parametrize("name", ["stdc1", "bisestdc"])
def test_layers_that_are_never_run(side: Any, name: str) -> None:
    model = side.models.build_model(name, classes=4)
    unused = ("conv_out_sp16", "conv_out_sp4", "conv_out_sp2")
    assert model.unused[-3:] == unused
    assert {layer.rpartition(".")[2] for layer in model.unused[:-3]} == {
        "conv_last",
        "fc",
        "bn",
        "linear",
    }


def test_a_weight_of_zero_switches_a_boundary_off(side: Any) -> None:
    outputs = {
        "main": side.backend.to_tensor(np.zeros((1, 4, 8, 8))),
        "boundary8": side.backend.to_tensor(np.zeros((1, 1, 2, 2))),
    }
    label = side.backend.to_tensor(np.arange(64).reshape(1, 8, 8) % 4)
    found = {}
    for weight in (0.0, 0.5, 1.0):
        config = LossConfig(ohem="none", head_weights={"boundary8": weight})
        loss = side.losses.build_loss(config, classes=4, ignore_index=255)
        found[weight] = {k: float(v) for k, v in loss(outputs, label).items()}
    # four equal logits; a logit of 0 is a probability of 1/2 whatever the target
    assert found[0.0]["total"] == pytest.approx(math.log(4), rel=1e-12)
    assert found[1.0]["boundary8_bce"] == pytest.approx(math.log(2), rel=1e-12)
    extra = found[1.0]["boundary8_bce"] + found[1.0]["boundary8_dice"]
    assert found[0.5]["total"] == pytest.approx(math.log(4) + extra / 2, rel=1e-12)
