import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import evaluateImgLists
from cityscapesscripts.helpers.labels import id2label, labels
from numpy.typing import NDArray

from common.errors import DataError
from common.iou import (
    accuracy_per_class,
    check_labels,
    confusion_matrix,
    f1_per_class,
    frequency_weighted_iou,
    image_mean_iou,
    iou_per_class,
    kappa,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)

PAIRS = ("all_classes", "absent_classes", "uneven_images")
VOID = 255

# rows: label a, b, c (never labelled), d (absent on both sides), void
TOY = np.array(
    [
        [6, 1, 1, 0],
        [2, 4, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [5, 0, 0, 0],
    ],
    dtype=np.int64,
)


def test_counts_by_hand() -> None:
    label = np.array([[0, 0, 1], [1, VOID, VOID]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1], [0, 0, 1]], dtype=np.int64)
    matrix = confusion_matrix(prediction, label, classes=2, ignore_index=VOID)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [6 / 10, 4 / 7, 0.0, np.nan]),
        ({"count_void": True}, [6 / 15, 4 / 7, 0.0, np.nan]),
        ({"smooth": 1}, [6 / 11, 4 / 8, 0.0, 0.0]),
    ],
)
def test_iou_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(iou_per_class(TOY, **options), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("absent", "expected"),
    [
        ("skip", (6 / 10 + 4 / 7) / 3),
        ("zero", (6 / 10 + 4 / 7) / 4),
        ("one", (6 / 10 + 4 / 7 + 1) / 4),
        ("plus_one", (6 / 11 + 4 / 8) / 4),
    ],
)
def test_mean_iou_by_hand(absent: Any, expected: float) -> None:
    assert mean_iou(TOY, absent=absent) == pytest.approx(expected, rel=1e-15)


def test_other_scores_by_hand() -> None:
    assert pixel_accuracy(TOY) == pytest.approx(10 / 14, rel=1e-15)
    assert image_mean_iou(TOY) == pytest.approx((6 / 10 + 4 / 7) / 2, rel=1e-15)
    expected = (8 * 6 / 10 + 6 * 4 / 7) / 14
    assert frequency_weighted_iou(TOY) == pytest.approx(expected, rel=1e-15)
    np.testing.assert_allclose(f1_per_class(TOY), [12 / 16, 8 / 11, 0.0, np.nan], rtol=1e-15)
    np.testing.assert_allclose(accuracy_per_class(TOY), [6 / 8, 4 / 6, np.nan, np.nan], rtol=1e-15)
    assert mean_accuracy(TOY) == pytest.approx((6 / 8 + 4 / 6) / 2, rel=1e-15)


