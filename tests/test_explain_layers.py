"""Every relation of a layer: the wrong value is made by hand, and must be named, alone or first."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from pipeline.explain import explain, norms, ops, pools
from pipeline.failure import FailureCase
from tests.failing_cases import Array, changed, check, draw, make_case, relations

ONE = (1, 1)


# ---- convolution ------------------------------------------------------------------------------
X, WEIGHT, BIAS = draw(3, 4, 9, 10), draw(4, 4, 3, 3), draw(4)
CONV = {"stride": (2, 2), "padding": (1, 1, 1, 1)}
CONV_SPEC = {"kind": "conv2d", "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "groups": 1}


def convolution(actual: Array, **spec: Any) -> FailureCase:
    return make_case(
        "layer",
        ops.conv2d(X, WEIGHT, BIAS, **CONV),
        actual,
        arrays={"input/0": X, "parameter/weight": WEIGHT, "parameter/bias": BIAS},
        spec={"torch": {**CONV_SPEC, **spec}},
    )


def half(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float64)


WRONG_CONVOLUTIONS: list[tuple[str, Callable[[], Array]]] = [
    ("padding-side", lambda: ops.conv2d(X, WEIGHT, BIAS, stride=(2, 2), padding=(0, 2, 0, 2))),
    ("padding", lambda: ops.conv2d(X, WEIGHT, BIAS, stride=(2, 2))),
    ("padding-mode", lambda: ops.conv2d(X, WEIGHT, BIAS, **CONV, pad_mode="replicate")),
    ("padding-mode", lambda: ops.conv2d(X, WEIGHT, BIAS, **CONV, pad_mode="reflect")),
    ("stride", lambda: ops.conv2d(X, WEIGHT, BIAS, padding=(1, 1, 1, 1))),
    ("dilation", lambda: ops.conv2d(X, WEIGHT, BIAS, **CONV, dilation=(2, 2))),
    ("transposed-weight", lambda: ops.conv2d(X, WEIGHT.swapaxes(0, 1), BIAS, **CONV)),
    ("transposed-weight", lambda: ops.conv2d(X, WEIGHT.swapaxes(2, 3), BIAS, **CONV)),
    ("flipped-kernel", lambda: ops.conv2d(X, WEIGHT[:, :, ::-1, ::-1], BIAS, **CONV)),
    ("missing-bias", lambda: ops.conv2d(X, WEIGHT, **CONV)),
    ("doubled-bias", lambda: ops.conv2d(X, WEIGHT, 2 * BIAS, **CONV)),
    ("swapped-channels", lambda: ops.conv2d(X[:, ::-1], WEIGHT, BIAS, **CONV)),
    ("swapped-channels", lambda: ops.conv2d(X[:, [2, 3, 0, 1]], WEIGHT, BIAS, **CONV)),
    ("swapped-channels", lambda: ops.conv2d(np.roll(X, 1, axis=1), WEIGHT, BIAS, **CONV)),
    ("swapped-channels", lambda: ops.conv2d(X, WEIGHT, BIAS, **CONV)[:, [1, 0, 2, 3]]),
    ("flip", lambda: ops.conv2d(X[..., ::-1], WEIGHT, BIAS, **CONV)),
    ("flip", lambda: ops.conv2d(X, WEIGHT, BIAS, **CONV)[:, :, ::-1]),
    ("extra-activation", lambda: ops.conv2d(np.maximum(X, 0), WEIGHT, BIAS, **CONV)),
    ("extra-activation", lambda: np.maximum(ops.conv2d(X, WEIGHT, BIAS, **CONV), 0)),
    ("dtype-float32", lambda: ops.conv2d(X.astype(np.float32), WEIGHT, BIAS, **CONV)),
    ("dtype-float16", lambda: ops.conv2d(half(X), half(WEIGHT), half(BIAS), **CONV)),
    ("dtype-float16", lambda: ops.conv2d(X, half(WEIGHT), half(BIAS), **CONV)),
    ("swapped-samples", lambda: ops.conv2d(X[::-1], WEIGHT, BIAS, **CONV)),
]


@pytest.mark.parametrize(("relation", "wrong"), WRONG_CONVOLUTIONS)
def test_wrong_convolutions(relation: str, wrong: Callable[[], Array]) -> None:
    check(convolution(wrong()), relation)


def test_what_a_hint_says_and_by_how_much() -> None:
    hint = explain(convolution(ops.conv2d(X, WEIGHT, **CONV)))[0]
    assert hint.text == "does not add its bias"
    right = ops.conv2d(X, WEIGHT, BIAS, **CONV)
    wrong = ops.conv2d(X, WEIGHT, **CONV)
    scale = max(np.abs(right).max(), np.abs(wrong).max())
    assert hint.before == pytest.approx(np.abs(BIAS).max() / scale)
    assert hint.residual < 1e-15


def test_options_that_a_spec_lacks_are_inferred() -> None:
    case = convolution(ops.conv2d(X, WEIGHT, **CONV))
    for spec in ({}, {"torch": {"kind": "Conv2D"}}, {"torch": {"padding": 1}}):
        bare = make_case("layer", case.arrays["reference"], case.arrays["actual"], spec=spec,
                         arrays=dict(case.arrays))  # fmt: skip
        assert relations(bare) == ["missing-bias"]


def test_an_incomplete_case_gets_no_layer_relations() -> None:
    wrong = ops.conv2d(X, WEIGHT, **CONV)
    reference = ops.conv2d(X, WEIGHT, BIAS, **CONV)
    arrays = {"input/0": X + 1, "parameter/weight": WEIGHT, "parameter/bias": BIAS}
    assert relations(make_case("layer", reference, wrong, arrays=arrays)) == []
    # what the two arrays say by themselves is said
    assert relations(make_case("layer", reference, -reference, arrays=arrays)) == ["negative"]
    assert relations(make_case("layer", reference, -reference)) == ["negative"]


def test_bgr_into_a_stem_is_called_so() -> None:
    x, weight = draw(2, 3, 8, 8), draw(5, 3, 3, 3)
    case = make_case(
        "layer",
        ops.conv2d(x, weight),
        ops.conv2d(x[:, ::-1], weight),
        arrays={"input/0": x, "parameter/weight": weight},
    )
    assert "BGR" in check(case, "swapped-channels").text


def test_a_depthwise_convolution_with_interleaved_groups() -> None:
    x, weight = draw(2, 4, 6, 6), draw(12, 1, 3, 3)
    wrong = ops.conv2d(np.tile(x, (1, 3, 1, 1)), weight, groups=12)
    arrays = {"input/0": x, "parameter/weight": weight}
    right = ops.conv2d(x, weight, groups=4)
    hint = check(make_case("layer", right, wrong, arrays=arrays), "groups")
    assert "k % 4, not k // 3" in hint.text


def test_concatenations_of_any_widths_are_found_in_wide_layers() -> None:
    x, weight = draw(2, 96, 3, 3), draw(8, 96, 1, 1)
    wrong = ops.conv2d(np.roll(x, 37, axis=1), weight)
    arrays = {"input/0": x, "parameter/weight": weight}
    hint = check(
        make_case("layer", ops.conv2d(x, weight), wrong, arrays=arrays), "swapped-channels"
    )
    assert "rolled by 37" in hint.text


def test_linear_layers() -> None:
    x, weight, bias = draw(6, 5), draw(5, 5), draw(5)
    arrays = {"input/0": x, "parameter/weight": weight, "parameter/bias": bias}
    right = x @ weight.T + bias
    check(make_case("layer", right, x @ weight + bias, arrays=arrays), "transposed-weight")
    check(make_case("layer", right, x @ weight.T, arrays=arrays), "missing-bias")
    wrong = x[:, ::-1] @ weight.T + bias
    check(make_case("layer", right, wrong, arrays=arrays), "swapped-channels")


def test_float32_convolutions_are_told_from_rounding() -> None:
    x, weight = X.astype(np.float32), WEIGHT.astype(np.float32)
    right = ops.conv2d(x, weight, **CONV).astype(np.float32)
    arrays = {"input/0": x, "parameter/weight": weight}

    def case(actual: Array) -> FailureCase:
        return make_case("layer", right, actual.astype(np.float32), arrays=arrays,
                         spec={"torch": CONV_SPEC})  # fmt: skip

    check(case(ops.conv2d(half(x), half(weight), **CONV)), "dtype-float16")
    check(case(ops.conv2d(x, weight, stride=(2, 2), padding=(0, 2, 0, 2))), "padding-side")
    bits = weight.view(np.uint32)
    brain = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
    check(case(ops.conv2d(x, brain.view(np.float32), **CONV)), "dtype-bfloat16")
    # a few units in the last place are nobody's fault
    ulps = right * (1 + np.float32(1e-7) * np.sign(draw(*right.shape)).astype(np.float32))
    assert relations(case(ulps)) == []


# ---- normalisation ----------------------------------------------------------------------------
MEAN, VARIANCE = draw(4) * 0.5, np.abs(draw(4)) * 0.01 + 1e-3
SCALE, SHIFT = np.array([0.7, -1.2, 0.4, 1.9]), draw(4)
ALL = {"weight": SCALE, "bias": SHIFT}


def bn(x: Array = X, mean: Array = MEAN, variance: Array = VARIANCE, **options: Any) -> Array:
    return norms.normalise(x, mean, variance, **{**ALL, "eps": 1e-5, **options})


def norm_case(reference: Array, actual: Array, mode: str, **spec: Any) -> FailureCase:
    return make_case(
        "layer",
        reference,
        actual,
        arrays={
            "input/0": X,
            "parameter/weight": SCALE,
            "parameter/bias": SHIFT,
            "buffer/running_mean": MEAN,
            "buffer/running_var": VARIANCE,
        },
        spec={"torch": {"kind": "batch_norm", "eps": 1e-5, **spec}},
        mode=mode,
    )


BATCH = norms.batch_statistics(X)


def of_each_sample() -> Array:
    return np.concatenate([bn(x[None], *norms.batch_statistics(x[None])) for x in X])


WRONG_NORMS: list[tuple[str, str, Callable[[], Array]]] = [
    ("eps", "eval", lambda: bn(eps=1e-3)),
    ("eps", "eval", lambda: bn(eps=1.1e-5)),
    ("eps", "eval", lambda: bn(eps=3.21e-6)),
    ("eps", "eval", lambda: bn(eps=0.0)),
    ("eps", "train", lambda: bn(mean=BATCH[0], variance=BATCH[1], eps=1e-4)),
    ("eps-outside-root", "eval", lambda: bn(variance=np.square(np.sqrt(VARIANCE) + 1e-5) - 1e-5)),
    ("batch-statistics", "eval", lambda: bn(mean=BATCH[0], variance=BATCH[1])),
    ("running-statistics", "train", bn),
    (
        "unbiased-variance",
        "train",
        lambda: bn(mean=BATCH[0], variance=norms.unbiased(BATCH[1], 270)),
    ),
    ("instance-statistics", "train", of_each_sample),
    ("missing-affine", "eval", lambda: bn(weight=None, bias=None)),
    ("missing-affine", "eval", lambda: bn(weight=None)),
    ("missing-bias", "eval", lambda: bn(bias=None)),
    ("absolute-weight", "eval", lambda: bn(weight=np.abs(SCALE) + 1e-5)),
    ("extra-activation", "eval", lambda: np.maximum(bn(), 0)),
    ("extra-activation", "eval", lambda: ops.leaky_relu(bn(), 0.2)),
    ("dtype-float16", "train", lambda: bn(mean=half(BATCH[0]), variance=half(BATCH[1]))),
    ("dtype-float32", "eval", lambda: bn(X.astype(np.float32))),
    ("swapped-channels", "eval", lambda: bn()[:, [3, 2, 1, 0]]),
]


@pytest.mark.parametrize(("relation", "mode", "wrong"), WRONG_NORMS)
def test_wrong_batch_norms(relation: str, mode: str, wrong: Callable[[], Array]) -> None:
    right = bn() if mode == "eval" else bn(mean=BATCH[0], variance=BATCH[1])
    check(norm_case(right, wrong(), mode), relation)


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 1.1e-5, 1.001e-5, 1e-12])
def test_the_eps_is_named(eps: float) -> None:
    hint = explain(norm_case(bn(), bn(eps=eps), "eval"))[0]
    assert hint.text == f"uses eps {eps:.10g} in place of 1e-05"


def test_a_half_precision_sum_of_squares() -> None:
    square = half(np.square(X).mean(axis=(0, 2, 3)))
    short = half(BATCH[0])
    wrong = bn(mean=short, variance=square - short**2)
    right = bn(mean=BATCH[0], variance=BATCH[1])
    assert "E[x^2]" in check(norm_case(right, wrong, "train"), "dtype-float16").text


ABN = np.abs(SCALE) + 1e-5


def abn(slope: float = 0.01, **options: Any) -> Array:
    return ops.leaky_relu(bn(**{"weight": ABN, **options}), slope)


WRONG_ABNS: list[tuple[str, Callable[[], Array]]] = [
    ("plain-weight", lambda: abn(weight=SCALE)),
    ("missing-activation", lambda: abn(1.0)),
    ("activation-slope", lambda: abn(0.2)),
    ("activation-slope", lambda: abn(0.0)),
    ("eps", lambda: abn(weight=np.abs(SCALE) + 1e-3, eps=1e-3)),
]


@pytest.mark.parametrize(("relation", "wrong"), WRONG_ABNS)
def test_wrong_inplace_abns(relation: str, wrong: Callable[[], Array]) -> None:
    spec = {"kind": "inplace_abn", "negative_slope": 0.01}
    check(norm_case(abn(), wrong(), "eval", **spec), relation)


def test_an_abn_without_activation() -> None:
    spec = {"kind": "inplace_abn", "negative_slope": 1.0}
    check(norm_case(abn(1.0), abn(), "eval", **spec), "extra-activation")


def test_eps_in_float32() -> None:
    x, mean, variance = X.astype(np.float32), MEAN.astype(np.float32), VARIANCE.astype(np.float32)
    right = bn(x, mean, variance).astype(np.float32)
    wrong = bn(x, mean, variance, eps=1.2e-5).astype(np.float32)
    case = make_case(
        "layer",
        right,
        wrong,
        arrays={
            "input/0": x,
            "parameter/weight": SCALE,
            "parameter/bias": SHIFT,
            "buffer/running_mean": mean,
            "buffer/running_var": variance,
        },
        spec={"torch": {"kind": "batch_norm", "eps": 1e-5}},
    )
    assert "eps 1.2e-05" in check(case, "eps").text


# ---- pooling and resizing ---------------------------------------------------------------------
MAP = draw(2, 3, 7, 8)
POOL = {"stride": (2, 2), "padding": (1, 1, 1, 1)}
SQUARE = (3, 3)


def pool(kind: str, right: Array, wrong: Array, **spec: Any) -> FailureCase:
    options = {"kind": kind, "kernel_size": 3, "stride": 2, "padding": 1, **spec}
    return make_case("layer", right, wrong, arrays={"input/0": MAP}, spec={"torch": options})


def averaged(**options: Any) -> Array:
    return pools.avg_pool2d(MAP, SQUARE, **{**POOL, **options})


def maxed(**options: Any) -> Array:
    return pools.max_pool2d(MAP, SQUARE, **{**POOL, **options})


WRONG_POOLS: list[tuple[str, str, Callable[[], Array]]] = [
    ("ceil-mode", "max", lambda: maxed(ceil_mode=True)),
    ("ceil-mode", "max", lambda: maxed(padding=(0, 0, 0, 0), ceil_mode=True)),
    ("count-include-pad", "avg", lambda: averaged(count_include_pad=False)),
    ("padding-side", "max", lambda: maxed(padding=(1, 0, 1, 0))),
    ("padding", "avg", lambda: averaged(padding=(0, 0, 0, 0))),
    ("stride", "max", lambda: maxed(stride=ONE)),
    ("kernel-size", "max", lambda: pools.max_pool2d(MAP, (2, 2), stride=(2, 2), padding=(0,) * 4)),
    ("average-for-max", "max", averaged),
    ("max-for-average", "avg", maxed),
]


@pytest.mark.parametrize(("relation", "kind", "wrong"), WRONG_POOLS)
def test_wrong_pools(relation: str, kind: str, wrong: Callable[[], Array]) -> None:
    right = maxed() if kind == "max" else averaged()
    spec = {} if kind == "max" else {"count_include_pad": True}
    check(pool(f"{kind}_pool2d", right, wrong(), **spec), relation)


def test_global_pools() -> None:
    right = MAP.mean(axis=(2, 3), keepdims=True)
    for relation, wrong in (
        ("max-for-average", MAP.max(axis=(2, 3), keepdims=True)),
        ("sum-for-average", MAP.sum(axis=(2, 3), keepdims=True)),
    ):
        spec = {"torch": {"kind": "adaptive_avg_pool2d"}}
        check(make_case("layer", right, wrong, arrays={"input/0": MAP}, spec=spec), relation)


def resized(*axes: Array) -> Array:
    return pools.apply_axes(MAP, *axes)


def bilinear(height: int = 14, width: int = 16, **options: Any) -> Array:
    given = {"align_corners": False, **options}
    kept = given.pop("roundings", ("exact", "exact"))
    return resized(
        pools.bilinear_matrix(7, height, **given, rounding=kept[0]),
        pools.bilinear_matrix(8, width, **given, rounding=kept[1]),
    )


def nearest(height: int = 14, width: int = 16, **options: Any) -> Array:
    return resized(
        pools.nearest_matrix(7, height, **options), pools.nearest_matrix(8, width, **options)
    )


WRONG_RESIZES: list[tuple[str, str, Callable[[], Array]]] = [
    ("align-corners", "bilinear", lambda: bilinear(align_corners=True)),
    (
        "align-corners",
        "bilinear",
        lambda: bilinear(align_corners=True, roundings=pools.PADDLE_ROUNDING),
    ),
    ("align-mode", "bilinear", lambda: bilinear(align_mode=1)),
    ("nearest-for-bilinear", "bilinear", nearest),
    ("bilinear-for-nearest", "nearest", bilinear),
    ("bilinear-for-nearest", "nearest", lambda: bilinear(align_corners=True)),
    ("swapped-channels", "nearest", lambda: nearest()[:, ::-1]),
    ("dtype-float16", "bilinear", lambda: half(bilinear())),
]


@pytest.mark.parametrize(("relation", "mode", "wrong"), WRONG_RESIZES)
@pytest.mark.parametrize("named", [True, False])
def test_wrong_resizes(relation: str, mode: str, wrong: Callable[[], Array], named: bool) -> None:
    right = bilinear() if mode == "bilinear" else nearest()
    spec = {"kind": "upsample", "mode": mode, "align_corners": False} if named else {}
    case = make_case("layer", right, wrong(), arrays={"input/0": MAP}, spec={"torch": spec})
    check(case, relation)


def test_resizes_to_sizes_that_are_no_multiple() -> None:
    right = bilinear(19, 23)
    spec = {"torch": {"kind": "upsample", "mode": "bilinear"}}
    wrong = bilinear(19, 23, roundings=pools.PADDLE_ROUNDING)
    arrays = {"input/0": MAP}
    hint = check(make_case("layer", right, wrong, arrays=arrays, spec=spec), "dtype-float32")
    assert "float32" in hint.text
    wrong = bilinear(19, 23, scale=3.0)
    check(make_case("layer", right, wrong, arrays=arrays, spec=spec), "scale-for-size")
    spec = {"torch": {"kind": "upsample", "mode": "nearest"}}
    right = nearest(19, 23)
    case = make_case("layer", right, nearest(19, 23, centred=True), arrays=arrays, spec=spec)
    check(case, "nearest-rounding")
    # by a factor of two the corners change nothing
    wrong = nearest(19, 23, align_corners=True)
    check(make_case("layer", right, wrong, arrays=arrays, spec=spec), "align-corners")


# ---- activations ------------------------------------------------------------------------------
ACTIVATED: list[tuple[str, str, Callable[[], Array]]] = [
    ("missing-activation", "relu", lambda: X),
    ("missing-activation", "sigmoid", lambda: X),
    ("activation-slope", "relu", lambda: ops.leaky_relu(X, 0.01)),
    ("activation-slope", "leaky_relu", lambda: ops.leaky_relu(X, 0.2)),
    ("other-activation", "leaky_relu", lambda: np.maximum(X, 0)),
    ("other-activation", "sigmoid", lambda: np.clip(X / 6 + 0.5, 0, 1)),
    ("other-activation", "sigmoid", lambda: np.tanh(X)),
    ("softmax-axis", "softmax", lambda: ops.softmax(X, axis=3)),
    ("dtype-float16", "sigmoid", lambda: ops.sigmoid(X.astype(np.float16))),
]


@pytest.mark.parametrize(("relation", "kind", "wrong"), ACTIVATED)
def test_wrong_activations(relation: str, kind: str, wrong: Callable[[], Array]) -> None:
    right = ops.leaky_relu(X, 0.01) if kind == "leaky_relu" else ops.ACTIVATIONS[kind](X)
    spec = {"torch": {"kind": kind}}
    check(make_case("layer", right, wrong(), arrays={"input/0": X}, spec=spec), relation)


def test_relu6_for_relu() -> None:
    x = X * 5
    spec = {"torch": {"kind": "relu"}}
    case = make_case("layer", np.maximum(x, 0), np.clip(x, 0, 6), arrays={"input/0": x}, spec=spec)
    check(case, "other-activation")


def test_a_dropout_that_is_active() -> None:
    kept = draw(*X.shape, seed=5) > -1.2
    wrong = np.where(kept, X / 0.9, 0.0)
    spec = {"torch": {"kind": "dropout", "p": 0.1}}
    hint = check(make_case("layer", X, wrong, arrays={"input/0": X}, spec=spec), "dropout")
    assert "p = 0.1" in hint.text


# ---- the options that the objects hold --------------------------------------------------------
def test_an_option_that_the_actual_object_holds_is_named_first() -> None:
    case = norm_case(bn(), bn(eps=1.1e-5), "eval")
    both = {**case.spec, "paddle": {"kind": "batch_norm", "eps": 1.1e-5}}
    told = make_case("layer", bn(), bn(eps=1.1e-5), arrays=dict(case.arrays), spec=both)
    hint = check(told, "eps")
    assert hint.text == "has eps 1.1e-05 in place of 1e-05, as its object says"
    # an option that does not explain the difference is not named
    assert relations(changed(told, bn(eps=1.1e-5) + X)) == []


# ---- nothing is explained that is not ---------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_unrelated_differences_get_no_hint(seed: int) -> None:
    right = ops.conv2d(X, WEIGHT, BIAS, **CONV)
    differences = [draw(*right.shape, seed=seed) * size for size in (1.0, 1e-3, 1e-7)]
    single = np.zeros(right.shape)
    single[1, 2, 3, 1] = 0.5
    for difference in (*differences, single, right**2 * 1e-3):
        assert relations(convolution(right + difference)) == []


@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_numbers_prove_nothing(size: int) -> None:
    for seed, dtype in product(range(20), (np.float64, np.float32)):
        right = draw(size, seed=seed).astype(dtype)
        wrong = draw(size, seed=seed + 100).astype(dtype)
        assert relations(make_case("layer", right, wrong)) == []


def test_nan_and_equal_tensors_get_no_hint() -> None:
    right = ops.conv2d(X, WEIGHT, BIAS, **CONV)
    assert relations(convolution(np.full(right.shape, np.nan))) == []
    assert relations(convolution(right)) == []
    assert relations(convolution(np.zeros((0, 4)))) == []
