"""Building blocks: hand numbers that a framework's default would break."""

import math
from typing import Any

import numpy as np
import pytest

from common.errors import InputError


def _batch_norm(side: Any, channels: int = 1) -> Any:
    side.backend.set_default_dtype("float64")
    return side.layers.BatchNorm2d(channels)


def _column(side: Any, *values: float) -> Any:
    """One channel, one pixel, as many images as values."""
    return side.backend.to_tensor(np.array(values).reshape(-1, 1, 1, 1))


def _kurtosis(values: np.ndarray) -> float:
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


def test_running_statistics_follow_torchs_convention(side: Any) -> None:
    bn = _batch_norm(side)
    bn.train()
    # mean 2, squared deviations sum up to 2: variance 1 normalises, 2 / (2 - 1) is remembered
    out = side.backend.to_numpy(bn(_column(side, 1.0, 3.0))).ravel()
    scale = 1 / math.sqrt(1 + 1e-5)
    np.testing.assert_allclose(out, [-scale, scale], rtol=1e-15)
    state = side.backend.state_arrays(bn)
    np.testing.assert_allclose(state["running_mean"], [0.9 * 0 + 0.1 * 2], rtol=1e-15)
    np.testing.assert_allclose(state["running_var"], [0.9 * 1 + 0.1 * 2], rtol=1e-15)
    # 4, 4, 10: mean 6, squared deviations 24, unbiased variance 12
    bn(_column(side, 4.0, 4.0, 10.0))
    state = side.backend.state_arrays(bn)
    np.testing.assert_allclose(state["running_mean"], [0.9 * 0.2 + 0.1 * 6], rtol=1e-15)
    np.testing.assert_allclose(state["running_var"], [0.9 * 1.1 + 0.1 * 12], rtol=1e-15)


def test_running_statistics_count_every_pixel(side: Any) -> None:
    bn = _batch_norm(side, 2)
    bn.train()
    x = np.arange(16.0).reshape(2, 2, 2, 2)
    bn(side.backend.to_tensor(x))
    state = side.backend.state_arrays(bn)
    # channel 0: 0..3 and 8..11, mean 5.5; squared deviations sum up to 138, n - 1 = 7
    np.testing.assert_allclose(state["running_mean"], [0.55, 0.95], rtol=1e-15)
    np.testing.assert_allclose(state["running_var"], [0.9 + 0.1 * 138 / 7] * 2, rtol=1e-15)


def test_float32_statistics_are_as_good_as_float32(side: Any) -> None:
    bn = side.layers.BatchNorm2d(1)
    bn.train()
    bn(side.backend.to_tensor(np.array([1, 3], np.float32).reshape(2, 1, 1, 1)))
    state = side.backend.state_arrays(bn)
    assert {array.dtype for array in state.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(state["running_mean"], [0.2], rtol=2e-7)
    np.testing.assert_allclose(state["running_var"], [1.1], rtol=2e-7)


def test_epsilon_is_exact_in_float64(side: Any) -> None:
    bn = _batch_norm(side)
    bn.train()
    # variance 1e-6, a tenth of eps: a float32 eps would be off by 1.2e-8
    out = side.backend.to_numpy(bn(_column(side, -1e-3, 1e-3))).ravel()
    expected = 1e-3 / math.sqrt(1e-6 + 1e-5)
    np.testing.assert_allclose(out, [-expected, expected], rtol=1e-14)
    bn.eval()
    values = {"weight": [2.0], "bias": [0.5], "running_mean": [1.0], "running_var": [1e-6]}
    side.backend.load_arrays(bn, {name: np.array(value) for name, value in values.items()})
    out = side.backend.to_numpy(bn(_column(side, 3.0))).ravel()
    np.testing.assert_allclose(out, [2 * 2 / math.sqrt(1e-6 + 1e-5) + 0.5], rtol=1e-14)


def test_eval_changes_no_statistics(side: Any) -> None:
    bn = side.layers.BatchNorm2d(1)
    bn.eval()
    before = side.backend.state_arrays(bn)
    bn(side.backend.to_tensor(np.array([1, 3], np.float32).reshape(2, 1, 1, 1)))
    for name, array in side.backend.state_arrays(bn).items():
        np.testing.assert_array_equal(array, before[name])


def test_statistics_take_no_gradient(side: Any) -> None:
    bn = _batch_norm(side)
    bn.train()
    (bn(_column(side, 1.0, 3.0)) ** 3).sum().backward()
    assert list(side.backend.trainable_parameters(bn)) == ["weight", "bias"]
    assert list(side.backend.gradients(bn)) == ["weight", "bias"]
    # d/dbias of sum (x^ + b)^3 at b = 0 is 3 sum x^^2, x^ = +-1 / sqrt(1 + eps)
    np.testing.assert_allclose(side.backend.gradients(bn)["bias"], [6 / (1 + 1e-5)], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_value_per_channel_is_refused_in_training(side: Any, dtype: Any) -> None:
    side.backend.set_default_dtype(dtype)
    bn = side.layers.BatchNorm2d(3)
    x = side.backend.to_tensor(np.ones((1, 3, 1, 1), dtype))
    bn.train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        bn(x)
    assert isinstance(caught.value, InputError)
    assert "[1, 3, 1, 1]" in str(caught.value)
    assert "at least 2 images" in str(caught.value)
    bn.eval()
    assert side.backend.to_numpy(bn(x)).shape == (1, 3, 1, 1)


def test_batch_norm_converts_to_the_frameworks_sync_batch_norm(side: Any) -> None:
    block = side.layers.ConvBNReLU(3, 4)
    names = list(side.backend.state_arrays(block))
    converted = side.layers.nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert type(converted.bn).__name__ == "SyncBatchNorm"
    assert list(side.backend.state_arrays(converted)) == names


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
