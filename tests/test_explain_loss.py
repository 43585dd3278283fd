"""Every wrong loss that is known by name is named, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from explained import (
    Array,
    assert_named,
    assert_silent,
    case_of,
    relations,
    unrelated,
    with_actual,
)

from pipeline.explain.loss import explain_logits_gradient, explain_loss
from pipeline.explain.pixel_loss import means_of_hardest, pixels_of
from pipeline.failure import FailureCase

IGNORE, N, C, H, W = 255, 3, 6, 8, 12
LOSS: dict[str, Any] = {
    "ohem": "valid_fraction",
    "threshold": 0.7,
    "divisor": 16,
    "min_kept": 50,
    "head_weights": {},
    "detail_ignore_void": False,
    "detail_ignore_frame": False,
}
HARD = float(np.float32(-math.log(np.float32(0.7))))


def drawn(boost: float) -> tuple[Array, Array]:
    """Return logits and labels; with a boost most pixels are easy."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, C, (N, H, W))
    label[rng.random(label.shape) < 0.2] = IGNORE
    logits = 1.5 * rng.standard_normal((N, C, H, W))
    easy = rng.random((N, 1, H, W)) < 0.99
    logits += boost * easy * (label[:, None] == np.arange(C)[:, None, None])
    return logits, label


MIXED, EASY = drawn(2.0), drawn(12.0)


def pixels(logits: Array, label: Array) -> Array:
    """Cross entropy of each pixel, pixel by pixel; 0 where void."""
    losses = np.zeros(label.shape)
    for place in np.argwhere(label != IGNORE):
        n, y, x = place
        scores = logits[n, :, y, x]
        losses[n, y, x] = math.log(sum(math.exp(s) for s in scores)) - scores[label[n, y, x]]
    return losses


def ohem(losses: Array, n_min: int, limit: float = HARD) -> Array:
    kept = losses[losses > limit]
    return kept if len(kept) >= n_min else np.sort(losses.ravel())[::-1][:n_min]


def valid(label: Array) -> int:
    return int((label != IGNORE).sum())


