"""The other published BiSeNetV1 networks against recorded upstream outputs, and their promises."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from common.config import LossConfig, OptimizerConfig
from common.param_groups import assign_groups, group_table
from common.weight_names import is_batch_counter
from fake_data import rules

UPSTREAM_HEADS = {"main": "conv_out", "aux16": "conv_out16", "aux32": "conv_out32"}
STRIDE = {"a": 11, "b": 17, "odd": 13}
# measured against upstream, relative to the tensor's largest value: 1e-12 on either side
RTOL = 1e-10
OLD_OHEM = LossConfig(ohem="pixel_fraction")
NO_OHEM = LossConfig(ohem="none")


@dataclass(frozen=True)
class Variant:
    """One published network and what is recorded about it."""

    model: str
    recorded: str
    """Stem of its files."""
    loss: LossConfig
    keys: int
    parameters: tuple[int, int]
    """How many tensors, how many numbers."""
    parts: tuple[str, ...] = ("cp.0", "cp.1", "cp.2")
    """Our names of upstream's cp[0], cp[1], ..."""
    unused: tuple[str, ...] = ()


DISS_PARTS = ("cp.2", "cp.0", "cp.1")
VARIANTS = (
    Variant("bisenetv1_2020", "bisenetv1_2020", OLD_OHEM, 180, (110, 13_392_384)),
    Variant("bisenetv1_fp16_2020", "bisenetv1_fp16_2020", OLD_OHEM, 215, (110, 13_392_384)),
    Variant("bisenetv1_diss", "bisenetv1_diss_2020", OLD_OHEM, 160, (98, 13_300_416), DISS_PARTS),
    Variant(
        "bisenetv1_2019",
        "bisenetv1_2019",
        NO_OHEM,
        192,
        (99, 31_619_552),
        unused=("cp.arm16", "cp.arm32", "cp.conv_avg", "cp.bn_avg"),
    ),
)
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.model)


def _model(side: Any, name: str, *, dtype: str = "float64", **options: Any) -> Any:
    """Rule weights, no dropout."""
    side.backend.set_default_dtype(dtype)
    model = side.models.MODELS[name](**{"classes": 19, **options})
    own = side.backend.state_arrays(model)
    state = _rule_state(tuple((key, array.shape) for key, array in own.items()))
    side.backend.load_arrays(model, state)
    side.backend.disable_dropout(model)
    return model


@lru_cache(maxsize=1)
def _rule_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, NDArray[Any]]:
    """The same network is built again and again; its millions of draws are made once."""
    return rules.rule_state(dict(shapes))


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
    """One network, one case: eval and train outputs, loss, gradients and buffers after a step."""

    def __init__(self, side: Any, golden: Path, variant: Variant, case: str) -> None:
        files = golden / "models"
        record = json.loads((files / f"{variant.recorded}.json").read_text())
        self.variant, self.case = variant, case
        self.modules = record["eval_modules"]
        self.row = record["cases"][case]
        self.arrays = dict(np.load(files / f"{variant.recorded}_{case}.npz"))
        size = (self.row["seed"], self.row["N"], self.row["H"], self.row["W"])
        image = side.backend.to_tensor(rules.image(*size))
        label = side.backend.to_tensor(rules.labels(*size))
        model = _model(side, variant.model)
        model.aux_in_eval = True
        model.eval()
        with side.backend.no_grad(), side.backend.capture_outputs(model) as self.layers:
            evaluated = model(image)
        model.train()
        trained = model(image)
        losses = side.losses.build_loss(variant.loss, classes=19, ignore_index=255)(trained, label)
        losses["total"].backward()
        self.outputs = {
            f"{mode}/{UPSTREAM_HEADS[head]}": side.backend.to_numpy(value)
            for mode, logits in (("eval", evaluated), ("train", trained))
            for head, value in logits.items()
        }
        self.heads = [list(evaluated), list(trained)]
        self.losses = {name: side.backend.to_numpy(value).item() for name, value in losses.items()}
        self.parameters = list(side.backend.trainable_parameters(model))
        self.gradients = side.backend.gradients(model)
        self.state = side.backend.state_arrays(model)


@pytest.fixture(
    scope="module",
    params=[(variant, case) for variant in VARIANTS for case in STRIDE],
    ids=lambda pair: f"{pair[0].model}-{pair[1]}",
)
def run(request: pytest.FixtureRequest, side: Any, golden: Path) -> Run:
    return Run(side, golden, *request.param)


