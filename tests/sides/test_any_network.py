"""What every network promises: heads, any image size, initialisation."""

import math
from typing import Any

import numpy as np
import pytest
from networks import BY_MODEL, NETWORKS, Network, logits_of, noise, rule_model

from common.errors import ConfigError

networks = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.model)


@pytest.mark.parametrize(
    ("network", "size"),
    [(network, size) for network in NETWORKS for size in network.sizes],
    ids=lambda value: value.model if isinstance(value, Network) else "x".join(map(str, value)),
)
def test_any_size_comes_back(side: Any, network: Network, size: tuple[int, int]) -> None:
    model = rule_model(side, network.model, dtype="float32", classes=4, **network.every_flag)
    model.eval()
    model.aux_in_eval = True
    logits = logits_of(side, model, noise(1, 3, *size))
    shapes = {head: value.shape for head, value in logits.items()}
    assert shapes == network.head_shapes(size, n=1, classes=4)
    model.train()
    logits = logits_of(side, model, noise(2, 3, *size))
    shapes = {head: value.shape for head, value in logits.items()}
    assert shapes == network.head_shapes(size, n=2, classes=4)


@pytest.mark.parametrize("name", ["bisenetv1", "bisenetv2"])
def test_any_size_is_the_zero_padded_image(side: Any, name: str) -> None:
    model = rule_model(side, name, classes=4)
    image = noise(2, 3, 40, 65, dtype="float64")
    padded = np.zeros((2, 3, 64, 96))
    padded[:, :, :40, :65] = image
    for train in (False, True):
        model.train() if train else model.eval()
        small, large = (logits_of(side, model, x) for x in (image, padded))
        assert tuple(small) == (BY_MODEL[name].heads if train else ("main",))
        for head, value in small.items():
            np.testing.assert_array_equal(value, large[head][:, :, :40, :65])


@networks
def test_auxiliary_heads_are_for_training(side: Any, network: Network) -> None:
    model = rule_model(side, network.model, dtype="float32", classes=4)
    image = noise(2, 3, 32, 32)
    model.train()
    assert tuple(logits_of(side, model, image)) == network.trained_heads
    model.eval()
    main = logits_of(side, model, image)
    assert tuple(main) == ("main",)
    model.aux_in_eval = True
    every = logits_of(side, model, image)
    assert tuple(every) == network.trained_heads == tuple(model.heads)
    np.testing.assert_array_equal(every["main"], main["main"])
    assert model.head_modules == network.head_modules
    assert all(hasattr(model, name) for name in model.head_modules)


@networks
def test_auxiliary_heads_can_be_left_out(side: Any, network: Network) -> None:
    model = rule_model(side, network.model, dtype="float32", aux_heads=False)
    trainable = side.backend.trainable_parameters(model)
    assert len(trainable) == (network.main_tensors or len(trainable))
    if network.main_numbers is not None:
        numbers = sum(math.prod(tensor.shape) for tensor in trainable.values())
        assert numbers == network.main_numbers
    auxiliary = {network.upstream(head) for head in network.every_head} - {network.upstream("main")}
    children = {name.partition(".")[0] for name in side.backend.state_arrays(model)}
    assert not children & auxiliary
    model.train()
    assert tuple(logits_of(side, model, noise(2, 3, 32, 32))) == ("main",)
    assert tuple(model.heads) == ("main",)
    assert model.head_modules == network.main_modules


@networks
def test_one_image_cannot_train(side: Any, network: Network) -> None:
    model = rule_model(side, network.model, dtype="float32", classes=4)
    model.train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        logits_of(side, model, noise(1, 3, 32, 32))


def test_unknown_model_lists_the_known(side: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.name is 'bisenet'; expected one of bisenetv1"):
        side.models.build_model("bisenet", classes=19)


UNIFORM, NORMAL = 1.8, 3.0
"""Kurtosis of the two distributions."""
# gather-and-expansion layers of stride 1 start as the identity
START_AT_ZERO = {
    f"segment.{layer}.conv2.1.weight"
    for layer in ("S3.0", "S3.1", "S4.0", "S4.1", "S5_4.0", "S5_4.1", "S5_4.2", "S5_4.3")
}
CONVOLUTIONS = {"bisenetv1": 39, "bisenetv2": 68, "bisenetv2_2020": 64}


@networks
def test_initialisation_is_upstreams(side: Any, network: Network) -> None:
    side.backend.seed_everything(0)
    arrays = side.backend.state_arrays(side.models.build_model(network.model, classes=19))
    zeros = START_AT_ZERO if network.model.startswith("bisenetv2") else set[str]()
    assert zeros <= set(arrays)
    convolutions = sum(array.ndim == 4 for array in arrays.values())
    assert convolutions == CONVOLUTIONS.get(network.model, convolutions)
    for key, array in arrays.items():
        if array.ndim == 1:
            one = key.endswith(("weight", "running_var")) and key not in zeros
            np.testing.assert_array_equal(array, 1.0 if one else 0.0, err_msg=key)
            continue
        deviation, uniform = network.spread(key, array.shape)
        scaled, n = array.astype(np.float64).ravel() / deviation, array.size
        # five times the sampling errors of mean, std and kurtosis of normal values
        assert abs(scaled.mean()) <= 5 / math.sqrt(n), key
        assert abs(scaled.std() - 1) <= 5 / math.sqrt(2 * n), key
        kurtosis = (scaled**4).mean() / (scaled**2).mean() ** 2
        allowed = 5 * math.sqrt(24 / n)
        if uniform:
            assert abs(scaled).max() <= math.sqrt(3) * (1 + 1e-6), key
            assert kurtosis == pytest.approx(UNIFORM, abs=min(allowed, 0.1)), key
        else:
            assert kurtosis == pytest.approx(NORMAL, abs=allowed), key
