"""Every wrong count and average that is known by name is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from explained import Array, assert_named, assert_silent, case_of, relations, unrelated, with_actual

from pipeline.explain.metric import explain_metric
from pipeline.failure import FailureCase

CLASSES, IGNORE, REPEATS = 5, 255, 17


def pictures() -> tuple[Array, Array]:
    """Return predictions and labels, (3, 10, 12); class 4 occurs in neither."""
    rng = np.random.default_rng(6)
    label = rng.integers(0, 4, (3, 10, 12))
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, 4, label.shape))
    label[rng.random(label.shape) < 0.1] = IGNORE
    return prediction, label


def count(prediction: Array, label: Array) -> Array:
    """Count pixel by pixel; the last row is void."""
    matrix = np.zeros((CLASSES + 1, CLASSES), np.int64)
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        matrix[CLASSES if t == IGNORE else t, p] += 1
    return matrix


PREDICTION, LABEL = pictures()
ONE = count(PREDICTION, LABEL)


def counts_case(actual: Any, *, name: str = "matrix") -> FailureCase:
    arrays = {
        "reference": (REPEATS if name == "matrix" else 1) * ONE,
        "actual": actual,
        "prediction": PREDICTION,
        "label": LABEL,
    }
    settings = {"classes": CLASSES, "ignore_index": IGNORE, "repeats": REPEATS}
    return case_of("metric", name, arrays, settings, step="metric", key=f"all/{name}")


def changed(change: Callable[[Array], None]) -> Array:
    matrix = REPEATS * ONE
    change(matrix)
    return matrix


def _transpose(matrix: Array) -> None:
    matrix[:-1] = matrix[:-1].T.copy()


def _forget_void(matrix: Array) -> None:
    matrix[-1] = 0


def _void_is_class_0(matrix: Array) -> None:
    matrix[0] += matrix[-1]
    matrix[-1] = 0


WRONG: list[tuple[str, Callable[[], Array]]] = [
    ("transposed-matrix", lambda: changed(_transpose)),
    ("void-dropped", lambda: changed(_forget_void)),
    ("ignore-index", lambda: changed(_void_is_class_0)),
    ("classes-off-by-one", lambda: REPEATS * count((PREDICTION + 1) % CLASSES, LABEL)),
    ("overwritten", lambda: ONE),
    ("overwritten", lambda: REPEATS * count(PREDICTION[-1:], LABEL[-1:])),
    ("updates", lambda: (REPEATS - 1) * ONE),
    ("flip", lambda: REPEATS * count(PREDICTION[:, :, ::-1], LABEL)),
    ("dtype", lambda: (REPEATS * ONE).astype(np.uint8).astype(np.int64)),
]


@pytest.mark.parametrize(("relation", "wrong"), WRONG)
def test_a_wrong_matrix_is_named(relation: str, wrong: Callable[[], Array]) -> None:
    case = counts_case(wrong())
    assert_named(explain_metric, case, relation)
    other = case.arrays["actual"].copy()
    other[1, 2] += 1
    assert_silent(explain_metric, with_actual(case, other))


def test_the_first_image_alone_of_one_update_is_told() -> None:
    case = counts_case(count(PREDICTION[:1], LABEL[:1]), name="device_matrix")
    assert_named(explain_metric, case, "overwritten")


def test_counts_beyond_the_reach_of_float32_are_told() -> None:
    matrix = np.zeros((3, 2), np.int64)
    matrix[0, 0], matrix[1, 1] = 2**24 + 1, 5
    arrays = {"reference": matrix, "actual": matrix.astype(np.float32).astype(np.int64)}
    settings = {"classes": 2, "ignore_index": IGNORE, "repeats": 1}
    assert_named(explain_metric, case_of("metric", "matrix", arrays, settings), "dtype")


def ious(*, void: bool = False, plus: int = 0) -> Array:
    """IoU per class from the pictures themselves, -1 for an absent class."""
    found: list[float] = []
    for c in range(CLASSES):
        counted = np.ones(LABEL.shape, np.bool_) if void else LABEL != IGNORE
        hit = ((c == PREDICTION) & (c == LABEL)).sum()
        union = (((c == PREDICTION) & counted) | (c == LABEL)).sum() + plus
        found.append(hit / union if union else -1.0)
    return np.array(found)


def mean(absent: float | None, **options: Any) -> float:
    values = ious(**options)
    if absent is None:
        return float(values[values >= 0].mean())
    return float(np.where(values < 0, absent, values).mean())


def average_case(name: str, actual: Any) -> FailureCase:
    right = {
        "iou": ious(),
        "miou_skip": mean(None),
        "miou_zero": mean(0.0),
        "miou_skip_void": mean(None, void=True),
        "accuracy": (PREDICTION == LABEL)[LABEL != IGNORE].mean(),
    }[name]
    arrays = {"reference": right, "actual": actual, "matrix": ONE}
    settings = {"classes": CLASSES, "ignore_index": IGNORE, "repeats": 1}
    return case_of("metric", name, arrays, settings, step="metric", key=f"all/{name}")


AVERAGES: list[tuple[str, str, Any]] = [
    ("absent-class", "miou_skip", mean(0.0)),
    ("absent-class", "miou_skip", mean(1.0)),
    ("absent-class", "miou_zero", mean(None)),
    ("absent-class", "miou_skip", mean(None, plus=1) * 4 / 5),
    ("void-counted", "miou_skip", mean(None, void=True)),
    ("void-counted", "miou_skip_void", mean(None)),
    ("void-counted", "iou", ious(void=True)),
    ("void-counted", "accuracy", (PREDICTION == LABEL).mean()),
    ("another-average", "miou_skip", (PREDICTION == LABEL)[LABEL != IGNORE].mean()),
    ("scale-100", "accuracy", 100 * (PREDICTION == LABEL)[LABEL != IGNORE].mean()),
]


@pytest.mark.parametrize(("relation", "name", "actual"), AVERAGES)
def test_a_wrong_average_is_named(relation: str, name: str, actual: Any) -> None:
    case = average_case(name, actual)
    if name == "miou_skip" and relation == "absent-class" and actual == mean(None, plus=1) * 4 / 5:
        # plus_one divides by all classes; the absent one adds 0
        case = average_case(name, mean(None, plus=1))
    assert_named(explain_metric, case, relation)


def test_another_denominator_of_the_iou_is_told() -> None:
    labelled = np.array([(c == LABEL).sum() for c in range(CLASSES)])
    hits = np.array([((c == PREDICTION) & (c == LABEL)).sum() for c in range(CLASSES)])
    recall = np.where(labelled > 0, hits / np.maximum(labelled, 1), -1.0)
    hints = explain_metric(average_case("iou", recall))
    assert relations(hints) == ["iou-denominator"]
    assert "accuracy per class" in hints[0].text


def test_unrelated_numbers_have_no_hint() -> None:
    rng = np.random.default_rng(1)
    assert_silent(explain_metric, counts_case(rng.integers(0, 99, ONE.shape)))
    for name in ("iou", "miou_skip", "accuracy"):
        assert_silent(explain_metric, unrelated(average_case(name, 0.0)))