# ---- upstream ---------------------------------------------------------------------------------
@variants
def test_names_and_shapes_are_the_published_ones(
    side: Any, published_keys: Path, variant: Variant
) -> None:
    keys = json.loads((published_keys / f"{variant.recorded}.json").read_text())["keys"]
    assert len(keys) == variant.keys
    model = side.models.build_model(variant.model, classes=19)
    found = {name: list(a.shape) for name, a in side.backend.state_arrays(model).items()}
    expected = {name: shape for name, shape in keys.items() if not is_batch_counter(name)}
    assert list(found.items()) == list(expected.items())
    own = list(model.state_dict())
    assert own == list(keys) if side.name == "torch" else len(own) == len(expected)
    trainable = side.backend.trainable_parameters(model)
    numbers = sum(math.prod(tensor.shape) for tensor in trainable.values())
    assert (len(trainable), numbers) == variant.parameters


def test_outputs_are_upstreams(run: Run) -> None:
    assert run.heads == [["main", "aux16", "aux32"]] * 2
    stride = STRIDE[run.case]
    for name, output in run.outputs.items():
        row = run.row["outputs"][name]
        assert list(output.shape) == row["shape"]
        _assert_close(output[:, :, ::stride, ::stride], run.arrays[name], name)
        _assert_sums(output, row, name)
        extremes = [output.min(), output.max()]
        np.testing.assert_allclose(extremes, [row["min"], row["max"]], rtol=RTOL, err_msg=name)
        if f"{name}/argmax" in run.arrays:
            np.testing.assert_array_equal(output.argmax(1), run.arrays[f"{name}/argmax"])


def test_losses_are_upstreams(run: Run) -> None:
    assert run.losses["total"] == pytest.approx(run.row["loss"], rel=RTOL, abs=0)
    for head, upstream in UPSTREAM_HEADS.items():
        expected = run.row["loss_parts"][upstream]
        assert run.losses[head] == pytest.approx(expected, rel=RTOL, abs=0)


def test_gradients_are_upstreams(run: Run) -> None:
    assert run.row["grads"]["columns"] == ["parameter", "l2", "sum", "absmax"]
    rows = {row[0]: row[1:] for row in run.row["grads"]["rows"]}
    assert run.parameters == list(rows)
    unused = {name for name, numbers in rows.items() if None in numbers}
    assert unused == {name for name in rows if name.startswith(run.variant.unused or "none")}
    assert set(run.gradients) == set(rows) - unused
    for name, gradient in run.gradients.items():
        l2, total, largest = rows[name]
        assert abs(gradient).max() == pytest.approx(largest, rel=RTOL, abs=0), name
        _assert_sums(gradient, {"sum": total, "sumsq": l2**2}, name)
    full = [name for name in run.arrays if name.startswith("grad/")]
    assert len(full) == (8 if run.case == "a" else 0)
    for name in full:
        _assert_close(run.gradients[name.removeprefix("grad/")], run.arrays[name], name)


def test_running_statistics_are_upstreams(run: Run, golden: Path) -> None:
    expected = {name for name in run.state if "running_" in name}
    if run.case == "a":
        recorded = dict(np.load(golden / f"models/{run.variant.recorded}_a_bn.npz"))
        assert set(recorded) == expected
        for name, reference in recorded.items():
            _assert_close(run.state[name], reference, name)
        return
    rows = run.row["bn_after_one_train_forward"]["rows"]
    assert {row[0] for row in rows} == expected
    for name, total, squares in rows:
        _assert_sums(run.state[name], {"sum": total, "sumsq": squares}, name)


