"""Wrong samples, labels and orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.faults.patching import Fault, Patch, replaced


def _in_transform(name: str, change: Callable[..., Any]) -> Patch:
    """Return a patch of one named step of the training transform: ``change(step)``."""

    def make(right: Any, side: Any) -> Any:
        def train_transform(data: Any) -> Any:
            transform = right(data)
            steps = [(n, change(step) if n == name else step) for n, step in transform.steps]
            return type(transform)(tuple(steps))

        return train_transform

    return replaced(lambda side: side.data, "train_transform", make)


def _image_only(step: Any) -> Any:
    def flip(image: Any, label: Any, rng: Any) -> Any:
        return step(image, label, rng)[0], label

    return flip


def _shifted(step: Any) -> Any:
    def crop(image: Any, label: Any, rng: Any) -> Any:
        cut, labels = step(image, label, rng)
        return np.roll(cut, 1, axis=1), labels

    return crop


def _swapped_statistics(step: Any) -> Any:
    mean, std = step.keywords["mean"], step.keywords["std"]
    return type(step)(step.func, mean=std, std=mean)


def _bgr(right: Any, side: Any) -> Any:
    def read(*args: Any, **options: Any) -> Any:
        image, label = right(*args, **options)
        return np.ascontiguousarray(image[..., ::-1]), label

    return read


def _mapped_twice(right: Any, side: Any) -> Any:
    # raw ids 7, 8, 11, 12, 13, 17 are classes; train ids of the same value are not
    table = np.full(256, 255, np.uint8)
    for raw, train in ((7, 0), (8, 1), (11, 2), (12, 3), (13, 4), (17, 5)):
        table[raw] = train

    def read(*args: Any, **options: Any) -> Any:
        image, label = right(*args, **options)
        return image, table[label]

    return read


def _unshuffled(right: Any, side: Any) -> Any:
    def batches(length: int, **options: Any) -> Iterator[Any]:
        for batch in right(length, **options):
            yield [key._replace(index=(key.index + 1) % length) for key in batch]

    return batches


def _strided_ranks(right: Any, side: Any) -> Any:
    def batches(length: int, **options: Any) -> Iterator[Any]:
        world, rank, size = options["world_size"], options["rank"], options["batch_size"]
        whole = {**options, "world_size": 1, "rank": 0, "batch_size": size * world}
        for batch in right(length, **whole):
            yield batch[rank::world]

    return batches


def _data(side: Any) -> Any:
    return side.data


DATA = (
    Fault(
        "flip_without_label",
        "data",
        "train*_flip/label",
        "labels are not flipped",
        _in_transform("flip", _image_only),
        why="flip",
    ),
    Fault(
        "crop_off_by_one",
        "data",
        "train*_crop/image",
        "image and label cropped one pixel apart",
        _in_transform("crop", _shifted),
        why="off-by-one-crop",
    ),
    Fault(
        "mean_std_swapped",
        "data",
        "train*_normalise/image",
        "mean and std swapped",
        _in_transform("normalise", _swapped_statistics),
        why="mean-std",
    ),
    Fault(
        "bgr",
        "data",
        "*_read/image",
        "images stay BGR",
        replaced(_data, "read_sample", _bgr),
        why="bgr",
    ),
    Fault(
        "labels_mapped_twice",
        "data",
        "*_read/label",
        "train ids mapped as raw ids again",
        replaced(_data, "read_sample", _mapped_twice),
        why="label-mapping",
    ),
    Fault(
        "sampler_order",
        "data",
        "train_loader/world1/*/names",
        "another order of samples",
        replaced(_data, "train_batches", _unshuffled),
        why="sample-shifted",
    ),
    Fault(
        "rank_split",
        "data",
        "train_loader/world2/*/names",
        "ranks take alternate samples",
        replaced(_data, "train_batches", _strided_ranks),
        why="rank-split",
    ),
)
