"""Explanations of what the frameworks' own kernels return, in float64 and in float32."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.explain import norms, ops, pools
from tests.failing_cases import check, draw, make_case

X, WEIGHT = draw(2, 4, 8, 9), draw(5, 4, 3, 3)
DTYPES = ("float64", "float32")


def _case(
    reference: NDArray[Any], actual: NDArray[Any], dtype: str, spec: dict[str, Any], **arrays: Any
) -> Any:
    kept = {key.replace("__", "/"): array.astype(dtype) for key, array in arrays.items()}
    return make_case(
        "layer",
        reference.astype(dtype),
        actual,
        arrays={"input/0": X.astype(dtype), **kept},
        spec={"torch": spec},
    )


def _run(side: Any, function: Any, dtype: str, *arrays: NDArray[Any], **options: Any) -> Any:
    tensors = [side.backend.to_tensor(array.astype(dtype)) for array in arrays]
    return side.backend.to_numpy(function(*tensors, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_convolution_padded_on_one_side(side: Any, dtype: str) -> None:
    right = ops.conv2d(X, WEIGHT, stride=(2, 2), padding=(1, 1, 1, 1))
    x = ops.pad(X, (0, 1, 0, 2))  # what 'same' gives an even and an odd size would be (0, 1, 1, 1)
    actual = _run(side, side.layers.F.conv2d, dtype, x, WEIGHT, stride=2)
    spec = {"kind": "conv2d", "stride": [2, 2], "padding": [1, 1]}
    case = _case(right, actual, dtype, spec, parameter__weight=WEIGHT)
    check(case, "padding-side")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(16, 18), (19, 23)])
def test_bilinear_resizing_with_aligned_corners(
    side: Any, dtype: str, size: tuple[int, int]
) -> None:
    pairs = zip((8, 9), size, strict=True)
    right = [pools.bilinear_matrix(o, n, align_corners=False) for o, n in pairs]
    interpolate = side.layers.F.interpolate
    actual = _run(side, interpolate, dtype, X, size=size, mode="bilinear", align_corners=True)
    spec = {"kind": "upsample", "mode": "bilinear", "align_corners": False}
    case = _case(pools.apply_axes(X, *right), actual, dtype, spec)
    hint = check(case, "align-corners")
    # Paddle's kernel keeps the ratio as a float32 number, and that is told in float64
    assert ("Paddle's kernel" in hint.text) == (side.name == "paddle" and dtype == "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_average_that_leaves_the_padding_out(side: Any, dtype: str) -> None:
    options: dict[str, Any] = {"stride": (2, 2), "padding": (1, 1, 1, 1)}
    right = pools.avg_pool2d(X, (3, 3), **options)
    named = {"exclusive": True} if side.name == "paddle" else {"count_include_pad": False}
    pool = side.layers.F.avg_pool2d
    actual = _run(side, pool, dtype, X, kernel_size=3, stride=2, padding=1, **named)
    spec = {"kind": "avg_pool2d", "kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1]}
    check(_case(right, actual, dtype, {**spec, "count_include_pad": True}), "count-include-pad")


# Paddle says so of every BatchNorm that trains
@pytest.mark.filterwarnings("ignore:When training, we now always track global mean")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_buffers_of_a_plain_batch_norm(side: Any, dtype: str) -> None:
    """Momentum 0.1 is Torch's 0.9 in Paddle, whose kernel takes the biased variance, too."""
    paddle = side.name == "paddle"
    side.backend.set_default_dtype(dtype)
    nn = side.layers.nn
    # Torch's number in Paddle's argument, or the other way round
    layer = nn.BatchNorm2D(4, momentum=0.1) if paddle else nn.BatchNorm2d(4, momentum=0.9)
    layer.train()
    layer(side.backend.to_tensor(X.astype(dtype)))
    after = side.backend.state_arrays(layer)
    mean, variance = norms.batch_statistics(X)
    right = {
        "running_mean": norms.updated(np.zeros(4), mean, 0.1),
        "running_var": norms.updated(np.ones(4), norms.unbiased(variance, 144), 0.1),
    }
    biased = "biased-variance and momentum-convention" if paddle else "momentum-convention"
    for name, relation in (("running_mean", "momentum-convention"), ("running_var", biased)):
        case = make_case(
            "buffer",
            right[name].astype(dtype),
            after[name].astype(dtype),
            arrays={
                "before": np.full(4, float("var" in name), dtype),
                "input/0": X.astype(dtype),
                "count": np.asarray(144),
            },
            spec={"torch": {"kind": "batch_norm", "momentum": 0.1}},
            name=f"bn.{name}",
        )
        hint = check(case, relation)
        assert "keeps 0.1 of the old value, not 0.9" in hint.text


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_norm_with_another_eps(side: Any, dtype: str) -> None:
    variance = np.array([0.01, 0.003, 0.5, 1.0])
    state = {"weight": draw(4), "bias": draw(4) + 1, "mean": draw(4) * 2, "var": variance}
    named = {"epsilon": 1e-3} if side.name == "paddle" else {"eps": 1e-3}
    order = ("mean", "var", "weight", "bias")
    given = [state[name] for name in order]
    function = side.layers.F.batch_norm

    def run(x: Any, mean: Any, var: Any, weight: Any, bias: Any) -> Any:
        return function(x, mean, var, weight=weight, bias=bias, training=False, **named)

    actual = _run(side, run, dtype, X, *given)
    right = norms.normalise(
        X, state["mean"], variance, weight=state["weight"], bias=state["bias"], eps=1e-5
    )
    case = _case(
        right,
        actual,
        dtype,
        {"kind": "batch_norm", "eps": 1e-5},
        parameter__weight=state["weight"],
        parameter__bias=state["bias"],
        buffer__running_mean=state["mean"],
        buffer__running_var=variance,
    )
    assert "0.001" in check(case, "eps").text
