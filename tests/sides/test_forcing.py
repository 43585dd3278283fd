"""Teacher forcing: each layer works on the reference's numbers, and only a wrong one differs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

CALLS = ["conv1", "bn1", "relu", "conv2", "bn2", "downsample.0", "downsample.1", "relu#1"]


def block_of(side: Any) -> Any:
    """Return a residual block in float64, training mode, with weights that are not symmetric."""
    side.backend.set_default_dtype("float64")
    side.backend.seed_everything(3)
    block = side.models.resnet.BasicBlock(2, 3, stride=2)
    rng = np.random.default_rng(5)
    state = side.backend.state_arrays(block)
    side.backend.load_arrays(block, {n: rng.uniform(0.5, 1.5, a.shape) for n, a in state.items()})
    block.train()
    return block


def image_of(side: Any) -> Any:
    return side.backend.to_tensor(np.random.default_rng(7).standard_normal((2, 2, 6, 6)))


def traced(side: Any, block: Any, reference: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run forward and backward; return the trace's values and gradients, the parameters' too."""
    with side.forcing.traced(block, reference=reference, graph=True) as trace:
        out = block(image_of(side))
        total = (out * out).sum()
        if reference is not None:
            total = trace.with_reference_gradients(total)
        total.backward()
    grads = {f"grad/{k}": a for k, a in side.backend.gradients(block).items()}
    return trace.values, {**trace.gradients(), **grads}


def recorded(side: Any) -> dict[str, Any]:
    values, gradients = traced(side, block_of(side))
    return {**values, **gradients}


