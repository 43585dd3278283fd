"""Every relation of a gradient, made by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.explain import explain, norms, ops, pools
from pipeline.failure import FailureCase
from tests.failing_cases import Array, check, draw, make_case, relations

X, GRADIENT = draw(4, 3, 9, 9), draw(4, 4, 5, 5)
WEIGHT, BIAS = draw(4, 3, 3, 3), draw(4)
CONV: dict[str, Any] = {"stride": (2, 2), "padding": (1, 1, 1, 1)}
CONV_SPEC = {"torch": {"kind": "conv2d", "stride": [2, 2], "padding": [1, 1]}}


def by_weight(x: Array = X, gradient: Array = GRADIENT, **options: Any) -> Array:
    return ops.conv2d_weight_gradient(x, gradient, (3, 3), **{**CONV, **options})


def only(*samples: int) -> Array:
    mask = np.zeros((4, 1, 1, 1))
    mask[list(samples)] = 1
    return GRADIENT * mask


def parameter(name: str, reference: Array, actual: Array, **arrays: Array) -> FailureCase:
    given = {
        "input/0": X,
        "parameter/weight": WEIGHT,
        "parameter/bias": BIAS,
        "output_gradient": GRADIENT,
        **arrays,
    }
    return make_case(
        "parameter_gradient",
        reference,
        actual,
        arrays=given,
        spec=CONV_SPEC,
        name=f"sp.conv1.conv.{name}",
        mode="train",
    )


def half(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float64)


WRONG_WEIGHTS: list[tuple[str, Callable[[], Array]]] = [
    ("detached-branch", lambda: np.zeros_like(WEIGHT)),
    ("negative", lambda: -by_weight()),
    ("doubled", lambda: 2 * by_weight()),
    ("constant-factor", lambda: by_weight() / 2),
    ("constant-factor", lambda: by_weight() / 100),
    ("dtype-float32", lambda: by_weight() * (9 * float(np.float32(1 / 9)))),
    ("missing-accumulation", lambda: by_weight(gradient=only(3))),
    ("missing-accumulation", lambda: by_weight(gradient=only(0, 1))),
    ("missing-accumulation", lambda: by_weight(gradient=only(0, 1, 2))),
    ("padding-side", lambda: by_weight(padding=(0, 2, 0, 2))),
    ("padding-mode", lambda: by_weight(pad_mode="replicate")),
    ("transposed-gradient", lambda: by_weight().swapaxes(2, 3)),
    ("flipped-gradient", lambda: by_weight()[:, :, ::-1, ::-1]),
    ("swapped-channels", lambda: by_weight(X[:, ::-1])),
    ("swapped-output-channels", lambda: by_weight(gradient=GRADIENT[:, ::-1])),
    ("dtype-float16", lambda: by_weight(half(X))),
    ("dtype-float16", lambda: by_weight(gradient=half(GRADIENT))),
    ("dtype-float32", lambda: by_weight(X.astype(np.float32))),
]


@pytest.mark.parametrize(("relation", "wrong"), WRONG_WEIGHTS)
def test_wrong_gradients_of_weights(relation: str, wrong: Callable[[], Array]) -> None:
    check(parameter("weight", by_weight(), wrong()), relation)


def test_a_stride_that_leads_to_the_same_size() -> None:
    x = draw(2, 3, 5, 5)
    gradient = draw(2, 4, 3, 3)
    right = ops.conv2d_weight_gradient(x, gradient, (3, 3), **CONV)
    wrong = ops.conv2d_weight_gradient(x, gradient, (3, 3))
    arrays = {"input/0": x, "output_gradient": gradient}
    check(parameter("weight", right, wrong, **arrays), "stride")


def test_wrong_gradients_of_a_bias() -> None:
    right = GRADIENT.sum(axis=(0, 2, 3))
    for relation, wrong in (
        ("detached-branch", right * 0),
        ("missing-accumulation", GRADIENT[0].sum(axis=(1, 2))),
        ("constant-factor", GRADIENT.mean(axis=(0, 2, 3))),
    ):
        hint = check(parameter("bias", right, wrong), relation)
        assert relation != "constant-factor" or hint.text == "is 1/100 times the reference"


def test_a_gradient_that_the_case_does_not_give_is_not_explained() -> None:
    wrong = by_weight(padding=(0, 2, 0, 2))
    assert relations(parameter("weight", by_weight(), wrong, **{"input/0": X + 1})) == []


# ---- normalisation ----------------------------------------------------------------------------
Z, ARRIVING = draw(4, 3, 5, 6) + 0.3, draw(4, 3, 5, 6, seed=1)
MEAN, VARIANCE = draw(3), np.abs(draw(3)) * 0.01 + 1e-3
BATCH = norms.batch_statistics(Z)
SCALE, SHIFT = np.array([0.5, -1.5, 0.8]), draw(3)
NORM: dict[str, Any] = {"weight": SCALE, "eps": 1e-5, "batch": True}


def through(gradient: Array = ARRIVING, mean: Array = BATCH[0], variance: Array = BATCH[1],
            **options: Any) -> norms.NormGradients:  # fmt: skip
    return norms.normalise_gradients(Z, gradient, mean, variance, **{**NORM, **options})


def norm_case(which: str, reference: Array, actual: Array, **spec: Any) -> FailureCase:
    return make_case(
        "layer_gradient" if which == "input" else "parameter_gradient",
        reference,
        actual,
        arrays={
            "input/0": Z,
            "output_gradient": ARRIVING,
            "parameter/weight": SCALE,
            "parameter/bias": SHIFT,
            "buffer/running_mean": MEAN,
            "buffer/running_var": VARIANCE,
        },
        spec={"torch": {"kind": "batch_norm", "eps": 1e-5, **spec}},
        name="bn" if which == "input" else f"bn.{which}",
        mode="train",
    )


WRONG_NORMS: list[tuple[str, str, Callable[[], norms.NormGradients]]] = [
    ("eps", "input", lambda: through(eps=1e-3)),
    ("eps", "weight", lambda: through(eps=1.1e-5)),
    ("frozen-statistics", "input", lambda: through(batch=False)),
    (
        "running-statistics",
        "weight",
        lambda: through(mean=MEAN, variance=VARIANCE, batch=False),
    ),
    ("absolute-weight", "input", lambda: through(weight=np.abs(SCALE) + 1e-5)),
    (
        "missing-accumulation",
        "weight",
        lambda: through(ARRIVING * np.eye(4)[0].reshape(4, 1, 1, 1)),
    ),
]


@pytest.mark.parametrize(("relation", "which", "wrong"), WRONG_NORMS)
def test_wrong_gradients_of_norms(
    relation: str, which: str, wrong: Callable[[], norms.NormGradients]
) -> None:
    check(norm_case(which, getattr(through(), which), getattr(wrong(), which)), relation)


def test_wrong_gradients_of_an_inplace_abn() -> None:
    scale = np.abs(SCALE) + 1e-5
    given = norms.normalise(Z, *BATCH, weight=scale, bias=SHIFT, eps=1e-5)

    def gradient(slope: float) -> Array:
        arriving = np.where(given > 0, ARRIVING, slope * ARRIVING)
        return through(arriving, weight=scale).weight * np.sign(SCALE)

    spec = {"kind": "inplace_abn", "negative_slope": 0.01}
    right = gradient(0.01)
    check(norm_case("weight", right, gradient(1.0), **spec), "missing-activation")
    check(norm_case("weight", right, gradient(0.2), **spec), "activation-slope")
    check(norm_case("weight", right, gradient(0.0), **spec), "activation-slope")
    plain = norm_case("weight", right, np.abs(right) * -1, **spec)
    assert "plain-weight" not in relations(plain)


# ---- what a layer sends back ------------------------------------------------------------------
def back(kind: str, x: Array, gradient: Array, reference: Array, actual: Array, **spec: Any):
    arrays = {"input/0": x, "output_gradient": gradient, **spec.pop("arrays", {})}
    options = {"torch": {"kind": kind, **spec}}
    return make_case("layer_gradient", reference, actual, arrays=arrays, spec=options, mode="train")


def test_an_average_pool_whose_divisor_is_a_float32_number() -> None:
    x, gradient = draw(2, 3, 7, 8), draw(2, 3, 4, 4)
    options: dict[str, Any] = {"stride": (2, 2), "padding": (1, 1, 1, 1)}
    spec = {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": True}

    def flow(**more: Any) -> Array:
        return pools.avg_pool2d_gradient(x, gradient, (3, 3), **{**options, **more})

    right = flow()
    wrong = flow(ninth_as_float32=True)
    assert 1e-9 < np.abs(wrong - right).max() / np.abs(right).max() < 1e-7
    arguments = ("avg_pool2d", x, gradient, right)
    check(back(*arguments, wrong, **spec), "dtype-float32")
    check(back(*arguments, flow(count_include_pad=False), **spec), "count-include-pad")
    wrong = pools.max_pool2d_gradient(x, gradient, (3, 3), **options)
    check(back(*arguments, wrong, **spec), "max-for-average")


def test_wrong_gradients_of_resizings() -> None:
    x, gradient = draw(2, 3, 4, 5), draw(2, 3, 8, 10)

    def flow(rounding: Any = "exact", **options: Any) -> Array:
        pairs = zip((4, 5), (8, 10), strict=True)
        axes = [pools.bilinear_matrix(o, n, **options, rounding=rounding) for o, n in pairs]
        return pools.apply_axes_gradient(gradient, axes[0], axes[1])

    spec = {"mode": "bilinear", "align_corners": False}
    arguments = ("upsample", x, gradient, flow(align_corners=False))
    check(back(*arguments, flow(align_corners=True), **spec), "align-corners")
    wrong = flow("places", align_corners=True)
    check(back(*arguments, wrong, **spec), "align-corners")
    wrong = flow(align_corners=False, align_mode=1)
    check(back(*arguments, wrong, **spec), "align-mode")


def test_wrong_gradients_of_activations() -> None:
    x, gradient = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    right = np.where(x > 0, gradient, 0)
    check(back("relu", x, gradient, right, gradient), "missing-activation")
    wrong = np.where(x > 0, gradient, 0.01 * gradient)
    check(back("relu", x, gradient, right, wrong), "activation-slope")


def test_wrong_gradients_at_a_convolutions_input() -> None:
    weight, gradient = draw(3, 3, 3, 3), draw(2, 3, 5, 5)
    x = draw(2, 3, 9, 9)

    def flow(own: Array = weight, **options: Any) -> Array:
        return ops.conv2d_input_gradient(own, gradient, (9, 9), **{**CONV, **options})

    spec = {"stride": 2, "padding": 1, "arrays": {"parameter/weight": weight}}
    arguments = ("conv2d", x, gradient, flow())
    check(back(*arguments, flow(padding=(0, 2, 0, 2)), **spec), "padding-side")
    spec = {"stride": 2, "padding": 1, "arrays": {"parameter/weight": weight}}
    check(back(*arguments, flow(weight.swapaxes(0, 1)), **spec), "transposed-weight")


# ---- composite layers -------------------------------------------------------------------------
FEATURE, ATTENTION = draw(2, 4, 5, 6), ops.sigmoid(draw(2, 4, 1, 1))
OUT, POOLED = draw(2, 4, 5, 6, seed=1), draw(2, 4, 1, 1, seed=2)
FUSION = {
    "child/convblk": FEATURE,
    "child/sigmoid": ATTENTION,
    "output_gradient": OUT,
    "gradient/handed/conv/0": POOLED,
}


def fusion(reference: Array, actual: Array, **arrays: Array) -> FailureCase:
    return make_case(
        "layer_gradient",
        reference,
        actual,
        arrays={**FUSION, **arrays},
        spec={"torch": {"kind": "composite"}},
        mode="train",
    )


def test_a_detached_branch_in_a_sum_of_uses() -> None:
    """d feature of feature x attention + feature, whose mean goes into the attention."""
    spread = np.broadcast_to(POOLED / 30, OUT.shape)
    right = OUT * ATTENTION + OUT + spread
    hint = check(fusion(right, OUT * ATTENTION + OUT), "detached-branch")
    assert "gradient back from conv through a mean" in hint.text
    check(fusion(right, OUT + spread), "detached-branch")
    check(fusion(right, right / 2), "constant-factor")
    check(fusion(right, right * 0), "detached-branch")


def test_the_gradient_of_a_broadcast_factor() -> None:
    right = (OUT * FEATURE).sum(axis=(2, 3), keepdims=True)
    wrong = (OUT * FEATURE).sum(axis=(2, 3), keepdims=True) / 30
    check(fusion(right, wrong), "constant-factor")
    assert relations(fusion(right, draw(*right.shape, seed=3))) == []


def test_the_gradient_out_of_a_concatenation() -> None:
    joined = draw(2, 10, 5, 6)
    arrays = {"gradient/handed/fuse/0": joined}
    right, wrong = joined[:, :4], joined[:, 6:]
    hint = explain(fusion(right, wrong, **arrays))[0]
    assert "channels 6 to 9 in place of" in hint.text
    check(fusion(right + OUT, OUT, **arrays), "detached-branch")
