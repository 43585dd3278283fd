"""Confusion matrix, counted in 64-bit integers: on the device, or by NumPy for CPU tensors.

Scores are computed from it by common.iou. CoinCheung/BiSeNet counts in float32, which stops at
2**24 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        return self._with(None if self._counts is None else to_numpy(self._counts))

    @staticmethod
    def matrices(confusions: Sequence[ConfusionMatrix]) -> list[NDArray[np.int64]]:
        """Return matrix() of each; what is on a device comes in one transfer.

        Raises:
            DataError: as matrix().
        """
        waiting = [c._counts for c in confusions if c._counts is not None]
        rows = iter(to_numpy(torch.stack(waiting)) if waiting else ())
        return [c._with(None if c._counts is None else next(rows)) for c in confusions]

    def _with(self, counts: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the host's counts and these, of a device, added up."""
        if counts is None:
            return self._matrix.copy()
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


class ImageBlock:
    """Counts and class maps of single images, left on the device until they are read together.

    Args:
        classes: number of classes, at most 256.
        ignore_index: label value of void pixels.
    """

    def __init__(self, *, classes: int, ignore_index: int) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self._confusions: list[ConfusionMatrix] = []
        self._predictions: list[Tensor] = []

    def add(self, prediction: Tensor, label: Tensor) -> None:
        """Take one image, counted at once; a device is not waited for.

        Args:
            prediction: (H, W) integer classes.
            label: (H, W) integer, 0..classes-1 or ignore_index.

        Raises:
            DataError: as ConfusionMatrix.update.
        """
        confusion = ConfusionMatrix(classes=self.classes, ignore_index=self.ignore_index)
        confusion.update(prediction, label)
        self._confusions.append(confusion)
        self._predictions.append(prediction.to(torch.uint8))

    def __len__(self) -> int:
        return len(self._confusions)

    def matrices(self) -> list[NDArray[np.int64]]:
        """Return the images' matrices in order: one transfer for all.

        Raises:
            DataError: as ConfusionMatrix.matrix.
        """
        return ConfusionMatrix.matrices(self._confusions)

    def predictions(self, places: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return the (H, W) class maps of the images at these places: one transfer for all."""
        if not places:
            return []
        chosen = [self._predictions[place] for place in places]
        pixels = to_numpy(torch.cat([p.flatten() for p in chosen], dim=0))
        ends = np.cumsum([math.prod(p.shape) for p in chosen])[:-1]
        parts = np.split(pixels, ends)
        return [part.reshape(p.shape) for part, p in zip(parts, chosen, strict=True)]