def differing(found: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Return the keys of the reference that are missing or off by more than rounding."""
    wrong: list[str] = []
    for key, wanted in reference.items():
        if key == "gradient/input//0":
            continue
        array = found.get(key)
        if array is None or not np.allclose(array, wanted, rtol=1e-11, atol=1e-13):
            wrong.append(key)
    return wrong


def forced_with(side: Any, change: Callable[[Any], None]) -> list[str]:
    reference = recorded(side)
    block = block_of(side)
    change(block)
    values, gradients = traced(side, block, reference)
    return differing({**values, **gradients}, reference)


def test_a_recording_is_the_pass_as_it_is(side: Any) -> None:
    block = block_of(side)
    with side.backend.capture_outputs(block) as outputs:
        out = block(image_of(side))
    block = block_of(side)
    (out * out).sum().backward()
    found = recorded(side)
    cuts = [key for key in found if not key.startswith(("gradient/", "grad/"))]
    assert cuts[:3] == ["input//0", "input/conv1/0", "output/conv1"]
    assert cuts[-1] == "output/"
    for call in CALLS:
        np.testing.assert_array_equal(found[f"output/{call}"], outputs[call])
    np.testing.assert_array_equal(found["output/"], side.backend.to_numpy(out))
    # d sum(y^2) / d y = 2 y
    np.testing.assert_allclose(found["gradient/output/"], 2 * found["output/"], rtol=1e-12)
    # what the image's gradient would be is nobody's business: it asks for none
    assert "gradient/input//0" not in found


def test_gradients_of_the_calls_are_told_apart(side: Any) -> None:
    found = recorded(side)
    assert "gradient/input/conv1/0" not in found, "the image has no gradient"
    # relu's output feeds conv2 alone, bn2's the sum alone
    np.testing.assert_array_equal(found["gradient/input/conv2/0"], found["gradient/output/relu"])
    positive = found["input/relu#1/0"] > 0
    np.testing.assert_allclose(
        found["gradient/input/relu#1/0"], found["gradient/output/relu#1"] * positive, rtol=1e-12
    )


def test_forced_by_itself_everything_agrees(side: Any) -> None:
    assert forced_with(side, lambda _: None) == []


def test_forced_values_are_the_references_arrays_where_nothing_differs(side: Any) -> None:
    reference = recorded(side)
    values, _ = traced(side, block_of(side), reference)
    assert all(values[key] is reference[key] for key in values)


def test_a_layer_works_on_the_references_numbers(side: Any) -> None:
    reference = recorded(side)
    reference["output/conv1"] = reference["output/conv1"] + 1.0
    values, _ = traced(side, block_of(side), reference)
    # conv1 computes what it did; what it hands to bn1 is the reference's
    np.testing.assert_allclose(values["output/conv1"], reference["output/conv1"] - 1.0, rtol=1e-11)
    np.testing.assert_array_equal(values["input/bn1/0"], reference["output/conv1"])


def test_a_wrong_layer_alone_differs(side: Any) -> None:
    def doubled(block: Any) -> None:
        right = block.conv2.forward
        block.conv2.forward = lambda x: right(x) * 2.0

    assert forced_with(side, doubled) == [
        "output/conv2",
        "gradient/input/conv2/0",
        "grad/conv2.weight",
    ]


def test_wrong_arithmetic_between_layers_is_told_by_what_it_hands_over(side: Any) -> None:
    def doubled(block: Any) -> None:
        # the sum is the block's own: spoil what it hands to the second call of relu
        factors = iter((1.0, 2.0))
        block.relu.register_forward_pre_hook(lambda _, inputs: (inputs[0] * next(factors),))

    assert set(forced_with(side, doubled)) == {
        "input/relu#1/0",
        "gradient/output/bn2",
        "gradient/output/downsample",
    }


def test_a_branch_that_is_cut_off_is_found_where_it_is_cut(side: Any) -> None:
    def detached(block: Any) -> None:
        right = block.downsample.forward
        block.downsample.forward = lambda x: right(x).detach()

    # behind the cut the gradients are the reference's again
    assert forced_with(side, detached) == ["gradient/output/downsample.1"]


def test_half_a_gradient_is_blamed_on_the_layer_that_returns_it(side: Any) -> None:
    def halved(block: Any) -> None:
        right = block.bn2.forward
        block.bn2.forward = lambda x: right(x * 0.5 + x.detach() * 0.5)

    assert forced_with(side, halved) == ["gradient/input/bn2/0"]


def test_layers_that_work_in_place_or_return_their_input(side: Any) -> None:
    def in_place(block: Any) -> None:
        block.relu.forward = side.layers.F.relu_
        right = block.downsample.forward
        block.downsample.forward = lambda x: right(x) * 1.0

    assert forced_with(side, in_place) == []

    def left_out(block: Any) -> None:
        block.bn1.forward = lambda x: x

    wrong = forced_with(side, left_out)
    assert wrong[0] == "output/bn1"
    assert {key.rpartition("/")[2] for key in wrong} == {"bn1", "0", "bn1.weight", "bn1.bias"}


def test_a_pass_without_gradients(side: Any) -> None:
    block = block_of(side)
    block.eval()
    with side.backend.no_grad(), side.forcing.traced(block, graph=False) as trace:
        block(image_of(side))
    reference = {**trace.values, "output/conv1": trace.values["output/conv1"] * 3.0}
    with (
        side.backend.no_grad(),
        side.forcing.traced(block, reference=reference, graph=False) as forced,
    ):
        out = block(image_of(side))
    assert not np.array_equal(forced.values["output/conv1"], reference["output/conv1"])
    np.testing.assert_array_equal(side.backend.to_numpy(out), reference["output/"])
    with side.backend.no_grad():
        again = block(image_of(side))
    assert not forced.gradients(), "hooks outlive the context"
    np.testing.assert_array_equal(side.backend.to_numpy(again), trace.values["output/"])


def test_callers_and_parts(side: Any) -> None:
    path = side.models.bisenetv1.ContextPath()
    path.eval()
    with side.backend.no_grad(), side.forcing.traced(path, graph=False) as trace:
        path(side.backend.to_tensor(np.zeros((1, 3, 32, 32), np.float32)))
    assert trace.callers["resnet.layer1.0.relu#1"] == "resnet.layer1.0"
    assert trace.callers["arm16.conv.bn"] == "arm16.conv"
    assert trace.callers["arm16"] == ""
    assert {"output/resnet.0", "output/resnet.1", "output/resnet.2"} <= set(trace.values)
    assert {"output/.0", "output/.1", "output/.2"} <= set(trace.values)


def test_a_reference_in_another_dtype_is_cast(side: Any) -> None:
    reference = {k: a.astype(np.float32) for k, a in recorded(side).items()}
    values, _ = traced(side, block_of(side), reference)
    assert {array.dtype.name for array in values.values()} == {"float64"}
    wanted = reference["output/conv1"].astype(np.float64)
    np.testing.assert_array_equal(values["input/bn1/0"], wanted)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda side: side.layers.ConvBNReLU(2, 3, kernel_size=3, stride=2, padding=1).conv,
            {"kind": "conv2d", "stride": [2, 2], "padding": [1, 1], "groups": 1, "bias": False},
        ),
        (
            lambda side: side.norm.BatchNorm2d(4),
            {"kind": "batch_norm", "eps": 1e-5, "momentum": 0.1, "features": 4},
        ),
        (
            lambda side: side.norm.InPlaceABN(4),
            {"kind": "inplace_abn", "eps": 1e-5, "negative_slope": 0.01},
        ),
        (
            lambda side: side.layers.AvgPool2d(kernel_size=3, stride=2, padding=1),
            {"kind": "avg_pool2d", "kernel_size": [3, 3], "count_include_pad": True},
        ),
        (lambda side: side.layers.ResizeNearest(scale=2), {"kind": "upsample", "scale_factor": 2}),
        (
            lambda side: side.layers.ResizeBilinear(scale=8),
            {"kind": "upsample", "mode": "bilinear", "align_corners": False},
        ),
        (lambda side: side.layers.ConvBNReLU(2, 3), {"kind": "composite", "class": "ConvBNReLU"}),
        (lambda side: side.layers.ConvBNReLU(2, 3).relu, {"kind": "relu"}),
    ],
)
def test_layers_are_described_alike(
    side: Any, make: Callable[[Any], Any], expected: dict[str, Any]
) -> None:
    found = side.describe.describe(make(side))
    assert {key: found[key] for key in expected} == expected


def test_momentum_is_told_as_it_is_held(side: Any) -> None:
    held = side.describe.describe(side.norm.BatchNorm2d(4))["momentum_as_held"]
    assert held == {"torch": 0.1, "paddle": 0.9}[side.name]


def test_every_layer_of_a_network_is_described(side: Any) -> None:
    for name in ("bisenetv2", "stdc1"):
        model = side.models.build_model(name, classes=4)
        kinds = {
            side.describe.describe(layer)["kind"]
            for layer in side.forcing.named_layers(model).values()
        }
        known = {"conv2d", "batch_norm", "relu", "sigmoid", "composite", "avg_pool2d", "linear"}
        known |= {"max_pool2d", "upsample", "dropout", "identity", "inplace_abn"}
        assert kinds <= known