def right(logits: Array, label: Array) -> float:
    return float(ohem(pixels(logits, label), valid(label) // 16).mean())


def term_case(
    data: tuple[Array, Array], actual: Any, *, loss: dict[str, Any] | None = None
) -> FailureCase:
    logits, label = data
    settings = {"loss": {**LOSS, **(loss or {})}, "ignore_index": IGNORE, "classes": C}
    reference = right(logits, label)
    if settings["loss"]["ohem"] == "none":
        reference = pixels(logits, label).sum() / valid(label)
    arrays = {
        "reference": reference,
        "actual": actual,
        "label": label,
        "logits/main": logits,
        "term/main/reference": reference,
        "term/main/actual": actual,
        "term/aux16/reference": 1.2345678,
        "term/aux16/actual": 1.2345678,
    }
    return case_of("loss", "main", arrays, settings)


def void_as_class(logits: Array, label: Array) -> float:
    filled = np.where(label == IGNORE, 0, label)
    return float(ohem(pixels(logits, filled), label.size // 16).mean())


def smoothed(logits: Array, label: Array) -> float:
    losses = pixels(logits, label)
    log_sum = np.log(np.exp(logits).sum(1))
    everywhere = np.where(label != IGNORE, log_sum - logits.mean(1), 0)
    return float(ohem(0.9 * losses + 0.1 * everywhere, valid(label) // 16).mean())


def over_rows(logits: Array, label: Array) -> float:
    likely = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    picked = np.take_along_axis(likely, np.where(label == IGNORE, 0, label)[:, None], 1)[:, 0]
    return float(ohem(np.where(label == IGNORE, 0, -picked), valid(label) // 16).mean())


def softmax_twice(logits: Array, label: Array) -> float:
    powers = np.exp(logits)
    return right(powers / powers.sum(1, keepdims=True), label)


def image_by_image(logits: Array, label: Array) -> float:
    parts = [
        ohem(pixels(logits[i : i + 1], label[i : i + 1]), valid(label[i : i + 1]) // 16).mean()
        for i in range(N)
    ]
    return float(np.mean(parts))


def min_kept(logits: Array, label: Array) -> float:
    """PaddleSeg's rule with min_kept 50, on pictures with more hard pixels than that."""
    losses = pixels(logits, label)
    kept = losses > HARD
    assert kept.sum() > 50
    fraction = np.float32(kept.sum()) / np.float32(kept.size) + np.float32(1e-5)
    return float((losses * kept).mean() / np.float64(fraction))


def hardest(count: int, logits: Array, label: Array) -> float:
    return float(np.sort(pixels(logits, label).ravel())[::-1][:count].mean())


def hard(limit: float, logits: Array, label: Array) -> float:
    return float(ohem(pixels(logits, label), valid(label) // 16, limit).mean())


def base_two(logits: Array, label: Array) -> float:
    return float(ohem(pixels(logits, label) / math.log(2), valid(label) // 16).mean())


WRONG: tuple[tuple[str, tuple[Array, Array], Callable[[Array, Array], float]], ...] = (
    ("ignore-index", MIXED, void_as_class),
    ("ignore-index-in-mean", MIXED, lambda x, t: float(pixels(x, t).sum() / t.size)),
    ("ohem-mean", MIXED, lambda x, t: float(ohem(pixels(x, t), 1).sum() / t.size)),
    ("ohem-missing", MIXED, lambda x, t: float(pixels(x, t).sum() / valid(t))),
    ("ohem-rule", EASY, lambda x, t: float(ohem(pixels(x, t), t.size // 16).mean())),
    ("ohem-rule", MIXED, min_kept),
    ("ohem-threshold", MIXED, partial(hard, 0.7)),
    ("ohem-threshold", MIXED, partial(hard, -math.log(0.5))),
    ("ohem-always", MIXED, lambda x, t: hardest(valid(t) // 16, x, t)),
    ("ohem-never", EASY, lambda x, t: float(pixels(x, t)[pixels(x, t) > HARD].mean())),
    ("ohem-n-min", EASY, lambda x, t: hardest(valid(t) // 16 + 1, x, t)),
    ("ohem-n-min", EASY, lambda x, t: hardest(valid(t) // 8, x, t)),
    ("ohem-kept", MIXED, partial(hardest, 123)),
    ("reduction", MIXED, lambda x, t: float(ohem(pixels(x, t), 1).sum())),
    ("reduction", MIXED, lambda x, t: float(pixels(x, t).sum() / N)),
    ("reduction", MIXED, image_by_image),
    ("label-smoothing", MIXED, smoothed),
    ("softmax-axis", MIXED, over_rows),
    ("softmax-twice", MIXED, softmax_twice),
    ("log-base", MIXED, base_two),
    ("dtype", MIXED, lambda x, t: right(x.astype(np.float16).astype(float), t)),
    ("dtype", MIXED, lambda x, t: right(x.astype(np.float32).astype(float), t)),
    ("swapped-heads", MIXED, lambda *_: 1.2345678),
    ("dropped-term", MIXED, lambda *_: 0.0),
    ("doubled-term", MIXED, lambda x, t: 2 * right(x, t)),
    ("sign", MIXED, lambda x, t: -right(x, t)),
)


@pytest.mark.parametrize(("relation", "data", "wrong"), WRONG)
def test_a_wrong_term_is_named(
    relation: str, data: tuple[Array, Array], wrong: Callable[[Array, Array], float]
) -> None:
    assert_named(explain_loss, term_case(data, wrong(*data)), relation)


def on_the_threshold() -> tuple[Array, Array]:
    """Return the mixed pictures with one pixel whose loss is the threshold to the last bit."""
    logits, label = MIXED[0].copy(), MIXED[1]
    n, y, x = np.argwhere(label != IGNORE)[0]
    logits[n, :, y, x] = -1000.0
    logits[n, label[n, y, x], y, x] = 0.0
    other = (label[n, y, x] + 1) % C
    near = math.log(math.exp(HARD) - 1)
    for step in range(-200, 200):
        logits[n, other, y, x] = near + step * np.spacing(near)
        made = pixels_of(logits, label, ignore_index=IGNORE)
        if made.losses[np.ravel_multi_index((n, y, x), label.shape)] == HARD:
            return logits, label
    raise AssertionError("no logit gives the threshold exactly")


def test_a_comparison_that_includes_the_threshold_is_named() -> None:
    data = on_the_threshold()
    losses = pixels(*data)
    reference = losses[losses > HARD + 1e-12].mean()
    case = term_case(data, losses[losses > HARD - 1e-12].mean())
    case = case_of("loss", "main", {**case.arrays, "reference": reference}, case.settings)
    assert_named(explain_loss, case, "strict-comparison")


def test_the_means_of_the_hardest_are_those_of_a_sorted_list() -> None:
    losses = np.array([0.5, 3.0, 1.0])
    np.testing.assert_allclose(means_of_hardest(losses, "kept"), [3.0, 2.0, 1.5])


@pytest.mark.parametrize("data", [MIXED, EASY])
def test_an_unrelated_number_has_no_hint(data: tuple[Array, Array]) -> None:
    for seed in range(5):
        assert_silent(explain_loss, unrelated(term_case(data, 0.0), seed))


def test_without_the_right_logits_only_relations_of_terms_are_tried() -> None:
    case = term_case(MIXED, void_as_class(*MIXED))
    wrong = {**case.arrays, "reference": np.asarray(0.987)}
    assert_silent(explain_loss, case_of("loss", "main", wrong, case.settings))
    wrong["actual"] = np.asarray(1.2345678)
    assert relations(explain_loss(case_of("loss", "main", wrong, case.settings))) == [
        "swapped-heads"
    ]


def test_a_mean_over_nothing_is_told() -> None:
    logits = MIXED[0]
    void = np.full((N, H, W), IGNORE)
    case = term_case(MIXED, float("nan"))
    arrays = {**case.arrays, "label": void, "logits/main": logits, "reference": np.asarray(0.0)}
    hints = explain_loss(case_of("loss", "main", arrays, case.settings))
    assert relations(hints) == ["empty-mean"]


# --- the total -----------------------------------------------------------------------------------

TERMS = {"main": (1.1, 0.7, 2.3), "aux16": (0.9, 1.3, 0.4), "aux32": (0.5, 0.2, 1.7)}
RULE_OF_TERMS = {"head_weights": {"aux16": 0.5}}


def total_case(weights: dict[str, float]) -> FailureCase:
    arrays: dict[str, Any] = {"label": MIXED[1]}
    for number, folder in enumerate(("term", "elsewhere/easy", "elsewhere/void")):
        own = {name: values[number] for name, values in TERMS.items()}
        for name, value in own.items():
            arrays |= {f"{folder}/{name}/{side}": value for side in ("reference", "actual")}
        published = {"main": 1.0, "aux16": 0.5, "aux32": 1.0}
        arrays[f"{folder}/total/reference"] = sum(published[k] * v for k, v in own.items())
        arrays[f"{folder}/total/actual"] = sum(weights[k] * v for k, v in own.items())
    arrays |= {side: arrays[f"term/total/{side}"] for side in ("reference", "actual")}
    settings = {"loss": {**LOSS, **RULE_OF_TERMS}, "ignore_index": IGNORE}
    return case_of("loss", "total", arrays, settings)


@pytest.mark.parametrize(
    ("relation", "weights", "words"),
    [
        ("dropped-term", (1.0, 0.5, 0.0), "aux32"),
        ("dropped-term", (0.0, 0.5, 1.0), "main"),
        ("doubled-term", (2.0, 0.5, 1.0), "main"),
        ("term-weight", (1.0, 1.0, 1.0), "without the heads' weights"),
        ("term-weight", (1.0, 0.5, 0.37), "aux32 by 0.37 instead of 1"),
        ("term-weight", (1.0, 0.25, 0.25), "aux16 and aux32 by 0.25"),
        ("reduction", (1 / 3, 0.5 / 3, 1 / 3), "mean of the terms"),
    ],
)
def test_a_wrong_total_is_explained_by_its_weights(
    relation: str, weights: tuple[float, float, float], words: str
) -> None:
    hints = explain_loss(total_case(dict(zip(TERMS, weights, strict=True))))
    assert relations(hints)[0] == relation
    assert words in hints[0].text


def test_totals_that_no_single_weight_explains_have_no_hint() -> None:
    assert_silent(explain_loss, total_case({"main": 1.1, "aux16": 0.3, "aux32": 0.8}))


# --- the gradient at the logits ------------------------------------------------------------------


def gradient(logits: Array, label: Array, kept: Array) -> Array:
    """(softmax - one hot) / kept pixels, where kept and not void."""
    powers = np.exp(logits)
    slope = powers / powers.sum(1, keepdims=True)
    slope -= label[:, None] == np.arange(C)[:, None, None]
    counted = kept & (label != IGNORE)
    return slope * counted[:, None] / kept.sum()


def gradient_case(actual: Array | None = None, *, weight: float = 1.0) -> FailureCase:
    logits, label = MIXED
    reference = weight * gradient(logits, label, pixels(logits, label) > HARD)
    other = np.random.default_rng(9).standard_normal(reference.shape)
    arrays = {
        "reference": reference,
        "actual": reference if actual is None else actual,
        "label": label,
        "logits/aux16": logits,
        "gradient/main/reference": other,
        "gradient/main/actual": other,
    }
    settings = {
        "loss": {**LOSS, "head_weights": {"aux16": weight}},
        "ignore_index": IGNORE,
        "classes": C,
    }
    return case_of("logits_gradient", "aux16", arrays, settings)


def wrong_gradients() -> list[tuple[str, Array, float]]:
    logits, label = MIXED
    case = gradient_case()
    reference = case.arrays["reference"]
    everywhere = np.ones(label.shape, np.bool_)
    filled = np.where(label == IGNORE, 0, label)
    losses = pixels(logits, filled)
    return [
        ("detached-branch", 0 * reference, 1.0),
        ("sign", -reference, 1.0),
        ("doubled-term", 2 * reference, 1.0),
        ("term-weight", 0.3 * reference, 1.0),
        ("term-weight", reference, 0.4),
        ("swapped-heads", case.arrays["gradient/main/reference"], 1.0),
        ("ohem-missing", gradient(logits, label, label != IGNORE), 1.0),
        ("ignore-index-in-mean", gradient(logits, label, everywhere), 1.0),
        ("ignore-index", gradient(logits, filled, losses > HARD), 1.0),
    ]


@pytest.mark.parametrize(("relation", "actual", "weight"), wrong_gradients())
def test_a_wrong_gradient_is_named(relation: str, actual: Array, weight: float) -> None:
    case = with_actual(gradient_case(weight=weight), actual)
    assert_named(explain_logits_gradient, case, relation)


def test_an_unrelated_gradient_has_no_hint() -> None:
    assert_silent(explain_logits_gradient, unrelated(gradient_case()))
