"""STDC-Seg and BiSeSTDC against the recorded outputs of the public implementations."""

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config import LossConfig, OptimizerConfig, ScheduleConfig
from common.weight_names import is_batch_counter
from fake_data import rules

# name -> parameters, without the classifier and without what only training uses
SIZES = {
    "stdc1": (12_048_928, 8_275_104),
    "stdc2": (16_079_392, 12_305_568),
    "bisestdc": (12_904_768, 8_980_800),
    "bisestdc2": (13_357_280, 9_433_312),
}
CLASSIFIER = 3_125_248
FLAGS = ("use_boundary_2", "use_boundary_4", "use_boundary_8", "use_boundary_16")
BOUNDARIES = ("boundary2", "boundary4", "boundary8", "boundary16")
STRIDE = {"a": 11, "b": 17, "odd": 13}
RTOL = 1e-10
"""Relative to the tensor's largest value. Measured: outputs 1e-12; gradients 2e-13 on Torch, on
Paddle 2.5e-11 where a BatchNorm sees two values per channel and amplifies rounding (case a)."""


def _class_heads(name: str) -> tuple[str, ...]:
    return ("main", "aux8", "aux16", "aux32") if "bise" in name else ("main", "aux16", "aux32")


def _upstream(head: str) -> str:
    for ours, theirs in (("main", "conv_out"), ("aux", "conv_out"), ("boundary", "conv_out_sp")):
        if head.startswith(ours):
            return theirs + head.removeprefix(ours)
    raise AssertionError(head)


def _model(
    side: Any, name: str, *, dtype: str = "float64", classes: int = 19, **options: bool
) -> Any:
    """Rule weights, no dropout."""
    side.backend.set_default_dtype(dtype)
    model = side.models.MODELS[name](classes, **options)
    own = side.backend.state_arrays(model)
    side.backend.load_arrays(model, _rule_state(tuple((k, a.shape) for k, a in own.items())))
    side.backend.disable_dropout(model)
    return model


@functools.lru_cache(maxsize=1)
def _rule_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, NDArray[Any]]:
    return rules.rule_state(dict(shapes))


def _loss(side: Any, name: str) -> Any:
    weights = {"aux8": 0.3, "aux16": 0.3, "aux32": 0.3} if "bise" in name else {}
    config = LossConfig(ohem="pixel_fraction", head_weights=weights)
    return side.losses.build_loss(config, classes=19, ignore_index=255)


def _assert_close(actual: NDArray[Any], reference: NDArray[Any], name: str) -> None:
    assert actual.shape == reference.shape, name
    worst = np.abs(actual - reference).max() / np.abs(reference).max()
    assert worst <= RTOL, f"{name}: {worst:.3e} of the largest value"


def _assert_sums(values: NDArray[Any], row: dict[str, float], name: str) -> None:
    """Sum and sum of squares; a sum cancels, so its scale is the bound of the sum of |values|."""
    scale = math.sqrt(values.size * row["sumsq"])
    assert abs(values.sum() - row["sum"]) <= RTOL * scale, name
    assert abs((values**2).sum() / row["sumsq"] - 1) <= RTOL, name


class Run:
    """One case: eval and train outputs with every boundary, then the published loss."""

    def __init__(self, side: Any, golden: Path, name: str, case: str) -> None:
        record = json.loads((golden / f"models/{name}.json").read_text())
        self.name, self.case = name, case
        self.modules = record["eval_modules"]
        self.row = record["cases"][case]
        self.arrays = dict(np.load(golden / f"models/{name}_{case}.npz"))
        size = (self.row["seed"], self.row["N"], self.row["H"], self.row["W"])
        image = side.backend.to_tensor(rules.image(*size))
        label = side.backend.to_tensor(rules.labels(*size))
        model = _model(side, name, **dict.fromkeys(FLAGS, True))
        model.aux_in_eval = True
        model.eval()
        with side.backend.no_grad(), side.backend.capture_outputs(model) as self.layers:
            evaluated = model(image)
        model.train()
        trained = model(image)
        published = (*_class_heads(name), "boundary8")
        losses = _loss(side, name)({head: trained[head] for head in published}, label)
        losses["total"].backward()
        self.outputs = {
            f"{mode}/{_upstream(head)}": side.backend.to_numpy(value)
            for mode, logits in (("eval", evaluated), ("train", trained))
            for head, value in logits.items()
        }
        self.heads = [list(evaluated), list(trained), list(model.heads)]
        self.losses = {key: side.backend.to_numpy(value).item() for key, value in losses.items()}
        self.gradients = side.backend.gradients(model)
        self.state = side.backend.state_arrays(model)


