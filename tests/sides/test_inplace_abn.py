"""InPlaceABN and resizing to given sizes: hand numbers and the recorded upstream layer."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import InputError

ACTIVATIONS = ("leaky_relu", "identity")
# upstream's own kernels hold eps and slope as float32: up to 7e-9 off the formula (recorded)
KERNEL = 1e-8


def _layer(side: Any, activation: str, **values: NDArray[Any]) -> Any:
    side.backend.set_default_dtype("float64")
    layer = side.norm.InPlaceABN(len(next(iter(values.values()))), activation=activation)
    side.backend.load_arrays(layer, {**side.backend.state_arrays(layer), **values})
    return layer


def _column(side: Any, *values: float, dtype: str = "float64") -> Any:
    """One channel, one pixel, as many images as values."""
    return side.backend.to_tensor(np.array(values, dtype).reshape(-1, 1, 1, 1))


def _normalised(side: Any, layer: Any, *values: float) -> list[float]:
    return side.backend.to_numpy(layer(_column(side, *values))).ravel().tolist()


# ---- InPlaceABN -------------------------------------------------------------------------------
@pytest.mark.parametrize("weight", [2.0, -2.0])
@pytest.mark.parametrize(("activation", "slope"), [("leaky_relu", 0.01), ("identity", 1.0)])
def test_the_sign_of_the_weight_has_no_meaning(
    side: Any, weight: float, activation: str, slope: float
) -> None:
    layer = _layer(side, activation, weight=np.array([weight]), bias=np.array([0.5]))
    layer.train()
    # mean 2, variance 1
    scale = (2 + 1e-5) / math.sqrt(1 + 1e-5)
    expected = [slope * (0.5 - scale), 0.5 + scale]
    np.testing.assert_allclose(_normalised(side, layer, 1.0, 3.0), expected, rtol=1e-14)
    layer.eval()
    state = side.backend.state_arrays(layer)
    np.testing.assert_allclose(state["running_mean"], [0.2], rtol=1e-14)
    # 0.9 * 1 + 0.1 * 2: the unbiased variance is remembered
    np.testing.assert_allclose(state["running_var"], [1.1], rtol=1e-14)
    scale = (2 + 1e-5) / math.sqrt(1.1 + 1e-5)
    expected = [0.5 + scale * 0.8, slope * (0.5 - scale * 1.2)]
    np.testing.assert_allclose(_normalised(side, layer, 1.0, -1.0), expected, rtol=1e-14)
    assert side.backend.state_arrays(layer)["running_mean"] == state["running_mean"]


def test_a_zero_weight_still_passes_a_little(side: Any) -> None:
    layer = _layer(side, "identity", weight=np.array([0.0]))
    layer.eval()
    expected = 3 * 1e-5 / math.sqrt(1 + 1e-5)
    assert _normalised(side, layer, 3.0) == pytest.approx([expected], rel=1e-13)


def test_gradient_follows_the_absolute_weight(side: Any) -> None:
    gradients = {}
    for weight in (0.5, -0.5):
        layer = _layer(side, "leaky_relu", weight=np.array([weight]), bias=np.array([0.0]))
        layer.train()
        x = side.backend.leaf_tensor(np.array([1.0, 3.0, 8.0]).reshape(3, 1, 1, 1))
        (layer(x) ** 2).sum().backward()
        gradients[weight] = (side.backend.gradients(layer), side.backend.to_numpy(x.grad))
    positive, negative = gradients[0.5], gradients[-0.5]
    np.testing.assert_array_equal(negative[0]["weight"], -positive[0]["weight"])
    np.testing.assert_array_equal(negative[0]["bias"], positive[0]["bias"])
    np.testing.assert_array_equal(negative[1], positive[1])
    # x^ = (-3, -1, 4) / sqrt(26/3 + eps); d/dw of sum (s x^)^2, negative ones with 0.01^2
    normal = np.array([-3, -1, 4]) / math.sqrt(26 / 3 + 1e-5)
    slopes = np.array([1e-4, 1e-4, 1.0])
    expected = (2 * slopes * (0.5 + 1e-5) * normal**2).sum()
    np.testing.assert_allclose(positive[0]["weight"], [expected], rtol=1e-13)
    expected = (2 * slopes * (0.5 + 1e-5) * normal).sum()
    np.testing.assert_allclose(positive[0]["bias"], [expected], rtol=1e-13)


def test_it_counts_no_batches(side: Any) -> None:
    layer = side.norm.InPlaceABN(3)
    names = ["weight", "bias", "running_mean", "running_var"]
    state = side.backend.state_arrays(layer)
    assert list(state) == names
    assert len(layer.state_dict()) == 4
    assert {array.dtype for array in state.values()} == {np.dtype("float32")}
    for name, value in zip(names, (1, 0, 0, 1), strict=True):
        np.testing.assert_array_equal(state[name], [value] * 3)
    assert list(side.backend.trainable_parameters(layer)) == ["weight", "bias"]
    layer.train()
    layer(side.backend.to_tensor(np.ones((2, 3, 1, 1), np.float32))).sum().backward()
    assert list(side.backend.gradients(layer)) == ["weight", "bias"]
    # a state dict without the framework's metadata, as a converted checkpoint is
    own = dict(layer.state_dict())
    layer.set_state_dict(own) if side.name == "paddle" else layer.load_state_dict(own)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_value_per_channel_is_refused_in_training(side: Any, dtype: str) -> None:
    side.backend.set_default_dtype(dtype)
    layer = side.norm.InPlaceABN(1)
    layer.train()
    with pytest.raises(InputError, match="Expected more than 1 value per channel"):
        layer(_column(side, 1.0, dtype=dtype))
    layer.eval()
    assert side.backend.to_numpy(layer(_column(side, 1.0, dtype=dtype))).shape == (1, 1, 1, 1)


def test_synchronising_leaves_it_alone(side: Any) -> None:
    block = side.layers.ConvInPlaceABN(3, 4, kernel_size=3, stride=2, padding=1)
    converted = side.layers.nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert type(converted.bn) is side.norm.InPlaceABN


def test_conv_block_activates_in_its_norm(side: Any) -> None:
    block = side.layers.ConvInPlaceABN(3, 4, kernel_size=3, stride=2, padding=1)
    parts = ("weight", "bias", "running_mean", "running_var")
    assert list(side.backend.state_arrays(block)) == ["conv.weight", *(f"bn.{p}" for p in parts)]
    x = side.backend.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 6), np.float32))
    with side.backend.capture_outputs(block) as outputs:
        out = side.backend.to_numpy(block(x))
    assert out.shape == (2, 4, 4, 3)
    assert list(outputs) == ["conv", "bn"]
    np.testing.assert_array_equal(outputs["bn"], out)
    assert -0.1 < out.min() < 0 < 1 < out.max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_leaky_relu_in_both_precisions(side: Any, dtype: str) -> None:
    x = side.backend.leaf_tensor(np.array([-2.0, 0.0, 3.0], dtype))
    out = side.norm.leaky_relu(x)
    out.sum().backward()
    rtol = 1e-15 if dtype == "float64" else 1e-7
    np.testing.assert_allclose(side.backend.to_numpy(out), [-0.02, 0.0, 3.0], rtol=rtol)
    np.testing.assert_allclose(side.backend.to_numpy(x.grad), [0.01, 0.01, 1.0], rtol=rtol)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_layer_is_upstreams(side: Any, golden: Path, activation: str, mode: str) -> None:
    arrays = dict(np.load(golden / "inplace_abn_layer.npz"))
    start = {n: arrays[n] for n in ("weight", "bias", "running_mean", "running_var")}
    assert (start["weight"] < 0).any()
    layer = _layer(side, activation, **start)
    layer.train() if mode == "train" else layer.eval()
    x = side.backend.leaf_tensor(arrays["x"])
    y = layer(x)
    prefix = f"{'none' if activation == 'identity' else activation}/{mode}"
    found = {"y": side.backend.to_numpy(y)}
    if mode == "train":
        (y * side.backend.to_tensor(arrays["cotangent"])).sum().backward()
        gradients, state = side.backend.gradients(layer), side.backend.state_arrays(layer)
        found |= {"dx": side.backend.to_numpy(x.grad)}
        found |= {f"d{name}": gradients[name] for name in ("weight", "bias")}
        found |= {name: state[name] for name in ("running_mean", "running_var")}
    assert set(found) == {n.rpartition("/")[2] for n in arrays if n.startswith(f"{prefix}/")}
    for name, array in found.items():
        reference = arrays[f"{prefix}/{name}"]
        bound = 1e-14 if name.startswith("running") else KERNEL
        assert np.abs(array - reference).max() <= bound, name


# ---- resizing ---------------------------------------------------------------------------------
def _resize(side: Any, name: str, array: NDArray[Any], **options: Any) -> NDArray[Any]:
    tensor = side.backend.to_tensor(array)
    return side.backend.to_numpy(getattr(side.layers, name)(tensor, **options))


SIZES = [
    ((4, 5), (8, 10)),
    ((3, 4), (5, 7)),
    ((3, 4), (75, 109)),
    ((5, 7), (3, 4)),
    ((1, 1), (4, 3)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_nearest_to_a_size(side: Any, old: tuple[int, int], new: tuple[int, int]) -> None:
    array = np.random.default_rng(0).standard_normal((2, 3, *old))
    rows, columns = (np.arange(n) * o // n for o, n in zip(old, new, strict=True))
    out = _resize(side, "resize_nearest", array, size_hw=new)
    np.testing.assert_array_equal(out, array[:, :, rows][..., columns])


def _places(old: int, new: int, *, align_corners: bool) -> NDArray[np.float64]:
    """Where each new pixel lies on the old axis."""
    i = np.arange(new)
    if align_corners:
        return i * (old - 1) / max(new - 1, 1)
    return np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bilinear_to_a_size(
    side: Any, old: tuple[int, int], new: tuple[int, int], align_corners: bool
) -> None:
    """Bilinear is linear along each axis: numpy's own interpolation, axis by axis."""
    array = np.random.default_rng(0).standard_normal((2, 3, *old))
    expected = array
    for axis, o, n in zip((2, 3), old, new, strict=True):
        at = _places(o, n, align_corners=align_corners)
        expected = np.apply_along_axis(
            lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, expected
        )
    options = {"size_hw": new, "align_corners": align_corners}
    out = _resize(side, "resize_bilinear", array, **options)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    # float32 takes the framework's kernel, float64 on Paddle exact matrices: the same resizing
    out = _resize(side, "resize_bilinear", array.astype(np.float32), **options)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scale", [2, 3])
