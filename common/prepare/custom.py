"""A data set of one's own: a folder of images and a folder of labels, paired by name.

Labels hold the numbers that the network is to predict, 0..classes-1, and 255 for void. The lists
are for data.dataset 'list'.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.classes import VOID
from common.errors import DataError
from common.images import read_image, read_label
from common.prepare.jobs import Failure, Progress, run_jobs
from common.prepare.lists import Pair, held_out, pairs_by_stem, write_lists
from common.prepare.report import Report

SPLITS = ("train", "val", "test")


def prepare(
    root: Path,
    *,
    out: Path | None = None,
    images: Path = Path("images"),
    labels: Path = Path("labels"),
    val_fraction: float = 0.1,
    separator: str = ",",
    workers: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Pair the files, look at every pair, write the lists.

    Folders train, val and test in both, images and labels, are the splits; without them a part of
    all pairs is held out for validation.

    Args:
        root: the data root.
        out: folder of the lists; None: root.
        images: folder of images below root.
        labels: folder of labels below root.
        val_fraction: part that is held out, 0..1, when there are no folders of splits.
        separator: between image and label.
        workers: processes; 0 or 1 works in this one.
        progress: told after each pair.

    Raises:
        DataError: a folder is missing or empty, or nothing can be held out.
        InputError: the output folder cannot be written.
    """
    out = out or root
    report = Report("custom", root)
    splits = [
        split
        for split in SPLITS
        if (root / images / split).is_dir() and (root / labels / split).is_dir()
    ]
    pairs: dict[str, list[Pair]] = {}
    for split in splits or [""]:
        pairs[split], failures = pairs_by_stem(root / images / split, root / labels / split)
        report.failures += failures
    good = _good_pairs(report, pairs, workers, progress)
    if not splits:
        training, validation = held_out(good[""], fraction=val_fraction)
        good = {"train": training, "val": validation}
    write_lists(report, good, out=out, separator=separator)
    return report


def values_of_pair(pair: Pair) -> list[int]:
    """Return the values in a label whose image has the same size.

    Raises:
        DataError: a file is missing or broken, or the sizes differ.
    """
    image, label = read_image(pair[0]), read_label(pair[1])
    if image.shape[:2] != label.shape:
        sizes = [f"{shape[0]}x{shape[1]}" for shape in (label.shape, image.shape)]
        raise DataError(f"{pair[1]}: the label is {sizes[0]} (H x W), its image {sizes[1]}")
    counts = np.bincount(label.ravel(), minlength=256)
    return [int(value) for value in np.flatnonzero(counts)]


def _good_pairs(
    report: Report, pairs: dict[str, list[Pair]], workers: int, progress: Progress | None
) -> dict[str, list[Pair]]:
    every = [(split, pair) for split, files in pairs.items() for pair in files]
    good: dict[str, list[Pair]] = {split: [] for split in pairs}
    values: set[int] = set()
    outcomes = run_jobs(
        [pair for _, pair in every],
        values_of_pair,
        name_of=lambda pair: pair[1],
        workers=workers,
        progress=progress,
    )
    for (split, pair), outcome in zip(every, outcomes, strict=True):
        if isinstance(outcome, Failure):
            report.failures.append(outcome)
            continue
        good[split].append(pair)
        values |= set(outcome.result)
        report.checked += 1
    report.notes.append(_values_note(values - {VOID}))
    return good


def _values_note(values: set[int]) -> str:
    if not values:
        return "labels hold nothing but void"
    unused = sorted(set(range(max(values))) - values)
    gaps = f", of which {', '.join(map(str, unused[:8]))} never occur" if unused else ""
    return f"label values 0..{max(values)}{gaps}: model.classes {max(values) + 1}"
