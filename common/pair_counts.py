"""Counting of (label, prediction) pairs on the host, in one pass over the pixels.

common.iou.confusion_matrix is the plain form of the same count; this one compares no pixel with
a class: what cannot be counted is found in the counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.iou import check_labels

# pixels counted at a time: what is computed of them stays in the processor's cache
_PIXELS = 1 << 16
# labels up to here are rows of a table that stays there, too
_ROWS = 4096


def count_pairs(
    prediction: NDArray[Any], label: NDArray[Any], *, classes: int, ignore_index: int
) -> NDArray[np.int64]:
    """Count the pixels of every (label, prediction) pair.

    Args:
        prediction: integer class map in 0..classes-1, any shape.
        label: integer, same shape, in 0..classes-1 or ignore_index.
        classes: number of classes.
        ignore_index: label value of void pixels.

    Returns:
        (classes + 1, classes) int64: row = label (last: void), column = prediction.

    Raises:
        DataError: values that cannot be counted.
    """
    counts = np.zeros((classes + 1, classes), dtype=np.int64)
    flat_prediction, flat_label = prediction.reshape(-1), label.reshape(-1)
    for start in range(0, label.size, _PIXELS):
        part = slice(start, start + _PIXELS)
        if not _add_pairs(counts, flat_prediction[part], flat_label[part], ignore_index):
            check_labels(label, classes=classes, ignore_index=ignore_index)
            raise DataError(
                f"prediction has values {prediction.min()}..{prediction.max()}; "
                f"expected 0..{classes - 1}"
            )
    return counts


def _add_pairs(
    counts: NDArray[np.int64], prediction: NDArray[Any], label: NDArray[Any], ignore_index: int
) -> bool:
    """Add the counts of some pixels, (pixels,) each; False if a value cannot be counted."""
    classes = counts.shape[1]
    if prediction.min() < 0 or prediction.max() >= classes or label.min() < 0:
        return False
    rows = int(label.max()) + 1
    if rows > _ROWS:
        if ((label >= classes) & (label != ignore_index)).any():
            return False
        label, ignore_index, rows = (
            np.where(label == ignore_index, classes, label),
            classes,
            classes + 1,
        )
    pairs = np.multiply(label, classes, dtype=np.int64)
    pairs += prediction
    found = np.bincount(pairs, minlength=rows * classes).reshape(rows, classes)
    present = np.flatnonzero(found.any(axis=1))
    if ((present >= classes) & (present != ignore_index)).any():
        return False
    void = present == ignore_index
    counts[present[~void]] += found[present[~void]]
    counts[classes] += found[present[void]].sum(axis=0)
    return True
