"""Evaluation during a training: the confusion matrix of all ranks, and a picture to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paddle import Tensor

from common.config import Config
from common.pictures import prediction_picture
from common.protocols import configured
from common.read_failure import CannotReadError, Reader, ReadFailure
from for_paddle.backend import no_grad, to_numpy
from for_paddle.data import val_loader
from for_paddle.distributed import all_reduce_array, rank, world_size
from for_paddle.evaluate import evaluate
from for_paddle.metrics import ConfusionMatrix
from for_paddle.models import Network
from for_paddle.reading import agree_on_reading

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Validation:
    """The result of one evaluation."""

    matrix: NDArray[np.int64]
    """(classes + 1, classes) over all ranks; common.iou scores it."""
    picture: NDArray[np.uint8] | None
    """(H, W, 3) RGB: image, label and prediction of this rank's first sample, if it has any."""


def validate(
    model: Network, config: Config, *, image_of: Callable[[Batch], Tensor], reader: Reader
) -> Validation:
    """Evaluate on the validation set by the recipe's protocol, each sample on one rank.

    Args:
        model: in evaluation mode.
        config: of the run.
        image_of: returns a batch's image as the network takes it.
        reader: of this process.

    Raises:
        ReadingError: on all ranks, where any of them cannot read its samples.
    """
    classes = config.model.classes
    loader = val_loader(config.data, classes=classes, world_size=world_size(), rank=rank())
    first: list[Batch] = []
    read = reader.batches(loader, wanted=lambda: "the evaluation")
    rule = config.eval
    failure: ReadFailure | None = None
    confusion: ConfusionMatrix | None = None
    try:
        confusion = evaluate(
            model,
            _prepared(read, first, image_of),
            classes=classes,
            ignore_index=config.data.ignore_index,
            protocol=configured(rule.protocol, crop_hw=rule.crop_hw, short_side=rule.short_side),
        )
    except CannotReadError as error:
        failure = error.failure
    agree_on_reading(failure)
    assert confusion is not None
    matrix = all_reduce_array(confusion.matrix())
    return Validation(matrix, _picture(model, first[0], config, image_of) if first else None)


def _prepared(
    loader: Iterable[dict[str, Any]], first: list[Batch], image_of: Callable[[Batch], Tensor]
) -> Iterator[dict[str, Any]]:
    """Yield the batches with images as the network takes them; put the first one aside."""
    for batch in loader:
        if not first:
            first.append(batch)
        yield {**batch, "image": image_of(batch)}


def _picture(
    model: Network, batch: Batch, config: Config, image_of: Callable[[Batch], Tensor]
) -> NDArray[np.uint8]:
    with no_grad():
        logits = model(image_of(batch))["main"]
    return prediction_picture(
        to_numpy(batch["image"])[0],
        to_numpy(batch["label"])[0],
        to_numpy(logits)[0].argmax(axis=0),
        data=config.data,
        classes=config.model.classes,
    )
