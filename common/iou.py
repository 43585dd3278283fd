"""Segmentation scores from a confusion matrix, in integers and float64.

A matrix has shape (classes + 1, classes): row = label, column = prediction; the last row counts
the predictions on void pixels. Counts are int64: the float32 counters of several public
implementations stop counting at 2**24 pixels of a class, eight Cityscapes frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config_sections import AbsentClass
from common.errors import DataError

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]


def check_labels(label: NDArray[Any], *, classes: int, ignore_index: int) -> None:
    """Raise if a label map holds a value that is neither a class nor void.

    Args:
        label: (H, W) or (N, H, W), integer.
        classes: labels are 0..classes-1.
        ignore_index: label value of void pixels.

    Raises:
        DataError: naming the values, and the sample of the batch that holds the first of them.
    """
    wrong = ((label < 0) | (label >= classes)) & (label != ignore_index)
    if not wrong.any():
        return
    where = "the label map has"
    if label.ndim > 2:
        sample = int(np.argwhere(wrong)[0, 0])
        wrong, label = wrong[sample], label[sample]
        where = f"sample {sample} of the batch has"
    values = np.unique(label[wrong])
    shown = ", ".join(str(int(value)) for value in values[:8]) + (
        ", ..." if len(values) > 8 else ""
    )
    raise DataError(
        f"{where} label value{'s' if len(values) > 1 else ''} {shown}; "
        f"expected 0..{classes - 1} or {ignore_index} ({int(wrong.sum())} pixels are wrong). "
        "Raw label ids? Convert them to training ids; or correct the number of classes"
    )


def confusion_matrix(
    prediction: NDArray[Any], label: NDArray[Any], *, classes: int, ignore_index: int
) -> Counts:
    """Count the pixels of every (label, prediction) pair.

    Args:
        prediction: integer class map in 0..classes-1, any shape.
        label: integer, same shape, in 0..classes-1 or ignore_index.
        classes: number of classes.
        ignore_index: label value of void pixels.

    Returns:
        (classes + 1, classes) int64; the last row counts predictions on void pixels.

    Raises:
        DataError: dtype, shape or values that cannot be counted.
    """
    for name, array in (("prediction", prediction), ("label", label)):
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"{name} has dtype {array.dtype}; expected integers, a class per pixel")
    if prediction.shape != label.shape:
        raise DataError(
            f"prediction has shape {prediction.shape}; expected the label's {label.shape}"
        )
    check_labels(label, classes=classes, ignore_index=ignore_index)
    if prediction.size and not (prediction.min() >= 0 and prediction.max() < classes):
        raise DataError(
            f"prediction has values {prediction.min()}..{prediction.max()}; "
            f"expected 0..{classes - 1}"
        )
    row = np.where(label == ignore_index, classes, label).astype(np.int64)
    index = row * classes + prediction.astype(np.int64)
    counts = np.bincount(index.ravel(), minlength=(classes + 1) * classes)
    return counts.astype(np.int64).reshape(classes + 1, classes)


def iou_per_class(matrix: Counts, *, count_void: bool = False, smooth: int = 0) -> Scores:
    """Return intersection over union of every class.

    Args:
        matrix: (classes + 1, classes) integer counts.
        count_void: True counts predictions on void pixels as false positives.
        smooth: added to the denominator.

    Returns:
        (classes,) float64 in [0, 1]; NaN where the denominator is 0: the class is in neither the
        labels nor the counted predictions.
    """
    hit, labelled, predicted = _totals(matrix, count_void=count_void)
    return _ratio(hit, labelled + predicted - hit + smooth)


def mean_iou(matrix: Counts, *, absent: AbsentClass, count_void: bool = False) -> float:
    """Return the mean of the per-class IoU.

    Args:
        matrix: (classes + 1, classes) integer counts.
        absent: a class in neither labels nor predictions is left out ("skip", the official
            Cityscapes evaluator), counted "zero" or "one" (PaddleSeg), or every denominator is
            increased by one ("plus_one", CoinCheung/BiSeNet@6b4b67a).
        count_void: True counts predictions on void pixels as false positives.

    Returns:
        Mean in [0, 1]; NaN under "skip" when every class is absent.
    """
    if absent == "plus_one":
        return float(iou_per_class(matrix, count_void=count_void, smooth=1).mean())
    scores = iou_per_class(matrix, count_void=count_void)
    if absent == "skip":
        scores = scores[~np.isnan(scores)]
        return float(scores.mean()) if scores.size else float("nan")
    return float(np.nan_to_num(scores, nan=1.0 if absent == "one" else 0.0).mean())


def pixel_accuracy(matrix: Counts) -> float:
    """Return the fraction of the labelled pixels that are right; NaN without labelled pixels."""
    hit, labelled, _ = _totals(matrix, count_void=False)
    return float(_ratio(hit.sum(), labelled.sum()))


def accuracy_per_class(matrix: Counts) -> Scores:
    """Return each class's share of right pixels among those labelled so; NaN if there are none."""
    hit, labelled, _ = _totals(matrix, count_void=False)
    return _ratio(hit, labelled)