def test_kappa_by_hand() -> None:
    # labels 8, 6 and predictions 8, 5, 1 of 14: by chance (8*8 + 6*5) / 14**2 agree
    assert kappa(TOY) == pytest.approx((10 / 14 - 94 / 196) / (1 - 94 / 196), rel=1e-14)
    # two independent halves agree by chance alone; a perfect map is 1; all wrong of two is -1
    assert kappa(np.array([[5, 5], [5, 5], [9, 9]])) == 0.0
    assert kappa(np.array([[3, 0], [0, 4], [9, 9]])) == 1.0
    assert kappa(np.array([[0, 4], [4, 0], [0, 0]])) == -1.0
    # one class on both sides: chance agrees everywhere, and there is nothing beyond it
    assert math.isnan(kappa(np.array([[7, 0], [0, 0], [0, 0]])))
    large = np.array([[2**40, 2**38], [2**37, 2**40], [0, 0]])
    assert kappa(large) == pytest.approx(kappa(large // 2**30), rel=1e-14)


def test_without_any_labelled_pixel_scores_are_nan_and_nothing_warns() -> None:
    empty = np.zeros((4, 3), dtype=np.int64)
    assert math.isnan(mean_iou(empty, absent="skip"))
    assert math.isnan(pixel_accuracy(empty))
    assert math.isnan(mean_accuracy(empty))
    assert math.isnan(kappa(empty))
    assert math.isnan(frequency_weighted_iou(empty))
    assert math.isnan(image_mean_iou(empty))
    assert mean_iou(empty, absent="one") == 1.0


def test_counts_above_the_range_of_float32_and_int32() -> None:
    matrix = np.array([[2**53 // 4, 1], [0, 2**24 + 1], [0, 0]], dtype=np.int64)
    assert iou_per_class(matrix)[1] == (2**24 + 1) / (2**24 + 2)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_public_convention(golden: Path, pair: str) -> None:
    expected = json.loads((golden / "metrics/metrics.json").read_text())["pairs"][pair]
    prediction, label, counts = golden_pair(golden, pair)
    matrix = confusion_matrix(prediction, label, classes=19, ignore_index=VOID)
    np.testing.assert_array_equal(matrix[:19], counts)
    # the golden file holds 14 digits
    exact = {"rel": 1e-13, "abs": 1e-13, "nan_ok": True}

    plain = expected["coincheung_a8ddd22_and_stdc"]
    assert list(iou_per_class(matrix)) == pytest.approx(numbers(plain["ious"]), **exact)

    current = expected["coincheung_6b4b67a"]
    # that implementation computes in float32
    rounded = {"rel": 3e-7, "abs": 1e-7}
    assert list(iou_per_class(matrix, smooth=1)) == pytest.approx(current["ious"], **rounded)
    assert mean_iou(matrix, absent="plus_one") == pytest.approx(current["miou"], **rounded)
    weighted = frequency_weighted_iou(matrix, smooth=1)
    assert weighted == pytest.approx(current["fw_miou"], **rounded)

    paddleseg = expected["paddleseg_d7975e7"]
    assert mean_iou(matrix, absent="one") == pytest.approx(paddleseg["miou"], **exact)
    assert pixel_accuracy(matrix) == pytest.approx(paddleseg["acc"], **exact)
    dice = np.nan_to_num(f1_per_class(matrix), nan=0.0)
    assert list(dice) == pytest.approx(paddleseg["class_dice"], **exact)
    assert kappa(matrix) == pytest.approx(paddleseg["kappa"], **exact)
    recall = np.nan_to_num(accuracy_per_class(matrix), nan=0.0)
    assert list(recall) == pytest.approx(paddleseg["class_recall"], **exact)

    evaluator = expected["cityscapesscripts"]
    assert list(iou_per_class(matrix)) == pytest.approx(numbers(evaluator["class_iou"]), **exact)
    assert mean_iou(matrix, absent="skip") == pytest.approx(evaluator["miou"], **exact)

    scores = [
        image_mean_iou(confusion_matrix(p, t, classes=19, ignore_index=VOID))
        for p, t in zip(prediction, label, strict=True)
    ]
    assert scores == pytest.approx(expected["coincheung_2d6d8f1"]["per_image"], **exact)


@pytest.mark.parametrize("classes_present", [19, 12])
def test_equals_the_official_evaluator_on_the_same_files(
    tmp_path: Path, classes_present: int
) -> None:
    rng = np.random.default_rng(7)
    label = rng.integers(0, classes_present, (3, 24, 40)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, 19, label.shape))
    # class 11 is predicted on void pixels only
    prediction = np.where(prediction == 11, 12, prediction).astype(np.uint8)
    label = np.where(label == 11, 3, label)
    void = rng.random(label.shape) < 0.1
    label[void] = VOID
    prediction[void & (rng.random(label.shape) < 0.5)] = 11

    theirs = official_scores(tmp_path, prediction=prediction, label=label)
    matrix = confusion_matrix(prediction, label, classes=19, ignore_index=VOID)
    names = [entry.name for entry in labels if 0 <= entry.trainId < 19]
    expected = [theirs["classScores"][name] for name in names]
    assert math.isnan(expected[11])
    np.testing.assert_array_equal(iou_per_class(matrix), expected)
    assert mean_iou(matrix, absent="skip") == pytest.approx(
        theirs["averageScoreClasses"], rel=1e-15
    )


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([[0.0]], [[0]], "prediction has dtype float64"),
        ([[0]], [[0.5]], "label has dtype float64"),
        ([[0, 1]], [[0]], r"prediction has shape \(1, 2\); expected the label's \(1, 1\)"),
        ([[3]], [[0]], r"prediction has values 3\.\.3; expected 0\.\.2"),
        ([[-1]], [[0]], r"prediction has values -1\.\.-1; expected 0\.\.2"),
        ([[0]], [[200]], r"label value 200; expected 0\.\.2 or 255"),
    ],
)
def test_what_cannot_be_counted_is_named(prediction: Any, label: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        confusion_matrix(np.array(prediction), np.array(label), classes=3, ignore_index=VOID)


def test_wrong_labels_are_named_with_their_sample() -> None:
    label = np.zeros((5, 2, 3), dtype=np.int64)
    label[1, 0, 0] = VOID
    label[3, 1, 1] = 200
    label[3, 1, 2] = -1
    label[4, 0, 0] = 19
    message = r"sample 3 of the batch has label values -1, 200; expected 0\.\.18 or 255"
    with pytest.raises(DataError, match=message):
        check_labels(label, classes=19, ignore_index=VOID)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 3), dtype=np.int64), r"shape \(3, 3\); expected \(classes \+ 1, classes\)"),
        (np.zeros((4, 3)), "dtype float64"),
        (np.full((4, 3), -2), "count -2"),
    ],
)
def test_what_is_no_confusion_matrix_is_refused(matrix: NDArray[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        iou_per_class(matrix)


def golden_pair(golden: Path, pair: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    with np.load(golden / "metrics/metrics.npz") as arrays:
        names = ("pred", "label", "confusion_label_by_pred")
        prediction, label, counts = (arrays[f"{pair}/{name}"] for name in names)
        return prediction, label, counts


def numbers(values: list[Any]) -> list[float]:
    return [float(value) for value in values]


def official_scores(
    folder: Path, *, prediction: NDArray[np.uint8], label: NDArray[np.uint8]
) -> dict[str, Any]:
    """Write the maps as label-id files and hand them to the official evaluator."""
    to_id = np.zeros(256, dtype=np.uint8)
    for entry in id2label.values():
        if 0 <= entry.trainId < 19:
            to_id[entry.trainId] = entry.id
    files: dict[str, list[str]] = {"pred": [], "gtFine_labelIds": []}
    for kind, maps in (("pred", prediction), ("gtFine_labelIds", label)):
        for number, class_map in enumerate(maps):
            path = folder / f"town_000000_{number:06d}_{kind}.png"
            assert cv2.imwrite(str(path), to_id[class_map])
            files[kind].append(str(path))
    # options of its own, so that the module's global ones stay as they are
    options = SimpleNamespace(
        evalLabels=[],
        evalInstLevelScore=False,
        evalPixelAccuracy=False,
        JSONOutput=False,
        quiet=True,
    )
    return evaluateImgLists(files["pred"], files["gtFine_labelIds"], options)
