"""BiSeNetV2 against the recorded outputs of the public implementation, and its own promises."""

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

HEADS = ("main", "aux2", "aux3", "aux4", "aux5_4")
STRIDE = {"a": 11, "b": 17, "odd": 13}
CASES = [("bisenetv2", "a"), ("bisenetv2", "b")] + [
    ("bisenetv2_2020", case) for case in ("a", "b", "odd")
]
RTOL = 1e-10
"""Relative to the tensor's largest value; the recorded sums carry 14 digits. Measured: outputs
2e-15 on Torch and 1.3e-12 on Paddle, gradients 5e-14 and 2.2e-11 (a: BatchNorm over 2 values)."""
# a bias that a linear map and another BatchNorm follow moves nothing: its gradient is rounding
WITHOUT_EFFECT = {f"segment.{name}.0.shortcut.1.bias" for name in ("S3", "S4", "S5_4")} | {
    "segment.S5_5.bn.bias"
}


def _upstream(head: str) -> str:
    return "head" if head == "main" else head


def _model(
    side: Any,
    name: str = "bisenetv2",
    *,
    dtype: str = "float64",
    classes: int = 19,
    aux_heads: bool = True,
) -> Any:
    """Rule weights, no dropout."""
    side.backend.set_default_dtype(dtype)
    model = side.models.build_model(name, classes=classes, aux_heads=aux_heads)
    shapes = {key: array.shape for key, array in side.backend.state_arrays(model).items()}
    side.backend.load_arrays(model, rules.rule_state(shapes))
    side.backend.disable_dropout(model)
    return model


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
    """One case: eval and train outputs, then loss, gradients and buffers after one step."""

    def __init__(self, side: Any, golden: Path, name: str, case: str) -> None:
        record = json.loads((golden / f"models/{name}.json").read_text())
        self.name = name
        self.case = case
        self.modules = record["eval_modules"]
        self.row = record["cases"][case]
        self.arrays = dict(np.load(golden / f"models/{name}_{case}.npz"))
        size = (self.row["seed"], self.row["N"], self.row["H"], self.row["W"])
        image = side.backend.to_tensor(rules.image(*size))
        label = side.backend.to_tensor(rules.labels(*size))
        model = _model(side, name)
        model.aux_in_eval = True
        model.eval()
        with side.backend.no_grad(), side.backend.capture_outputs(model) as self.layers:
            evaluated = model(image)
        model.train()
        trained = model(image)
        criterion = side.losses.build_loss(LossConfig(), classes=19, ignore_index=255)
        losses = criterion(trained, label)
        losses["total"].backward()
        self.outputs = {
            f"{mode}/{_upstream(head)}": side.backend.to_numpy(value)
            for mode, logits in (("eval", evaluated), ("train", trained))
            for head, value in logits.items()
        }
        self.heads = [tuple(evaluated), tuple(trained)]
        self.losses = {key: side.backend.to_numpy(value).item() for key, value in losses.items()}
        self.gradients = side.backend.gradients(model)
        self.state = side.backend.state_arrays(model)


@pytest.fixture(scope="module", params=CASES, ids=lambda row: "-".join(row))
def run(request: pytest.FixtureRequest, side: Any, golden: Path) -> Run:
    return Run(side, golden, *request.param)


# ---- upstream ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "keys", "own", "tensors", "numbers"),
    [("bisenetv2", 383, 321, 197, 5_231_487), ("bisenetv2_2020", 359, 301, 185, 3_645_935)],
)
def test_names_and_shapes_are_the_published_ones(
    side: Any, published_keys: Path, name: str, keys: int, own: int, tensors: int, numbers: int
) -> None:
    published = json.loads((published_keys / f"{name}.json").read_text())["keys"]
    assert len(published) == keys
    model = side.models.build_model(name, classes=19)
    found = {key: list(a.shape) for key, a in side.backend.state_arrays(model).items()}
    expected = {key: shape for key, shape in published.items() if not is_batch_counter(key)}
    assert list(found.items()) == list(expected.items())
    assert len(found) == own
    if side.name == "torch":
        assert list(model.state_dict()) == list(published)
    trainable = side.backend.trainable_parameters(model)
    assert len(trainable) == tensors
    assert sum(math.prod(tensor.shape) for tensor in trainable.values()) == numbers


def test_outputs_are_upstreams(run: Run) -> None:
    assert run.heads == [HEADS, HEADS]
    stride = STRIDE[run.case]
    assert len(run.outputs) == 10
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
    for head in HEADS:
        expected = run.row["loss_parts"][_upstream(head)]
        assert run.losses[head] == pytest.approx(expected, rel=RTOL, abs=0)


