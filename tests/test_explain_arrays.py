"""Relations of two arrays, of composite layers and of what they hand on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.explain import explain, ops, pools
from pipeline.failure import FailureCase
from tests.failing_cases import Array, check, draw, make_case, relations

REFERENCE = draw(2, 6, 8, 10)


def shifted(down: int, right: int) -> Array:
    """The map moved within a larger one: what comes in is new."""
    larger = draw(2, 6, 10, 12, seed=3)
    larger[:, :, 1:9, 1:11] = REFERENCE
    return larger[:, :, 1 - down : 9 - down, 1 - right : 11 - right].copy()


def with_border(mode: str) -> Array:
    return ops.pad(REFERENCE[:, :, 1:-1, 1:-1], (1, 1, 1, 1), mode=mode)


def as_float16(array: Array) -> Array:
    return array.astype(np.float16).astype(array.dtype)


WRONG_ARRAYS: list[tuple[str, Callable[[], Array]]] = [
    ("zero", lambda: REFERENCE * 0),
    ("negative", lambda: -REFERENCE),
    ("doubled", lambda: 2 * REFERENCE),
    ("constant-factor", lambda: REFERENCE / 3),
    ("constant-factor", lambda: REFERENCE * 0.123456789),
    ("dtype-float32", lambda: REFERENCE * (9 * float(np.float32(1 / 9)))),
    ("constant-offset", lambda: REFERENCE + 0.25),
    ("swapped-channels", lambda: REFERENCE[:, [0, 4, 2, 3, 1, 5]]),
    ("swapped-channels", lambda: REFERENCE[:, ::-1]),
    ("swapped-channels", lambda: np.roll(REFERENCE, 2, axis=1)),
    ("flip", lambda: REFERENCE[..., ::-1]),
    ("flip", lambda: REFERENCE[:, :, ::-1]),
    ("shift", lambda: shifted(1, 0)),
    ("shift", lambda: shifted(-1, 1)),
    ("border", lambda: with_border("zeros")),
    ("border", lambda: with_border("replicate")),
    ("extra-activation", lambda: np.maximum(REFERENCE, 0)),
    ("extra-activation", lambda: ops.sigmoid(REFERENCE)),
    ("extra-activation", lambda: ops.leaky_relu(REFERENCE, 0.01)),
    ("dtype-float32", lambda: REFERENCE.astype(np.float32).astype(np.float64)),
    ("dtype-float16", lambda: as_float16(REFERENCE)),
    ("swapped-heads", lambda: draw(2, 6, 8, 10, seed=9)),
]


@pytest.mark.parametrize(("relation", "wrong"), WRONG_ARRAYS)
def test_relations_of_arrays(relation: str, wrong: Callable[[], Array]) -> None:
    arrays = {"sibling/aux3": draw(2, 6, 8, 10, seed=9), "sibling/aux4": draw(2, 6, 8, 10, seed=4)}
    check(make_case("layer", REFERENCE, wrong(), arrays=arrays), relation)


TEXTS = {
    "is 1/3 times the reference": REFERENCE / 3,
    "keeps the constant 1/9 as a float32 number": REFERENCE * (9 * float(np.float32(1 / 9))),
    "has its channels in another order: 1 and 4 exchanged": REFERENCE[:, [0, 4, 2, 3, 1, 5]],
    "has its channels in another order: halves swapped": REFERENCE[:, [3, 4, 5, 0, 1, 2]],
    "has its channels in another order: shuffled in 2 groups": REFERENCE[:, [0, 3, 1, 4, 2, 5]],
    "is shifted by one pixel up and right": shifted(-1, 1),
    "is zero in a border 1 wide (top, bottom, left, right)": with_border("zeros"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_said_of_arrays(text: str) -> None:
    assert explain(make_case("layer", REFERENCE, TEXTS[text]))[0].text == text


def test_maps_of_another_shape() -> None:
    doubled = pools.apply_axes(
        REFERENCE,
        *(pools.bilinear_matrix(n, 2 * n, align_corners=False) for n in REFERENCE.shape[2:]),
    )
    shapes = {
        "cropped": REFERENCE[:, :, :7, :9],
        "padded": ops.pad(REFERENCE, (0, 1, 0, 2)),
        "extra-resize": doubled,
        "transposed": REFERENCE.swapaxes(2, 3),
        "reshaped": REFERENCE.reshape(2, 3, 8, 20),
    }
    for relation, wrong in shapes.items():
        assert relations(make_case("layer", REFERENCE, wrong))[0] == relation
        other = draw(*wrong.shape, seed=6)
        assert relations(make_case("layer", REFERENCE, other)) == []


def test_what_was_computed_in_a_shorter_dtype() -> None:
    """No rounding of the right values: sums in float32, each step rounded."""
    x, weight = draw(4, 40), draw(30, 40)
    right = x @ weight.T
    wrong = (x.astype(np.float32) @ weight.T.astype(np.float32)).astype(np.float64)
    hint = check(make_case("layer", right, wrong), "dtype-float32")
    assert "computed in float32" in hint.text
    # a tensor that holds few numbers proves nothing
    assert relations(make_case("layer", right, np.round(right))) == []


def test_matching_channels_is_fast_and_needs_all_of_them() -> None:
    wide = draw(2, 1024, 4, 8)
    order = np.random.default_rng(0).permutation(1024)
    assert relations(make_case("layer", wide, wide[:, order]))[0] == "swapped-channels"
    wrong = wide[:, order]
    wrong[0, 5, 1, 1] += 1e-6
    assert relations(make_case("layer", wide, wrong)) == []


# ---- composite layers -------------------------------------------------------------------------
FEATURE, ATTENTION = draw(2, 4, 5, 6), ops.sigmoid(draw(2, 4, 1, 1))
OTHER, INPUT = draw(2, 4, 5, 6, seed=1), draw(2, 4, 5, 6, seed=2)
FUSED = FEATURE * ATTENTION + FEATURE


def composite(reference: Array, actual: Array, **more: Array) -> FailureCase:
    arrays = {
        "child/convblk": FEATURE,
        "child/sigmoid": ATTENTION,
        "child/other": OTHER,
        "input/0": INPUT,
        **{key.replace("__", "/"): array for key, array in more.items()},
    }
    spec = {"torch": {"kind": "composite"}}
    return make_case("layer", reference, actual, arrays=arrays, spec=spec)


JOINED = np.concatenate([FEATURE, OTHER, INPUT], axis=1)
COMPOSITES: list[tuple[str, Array, Array]] = [
    ("missing-residual", FUSED, FEATURE * ATTENTION),
    ("missing-residual", OTHER + INPUT, OTHER),
    ("missing-term", FEATURE + OTHER, OTHER),
    ("extra-term", FEATURE * ATTENTION, FUSED),
    ("scaled-term", FEATURE + OTHER, FEATURE - OTHER),
    ("scaled-term", FEATURE + OTHER, FEATURE + 2 * OTHER),
    ("product-for-sum", FEATURE + OTHER, FEATURE * OTHER),
    ("sum-for-product", FEATURE * OTHER, FEATURE + OTHER),
    ("missing-factor", FEATURE * ATTENTION, FEATURE),
    ("extra-factor", FEATURE, FEATURE * ATTENTION),
    ("other-part", FEATURE, OTHER),
    ("other-combination", FUSED, OTHER + INPUT * ATTENTION),
    ("missing-activation", np.maximum(FEATURE + INPUT, 0), FEATURE + INPUT),
    ("extra-activation", FEATURE + INPUT, np.maximum(FEATURE + INPUT, 0)),
    ("extra-activation", OTHER, np.maximum(OTHER, 0)),
    ("concat-order", JOINED, np.concatenate([OTHER, FEATURE, INPUT], axis=1)),
    ("other-part", JOINED, np.concatenate([FEATURE, OTHER, OTHER], axis=1)),
    ("missing-residual", np.concatenate([FEATURE], axis=1) + INPUT, FEATURE),
]


@pytest.mark.parametrize(("relation", "reference", "actual"), COMPOSITES)
def test_wrong_composites(relation: str, reference: Array, actual: Array) -> None:
    check(composite(reference, actual), relation)


def test_what_is_said_of_a_composite() -> None:
    hint = explain(composite(FUSED, FEATURE * ATTENTION))[0]
    assert hint.text == (
        "is child convblk x child sigmoid in place of child convblk + child convblk x child sigmoid"
    )


def test_a_concatenation_with_something_added() -> None:
    shortcut = draw(2, 12, 5, 6)
    arrays: dict[str, Any] = {"child__shortcut": shortcut}
    check(composite(JOINED + shortcut, JOINED, **arrays), "missing-term")
    swapped = np.concatenate([OTHER, FEATURE, INPUT], axis=1)
    check(composite(JOINED + shortcut, swapped + shortcut, **arrays), "concat-order")


def resized(array: Array, new: tuple[int, int], **options: Any) -> Array:
    pairs = zip(array.shape[2:], new, strict=True)
    return pools.apply_axes(
        array,
        *(pools.bilinear_matrix(o, n, **{"align_corners": False, **options}) for o, n in pairs),
    )


def nearest(array: Array, new: tuple[int, int]) -> Array:
    pairs = zip(array.shape[2:], new, strict=True)
    return pools.apply_axes(array, *(pools.nearest_matrix(o, n) for o, n in pairs))


LARGE = (9, 11)
MADE: list[tuple[str, Array, Array]] = [
    ("align-corners", resized(OTHER, LARGE, align_corners=True), resized(OTHER, LARGE)),
    ("align-mode", resized(OTHER, LARGE), resized(OTHER, LARGE, align_mode=1)),
    ("nearest-for-bilinear", resized(OTHER, LARGE), nearest(OTHER, LARGE)),
    ("bilinear-for-nearest", nearest(OTHER, LARGE), resized(OTHER, LARGE)),
    ("padding-mode", ops.pad(INPUT, (0, 3, 0, 2)), ops.pad(INPUT, (0, 3, 0, 2), mode="replicate")),
    ("padding-side", ops.pad(INPUT, (0, 3, 0, 2)), ops.pad(INPUT, (3, 0, 2, 0))),
    ("off-by-one-crop", OTHER[:, :, :4, :4], OTHER[:, :, 1:, 1:5]),
    ("bilinear-for-nearest", nearest(OTHER, LARGE) + nearest(INPUT, LARGE),
     resized(OTHER, LARGE) + resized(INPUT, LARGE)),
]  # fmt: skip


@pytest.mark.parametrize(("relation", "reference", "actual"), MADE)
def test_what_a_layer_makes_of_its_parts(relation: str, reference: Array, actual: Array) -> None:
    check(composite(reference, actual), relation)


def test_the_channels_of_a_picture_handed_on() -> None:
    image, other = draw(2, 3, 6, 8), draw(2, 5, 6, 8)
    arrays = {"input/0": image, "child/stem": other}
    check(make_case("layer", image, image[:, ::-1], arrays=arrays), "swapped-channels")


def test_float32_composites() -> None:
    narrow = {k: a.astype(np.float32) for k, a in (("f", FEATURE), ("a", ATTENTION))}
    arrays = {"child/convblk": narrow["f"], "child/sigmoid": narrow["a"]}
    product = narrow["f"] * narrow["a"]
    case = make_case("layer", product + narrow["f"], product, arrays=arrays)
    check(case, "missing-residual")


def test_kinds_without_a_module_get_no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(explain.__globals__["MODULES"], "series", "not_there")
    assert explain(make_case("series", np.ones(3), np.zeros(3))) == []
