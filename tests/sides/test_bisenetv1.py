"""BiSeNetV1 against the recorded outputs of the public implementation, and its own promises."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config import LossConfig
from common.errors import ConfigError
from common.weight_names import is_batch_counter
from fake_data import rules

UPSTREAM_HEADS = {"main": "conv_out", "aux16": "conv_out16", "aux32": "conv_out32"}
STRIDE = {"a": 11, "b": 17}
# measured against upstream, relative to the tensor's largest value: outputs 1e-13, gradients
# 1.5e-12 on Paddle, 0.0 on Torch; the recorded sums carry 14 digits
RTOL = 1e-10


def _model(side: Any, *, dtype: str = "float64", classes: int = 19, aux_heads: bool = True) -> Any:
    """Rule weights."""
    side.backend.set_default_dtype(dtype)
    model = side.models.build_model("bisenetv1", classes=classes, aux_heads=aux_heads)
    shapes = {name: array.shape for name, array in side.backend.state_arrays(model).items()}
    side.backend.load_arrays(model, rules.rule_state(shapes))
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

    def __init__(self, side: Any, golden: Path, case: str) -> None:
        record = json.loads((golden / "models/bisenetv1.json").read_text())
        self.case = case
        self.modules = record["eval_modules"]
        self.row = record["cases"][case]
        self.arrays = dict(np.load(golden / f"models/bisenetv1_{case}.npz"))
        size = (self.row["seed"], self.row["N"], self.row["H"], self.row["W"])
        image = side.backend.to_tensor(rules.image(*size))
        label = side.backend.to_tensor(rules.labels(*size))
        model = _model(side)
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
            f"{mode}/{UPSTREAM_HEADS[head]}": side.backend.to_numpy(value)
            for mode, logits in (("eval", evaluated), ("train", trained))
            for head, value in logits.items()
        }
        self.heads = [list(evaluated), list(trained)]
        self.losses = {name: side.backend.to_numpy(value).item() for name, value in losses.items()}
        self.gradients = side.backend.gradients(model)
        self.state = side.backend.state_arrays(model)


@pytest.fixture(scope="module", params=["a", "b"])
def run(request: pytest.FixtureRequest, side: Any, golden: Path) -> Run:
    return Run(side, golden, request.param)


# ---- upstream ---------------------------------------------------------------------------------
def test_names_and_shapes_are_the_published_ones(side: Any, published_keys: Path) -> None:
    keys = json.loads((published_keys / "bisenetv1.json").read_text())["keys"]
    assert len(keys) == 222
    model = side.models.build_model("bisenetv1", classes=19)
    found = {name: list(a.shape) for name, a in side.backend.state_arrays(model).items()}
    expected = {name: shape for name, shape in keys.items() if not is_batch_counter(name)}
    assert list(found.items()) == list(expected.items())
    own = list(model.state_dict())
    if side.name == "torch":
        assert own == list(keys)
    else:
        assert len(own) == 186
    trainable = side.backend.trainable_parameters(model)
    assert len(trainable) == 114
    assert sum(math.prod(tensor.shape) for tensor in trainable.values()) == 13_425_721


def test_outputs_are_upstreams(run: Run) -> None:
    assert run.heads == [["main", "aux16", "aux32"]] * 2
    stride = STRIDE[run.case]
    assert len(run.outputs) == 6
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
    rows = run.row["grads"]["rows"]
    assert run.row["grads"]["columns"] == ["parameter", "l2", "sum", "absmax"]
    assert list(run.gradients) == [row[0] for row in rows]
    for name, l2, total, largest in rows:
        gradient = run.gradients[name]
        assert abs(gradient).max() == pytest.approx(largest, rel=RTOL, abs=0), name
        _assert_sums(gradient, {"sum": total, "sumsq": l2**2}, name)
    full = [name for name in run.arrays if name.startswith("grad/")]
    assert len(full) == {"a": 8, "b": 0}[run.case]
    for name in full:
        _assert_close(run.gradients[name.removeprefix("grad/")], run.arrays[name], name)


def test_running_statistics_are_upstreams(run: Run, golden: Path) -> None:
    if run.case == "a":
        recorded = dict(np.load(golden / "models/bisenetv1_a_bn.npz"))
        assert len(recorded) == 72
        for name, reference in recorded.items():
            _assert_close(run.state[name], reference, name)
        return
    rows = run.row["bn_after_one_train_forward"]["rows"]
    assert len(rows) == 72
    for name, total, squares in rows:
        _assert_sums(run.state[name], {"sum": total, "sumsq": squares}, name)


def test_every_layer_is_upstreams(run: Run) -> None:
    """Same names in the same order, same output: a wrong layer is found by its name."""
    if run.case == "b":
        pytest.skip("recorded for case a only")
    assert run.modules["columns"] == ["module", "shape", "mean", "std", "absmax"]
    # upstream names parts "cp[0]" and repeats the name of a layer that is called again; cp.2 is
    # the backbone's feature, which this form does not use
    found = {
        name: array
        for name, array in run.layers.items()
        if "sigmoid" not in name and name != "cp.2"
    }
    names = [name.partition("#")[0] for name in found]
    rows = run.modules["rows"]
    assert names == [row[0].replace("[", ".").replace("]", "") for row in rows]
    assert len(rows) == 151
    for (name, array), (_, shape, mean, std, largest) in zip(found.items(), rows, strict=True):
        assert list(array.shape) == shape, name
        numbers = [array.std(), abs(array).max()]
        np.testing.assert_allclose(numbers, [std, largest], rtol=RTOL, err_msg=name)
        assert abs(array.mean() - mean) <= RTOL * largest, name


# ---- its own promises -------------------------------------------------------------------------
def _image(side: Any, *shape: int, dtype: str = "float64") -> Any:
    array = np.random.default_rng(0).standard_normal(shape)
    return side.backend.to_tensor(array.astype(dtype))


def _logits(side: Any, model: Any, image: Any) -> dict[str, NDArray[Any]]:
    with side.backend.no_grad():
        return {name: side.backend.to_numpy(value) for name, value in model(image).items()}


@pytest.mark.parametrize("size", [(72, 104), (90, 160), (33, 65), (1, 1)])
def test_any_size_comes_back_in_eval(side: Any, size: tuple[int, int]) -> None:
    model = _model(side, dtype="float32", classes=4)
    model.eval()
    model.aux_in_eval = True
    logits = _logits(side, model, _image(side, 1, 3, *size, dtype="float32"))
    assert {name: value.shape for name, value in logits.items()} == {
        head: (1, 4, *size) for head in ("main", "aux16", "aux32")
    }


def test_any_size_is_the_zero_padded_image(side: Any) -> None:
    model = _model(side, classes=4)
    image = np.random.default_rng(0).standard_normal((2, 3, 40, 65))
    padded = np.zeros((2, 3, 64, 96))
    padded[:, :, :40, :65] = image
    for train in (False, True):
        model.train() if train else model.eval()
        small = _logits(side, model, side.backend.to_tensor(image))
        large = _logits(side, model, side.backend.to_tensor(padded))
        assert list(small) == (["main", "aux16", "aux32"] if train else ["main"])
        for name, value in small.items():
            np.testing.assert_array_equal(value, large[name][:, :, :40, :65])


def test_auxiliary_heads_are_for_training(side: Any) -> None:
    model = _model(side, dtype="float32", classes=4)
    image = _image(side, 2, 3, 32, 32, dtype="float32")
    model.train()
    assert list(_logits(side, model, image)) == ["main", "aux16", "aux32"]
    model.eval()
    main = _logits(side, model, image)
    assert list(main) == ["main"]
    model.aux_in_eval = True
    every = _logits(side, model, image)
    assert list(every) == ["main", "aux16", "aux32"] == list(model.heads)
    np.testing.assert_array_equal(every["main"], main["main"])
    assert model.head_modules == ("ffm", "conv_out", "conv_out16", "conv_out32")
    assert all(hasattr(model, name) for name in model.head_modules)


def test_auxiliary_heads_can_be_left_out(side: Any) -> None:
    every = side.backend.trainable_parameters(_model(side, dtype="float32"))
    assert len(every) == 114
    assert sum(math.prod(tensor.shape) for tensor in every.values()) == 13_425_721
    model = _model(side, dtype="float32", aux_heads=False)
    trainable = side.backend.trainable_parameters(model)
    assert len(trainable) == 104
    assert sum(math.prod(tensor.shape) for tensor in trainable.values()) == 13_275_539
    model.train()
    assert list(_logits(side, model, _image(side, 2, 3, 32, 32, dtype="float32"))) == ["main"]
    assert model.heads == ("main",)
    assert model.head_modules == ("ffm", "conv_out")


def test_one_image_cannot_train(side: Any) -> None:
    model = _model(side, dtype="float32")
    model.train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(_image(side, 1, 3, 32, 32, dtype="float32"))


def test_unknown_model_lists_the_known(side: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.name is 'bisenet'; expected one of bisenetv1"):
        side.models.build_model("bisenet", classes=19)


def test_initialisation_is_upstreams(side: Any) -> None:
    side.backend.seed_everything(0)
    model = side.models.build_model("bisenetv1", classes=19)
    arrays = side.backend.state_arrays(model)
    convs = {name: array for name, array in arrays.items() if array.ndim == 4}
    assert len(convs) == 39
    for name, array in convs.items():
        fan_in = math.prod(array.shape[1:])
        scaled = array.astype(np.float64).ravel() * math.sqrt(fan_in)
        # five times the sampling error of the std: 1 / sqrt(2 n) for normal values
        allowed = 5 / math.sqrt(2 * array.size)
        kurtosis = (scaled**4).mean() / (scaled**2).mean() ** 2
        if name.startswith("cp.resnet."):
            assert abs(scaled).max() <= 1 + 1e-6, name
            assert abs(scaled.std() * math.sqrt(3) - 1) <= allowed, name
            assert kurtosis == pytest.approx(1.8, abs=0.1), name
        else:
            assert abs(scaled.std() - 1) <= allowed, name
            assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / array.size)), name
    for name, array in arrays.items():
        if array.ndim == 1:
            expected = 1.0 if name.endswith(("weight", "running_var")) else 0.0
            np.testing.assert_array_equal(array, expected, err_msg=name)