def test_bilinear_by_a_factor_is_to_the_size(side: Any, scale: int, align_corners: bool) -> None:
    array = np.random.default_rng(0).standard_normal((1, 2, 3, 5))
    by_factor = _resize(side, "resize_bilinear", array, scale=scale, align_corners=align_corners)
    to_size = _resize(
        side,
        "resize_bilinear",
        array,
        size_hw=(3 * scale, 5 * scale),
        align_corners=align_corners,
    )
    np.testing.assert_allclose(by_factor, to_size, rtol=0, atol=1e-14)


def test_bilinear_by_hand(side: Any) -> None:
    array = np.array([[0.0, 4.0]]).reshape(1, 1, 1, 2)
    for align_corners, expected in ((True, [0, 1, 2, 3, 4]), (False, [0, 0.4, 2, 3.6, 4])):
        out = _resize(side, "resize_bilinear", array, size_hw=(1, 5), align_corners=align_corners)
        np.testing.assert_allclose(out[0, 0], [expected], atol=1e-15)


@pytest.mark.parametrize("align_corners", [False, True])
def test_gradient_of_bilinear_is_exact(side: Any, align_corners: bool) -> None:
    """Every output pixel weighs its sources by 1 in all: the gradient of the sum adds up."""
    x = side.backend.leaf_tensor(np.random.default_rng(0).standard_normal((1, 1, 3, 4)))
    side.layers.resize_bilinear(x, size_hw=(7, 9), align_corners=align_corners).sum().backward()
    gradient = side.backend.to_numpy(x.grad)
    assert gradient.sum() == pytest.approx(63, rel=1e-14)
    # symmetric under a turn by 180 degrees, which a shifted kernel would not be
    np.testing.assert_allclose(gradient, gradient[:, :, ::-1, ::-1], rtol=1e-13)