def test_every_layer_is_upstreams(run: Run) -> None:
    """Same names, same output: a wrong layer is found by its name."""
    if run.case != "a":
        pytest.skip("recorded for case a only")
    assert run.modules["columns"] == ["module", "shape", "mean", "std", "absmax"]
    parts = {f"cp[{index}]": name for index, name in enumerate(run.variant.parts)}
    calls: dict[str, int] = {}
    names: list[str] = []
    for row in run.modules["rows"]:
        name = parts.get(row[0], row[0].replace("[", ".").replace("]", ""))
        # a layer that is called again is recorded under the same name
        calls[name] = calls.get(name, -1) + 1
        names.append(f"{name}#{calls[name]}" if calls[name] else name)
    # activations that upstream calls as functions, and resizing, are layers of ours alone
    ours = set(run.layers) - set(names)
    assert {name.rpartition(".")[2] for name in ours} <= {"relu", "up16", "up32", "2"}
    order = [name for name in run.layers if name not in ours]
    if run.variant.parts == ("cp.0", "cp.1", "cp.2"):
        assert order == names
    assert sorted(order) == sorted(names)
    for name, (_, shape, mean, std, largest) in zip(names, run.modules["rows"], strict=True):
        array = run.layers[name]
        assert list(array.shape) == shape, name
        numbers = [array.std(), abs(array).max()]
        np.testing.assert_allclose(numbers, [std, largest], rtol=RTOL, err_msg=name)
        assert abs(array.mean() - mean) <= RTOL * largest, name


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[2]], ids=lambda v: v.model)
def test_negative_weights_are_upstreams(side: Any, golden: Path, variant: Variant) -> None:
    """The weights of InPlaceABN may be negative in a checkpoint; their sign has no meaning."""
    recorded = np.load(golden / "negative_gamma.npz")
    model = _model(side, variant.model)
    state = side.backend.state_arrays(model)
    layers = recorded[f"{variant.recorded}/layers"]
    abn = {n.removesuffix(".running_var") for n in state if n.endswith(".running_var")}
    assert set(layers.tolist()) == abn
    for layer in layers:
        state[f"{layer}.weight"][1::2] *= -1
    side.backend.load_arrays(model, state)
    model.eval()
    with side.backend.no_grad():
        logits = side.backend.to_numpy(
            model(side.backend.to_tensor(rules.image(1000, 2, 64, 128)))["main"]
        )
    _assert_close(logits[:, :, ::11, ::11], recorded[variant.recorded], variant.model)
    total, squares = recorded[f"{variant.recorded}/sum_sumsq"]
    _assert_sums(logits, {"sum": total, "sumsq": squares}, variant.model)


@variants
def test_parameter_groups_are_the_recipes(side: Any, golden: Path, variant: Variant) -> None:
    record = json.loads((golden / "param_groups.json").read_text())[variant.recorded]
    first = variant.model == "bisenetv1_2019"
    config = OptimizerConfig(
        base_lr=record["base_lr"],
        weight_decay=1e-4 if first else 5e-4,
        decay_norm_and_bias=first,
    )
    model = side.models.build_model(variant.model, classes=19)
    ranks = {n: len(p.shape) for n, p in side.backend.trainable_parameters(model).items()}
    groups = assign_groups(ranks, head_modules=model.head_modules)
    table = group_table(config)
    found = {
        name: {"lr_mult": table[group].lr_mult, "weight_decay": table[group].weight_decay}
        for name, group in groups.items()
    }
    assert found == record["params"]
    assert record["in_no_group_hence_never_updated"] == []


FACE_HEADS = {"logits_s8": "main", "logits16_s8": "aux16", "logits32_s8": "aux32"}
READ_CHECKPOINT = (
    "import sys, numpy, torch; state = torch.load(sys.argv[1], weights_only=True, "
    "map_location='cpu'); numpy.savez(sys.argv[2], **{n: t.numpy() for n, t in state.items()})"
)


def test_a_real_checkpoint_gives_its_own_outputs(
    side: Any, real_data: Path, tmp_path: Path
) -> None:
    """The face-parsing network, trained by others: 'diss' with plain BatchNorm."""
    faces = real_data / "face_parsing"
    arrays_file = tmp_path / "weights.npz"
    command = [sys.executable, "-c", READ_CHECKPOINT, faces / "79999_iter.pth", arrays_file]
    subprocess.run([str(part) for part in command], check=True)
    arrays = dict(np.load(arrays_file))
    assert len(arrays) == 191
    model = side.models.build_model("bisenetv1_diss_bn", classes=19)
    side.backend.load_arrays(model, arrays)
    if side.name == "torch":
        assert list(model.state_dict()) == list(arrays)
    model.eval()
    model.aux_in_eval = True
    expected = dict(np.load(faces / "expected.npz"))
    frames = {name.partition(".")[0] for name in expected}
    assert len(frames) == 2
    for frame in frames:
        (path,) = (real_data / "camvid/images").rglob(f"{frame}.*")
        pixels = cv2.imread(str(path))[4:356, :, ::-1].astype(np.float32) / 255
        image = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        image = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32))
        with side.backend.no_grad():
            outputs = model(side.backend.to_tensor(image))
        logits = {name: side.backend.to_numpy(value)[0] for name, value in outputs.items()}
        for key, head in FACE_HEADS.items():
            found, reference = logits[head][:, ::8, ::8], expected[f"{frame}.{key}"]
            # float32, logits up to 8: measured 3e-6 on Torch, 1.3e-5 on Paddle
            assert np.abs(found - reference).max() <= 5e-5, (frame, head)
        labels = expected[f"{frame}.labels"]
        # a pixel whose two best classes are that close may go either way
        best = np.sort(logits["main"], axis=0)
        clear = best[-1] - best[-2] > 1e-4
        assert clear.mean() > 0.999
        np.testing.assert_array_equal(logits["main"].argmax(0)[clear], labels[clear])


