"""BatchNorm: running statistics, eps, and what it refuses; by hand numbers."""

import math
from typing import Any

import numpy as np
import pytest

from common.errors import InputError


def _batch_norm(side: Any, channels: int = 1) -> Any:
    side.backend.set_default_dtype("float64")
    return side.norm.BatchNorm2d(channels)


def _column(side: Any, *values: float) -> Any:
    """One channel, one pixel, as many images as values."""
    return side.backend.to_tensor(np.array(values).reshape(-1, 1, 1, 1))


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
    bn = side.norm.BatchNorm2d(1)
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
    bn = side.norm.BatchNorm2d(1)
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
    bn = side.norm.BatchNorm2d(3)
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