def test_gradients_are_upstreams(run: Run) -> None:
    rows = run.row["grads"]["rows"]
    assert run.row["grads"]["columns"] == ["parameter", "l2", "sum", "absmax"]
    assert list(run.gradients) == [row[0] for row in rows]
    largest_of_all = max(row[3] for row in rows)
    for name, l2, total, largest in rows:
        gradient = run.gradients[name]
        if name in WITHOUT_EFFECT:
            assert max(abs(gradient).max(), largest) <= 1e-13 * largest_of_all, name
            continue
        assert abs(gradient).max() == pytest.approx(largest, rel=RTOL, abs=0), name
        _assert_sums(gradient, {"sum": total, "sumsq": l2**2}, name)
    full = [name for name in run.arrays if name.startswith("grad/")]
    assert len(full) == (8 if run.case == "a" else 0)
    for name in full:
        if name.removeprefix("grad/") not in WITHOUT_EFFECT:
            _assert_close(run.gradients[name.removeprefix("grad/")], run.arrays[name], name)


def test_running_statistics_are_upstreams(run: Run, golden: Path) -> None:
    count = {"bisenetv2": 124, "bisenetv2_2020": 116}[run.name]
    if run.case == "a":
        recorded = dict(np.load(golden / f"models/{run.name}_a_bn.npz"))
        assert len(recorded) == count
        for name, reference in recorded.items():
            _assert_close(run.state[name], reference, name)
        return
    rows = run.row["bn_after_one_train_forward"]["rows"]
    assert len(rows) == count
    for name, total, squares in rows:
        _assert_sums(run.state[name], {"sum": total, "sumsq": squares}, name)


def test_every_layer_is_upstreams(run: Run) -> None:
    """Same names in the same order, same output: a wrong layer is found by its name."""
    if run.case != "a":
        pytest.skip("recorded for case a only")
    assert run.modules["columns"] == ["module", "shape", "mean", "std", "absmax"]
    # upstream calls functions where we have layers; it names the parts of a tuple "segment[0]"
    ours_only = {"bga.sigmoid1", "bga.sigmoid2"}
    if run.name == "bisenetv2_2020":
        ours_only |= {"bga.up1", "bga.up2", "head.up"} | {f"{head}.up" for head in HEADS[1:]}
    assert ours_only <= set(run.layers)
    found = {name: array for name, array in run.layers.items() if name not in ours_only}
    rows = run.modules["rows"]
    assert list(found) == [row[0].replace("[", ".").replace("]", "") for row in rows]
    for (name, array), (_, shape, mean, std, largest) in zip(found.items(), rows, strict=True):
        assert list(array.shape) == shape, name
        numbers = [array.std(), abs(array).max()]
        np.testing.assert_allclose(numbers, [std, largest], rtol=RTOL, err_msg=name)
        assert abs(array.mean() - mean) <= RTOL * largest, name


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


# ---- its own promises -------------------------------------------------------------------------
def _image(side: Any, *shape: int, dtype: str = "float64") -> Any:
    array = np.random.default_rng(0).standard_normal(shape)
    return side.backend.to_tensor(array.astype(dtype))


def _logits(side: Any, model: Any, image: Any) -> dict[str, NDArray[Any]]:
    with side.backend.no_grad():
        return {name: side.backend.to_numpy(value) for name, value in model(image).items()}


@pytest.mark.parametrize("name", ["bisenetv2", "bisenetv2_2020"])
@pytest.mark.parametrize("size", [(72, 104), (33, 65), (1, 1)])
def test_any_size_comes_back(side: Any, name: str, size: tuple[int, int]) -> None:
    model = _model(side, name, dtype="float32", classes=4)
    model.eval()
    model.aux_in_eval = True
    logits = _logits(side, model, _image(side, 1, 3, *size, dtype="float32"))
    assert {head: value.shape for head, value in logits.items()} == {
        head: (1, 4, *size) for head in HEADS
    }
    model.train()
    trained = _logits(side, model, _image(side, 2, 3, *size, dtype="float32"))
    assert {value.shape for value in trained.values()} == {(2, 4, *size)}


def test_any_size_is_the_zero_padded_image(side: Any) -> None:
    model = _model(side, classes=4)
    image = np.random.default_rng(0).standard_normal((2, 3, 40, 65))
    padded = np.zeros((2, 3, 64, 96))
    padded[:, :, :40, :65] = image
    for train in (False, True):
        model.train() if train else model.eval()
        small = _logits(side, model, side.backend.to_tensor(image))
        large = _logits(side, model, side.backend.to_tensor(padded))
        assert tuple(small) == (HEADS if train else ("main",))
        for name, value in small.items():
            np.testing.assert_array_equal(value, large[name][:, :, :40, :65])


