"""What the models consist of, and the one weight that the frameworks lay out differently."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checkpoints import Checkpoint
from common.errors import ConfigError
from common.fitting import fit
from common.weight_names import is_linear_weight
from common.weights import read_weights, write_weights


@pytest.fixture(scope="module")
def checkpoints(side: Any) -> Any:
    return importlib.import_module(f"for_{side.name}.checkpoints")


@pytest.fixture(scope="module")
def stdc(side: Any) -> Any:
    """A narrow STDC with its classifier."""
    model = side.models.stdcnet.STDCNet((1, 1, 1), base=16)
    model.eval()
    return model


def test_fully_connected_weights_are_canonical(side: Any, stdc: Any) -> None:
    """(out, in) on both sides: y = x W^T."""
    arrays = side.backend.state_arrays(stdc)
    assert arrays["linear.weight"].shape == (1000, 1024)
    rng = np.random.default_rng(0)
    for name in ("fc.weight", "linear.weight"):
        arrays[name] = rng.standard_normal(arrays[name].shape, dtype=np.float32)
    side.backend.load_arrays(stdc, arrays)
    again = side.backend.state_arrays(stdc)
    x = rng.standard_normal((2, 1024), dtype=np.float32)
    for layer, name in ((stdc.fc, "fc.weight"), (stdc.linear, "linear.weight")):
        np.testing.assert_array_equal(again[name], arrays[name])
        assert again[name].flags.c_contiguous
        found = side.backend.to_numpy(layer(side.backend.to_tensor(x)))
        np.testing.assert_allclose(found, x @ arrays[name].T, rtol=1e-4, atol=1e-3)


def test_gradients_of_fully_connected_weights_are_canonical(side: Any, stdc: Any) -> None:
    x = side.backend.to_tensor(np.array([[1.0, 2.0] + [0.0] * 1022], dtype=np.float32))
    stdc.linear(x)[0, 5].backward()
    gradient = side.backend.gradients(stdc)["linear.weight"]
    assert gradient.shape == (1000, 1024)
    # d y_5 / d W[5, i] = x_i
    expected = np.zeros((1000, 1024))
    expected[5, :2] = [1, 2]
    np.testing.assert_array_equal(gradient, expected)


def test_gradients_can_be_given(side: Any, stdc: Any) -> None:
    gradient = np.random.default_rng(1).standard_normal((1000, 1024), dtype=np.float32)
    side.backend.set_gradients(stdc, {"linear.weight": gradient, "bn.bias": np.ones(1024, "f4")})
    found = side.backend.gradients(stdc)
    np.testing.assert_array_equal(found["linear.weight"], gradient)
    np.testing.assert_array_equal(found["bn.bias"], np.ones(1024))


def test_a_weights_file_turns_what_the_layer_turns(side: Any, stdc: Any, tmp_path: Path) -> None:
    """Files decide by name and dimensions, models by the type of the layer: the same weights."""
    arrays = side.backend.state_arrays(stdc)
    linear = [name for name, array in arrays.items() if is_linear_weight(name, array.shape)]
    assert linear == ["fc.weight", "linear.weight"]
    path = tmp_path / "w.pdparams"
    write_weights(path, arrays)
    for name, array in read_weights(path).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    ("model", "last", "abn"),
    [
        ("bisenetv1", 6, 0),
        ("bisenetv1_2020", 3, 35),
        ("bisenetv2", 10, 0),
        ("stdc1", 3, 15),
    ],
)
def test_structure_of_a_model(checkpoints: Any, model: str, last: int, abn: int) -> None:
    found = checkpoints.model_structure(model, classes=5)
    assert (found.model, found.classes) == (model, 5)
    assert len(found.class_dependent) == last
    assert {found.shapes[name][0] for name in found.class_dependent} == {5}
    assert len(found.inplace_abn) == abn
    assert found.inplace_abn <= found.shapes.keys() <= set(found.names)
    assert [name for name in found.names if name in found.shapes] == list(found.shapes)


def test_an_unknown_model_is_named(checkpoints: Any) -> None:
    with pytest.raises(ConfigError, match="bisenetv9"):
        checkpoints.model_structure("bisenetv9", classes=2)


def test_what_fits_loads(side: Any, checkpoints: Any) -> None:
    structure = checkpoints.model_structure("bisenetv2", classes=3)
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in structure.shapes.items()}
    fitted = fit(Checkpoint("w", arrays, {}), structure, source_abn=None)
    model = side.models.build_model("bisenetv2", classes=3)
    side.backend.load_arrays(model, fitted.arrays)
    for array in side.backend.state_arrays(model).values():
        assert (array == 0.5).all()
