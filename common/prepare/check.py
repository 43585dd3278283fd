"""Looking at a whole data set before days of training are spent on it.

Every image and label of both splits is read: missing and broken files, sizes that differ, values
that are no class, images that are in both splits; and counted: classes, colours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.classes import label_table
from common.config_sections import DataConfig
from common.datasets import Sample, Split, load_samples
from common.errors import DataError
from common.images import read_image, read_label
from common.prepare.jobs import Failure, Progress, run_jobs

Counts = NDArray[np.int64]

SPLITS: tuple[Split, ...] = ("train", "val")
STATISTICS_DIFFER = 0.03
"""Difference of a channel's mean or std from the configuration's, in parts of 1, that is told."""


@dataclass(frozen=True)
class Problem:
    """Something that would spoil or stop a training."""

    kind: str
    """missing, unreadable, size, values, twice, both splits, data set."""
    file: Path
    text: str


@dataclass(frozen=True)
class SampleCheck:
    """What one sample holds, and what is wrong with it."""

    problems: tuple[Problem, ...]
    size_hw: tuple[int, int] | None = None
    labels: Counts | None = None
    """(classes + 1,) pixels of each class, and of void at the end."""
    colours: Counts | None = None
    """(3, 256) pixels of each value, R, G, B."""


@dataclass
class SplitCheck:
    """All samples of a split."""

    samples: list[Sample]
    classes: int
    problems: list[Problem] = field(default_factory=list[Problem])
    good: list[Sample] = field(default_factory=list[Sample])
    """Samples without a problem."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    labels: Counts = field(init=False)
    label_images: Counts = field(init=False)
    """(classes + 1,) images in which a class occurs."""
    colours: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.labels = np.zeros(self.classes + 1, np.int64)
        self.label_images = np.zeros(self.classes + 1, np.int64)
        self.colours = np.zeros((3, 256), np.int64)

    def add(self, sample: Sample, check: SampleCheck) -> None:
        """Count one sample."""
        self.problems += check.problems
        if not check.problems:
            self.good.append(sample)
        if check.size_hw is not None:
            self.sizes[check.size_hw] += 1
        if check.labels is not None:
            self.labels += check.labels
            self.label_images += check.labels > 0
        if check.colours is not None:
            self.colours += check.colours

    def statistics(self) -> tuple[list[float], list[float]] | None:
        """Return mean and std of R, G, B over all pixels, 0..1; None without any pixel."""
        pixels = self.colours.sum(axis=1)
        if not pixels.all():
            return None
        values = np.arange(256) / 255
        mean = self.colours @ values / pixels
        variance = self.colours @ values**2 / pixels - mean**2
        return mean.tolist(), np.sqrt(np.maximum(variance, 0)).tolist()

    def absent(self) -> list[int]:
        """Return the classes that no label holds."""
        return [int(c) for c in np.flatnonzero(self.labels[:-1] == 0)]


@dataclass
class DataCheck:
    """Outcome of ``bisenet check-data``."""

    splits: dict[Split, SplitCheck]
    problems: list[Problem]
    warnings: list[str]

    @property
    def exit_code(self) -> int:
        """0 without problems, else 1."""
        return 1 if self.problems else 0


def check_data(
    data: DataConfig, *, classes: int, workers: int = 0, progress: Progress | None = None
) -> DataCheck:
    """Read every file of both splits.

    Args:
        data: data set and lists.
        classes: number of classes of the network.
        workers: processes; 0 or 1 works in this one.
        progress: told after each sample.

    Raises:
        DataError: neither split can be found.
    """
    splits: dict[Split, SplitCheck] = {}
    problems: list[Problem] = []
    for split in SPLITS:
        try:
            samples = load_samples(data, split, missing_ok=True)
        except DataError as error:
            problems.append(Problem("data set", data.root, str(error)))
            continue
        splits[split] = SplitCheck(samples, classes)
    if not splits:
        raise DataError("; ".join(problem.text for problem in problems))
    every = [(check, sample) for check in splits.values() for sample in check.samples]
    outcomes = run_jobs(
        [sample for _, sample in every],
        partial(check_sample, classes=classes, ignore_index=data.ignore_index),
        name_of=lambda sample: sample.label,
        workers=workers,
        progress=progress,
    )
    for (one, sample), outcome in zip(every, outcomes, strict=True):
        if isinstance(outcome, Failure):
            one.add(sample, SampleCheck((Problem("unreadable", outcome.file, outcome.reason),)))
        else:
            one.add(sample, outcome.result)
    problems += [problem for check in splits.values() for problem in check.problems]
    problems += _repeated(splits)
    return DataCheck(splits, problems, _warnings(splits, data))