@pytest.fixture(scope="module", params=itertools.product(SIZES, STRIDE), ids="-".join)
def run(request: pytest.FixtureRequest, side: Any, golden: Path) -> Run:
    return Run(side, golden, *request.param)


# ---- upstream ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SIZES)
def test_names_and_shapes_are_the_published_ones(
    side: Any, published_keys: Path, name: str
) -> None:
    content = json.loads((published_keys / f"{name}.json").read_text())
    # every tensor of the backbone is listed again under x2, x4, ...: once is enough
    keys = {key: s for key, s in content["keys"].items() if key not in content["aliases"]}
    counts = {"stdc1": 271, "stdc2": 415, "bisestdc": 341, "bisestdc2": 341}
    assert len(keys) == counts[name]
    model = side.models.build_model(name, classes=19)
    found = {key: list(array.shape) for key, array in side.backend.state_arrays(model).items()}
    expected = {key: shape for key, shape in keys.items() if not is_batch_counter(key)}
    assert list(found.items()) == list(expected.items())
    if side.name == "torch":
        assert list(model.state_dict()) == list(keys)


@pytest.mark.parametrize("name", SIZES)
def test_number_of_parameters(side: Any, name: str) -> None:
    every, main = (
        sum(math.prod(t.shape) for t in side.backend.trainable_parameters(model).values())
        for model in (
            side.models.build_model(name, classes=19),
            side.models.build_model(name, classes=19, aux_heads=False),
        )
    )
    assert (every, main - CLASSIFIER) == SIZES[name]


def test_outputs_are_upstreams(run: Run) -> None:
    assert run.heads == [[*_class_heads(run.name), *BOUNDARIES]] * 3
    assert len(run.outputs) == 2 * len(run.heads[0])
    for name, output in run.outputs.items():
        row = run.row["outputs"][name]
        assert list(output.shape) == row["shape"]
        stride = 3 if "_sp" in name else STRIDE[run.case]
        _assert_close(output[:, :, ::stride, ::stride], run.arrays[name], name)
        _assert_sums(output, row, name)
        extremes = [output.min(), output.max()]
        np.testing.assert_allclose(extremes, [row["min"], row["max"]], rtol=RTOL, err_msg=name)
        if f"{name}/argmax" in run.arrays:
            np.testing.assert_array_equal(output.argmax(1), run.arrays[f"{name}/argmax"])


def test_losses_are_upstreams(run: Run) -> None:
    assert run.losses["total"] == pytest.approx(run.row["loss"], rel=RTOL, abs=0)
    parts = {**run.row["loss_parts"]}
    for term in ("bce", "dice"):
        expected = parts.pop(f"detail_{term}")
        assert run.losses[f"boundary8_{term}"] == pytest.approx(expected, rel=RTOL, abs=0)
    assert set(parts) == {_upstream(head) for head in _class_heads(run.name)}
    for head in _class_heads(run.name):
        assert run.losses[head] == pytest.approx(parts[_upstream(head)], rel=RTOL, abs=0)


def test_gradients_are_upstreams(run: Run) -> None:
    rows = run.row["grads"]["rows"]
    assert run.row["grads"]["columns"] == ["parameter", "l2", "sum", "absmax"]
    # the classifier, and the boundaries that are not in the loss, have none
    reached = [row for row in rows if row[1] is not None]
    assert len(rows) - len(reached) == 7 + 3 * 4
    assert list(run.gradients) == [row[0] for row in reached]
    for name, l2, total, largest in reached:
        gradient = run.gradients[name]
        assert abs(gradient).max() == pytest.approx(largest, rel=RTOL, abs=0), name
        _assert_sums(gradient, {"sum": total, "sumsq": l2**2}, name)
    full = [name for name in run.arrays if name.startswith("grad/")]
    assert len(full) == (8 if run.case == "a" else 0)
    for name in full:
        _assert_close(run.gradients[name.removeprefix("grad/")], run.arrays[name], name)


