"""The layers that explanations are computed with, against the frameworks' own kernels."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.explain import norms, ops, pools
from pipeline.explain.target import rounded

CLOSE = {"rtol": 0, "atol": 1e-12}


def _functions(side: Any) -> Any:
    return side.layers.F


def _map(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def _with_gradients(
    side: Any, function: Any, *arrays: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]]:
    """The output, a gradient at it and those at the arrays."""
    leaves = [side.backend.leaf_tensor(array) for array in arrays]
    out = function(*leaves)
    gradient = np.random.default_rng(1).standard_normal(tuple(out.shape))
    (out * side.backend.to_tensor(gradient)).sum().backward()
    return side.backend.to_numpy(out), gradient, [side.backend.to_numpy(t.grad) for t in leaves]


CONVOLUTIONS = [
    {"stride": 1, "padding": 1, "dilation": 1, "groups": 1},
    {"stride": 2, "padding": 3, "dilation": 1, "groups": 2},
    {"stride": 2, "padding": 0, "dilation": 2, "groups": 1},
    {"stride": 3, "padding": 2, "dilation": 1, "groups": 4},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (2, 5)])
def test_convolution(side: Any, options: dict[str, int], size: tuple[int, int]) -> None:
    x, bias = _map(2, 4, 11, 9), _map(8)
    weight = _map(8, 4 // options["groups"], *size)
    conv2d = _functions(side).conv2d
    found = _with_gradients(side, lambda *a: conv2d(*a, **options), x, weight, bias)
    stride, dilation = (options["stride"],) * 2, (options["dilation"],) * 2
    groups, padding = options["groups"], (options["padding"],) * 4
    own: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    out, gradient, (by_x, by_weight, by_bias) = found
    np.testing.assert_allclose(ops.conv2d(x, weight, bias, **own), out, **CLOSE)
    by = ops.conv2d_weight_gradient(x, gradient, size, **own)
    np.testing.assert_allclose(by, by_weight, **CLOSE)
    by = ops.conv2d_input_gradient(weight, gradient, (11, 9), **own)
    np.testing.assert_allclose(by, by_x, **CLOSE)
    np.testing.assert_allclose(gradient.sum(axis=(0, 2, 3)), by_bias, **CLOSE)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil"),
    [(3, 2, 1, False), (3, 2, 0, True), (2, 2, 0, True), (3, 2, 1, True), (3, 1, 1, False)],
)
@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
def test_pooling(
    side: Any, kernel: int, stride: int, padding: int, ceil: bool, size: tuple[int, int]
) -> None:
    x, F = _map(2, 3, *size), _functions(side)
    own: dict[str, Any] = {
        "stride": (stride, stride),
        "padding": (padding,) * 4,
        "ceil_mode": ceil,
    }
    shared = {"stride": stride, "padding": padding, "ceil_mode": ceil}
    square = (kernel, kernel)
    found = _with_gradients(side, lambda a: F.max_pool2d(a, kernel, **shared), x)
    out, gradient, (by_x,) = found
    np.testing.assert_allclose(pools.max_pool2d(x, square, **own), out, **CLOSE)
    by = pools.max_pool2d_gradient(x, gradient, square, **own)
    np.testing.assert_allclose(by, by_x, **CLOSE)
    for include in (True, False):
        named = {"exclusive": not include} if side.name == "paddle" else {}
        named = named or {"count_include_pad": include}
        if side.name == "paddle" and ceil and include:
            continue  # Paddle's kernel divides by what ceil_mode adds, too
        found = _with_gradients(
            side, lambda a, named=named: F.avg_pool2d(a, kernel, **shared, **named), x
        )
        out, gradient, (by_x,) = found
        with_count = {**own, "count_include_pad": include}
        np.testing.assert_allclose(pools.avg_pool2d(x, square, **with_count), out, **CLOSE)
        # Paddle's gradient keeps the divisor's inverse as a float32 number
        short = side.name == "paddle"
        by = pools.avg_pool2d_gradient(x, gradient, square, **with_count, ninth_as_float32=short)
        np.testing.assert_allclose(by, by_x, **CLOSE)


@pytest.mark.parametrize(("old", "new"), [((4, 5), (8, 10)), ((3, 4), (7, 9)), ((6, 7), (3, 4))])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("align_mode", [0, 1])
def test_bilinear_resizing(
    side: Any,
    old: tuple[int, int],
    new: tuple[int, int],
    align_corners: bool,
    align_mode: int,
) -> None:
    options: dict[str, Any] = {"size": new, "mode": "bilinear", "align_corners": align_corners}
    paddle = side.name == "paddle"
    if align_mode and not paddle:
        pytest.skip("Paddle's option")
    if paddle:
        options["align_mode"] = align_mode
    x = _map(2, 3, *old)
    interpolate = _functions(side).interpolate
    out, gradient, (by_x,) = _with_gradients(side, lambda a: interpolate(a, **options), x)
    places = {"align_corners": align_corners, "align_mode": align_mode}

    def matrices(roundings: tuple[Any, Any]) -> list[NDArray[np.float64]]:
        kept = roundings if paddle else ("exact", "exact")
        sizes = zip(old, new, kept, strict=True)
        return [pools.bilinear_matrix(o, n, **places, rounding=r) for o, n, r in sizes]

    there, back = matrices(pools.PADDLE_ROUNDING), matrices(pools.PADDLE_ROUNDING_BACK)
    np.testing.assert_allclose(pools.apply_axes(x, *there), out, **CLOSE)
    np.testing.assert_allclose(pools.apply_axes_gradient(gradient, *back), by_x, **CLOSE)


@pytest.mark.parametrize(("old", "new"), [((4, 5), (8, 10)), ((3, 4), (7, 9)), ((6, 7), (3, 4))])
def test_nearest_resizing(side: Any, old: tuple[int, int], new: tuple[int, int]) -> None:
    x = _map(2, 3, *old)
    out = side.backend.to_numpy(
        _functions(side).interpolate(side.backend.to_tensor(x), size=new, mode="nearest")
    )
    matrices = [pools.nearest_matrix(o, n) for o, n in zip(old, new, strict=True)]
    np.testing.assert_array_equal(pools.apply_axes(x, matrices[0], matrices[1]), out)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["BatchNorm2d", "InPlaceABN"])
def test_normalisation(side: Any, training: bool, name: str) -> None:
    side.backend.set_default_dtype("float64")
    layer = getattr(side.norm, name)(4)
    weight, bias, mean = _map(4), _map(4) + 1, _map(4) * 2
    variance = np.abs(_map(4)) + 0.1
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    side.backend.load_arrays(layer, state)
    layer.train() if training else layer.eval()
    x = _map(3, 4, 5, 6) * 3 + 1
    out, gradient, (by_x,) = _with_gradients(side, layer, x)
    absolute = name == "InPlaceABN"
    scale = np.abs(weight) + 1e-5 if absolute else weight
    used = norms.batch_statistics(x) if training else (mean, variance)
    own = norms.normalise(x, *used, weight=scale, bias=bias, eps=1e-5)
    arriving = gradient
    if absolute:
        arriving = ops.activation_gradient("leaky_relu", own, gradient, slope=0.01)
        own = ops.leaky_relu(own, 0.01)
    np.testing.assert_allclose(own, out, **CLOSE)
    found = norms.normalise_gradients(x, arriving, *used, weight=scale, eps=1e-5, batch=training)
    kept = side.backend.gradients(layer)
    np.testing.assert_allclose(found.input, by_x, **CLOSE)
    np.testing.assert_allclose(found.bias, kept["bias"], **CLOSE)
    sign = np.sign(weight) if absolute else 1.0
    np.testing.assert_allclose(found.weight * sign, kept["weight"], **CLOSE)
    if training:
        after = side.backend.state_arrays(layer)
        own = norms.updated(mean, used[0], 0.1)
        np.testing.assert_allclose(own, after["running_mean"], **CLOSE)
        own = norms.updated(variance, norms.unbiased(used[1], 90), 0.1)
        np.testing.assert_allclose(own, after["running_var"], **CLOSE)


def test_activations(side: Any) -> None:
    F, x = _functions(side), _map(3, 4, 5) * 4
    theirs = {
        name: getattr(F, {"swish": "silu"}.get(name, name))
        for name in ops.ACTIVATIONS
        if name != "softmax"
    }
    for name, function in theirs.items():
        out = side.backend.to_numpy(function(side.backend.to_tensor(x)))
        # Paddle's hardsigmoid has the slope 0.1666667, 3e-8 off, for |x| up to 3
        atol = 1.1e-7 if side.name == "paddle" and name == "hardsigmoid" else 1e-12
        np.testing.assert_allclose(ops.ACTIVATIONS[name](x), out, rtol=0, atol=atol, err_msg=name)
    axis = {"axis" if side.name == "paddle" else "dim": 1}
    out = side.backend.to_numpy(F.softmax(side.backend.to_tensor(x), **axis))
    np.testing.assert_allclose(ops.softmax(x), out, **CLOSE)
    for name in ("relu", "sigmoid", "tanh"):
        found = _with_gradients(side, theirs[name], x)
        by = ops.activation_gradient(name, x, found[1], slope=0.0)
        np.testing.assert_allclose(by, found[2][0], **CLOSE)


@pytest.mark.parametrize(("mode", "value"), [("zeros", 0.0), ("replicate", 0.0), ("reflect", 0.0)])
def test_padding(side: Any, mode: str, value: float) -> None:
    x = _map(1, 2, 4, 5)
    word = {"zeros": "constant"}.get(mode, mode)
    # both frameworks say left, right, top, bottom
    out = _functions(side).pad(side.backend.to_tensor(x), [3, 1, 2, 0], mode=word)
    own = ops.pad(x, (2, 0, 3, 1), mode=mode, value=value)
    np.testing.assert_array_equal(own, side.backend.to_numpy(out))


def test_linear_and_global_pooling(side: Any) -> None:
    x, weight, bias = _map(3, 5), _map(2, 5), _map(2)
    side.backend.set_default_dtype("float64")
    layer = side.layers.nn.Linear(5, 2)
    side.backend.load_arrays(layer, {"weight": weight, "bias": bias})
    out, gradient, _ = _with_gradients(side, layer, x)
    np.testing.assert_allclose(ops.linear(x, weight, bias), out, **CLOSE)
    kept = side.backend.gradients(layer)["weight"]
    kept = kept if kept.shape == weight.shape else kept.T
    np.testing.assert_allclose(ops.linear_weight_gradient(x, gradient), kept, **CLOSE)
    for size in ((1, 1), (2, 3), (4, 2)):
        x = _map(2, 3, 5, 7)
        out = _functions(side).adaptive_avg_pool2d(side.backend.to_tensor(x), size)
        own = pools.adaptive_avg_pool2d(x, size)
        np.testing.assert_allclose(own, side.backend.to_numpy(out), **CLOSE)


def test_shorter_numbers(side: Any) -> None:
    x = _map(400) * np.logspace(-6, 4, 400)
    for dtype, double in product(("float16", "bfloat16", "float32"), (False, True)):
        if double and dtype == "bfloat16":
            continue  # a kernel may round twice, through float32
        given = x if double else x.astype(np.float32)
        tensor = side.backend.to_tensor(given)
        if side.name == "paddle":
            short = tensor.astype(dtype).astype("float64")
        else:
            short = tensor.to(getattr(side.layers.torch, dtype)).double()
        np.testing.assert_array_equal(rounded(given, dtype), side.backend.to_numpy(short))