# ---- their own promises -----------------------------------------------------------------------
NAMES = (*(variant.model for variant in VARIANTS), "bisenetv1_diss_bn")


def _outputs(side: Any, model: Any, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
    with side.backend.no_grad():
        outputs = model(side.backend.to_tensor(image))
    return {name: side.backend.to_numpy(value) for name, value in outputs.items()}


def _noise(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_heads_and_sizes(side: Any, name: str) -> None:
    model = _model(side, name, dtype="float32", classes=4)
    model.train()
    shapes = {head: (2, 4, 41, 35) for head in ("main", "aux16", "aux32")}
    assert tuple(shapes) == model.heads
    assert {h: v.shape for h, v in _outputs(side, model, _noise(2, 3, 41, 35)).items()} == shapes
    model.eval()
    main = _outputs(side, model, _noise(2, 3, 41, 35))
    assert list(main) == ["main"]
    model.aux_in_eval = True
    every = _outputs(side, model, _noise(2, 3, 41, 35))
    assert {head: value.shape for head, value in every.items()} == shapes
    np.testing.assert_array_equal(every["main"], main["main"])


@pytest.mark.parametrize("name", NAMES)
def test_auxiliary_heads_can_be_left_out(side: Any, name: str) -> None:
    model = side.models.build_model(name, classes=4, aux_heads=False)
    model.train()
    assert model.heads == ("main",)
    assert list(_outputs(side, model, _noise(2, 3, 32, 32))) == ["main"]
    assert not any("conv_out16" in key for key in side.backend.state_arrays(model))
    assert model.head_modules == (() if name == "bisenetv1_2019" else ("ffm", "conv_out"))


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_is_upstreams(side: Any, name: str) -> None:
    side.backend.seed_everything(0)
    arrays = side.backend.state_arrays(side.models.build_model(name, classes=19))
    for key, array in arrays.items():
        if array.ndim == 1:
            expected = 1.0 if key.endswith(("weight", "running_var")) else 0.0
            np.testing.assert_array_equal(array, expected, err_msg=key)
            continue
        scaled = array.astype(np.float64).ravel() * math.sqrt(math.prod(array.shape[1:]))
        backbone = key.startswith("cp.resnet.")
        # uniform within 1 in the backbone, N(0, 1) elsewhere; five times the sampling error
        std = 1 / math.sqrt(3) if backbone else 1.0
        assert abs(scaled.std() / std - 1) <= 5 / math.sqrt(2 * array.size), key
        kurtosis = (scaled**4).mean() / (scaled**2).mean() ** 2
        allowed = 0.1 if backbone else 5 * math.sqrt(24 / array.size)
        assert kurtosis == pytest.approx(1.8 if backbone else 3, abs=allowed), key


def test_the_spatial_path_can_be_the_backbones_feature(side: Any) -> None:
    """'diss' is the 2020 network with the feature at 1/8 in the place of the spatial path."""
    model = _model(side, "bisenetv1_diss_bn")
    twin = _model(side, "bisenetv1_fp16_2020")
    names = set(side.backend.state_arrays(twin)) - set(side.backend.state_arrays(model))
    assert {name.partition(".")[0] for name in names} == {"sp"}
    model.eval()
    image = _noise(1, 3, 40, 50, dtype="float64")
    with side.backend.capture_outputs(model) as layers:
        _outputs(side, model, image)
    feature, context = layers["cp.resnet.layer2"], layers["cp.0"]
    weight = side.backend.state_arrays(model)["ffm.convblk.conv.weight"][:, :, 0, 0]
    mixed = np.einsum("oc,nchw->nohw", weight, np.concatenate([feature, context], 1))
    np.testing.assert_allclose(layers["ffm.convblk.conv"], mixed, rtol=0, atol=1e-10)


# ---- the switches of 2019 ---------------------------------------------------------------------
def _layers_2019(side: Any, **options: bool) -> dict[str, NDArray[Any]]:
    model = _model(side, "bisenetv1_2019", classes=3, **options)
    model.eval()
    model.aux_in_eval = True
    with side.backend.capture_outputs(model) as layers:
        outputs = _outputs(side, model, _noise(1, 3, 40, 50, dtype="float64"))
    return layers | outputs


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-x))