def test_running_statistics_are_upstreams(run: Run, golden: Path) -> None:
    if run.case == "a":
        recorded = dict(np.load(golden / f"models/{run.name}_a_bn.npz"))
        for name, reference in recorded.items():
            _assert_close(run.state[name], reference, name)
        names = set(recorded)
    else:
        rows = run.row["bn_after_one_train_forward"]["rows"]
        for name, total, squares in rows:
            _assert_sums(run.state[name], {"sum": total, "sumsq": squares}, name)
        names = {row[0] for row in rows}
    assert names == {name for name in run.state if "running_" in name}


def test_every_layer_is_upstreams(run: Run) -> None:
    """Same names in the same order, same output: a wrong layer is found by its name."""
    if run.case != "a":
        pytest.skip("recorded for case a only")
    assert run.modules["columns"] == ["module", "shape", "mean", "std", "absmax"]
    # upstream names parts "cp[0]", and has the backbone's layers in a second container
    rows = [
        row
        for row in run.modules["rows"]
        if not row[0].startswith(("cp.backbone.x", "cp.backbone.SPx"))
    ]
    names = [row[0].replace("[", ".").replace("]", "") for row in rows]
    recorded = dict(zip(names, rows, strict=True))
    # upstream runs the boundary heads before the main one
    own, theirs = (sorted(keys, key=lambda k: k.split(".")[0]) for keys in (run.layers, names))
    assert own == theirs
    for name, array in run.layers.items():
        _, shape, mean, std, largest = recorded[name]
        assert list(array.shape) == shape, name
        numbers = [array.std(), abs(array).max()]
        np.testing.assert_allclose(numbers, [std, largest], rtol=RTOL, err_msg=name)
        assert abs(array.mean() - mean) <= RTOL * largest, name


@pytest.mark.parametrize("name", SIZES)
def test_the_sign_of_a_head_weight_has_no_meaning(side: Any, golden: Path, name: str) -> None:
    recorded = np.load(golden / "negative_gamma.npz")
    model = _model(side, name)
    arrays = side.backend.state_arrays(model)
    # the layers of the main path; the boundary heads do not reach its logits
    for layer in recorded[f"{name}/layers"]:
        arrays[f"{layer}.weight"][1::2] *= -1
    side.backend.load_arrays(model, arrays)
    model.eval()
    with side.backend.no_grad():
        main = model(side.backend.to_tensor(rules.image(1000, 2, 64, 128)))["main"]
    found = side.backend.to_numpy(main)
    _assert_close(found[:, :, ::11, ::11], recorded[name], name)


@pytest.mark.parametrize("name", SIZES)
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
    model, loss = _model(side, name), _loss(side, name)
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


# ---- its own promises -------------------------------------------------------------------------
def _outputs(side: Any, model: Any, *shape: int) -> dict[str, NDArray[Any]]:
    image = np.random.default_rng(0).standard_normal(shape).astype("float32")
    with side.backend.no_grad():
        outputs = model(side.backend.to_tensor(image))
    return {name: side.backend.to_numpy(value) for name, value in outputs.items()}


@pytest.mark.parametrize("name", ["stdc1", "bisestdc"])
def test_boundary_flags_work_in_every_combination(side: Any, name: str) -> None:
    reference: dict[str, NDArray[Any]] = {}
    label = side.backend.to_tensor(np.arange(2 * 33 * 40).reshape(2, 33, 40) % 4)
    for flags in itertools.product((True, False), repeat=4):
        side.backend.seed_everything(0)
        model = side.models.MODELS[name](4, **dict(zip(FLAGS, flags, strict=True)))
        model.eval()
        assert list(_outputs(side, model, 1, 3, 33, 40)) == ["main"]
        model.aux_in_eval = True
        outputs = _outputs(side, model, 2, 3, 33, 40)
        asked = [boundary for boundary, flag in zip(BOUNDARIES, flags, strict=True) if flag]
        assert list(outputs) == [*_class_heads(name), *asked] == list(model.heads)
        # a flag changes which outputs there are, never what they are
        reference = reference or outputs
        for head, value in outputs.items():
            np.testing.assert_array_equal(value, reference[head], err_msg=head)
        tensors = {head: side.backend.to_tensor(value) for head, value in outputs.items()}
        build = side.losses.build_loss
        terms = build(LossConfig(), classes=4, ignore_index=255)(tensors, label)
        expected = [f"{boundary}_{term}" for boundary in asked for term in ("bce", "dice")]
        assert list(terms) == ["total", *_class_heads(name), *expected]
        assert np.isfinite(float(side.backend.to_numpy(terms["total"])))


