"""The framework behind numpy: names, copies, gradients, recorded layers."""

import importlib
from typing import Any

import numpy as np
import pytest

from common.errors import InputError, WeightsError


def _block(side: Any) -> Any:
    side.backend.seed_everything(0)
    return side.layers.ConvBNReLU(2, 3, kernel_size=1, padding=0)


def _image(side: Any, shape: tuple[int, ...] = (2, 2, 4, 4)) -> Any:
    array = np.random.default_rng(0).standard_normal(shape)
    return side.backend.to_tensor(array.astype(np.float32))


def test_versions_are_named(side: Any) -> None:
    versions = side.backend.versions()
    assert side.name == side.backend.NAME
    assert {side.name, "numpy", "cv2"} <= set(versions)
    assert all(text[0].isdigit() for text in versions.values())


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_arrays_keep_dtype_and_values(side: Any, dtype: str) -> None:
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    tensor = side.backend.to_tensor(array)
    found = side.backend.to_numpy(tensor)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_arrays_and_tensors_share_nothing(side: Any) -> None:
    array = np.zeros(3)
    tensor = side.backend.to_tensor(array)
    array[0] = 1
    found = side.backend.to_numpy(tensor)
    assert not found.any()
    found[1] = 1
    assert not side.backend.to_numpy(tensor).any()


def test_default_dtype_makes_the_parameters(side: Any) -> None:
    for dtype in ("float64", "float32"):
        side.backend.set_default_dtype(dtype)
        arrays = side.backend.state_arrays(_block(side))
        assert {str(array.dtype) for array in arrays.values()} == {dtype}


def test_seed_decides_the_weights_and_spares_numpy(side: Any) -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    first, again = (side.backend.state_arrays(_block(side)) for _ in range(2))
    assert np.random.random() == expected
    np.testing.assert_array_equal(first["conv.weight"], again["conv.weight"])
    side.backend.seed_everything(1)
    other = side.backend.state_arrays(side.layers.ConvBNReLU(2, 3, kernel_size=1, padding=0))
    assert not np.array_equal(first["conv.weight"], other["conv.weight"])


def test_threads_can_be_set(side: Any) -> None:
    side.backend.set_threads(1)


def test_a_missing_gpu_is_told(side: Any) -> None:
    try:
        side.backend.set_device("gpu")
    except InputError as error:
        told = str(error)
    else:
        side.backend.set_device("cpu")
        pytest.skip("this machine has a GPU")
    assert "device is 'gpu'" in told
    assert "use device 'cpu'" in told
    side.backend.set_device("cpu")
    assert side.backend.to_numpy(side.backend.to_tensor(np.ones(1))).tolist() == [1.0]


def test_weights_load_and_read_back(side: Any) -> None:
    model = _block(side)
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.random(array.shape) for name, array in side.backend.state_arrays(model).items()
    }
    side.backend.load_arrays(model, {**arrays, "bn.num_batches_tracked": np.array(7)})
    found = side.backend.state_arrays(model)
    assert list(found) == list(arrays)
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name].astype(np.float32))
    # nothing but the values changed: training still sees two statistics and three parameters
    assert list(side.backend.trainable_parameters(model)) == [
        "conv.weight",
        "bn.weight",
        "bn.bias",
    ]


def test_weights_that_do_not_fit_are_listed_and_not_loaded(side: Any) -> None:
    model = _block(side)
    before = side.backend.state_arrays(model)
    arrays = {name: array + 1 for name, array in before.items()}
    del arrays["bn.running_var"]
    arrays["bn.bias"] = np.zeros(4)
    arrays["head.weight"] = np.zeros(1)
    with pytest.raises(WeightsError) as caught:
        side.backend.load_arrays(model, arrays)
    text = str(caught.value)
    assert "missing: bn.running_var, (3,)" in text
    assert "left over: head.weight, (1,)" in text
    assert "shape: bn.bias is (4,), the model has (3,)" in text
    for name, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_state_is_a_copy(side: Any) -> None:
    model = _block(side)
    side.backend.state_arrays(model)["bn.weight"][:] = 5
    np.testing.assert_array_equal(side.backend.state_arrays(model)["bn.weight"], [1, 1, 1])


def test_gradients_are_of_the_used_parameters(side: Any) -> None:
    model = _block(side)
    model.train()
    assert side.backend.gradients(model) == {}
    x = _image(side)
    model.conv(x).sum().backward()
    gradients = side.backend.gradients(model)
    assert list(gradients) == ["conv.weight"]
    # d sum(conv) / d weight[o, i] = sum of input channel i
    expected = side.backend.to_numpy(x).sum((0, 2, 3))
    np.testing.assert_allclose(gradients["conv.weight"][:, :, 0, 0], [expected] * 3, rtol=1e-5)


