"""Evaluation engine: the confusion matrix of a model over a loader's batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from paddle import nn

from for_paddle.backend import no_grad
from for_paddle.metrics import ConfusionMatrix


def evaluate(
    model: nn.Layer,
    batches: Iterable[Mapping[str, Any]],
    *,
    classes: int,
    ignore_index: int,
) -> ConfusionMatrix:
    """Predict every batch at its own size and count predictions against labels.

    Args:
        model: switched to evaluation mode here and back to its mode afterwards.
        batches: dicts with "image" (N, 3, H, W) and "label" (N, H, W) int64.
        classes: number of classes C; labels are 0..C-1 and ignore_index.
        ignore_index: label value of void pixels.

    Returns:
        The filled matrix; common.iou turns it into IoU and mIoU.
    """
    was_training = model.training
    model.eval()
    confusion = ConfusionMatrix(classes=classes, ignore_index=ignore_index)
    with no_grad():
        for batch in batches:
            confusion.update(model(batch["image"])["main"], batch["label"])
    if was_training:
        model.train()
    return confusion