def check_sample(sample: Sample, *, classes: int, ignore_index: int) -> SampleCheck:
    """Read one image and its label; every problem is part of the result.

    Raises:
        DataError: the data set's label values do not fit the number of classes.
    """
    table = label_table(sample.encoding, classes=classes, ignore_index=ignore_index)
    problems: list[Problem] = []
    image, label = (
        _read(read_image, sample.image, problems),
        _read(read_label, sample.label, problems),
    )
    labels = None
    if label is not None:
        wrong = table.wrong_values(label)
        if wrong:
            counts = np.bincount(label.ravel(), minlength=256)
            shown = ", ".join(f"{value} ({counts[value]} pixels)" for value in wrong[:8])
            text = f"label values {shown}; expected {sample.encoding} of {classes} classes"
            problems.append(Problem("values", sample.label, text))
        else:
            mapped = np.bincount(table.to_train_ids(label).ravel(), minlength=256)
            void = mapped[ignore_index] if ignore_index >= classes else 0
            labels = np.append(mapped[:classes], void).astype(np.int64)
    if image is None or label is None:
        return SampleCheck(tuple(problems), labels=labels, colours=_colours(image))
    H, W = image.shape[:2]
    if label.shape != (H, W):
        text = f"the label is {label.shape[0]}x{label.shape[1]} (H x W), its image {H}x{W}"
        problems.append(Problem("size", sample.label, text))
    return SampleCheck(tuple(problems), (H, W), labels, _colours(image))


def _read(read: Any, path: Path, problems: list[Problem]) -> Any:
    if not path.is_file():
        problems.append(Problem("missing", path, "no such file"))
        return None
    try:
        return read(path)
    except DataError as error:
        problems.append(Problem("unreadable", path, str(error).removeprefix(f"{path}: ")))
        return None


def _colours(image: NDArray[np.uint8] | None) -> Counts | None:
    if image is None:
        return None
    counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in range(3)]
    # float32 counts are exact up to 2^24 pixels
    if image.shape[0] * image.shape[1] >= 1 << 24:
        counts = [np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]
    return np.array(counts).astype(np.int64)


def _repeated(splits: dict[Split, SplitCheck]) -> list[Problem]:
    problems: list[Problem] = []
    for split, check in splits.items():
        counts = Counter(sample.image for sample in check.samples)
        problems += [
            Problem("twice", image, f"{count} times in {split}")
            for image, count in counts.items()
            if count > 1
        ]
    if len(splits) == len(SPLITS):
        train, val = ({sample.image for sample in splits[split].samples} for split in SPLITS)
        text = "in training and validation: the result would be too good"
        problems += [Problem("both splits", image, text) for image in sorted(train & val)]
    return problems


def _warnings(splits: dict[Split, SplitCheck], data: DataConfig) -> list[str]:
    warnings: list[str] = []
    for split, check in splits.items():
        absent = check.absent()
        if absent:
            warnings.append(f"{split}: no pixel of class {', '.join(map(str, absent))}")
    found = splits["train"].statistics() if "train" in splits else None
    if found is not None:
        for name, actual, configured in zip(
            ("mean", "std"), found, (data.mean, data.std), strict=True
        ):
            if np.abs(np.subtract(actual, configured)).max() > STATISTICS_DIFFER:
                shown = ", ".join(f"{value:.4f}" for value in actual)
                warnings.append(
                    f"train: {name} of the images is ({shown}), data.{name} {tuple(configured)}; "
                    f"right for weights that were trained with it"
                )
    return warnings