def test_a_backward_pass_after_clearing_starts_anew(side: Any) -> None:
    model = _block(side)
    model.conv(_image(side)).sum().backward()
    once = side.backend.gradients(model)["conv.weight"]
    side.backend.clear_gradients(model)
    assert not any(array.any() for array in side.backend.gradients(model).values())
    model.conv(_image(side)).sum().backward()
    np.testing.assert_array_equal(side.backend.gradients(model)["conv.weight"], once)
    model.conv(_image(side)).sum().backward()
    np.testing.assert_array_equal(side.backend.gradients(model)["conv.weight"], 2 * once)


def test_outputs_are_named_and_numbered(side: Any) -> None:
    block = side.models.resnet.BasicBlock(2, 3, stride=2)
    block.eval()
    with side.backend.capture_outputs(block) as outputs:
        block(_image(side))
    assert list(outputs) == [
        "conv1",
        "bn1",
        "relu",
        "conv2",
        "bn2",
        "downsample.0",
        "downsample.1",
        "downsample",
        "relu#1",
    ]
    assert outputs["conv1"].shape == (2, 3, 2, 2)
    np.testing.assert_allclose(
        outputs["relu#1"], np.maximum(outputs["bn2"] + outputs["downsample"], 0), rtol=1e-6
    )
    with side.backend.no_grad():
        block(_image(side))
    assert len(outputs) == 9, "hooks outlive the context"


def test_parts_of_a_tuple_are_named(side: Any) -> None:
    path = side.models.bisenetv1.ContextPath()
    path.eval()
    with side.backend.no_grad(), side.backend.capture_outputs(path) as outputs:
        feature8, feature16, _ = path(_image(side, (1, 3, 32, 32)))
    assert [key for key in outputs if key.startswith("resnet.") and key[7:].isdigit()] == [
        "resnet.0",
        "resnet.1",
        "resnet.2",
    ]
    assert outputs["resnet.2"].shape == (1, 512, 1, 1)
    np.testing.assert_array_equal(outputs["conv_head16"], side.backend.to_numpy(feature8))
    np.testing.assert_array_equal(outputs["conv_head32"], side.backend.to_numpy(feature16))


def test_gradients_at_outputs(side: Any) -> None:
    block = _block(side)
    block.eval()
    x = _image(side)
    with (
        side.backend.capture_outputs(block) as outputs,
        side.backend.capture_gradients(block) as gradients,
    ):
        (2.0 * block(x)).sum().backward()
    assert set(gradients) == {"conv", "bn", "relu"}
    np.testing.assert_array_equal(gradients["relu"], np.full((2, 3, 4, 4), 2.0))
    np.testing.assert_array_equal(gradients["bn"], 2.0 * (outputs["bn"] > 0))
    # eval: running_var 1, so y = conv / sqrt(1 + eps)
    np.testing.assert_allclose(gradients["conv"], gradients["bn"] / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_a_gradient_used_twice_is_the_sum(side: Any) -> None:
    block = _block(side)
    block.eval()
    with side.backend.capture_gradients(block) as gradients:
        out = block(_image(side))
        (out * 2.0 + out * 3.0).sum().backward()
    np.testing.assert_array_equal(gradients["relu"], np.full((2, 3, 4, 4), 5.0))


def test_no_grad_records_no_graph(side: Any) -> None:
    block = _block(side)
    with side.backend.no_grad(), side.backend.capture_gradients(block) as gradients:
        out = block(_image(side))
    assert gradients == {}
    assert side.backend.to_numpy(out).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("void", [255, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_of_each_pixel_has_the_bits_of_the_framework_s_own(
    side: Any, void: int, dtype: str
) -> None:
    functional = importlib.import_module(f"{side.name}.nn.functional")
    axis = {"axis": 1} if side.name == "paddle" else {}
    rng = np.random.default_rng(4)
    scores = rng.standard_normal((3, 5, 6, 7)).astype(dtype)
    label = rng.integers(0, 5, (3, 6, 7))
    label[:, :2] = void
    weight = side.backend.to_tensor(rng.random((3, 6, 7)).astype(dtype))
    target = side.backend.to_tensor(label)
    found = []
    for own in (True, False):
        logits = side.backend.leaf_tensor(scores)
        if own:
            losses = side.backend.pixel_cross_entropy(logits, target, ignore_index=void)
        else:
            options = {"ignore_index": void, "reduction": "none", **axis}
            losses = functional.cross_entropy(logits, target, **options)
        # weights at void pixels, too: no gradient passes there
        (losses * weight).sum().backward()
        found.append((side.backend.to_numpy(losses), side.backend.to_numpy(logits.grad)))
    for own, expected in zip(*found, strict=True):
        assert own.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(own, expected)
    picked = np.take_along_axis(scores, np.where(label == void, 0, label)[:, None], 1)[:, 0]
    by_hand = np.log(np.exp(scores).sum(axis=1)) - picked
    np.testing.assert_allclose(found[0][0], np.where(label == void, 0, by_hand), rtol=1e-4)
