"""Confusion matrix, counted in 64-bit integers: on the device, or by NumPy for CPU tensors.

Scores are computed from it by common.iou. CoinCheung/BiSeNet counts in float32, which stops at
2**24 pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import DataError
from common.pair_counts import count_pairs
from for_torch.backend import count_values, host_view, to_numpy


class ConfusionMatrix:
    """Counts of every (label, prediction) pair over all updates.

    Args:
        classes: number of classes; predictions are 0..classes-1.
        ignore_index: label value of void pixels.
        host_counts: False counts CPU tensors as those of a device, by the framework's operations.
    """

    def __init__(self, *, classes: int, ignore_index: int, host_counts: bool = True) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.host_counts = host_counts
        self._matrix = np.zeros((classes + 1, classes), dtype=np.int64)
        # further counts and one for what cannot be counted; made by the first update on a device
        self._counts: Tensor | None = None

    def update(self, logits_or_prediction: Tensor, label: Tensor) -> None:
        """Count one batch; a device is not waited for.

        Args:
            logits_or_prediction: (N, C, H, W) floating-point scores, of which the first largest
                is the prediction, or (N, H, W) integer classes.
            label: (N, H, W) integer, 0..classes-1 or ignore_index.

        Raises:
            DataError: shapes, dtypes or values that cannot be counted. Values on a device other
                than the CPU are reported by matrix(), because to look at them is to wait.
        """
        prediction = self._classes_of(logits_or_prediction)
        if tuple(prediction.shape) != tuple(label.shape):
            raise DataError(
                f"prediction has shape {tuple(prediction.shape)}; "
                f"expected the label's {tuple(label.shape)}"
            )
        label_array = host_view(label) if self.host_counts else None
        prediction_array = host_view(prediction) if self.host_counts else None
        if label_array is None or prediction_array is None:
            self._count_on_device(prediction.to(torch.int64), label.to(torch.int64))
            return
        self._matrix += count_pairs(
            prediction_array, label_array, classes=self.classes, ignore_index=self.ignore_index
        )

    def merge(self, matrix: NDArray[np.int64]) -> None:
        """Add the counts of another matrix, for example another process's."""
        expected = (self.classes + 1, self.classes)
        if matrix.shape != expected or matrix.dtype != np.int64:
            raise DataError(
                f"confusion matrix has shape {matrix.shape} and dtype {matrix.dtype}; "
                f"expected {expected} and int64"
            )
        self._matrix += matrix

    def matrix(self) -> NDArray[np.int64]:
        """Return (classes + 1, classes) int64: row = label (last: void), column = prediction.

        Raises:
            DataError: an update on a device had values that cannot be counted.
        """
        if self._counts is None:
            return self._matrix.copy()
        counts = to_numpy(self._counts)
        if counts[-1] > 0:
            raise DataError(
                f"{int(counts[-1])} pixels could not be counted: expected labels 0.."
                f"{self.classes - 1} or {self.ignore_index} and predictions 0..{self.classes - 1}. "
                "Run the same on the CPU to see the values"
            )
        return self._matrix + counts[:-1].reshape(self._matrix.shape)

    def _count_on_device(self, prediction: Tensor, label: Tensor) -> None:
        void = label == self.ignore_index
        known = (label >= 0) & (label < self.classes) | void
        possible = (prediction >= 0) & (prediction < self.classes)
        row = torch.where(void, torch.full_like(label, self.classes), label)
        size = (self.classes + 1) * self.classes
        index = row * self.classes + prediction
        index = torch.where(known & possible, index, torch.full_like(index, size))
        counts = count_values(index, size=size + 1)
        self._counts = counts if self._counts is None else self._counts + counts

    def _classes_of(self, logits_or_prediction: Tensor) -> Tensor:
        if not torch.is_floating_point(logits_or_prediction):
            return logits_or_prediction
        shape = tuple(logits_or_prediction.shape)
        if len(shape) != 4 or shape[1] != self.classes:
            raise DataError(
                f"scores have shape {shape}; expected (N, {self.classes}, H, W). "
                "A class map must have an integer dtype"
            )
        return logits_or_prediction.argmax(dim=1)
