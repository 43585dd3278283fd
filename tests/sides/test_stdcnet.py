"""The STDC backbones: blocks by hand, published sizes, classifier, "add" blocks."""

import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_data import rules


@pytest.fixture(scope="module")
def stdcnet(side: Any) -> ModuleType:
    return importlib.import_module(f"for_{side.name}.models.stdcnet")


def _ruled(side: Any, module: Any) -> Any:
    shapes = {key: array.shape for key, array in side.backend.state_arrays(module).items()}
    side.backend.load_arrays(module, rules.rule_state(shapes))
    return module


def _run(side: Any, module: Any, *shape: int) -> tuple[Any, dict[str, NDArray[Any]]]:
    image = side.backend.to_tensor(np.random.default_rng(1).standard_normal(shape))
    module.eval()
    with side.backend.no_grad(), side.backend.capture_outputs(module) as layers:
        output = module(image)
    return output, layers


# sizes counted on upstream's networks: features, and with the classifier
@pytest.mark.parametrize(
    ("name", "features", "whole"),
    [("STDC1_LAYERS", 5_318_304, 8_443_552), ("STDC2_LAYERS", 9_348_768, 12_474_016)],
)
def test_sizes_are_the_published_ones(
    side: Any, stdcnet: ModuleType, name: str, features: int, whole: int
) -> None:
    for classifier, expected in ((False, features), (True, whole)):
        net = stdcnet.STDCNet(getattr(stdcnet, name), classifier=classifier)
        parameters = side.backend.trainable_parameters(net).values()
        assert sum(math.prod(tensor.shape) for tensor in parameters) == expected


@pytest.mark.parametrize("block_type", ["cat", "add"])
@pytest.mark.parametrize("size", [(64, 96), (33, 65)])
def test_features_halve_five_times(
    side: Any, stdcnet: ModuleType, block_type: str, size: tuple[int, int]
) -> None:
    side.backend.set_default_dtype("float64")
    net = stdcnet.STDCNet((2, 1, 1), base=16, block_type=block_type, classifier=False)
    features, _ = _run(side, net, 1, 3, *size)
    halves = [[math.ceil(n / 2**i) for n in size] for i in range(1, 6)]
    assert [list(f.shape) for f in features] == [
        [1, c, *half] for c, half in zip((8, 16, 64, 128, 256), halves, strict=True)
    ]


@pytest.mark.parametrize(
    ("blocks", "widths"),
    [
        (4, [(8, 16), (16, 8), (8, 4), (4, 4)]),
        (2, [(8, 16), (16, 16)]),
        (3, [(8, 16), (16, 8), (8, 8)]),
    ],
)
def test_convolutions_of_a_block(
    side: Any, stdcnet: ModuleType, blocks: int, widths: list[tuple[int, int]]
) -> None:
    del side
    layers = stdcnet.stdc_convolutions(8, 32, blocks=blocks)
    shapes = [list(layer.conv.weight.shape) for layer in layers]
    assert shapes == [
        [out, into, *((1, 1) if index == 0 else (3, 3))] for index, (into, out) in enumerate(widths)
    ]
    assert sum(out for _, out in widths) == 32


@pytest.mark.parametrize(("blocks", "channels"), [(1, 32), (0, 32), (4, 36)])
def test_a_block_that_cannot_be_built(
    side: Any, stdcnet: ModuleType, blocks: int, channels: int
) -> None:
    del side
    with pytest.raises(ValueError, match=rf"of {blocks} convolutions and {channels} channels"):
        stdcnet.stdc_convolutions(8, channels, blocks=blocks)


def test_concatenation_of_a_plain_block(side: Any, stdcnet: ModuleType) -> None:
    side.backend.set_default_dtype("float64")
    block = _ruled(side, stdcnet.CatBottleneck(8, 32))
    output, layers = _run(side, block, 2, 8, 6, 7)
    parts = [layers[f"conv_list.{index}"] for index in range(4)]
    np.testing.assert_array_equal(side.backend.to_numpy(output), np.concatenate(parts, axis=1))


def test_strided_block_pools_its_first_part_with_zeros(side: Any, stdcnet: ModuleType) -> None:
    side.backend.set_default_dtype("float64")
    block = _ruled(side, stdcnet.CatBottleneck(8, 32, stride=2))
    output, layers = _run(side, block, 2, 8, 5, 6)
    first = np.pad(layers["conv_list.0"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    pooled = np.zeros((2, 16, 3, 3))
    for y, x in np.ndindex(3, 3):
        # nine values always, the zeros of the padding among them
        pooled[:, :, y, x] = first[:, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].sum((2, 3)) / 9
    parts = [pooled, *(layers[f"conv_list.{index}"] for index in (1, 2, 3))]
    expected = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(side.backend.to_numpy(output), expected, rtol=0, atol=1e-13)
    # the strided convolution is depthwise and has no activation
    assert list(block.avd_layer[0].weight.shape) == [16, 1, 3, 3]
    assert layers["avd_layer"].min() < 0


@pytest.mark.parametrize("stride", [1, 2])
def test_add_block_adds_its_shortcut(side: Any, stdcnet: ModuleType, stride: int) -> None:
    side.backend.set_default_dtype("float64")
    block = _ruled(side, stdcnet.AddBottleneck(32, 32, stride=stride))
    output, layers = _run(side, block, 2, 32, 6, 8)
    first = layers["conv_list.0"] if stride == 1 else layers["avd_layer"]
    parts = [first, *(layers[f"conv_list.{index}"] for index in (1, 2, 3))]
    image = np.random.default_rng(1).standard_normal((2, 32, 6, 8))
    shortcut = image if stride == 1 else layers["skip"]
    expected = np.concatenate(parts, axis=1) + shortcut
    np.testing.assert_array_equal(side.backend.to_numpy(output), expected)
    # no activation after the sum
    assert expected.min() < 0


def test_classifier_squares_before_it_pools(side: Any, stdcnet: ModuleType) -> None:
    side.backend.set_default_dtype("float64")
    net = _ruled(side, stdcnet.STDCNet((1, 1, 1), base=16))
    net.eval()
    image = side.backend.to_tensor(np.random.default_rng(1).standard_normal((2, 3, 64, 64)))
    with side.backend.no_grad(), side.backend.capture_outputs(net) as layers:
        logits = side.backend.to_numpy(net.classify(image))
    assert logits.shape == (2, 1000)
    arrays = side.backend.state_arrays(net)
    # conv_last ends in a ReLU; the BatchNorm that the published weights have is not applied
    pooled = (layers["conv_last"] ** 2).mean((2, 3))
    hidden = np.maximum(pooled @ arrays["fc.weight"].T, 0.0)
    expected = hidden @ arrays["linear.weight"].T
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12 * abs(expected).max())
    assert "bn" not in layers


def test_initialisation_is_upstreams(side: Any, stdcnet: ModuleType) -> None:
    side.backend.seed_everything(0)
    net = stdcnet.STDCNet((1, 1, 1), block_type="add")
    for key, array in side.backend.state_arrays(net).items():
        if array.ndim == 1:
            expected = 1.0 if key.endswith(("weight", "running_var")) else 0.0
            np.testing.assert_array_equal(array, expected, err_msg=key)
            continue
        # a depthwise convolution's fan_out counts every channel
        fan_out = len(array) * math.prod(array.shape[2:])
        deviation = 0.001 if array.ndim == 2 else math.sqrt(2 / fan_out)
        values = array.astype(np.float64).ravel()
        assert abs(values.std() / deviation - 1) <= 5 / math.sqrt(2 * array.size), key