def mean_accuracy(matrix: Counts) -> float:
    """Return the mean of the per-class accuracy over the labelled classes; NaN without any."""
    scores = accuracy_per_class(matrix)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if scores.size else float("nan")


def kappa(matrix: Counts) -> float:
    """Return Cohen's kappa over the labelled pixels: agreement beyond what chance would give.

    1 is perfect, 0 what independent draws with the same class frequencies reach; NaN where chance
    alone agrees everywhere (one class only), or without labelled pixels.
    """
    hit, labelled, predicted = _totals(matrix, count_void=False)
    total = labelled.sum()
    observed = _ratio(hit.sum(), total)
    by_chance = _ratio((labelled.astype(np.float64) * predicted).sum(), float(total) ** 2)
    return float(_ratio(observed - by_chance, 1.0 - by_chance))


def frequency_weighted_iou(matrix: Counts, *, smooth: int = 0) -> float:
    """Return the IoU averaged with each class's share of the labelled pixels as its weight."""
    labelled = _totals(matrix, count_void=False)[1]
    scores = np.nan_to_num(iou_per_class(matrix, smooth=smooth), nan=0.0)
    return float(_ratio((labelled * scores).sum(), labelled.sum()))


def f1_per_class(matrix: Counts) -> Scores:
    """Return F1 = 2 hit / (labelled + predicted), (classes,) float64; NaN for absent classes."""
    hit, labelled, predicted = _totals(matrix, count_void=False)
    return _ratio(2 * hit, labelled + predicted)


def image_mean_iou(matrix: Counts) -> float:
    """Return the mean IoU of one image over the classes in its own label.

    The 2019 score (CoinCheung/BiSeNet@2d6d8f1) is the mean of this over the images; it is not
    comparable to a mean IoU of the whole set.

    Args:
        matrix: (classes + 1, classes) integer counts of a single image.
    """
    scores = iou_per_class(matrix)[_totals(matrix, count_void=False)[1] > 0]
    return float(scores.mean()) if scores.size else float("nan")


def _totals(matrix: Counts, *, count_void: bool) -> tuple[Counts, Counts, Counts]:
    """Return hits, labelled pixels and predicted pixels per class."""
    if not np.issubdtype(matrix.dtype, np.integer):
        raise DataError(f"confusion matrix has dtype {matrix.dtype}; expected integer counts")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise DataError(
            f"confusion matrix has shape {matrix.shape}; expected (classes + 1, classes), "
            "the last row for predictions on void pixels"
        )
    if (matrix < 0).any():
        raise DataError(f"confusion matrix has the count {matrix.min()}; expected none below 0")
    counted = matrix if count_void else matrix[:-1]
    return np.diagonal(matrix), matrix[:-1].sum(axis=1), counted.sum(axis=0)


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Divide in float64, NaN where the denominator is 0."""
    below = np.asarray(denominator, dtype=np.float64)
    safe = np.where(below == 0, np.nan, below)
    return np.asarray(numerator, dtype=np.float64) / safe
