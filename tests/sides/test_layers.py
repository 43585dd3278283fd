"""Building blocks: hand numbers that a framework's default would break."""

import math
from typing import Any

import numpy as np
import pytest


def _kurtosis(values: np.ndarray) -> float:
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


def test_conv_bn_relu_keeps_what_relu_cuts(side: Any) -> None:
    block = side.layers.ConvBNReLU(3, 4, kernel_size=3, stride=2, padding=1)
    assert list(side.backend.state_arrays(block)) == [
        "conv.weight",
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
    ]
    x = side.backend.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 6), np.float32))
    with side.backend.capture_outputs(block) as outputs:
        out = side.backend.to_numpy(block(x))
    assert out.shape == (2, 4, 4, 3)
    assert list(outputs) == ["conv", "bn", "relu"]
    assert outputs["bn"].min() < 0
    np.testing.assert_array_equal(out, np.maximum(outputs["bn"], 0))


def test_resize_nearest_repeats_pixels(side: Any) -> None:
    x = side.backend.to_tensor(np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2))
    out = side.backend.to_numpy(side.layers.resize_nearest(x, scale=2))[0, 0]
    assert out.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_resize_bilinear_aligns_pixel_centres(side: Any) -> None:
    # centres of the wide pixels in narrow ones: -1/4 (clamped), 1/4, 3/4, 5/4 (clamped)
    x = side.backend.to_tensor(np.array([[0.0, 4.0]]).reshape(1, 1, 1, 2))
    out = side.backend.to_numpy(side.layers.resize_bilinear(x, scale=2))[0, 0]
    np.testing.assert_allclose(out, [[0, 1, 3, 4]] * 2, atol=1e-15)


@pytest.mark.parametrize(
    ("size", "padded"), [((33, 65), (64, 96)), ((1, 32), (32, 32)), ((31, 1), (32, 32))]
)
def test_padding_is_zeros_at_bottom_and_right(
    side: Any, size: tuple[int, int], padded: tuple[int, int]
) -> None:
    array = np.random.default_rng(0).standard_normal((2, 3, *size))
    x = side.backend.to_tensor(array)
    out = side.layers.pad_to_multiple(x, multiple=32)
    found = side.backend.to_numpy(out)
    assert found.shape == (2, 3, *padded)
    np.testing.assert_array_equal(found[:, :, : size[0], : size[1]], array)
    assert not found[:, :, size[0] :].any()
    assert not found[:, :, :, size[1] :].any()
    back = side.layers.crop_to_size(out, height=size[0], width=size[1])
    np.testing.assert_array_equal(side.backend.to_numpy(back), array)


def test_a_fitting_size_is_left_alone(side: Any) -> None:
    x = side.backend.to_tensor(np.zeros((1, 1, 64, 32), np.float32))
    assert side.layers.pad_to_multiple(x, multiple=32) is x
    assert side.layers.crop_to_size(x, height=64, width=32) is x


def test_spatial_mean_keeps_the_dimensions(side: Any) -> None:
    x = side.backend.to_tensor(np.arange(12.0).reshape(1, 2, 2, 3))
    out = side.backend.to_numpy(side.layers.spatial_mean(x))
    assert out.tolist() == [[[[2.5]], [[8.5]]]]


def _conv(side: Any) -> Any:
    """fan_in 64 * 9 = 576: kaiming std 1 / 24, uniform bound 1 / 24. 36,864 weights."""
    nn = side.layers.nn
    return (nn.Conv2d if side.name == "torch" else nn.Conv2D)(64, 64, kernel_size=3)


def test_kaiming_initialisation(side: Any) -> None:
    side.backend.seed_everything(0)
    conv = _conv(side)
    side.layers.init_conv_kaiming(conv)
    state = side.backend.state_arrays(conv)
    # sampling error of the std of 36,864 normal values: 0.4 %; of the kurtosis: 0.026
    assert abs(state["weight"].std() * 24 - 1) < 0.02
    assert abs(state["weight"].mean()) * 24 < 0.02
    assert abs(_kurtosis(state["weight"]) - 3) < 0.15
    assert not state["bias"].any()


def test_uniform_initialisation(side: Any) -> None:
    side.backend.seed_everything(0)
    conv = _conv(side)
    side.layers.init_conv_uniform(conv)
    state = side.backend.state_arrays(conv)
    assert 0.99 < abs(state["weight"]).max() * 24 <= 1 + 1e-6
    assert abs(state["weight"].std() * 24 * math.sqrt(3) - 1) < 0.02
    assert abs(_kurtosis(state["weight"]) - 1.8) < 0.05
    assert 0 < abs(state["bias"]).max() * 24 <= 1 + 1e-6


def test_fan_out_initialisation(side: Any) -> None:
    side.backend.set_default_dtype("float64")
    side.backend.seed_everything(0)
    for name, groups in (("full", 1), ("depthwise", 96)):
        conv = _grouped_conv(side, groups=groups)
        side.layers.init_conv_fan_out(conv)
        state = side.backend.state_arrays(conv)
        weight = state["weight"]
        assert weight.shape == (576, 96 // groups, 3, 3)
        # fan_out = 576 * 9, also for the grouped one; 5 times the sampling error of a std
        std = math.sqrt(2 / (576 * 9))
        assert weight.std() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.size)), name
        assert abs(weight.mean()) <= 5 * std / math.sqrt(weight.size)
        assert _kurtosis(weight) == pytest.approx(3, abs=5 * math.sqrt(24 / weight.size))
        np.testing.assert_array_equal(state["bias"], np.zeros(576))


def _grouped_conv(side: Any, *, groups: int) -> Any:
    nn = side.layers.nn
    conv = nn.Conv2d if side.name == "torch" else nn.Conv2D
    return conv(96, 576, kernel_size=3, groups=groups)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_average_pool_counts_the_padding(side: Any, dtype: str) -> None:
    pool = side.layers.AvgPool2d(kernel_size=3, stride=2, padding=1)
    x = side.backend.leaf_tensor(np.arange(1, 10, dtype=dtype).reshape(1, 1, 3, 3))
    pooled = pool(x)
    rtol = {"float32": 1e-6, "float64": 1e-15}[dtype]
    # 1 + 2 + 4 + 5, 2 + 3 + 5 + 6, 4 + 5 + 7 + 8, 5 + 6 + 8 + 9: four pixels, divided by nine
    expected = np.array([[12, 16], [24, 28]]) / 9
    found = side.backend.to_numpy(pooled)
    assert found.dtype == dtype
    np.testing.assert_allclose(found[0, 0], expected, rtol=rtol)
    pooled.sum().backward()
    # the middle pixel is in all four windows
    windows = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 9
    np.testing.assert_allclose(side.backend.to_numpy(x.grad)[0, 0], windows, rtol=rtol)