def test_auxiliary_heads_are_for_training(side: Any) -> None:
    model = _model(side, dtype="float32", classes=4)
    image = _image(side, 2, 3, 32, 32, dtype="float32")
    model.train()
    assert tuple(_logits(side, model, image)) == HEADS
    model.eval()
    main = _logits(side, model, image)
    assert tuple(main) == ("main",)
    model.aux_in_eval = True
    every = _logits(side, model, image)
    assert tuple(every) == HEADS == model.heads
    np.testing.assert_array_equal(every["main"], main["main"])


@pytest.mark.parametrize(
    ("name", "modules"),
    [("bisenetv2", ("head", "aux2", "aux3", "aux4", "aux5_4")), ("bisenetv2_2020", ())],
)
def test_head_modules_are_the_recipes(side: Any, name: str, modules: tuple[str, ...]) -> None:
    model = side.models.build_model(name, classes=4)
    assert model.head_modules == modules
    assert all(hasattr(model, module) for module in modules)
    small = side.models.build_model(name, classes=4, aux_heads=False)
    assert small.head_modules == modules[:1]


def test_auxiliary_heads_can_be_left_out(side: Any) -> None:
    model = _model(side, dtype="float32", aux_heads=False)
    trainable = side.backend.trainable_parameters(model)
    assert not [name for name in trainable if name.startswith("aux")]
    assert sum(math.prod(tensor.shape) for tensor in trainable.values()) == 3_358_627
    model.train()
    assert tuple(_logits(side, model, _image(side, 2, 3, 32, 32, dtype="float32"))) == ("main",)
    assert model.heads == ("main",)


def test_one_image_cannot_train(side: Any) -> None:
    model = _model(side, dtype="float32")
    model.train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(_image(side, 1, 3, 32, 32, dtype="float32"))


# ---- initialisation and dropout ---------------------------------------------------------------
@pytest.mark.parametrize(("name", "count"), [("bisenetv2", 68), ("bisenetv2_2020", 64)])
def test_initialisation_is_upstreams(side: Any, name: str, count: int) -> None:
    side.backend.seed_everything(0)
    arrays = side.backend.state_arrays(side.models.build_model(name, classes=19))
    convs = {key: array for key, array in arrays.items() if array.ndim == 4}
    assert len(convs) == count
    for key, array in convs.items():
        # fan_out: every output channel counts, also in the depthwise convolutions
        fan_out = array.shape[0] * array.shape[2] * array.shape[3]
        scaled = array.astype(np.float64).ravel() * math.sqrt(fan_out / 2)
        # five times the sampling errors of mean, std and kurtosis of normal values
        n = array.size
        assert abs(scaled.mean()) <= 5 / math.sqrt(n), key
        assert abs(scaled.std() - 1) <= 5 / math.sqrt(2 * n), key
        kurtosis = (scaled**4).mean() / (scaled**2).mean() ** 2
        assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / n)), key
    starts_at_zero = {
        f"segment.{layer}.conv2.1.weight"
        for layer in ("S3.0", "S3.1", "S4.0", "S4.1", "S5_4.0", "S5_4.1", "S5_4.2", "S5_4.3")
    }
    assert starts_at_zero <= set(arrays)
    for key, array in arrays.items():
        if array.ndim == 1:
            one = key.endswith(("weight", "running_var")) and key not in starts_at_zero
            np.testing.assert_array_equal(array, 1.0 if one else 0.0, err_msg=key)


def test_a_fresh_layer_of_stride_1_passes_its_input(side: Any) -> None:
    """Weight 0 of the last BatchNorm: relu(0 + x) of an x that a ReLU made."""
    model = side.models.build_model("bisenetv2", classes=4)
    model.eval()
    with side.backend.no_grad(), side.backend.capture_outputs(model) as layers:
        model(_image(side, 1, 3, 32, 32, dtype="float32"))
    np.testing.assert_array_equal(layers["segment.S5_4.3"], layers["segment.S5_4.0"])
    assert layers["segment.S5_4.0"].max() > 0


@pytest.mark.parametrize("name", ["bisenetv2", "bisenetv2_2020"])
def test_every_head_drops_a_tenth_in_training(side: Any, name: str) -> None:
    side.backend.seed_everything(0)
    model = side.models.build_model(name, classes=4)
    model.train()
    with side.backend.no_grad(), side.backend.capture_outputs(model) as layers:
        model(_image(side, 2, 3, 64, 64, dtype="float32"))
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
        model(_image(side, 2, 3, 32, 32, dtype="float32"))
    np.testing.assert_array_equal(layers["aux4.drop"], layers["aux4.conv"])
