"""Wrong counts and averages."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.faults.patching import Fault, replaced


def _transposed(right: Any, side: Any) -> Any:
    def matrix(self: Any) -> Any:
        counts = right(self).copy()
        counts[:-1] = counts[:-1].T
        return counts

    return matrix


def _float32_counts(right: Any, side: Any) -> Any:
    return lambda self: right(self).astype(np.float32).astype(np.int64)


def _void_dropped(right: Any, side: Any) -> Any:
    def matrix(self: Any) -> Any:
        counts = right(self).copy()
        counts[-1] = 0
        return counts

    return matrix


def _absent_is_zero(right: Any, side: Any) -> Any:
    def mean_iou(matrix: Any, *, absent: Any, count_void: bool) -> float:
        wrong = "zero" if absent == "skip" else absent
        return right(matrix, absent=wrong, count_void=count_void)

    return mean_iou


def _confusion(side: Any) -> Any:
    return side.metrics.ConfusionMatrix


def _iou_module(side: Any) -> Any:
    from common import iou

    return iou


METRIC = (
    Fault(
        "matrix_transposed",
        "metric",
        "*/matrix",
        "rows are predictions",
        replaced(_confusion, "matrix", _transposed),
        why="transposed-matrix",
    ),
    Fault(
        "matrix_float32",
        "metric",
        "*/matrix",
        "counts kept in float32",
        replaced(_confusion, "matrix", _float32_counts),
        why="dtype",
    ),
    Fault(
        "void_dropped",
        "metric",
        "*/matrix",
        "predictions on void are lost",
        replaced(_confusion, "matrix", _void_dropped),
        why="void-dropped",
    ),
    Fault(
        "miou_averaging",
        "metric",
        "*/miou_skip*",
        "absent classes count as 0 in the mean",
        replaced(_iou_module, "mean_iou", _absent_is_zero),
        why="absent-class",
    ),
)