@pytest.mark.parametrize("size", [(33, 65), (72, 104), (50, 70)])
@pytest.mark.parametrize("name", SIZES)
def test_any_size_comes_back(side: Any, name: str, size: tuple[int, int]) -> None:
    model = _model(side, name, dtype="float32", classes=4, **dict.fromkeys(FLAGS, True))
    model.eval()
    model.aux_in_eval = True
    shapes = {head: value.shape for head, value in _outputs(side, model, 1, 3, *size).items()}
    halves = [tuple(math.ceil(n / 2**i) for n in size) for i in range(5)]
    boundary8 = halves[2] if "bise" in name else halves[3]
    assert shapes == {
        **{head: (1, 4, *size) for head in _class_heads(name)},
        "boundary2": (1, 1, *halves[1]),
        "boundary4": (1, 1, *halves[2]),
        "boundary8": (1, 1, *boundary8),
        "boundary16": (1, 1, *halves[4]),
    }


@pytest.mark.parametrize("name", ["stdc1", "bisestdc"])
def test_heads_are_for_training(side: Any, name: str) -> None:
    model = _model(side, name, dtype="float32", classes=4)
    children = ["ffm", *map(_upstream, _class_heads(name)), *map(_upstream, BOUNDARIES)]
    assert sorted(model.head_modules) == sorted(children)
    assert all(hasattr(model, child) for child in model.head_modules)
    model.train()
    assert list(_outputs(side, model, 2, 3, 32, 32)) == [*_class_heads(name), "boundary8"]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        _outputs(side, model, 1, 3, 32, 32)
    unused = ("conv_out_sp16", "conv_out_sp4", "conv_out_sp2")
    assert model.unused[-3:] == unused
    assert {layer.rpartition(".")[2] for layer in model.unused[:-3]} == {
        "conv_last",
        "fc",
        "bn",
        "linear",
    }
    model = _model(side, name, dtype="float32", classes=4, aux_heads=False)
    model.train()
    assert list(_outputs(side, model, 2, 3, 32, 32)) == ["main"] == list(model.heads)
    assert model.head_modules == ("ffm", "conv_out")


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


@pytest.mark.parametrize("name", ["stdc1", "bisestdc"])
def test_initialisation_is_upstreams(side: Any, name: str) -> None:
    side.backend.seed_everything(0)
    arrays = side.backend.state_arrays(side.models.build_model(name, classes=19))
    for key, array in arrays.items():
        if array.ndim == 1:
            expected = 1.0 if key.endswith(("weight", "running_var")) else 0.0
            np.testing.assert_array_equal(array, expected, err_msg=key)
            continue
        fan_in, fan_out = math.prod(array.shape[1:]), len(array) * math.prod(array.shape[2:])
        kurtosis = 3.0
        if array.ndim == 2:
            deviation = 0.001
        elif key.startswith("cp.backbone.featuresSP."):
            deviation, kurtosis = 1 / math.sqrt(3 * fan_in), 1.8
        elif key.startswith("cp.backbone.") and ".ffm." not in key:
            deviation = math.sqrt(2 / fan_out)
        else:
            deviation = 1 / math.sqrt(fan_in)
        scaled = array.astype(np.float64).ravel() / deviation
        # five times the sampling errors of normal values
        assert abs(scaled.std() - 1) <= 5 / math.sqrt(2 * array.size), key
        found = (scaled**4).mean() / (scaled**2).mean() ** 2
        assert found == pytest.approx(kurtosis, abs=5 * math.sqrt(24 / array.size)), key
