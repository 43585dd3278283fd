"""Confusion matrix, counted on the device in 64-bit integers.

Scores are computed from it by common.iou. CoinCheung/BiSeNet counts in float32, which stops at
2**24 pixels.
"""

from __future__ import annotations

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from common.errors import DataError
from common.iou import check_labels
from for_paddle.backend import to_numpy, to_tensor


class ConfusionMatrix:
    """Counts of every (label, prediction) pair over all updates.

    Args:
        classes: number of classes; predictions are 0..classes-1.
        ignore_index: label value of void pixels.
    """

    def __init__(self, *, classes: int, ignore_index: int) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        # made at the first update, on the device of the predictions
        self._counts: Tensor | None = None

    def update(self, logits_or_prediction: Tensor, label: Tensor) -> None:
        """Count one batch.

        Args:
            logits_or_prediction: (N, C, H, W) floating-point scores, of which the first largest
                is the prediction, or (N, H, W) integer classes.
            label: (N, H, W) integer, 0..classes-1 or ignore_index.

        Raises:
            DataError: shapes, dtypes or values that cannot be counted.
        """
        prediction = self._classes_of(logits_or_prediction)
        if tuple(prediction.shape) != tuple(label.shape):
            raise DataError(
                f"prediction has shape {tuple(prediction.shape)}; "
                f"expected the label's {tuple(label.shape)}"
            )
        label = label.astype(paddle.int64)
        void = label == self.ignore_index
        known = (label >= 0) & (label < self.classes) | void
        possible = (prediction >= 0) & (prediction < self.classes)
        row = paddle.where(void, paddle.full_like(label, self.classes), label)
        # whatever cannot be counted goes to one more bin, which must stay empty
        size = (self.classes + 1) * self.classes
        index = row * self.classes + prediction
        index = paddle.where(known & possible, index, paddle.full_like(index, size))
        counts = paddle.bincount(index.flatten(), minlength=size + 1)
        if int(counts[size]) > 0:
            check_labels(to_numpy(label), classes=self.classes, ignore_index=self.ignore_index)
            raise DataError(
                f"prediction has values {int(prediction.min())}..{int(prediction.max())}; "
                f"expected 0..{self.classes - 1}"
            )
        self._add(counts[:size])

    def merge(self, matrix: NDArray[np.int64]) -> None:
        """Add the counts of another matrix, for example another process's."""
        expected = (self.classes + 1, self.classes)
        if matrix.shape != expected or matrix.dtype != np.int64:
            raise DataError(
                f"confusion matrix has shape {matrix.shape} and dtype {matrix.dtype}; "
                f"expected {expected} and int64"
            )
        self._add(to_tensor(matrix.reshape(-1)))

    def matrix(self) -> NDArray[np.int64]:
        """Return (classes + 1, classes) int64: row = label (last: void), column = prediction."""
        if self._counts is None:
            return np.zeros((self.classes + 1, self.classes), dtype=np.int64)
        return to_numpy(self._counts).reshape(self.classes + 1, self.classes)

    def _add(self, counts: Tensor) -> None:
        self._counts = counts if self._counts is None else self._counts + counts

    def _classes_of(self, logits_or_prediction: Tensor) -> Tensor:
        if not paddle.is_floating_point(logits_or_prediction):
            return logits_or_prediction.astype(paddle.int64)
        shape = tuple(logits_or_prediction.shape)
        if len(shape) != 4 or shape[1] != self.classes:
            raise DataError(
                f"scores have shape {shape}; expected (N, {self.classes}, H, W). "
                "A class map must have an integer dtype"
            )
        return logits_or_prediction.argmax(axis=1)