def test_switches_change_no_names(side: Any) -> None:
    plain = side.models.build_model("bisenetv1_2019", classes=3)
    every = side.models.MODELS["bisenetv1_2019"](classes=3, use_arm=True, use_global_pooling=True)
    assert list(side.backend.state_arrays(every)) == list(side.backend.state_arrays(plain))


def test_arm_weighs_both_deep_features(side: Any) -> None:
    plain, arm = _layers_2019(side), _layers_2019(side, use_arm=True)
    assert not any(name.startswith("cp.arm") for name in plain)
    for index, name in ((1, "cp.arm16"), (2, "cp.arm32")):
        feature = arm[f"cp.resnet.{index}"]
        np.testing.assert_array_equal(feature, plain[f"cp.resnet.{index}"])
        expected = feature * (1 + _sigmoid(arm[f"{name}.bn"]))
        np.testing.assert_allclose(arm[name], expected, rtol=1e-13, atol=1e-12)
    assert np.abs(arm["main"] - plain["main"]).max() > 1
    # the auxiliary heads see the features from before
    for head in ("aux16", "aux32"):
        np.testing.assert_array_equal(arm[head], plain[head])


def test_global_pooling_is_added_to_the_deepest_feature(side: Any) -> None:
    plain, pooled = _layers_2019(side), _layers_2019(side, use_global_pooling=True)
    assert "cp.conv_avg" not in plain
    assert pooled["cp.bn_avg"].shape == (1, 512, 1, 1)
    mean = pooled["cp.resnet.2"].mean(axis=(2, 3))
    state = side.backend.state_arrays(_model(side, "bisenetv1_2019", classes=3))
    expected = mean @ state["cp.conv_avg.weight"][:, :, 0, 0].T + state["cp.conv_avg.bias"]
    np.testing.assert_allclose(pooled["cp.conv_avg"][:, :, 0, 0], expected, atol=1e-10)
    # conv_cat is linear: what is added there is the convolution of the constant map
    added = pooled["cp.conv_cat.conv"] - plain["cp.conv_cat.conv"]
    kernel = state["cp.conv_cat.conv.weight"][:, :512]
    inner = np.einsum("ocij,c->o", kernel, pooled["cp.bn_avg"][0, :, 0, 0])
    np.testing.assert_allclose(added[0, :, 1, 1], inner, atol=1e-9)
    # with the refinement too, it is still the backbone's feature that is pooled
    both = _layers_2019(side, use_arm=True, use_global_pooling=True)
    np.testing.assert_array_equal(both["cp.conv_avg"], pooled["cp.conv_avg"])
    assert np.abs(both["main"] - pooled["main"]).max() > 1
    for head in ("aux16", "aux32"):
        np.testing.assert_array_equal(pooled[head], plain[head])


def test_switched_on_modules_are_trained(side: Any) -> None:
    model = _model(
        side, "bisenetv1_2019", dtype="float32", classes=3, use_arm=True, use_global_pooling=True
    )
    model.train()
    outputs = model(side.backend.to_tensor(_noise(3, 3, 40, 50)))
    sum((value**2).mean() for value in outputs.values()).backward()
    assert set(side.backend.gradients(model)) == set(side.backend.trainable_parameters(model))


def test_dropout_is_the_recipes_and_acts_in_training_only(side: Any) -> None:
    side.backend.seed_everything(0)
    model = side.models.build_model("bisenetv1_2019", classes=3)
    model.train()
    with side.backend.capture_outputs(model) as layers:
        _outputs(side, model, _noise(2, 3, 64, 64))
    before, after = layers["conv_out.conv"], layers["conv_out.dropout"]
    alive = before > 0
    dropped = after[alive] == 0
    # 16,000 values or so: the sampling error of the share is 0.0024
    assert dropped.mean() == pytest.approx(0.1, abs=0.015)
    np.testing.assert_allclose(after[alive][~dropped], before[alive][~dropped] / 0.9, rtol=1e-6)
    model.eval()
    with side.backend.capture_outputs(model) as layers:
        _outputs(side, model, _noise(2, 3, 64, 64))
    np.testing.assert_array_equal(layers["conv_out.dropout"], layers["conv_out.conv"])
