"""Cityscapes: label files of train ids, and lists in the published format.

Source: mcordts/cityscapesScripts, preparation/json2labelImg.py (what is drawn, in which order) and
helpers/labels.py (names and ids); PaddleSeg's create_dataset_list (which files are listed).
Departures: an unknown label or a broken file is a failure of that file, and the others go on;
a label file that is complete and newer than its source is kept.

Pillow draws, as there, so that the pixels are the same. The time went into its PNG encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.classes import CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOID, label_table
from common.errors import DataError
from common.images import read_label
from common.prepare.jobs import Failure, Progress
from common.prepare.labels import LabelJob, make_labels
from common.prepare.lists import write_lists
from common.prepare.report import Report

Source = Literal["polygons", "label_ids"]
"""What labels are made from: the annotators' polygons, or the official package's raw ids."""

SOURCES: tuple[Source, ...] = ("polygons", "label_ids")
SPLITS = ("train", "val", "test")
LABEL_IDS: dict[str, int] = {
    **{CITYSCAPES.names[train_id]: value for value, train_id in CITYSCAPES_TRAIN_IDS.items()},
    **{"unlabeled": 0, "ego vehicle": 1, "rectification border": 2, "out of roi": 3},
    **{"static": 4, "dynamic": 5, "ground": 6, "parking": 9, "rail track": 10},
    **{"guard rail": 14, "bridge": 15, "tunnel": 16, "polegroup": 18},
    **{"caravan": 29, "trailer": 30, "license plate": -1},
}
"""Raw id of every name that an annotation may use."""

_IMAGE_END = "_leftImg8bit.png"
_SOURCE_ENDS = {"polygons": "_gtFine_polygons.json", "label_ids": "_gtFine_labelIds.png"}
_LABEL_END = "_gtFine_labelTrainIds.png"
_MAX_SIDE = 1 << 15
"""Pixels; what claims to be larger is no street scene, and would not fit into memory."""
_GROUP = "group"


def prepare(
    root: Path,
    *,
    source: Source = "polygons",
    out: Path | None = None,
    separator: str = ",",
    workers: int = 0,
    resume: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Make the train-id labels and the lists train, val, test and trainval.

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        source: polygons (``*_polygons.json``) or label_ids (``*_labelIds.png``).
        out: folder of lists and labels; None: root itself, as published.
        separator: between image and label in the lists.
        workers: processes; 0 or 1 works in this one.
        resume: keep labels that are complete and newer than their source.
        progress: told after each label.

    Raises:
        DataError: there is no Cityscapes folder at root.
        InputError: the output folder cannot be written.
    """
    out = out or root
    report = Report("cityscapes", root)
    images = {split: _images(root, split) for split in SPLITS}
    for split, files in images.items():
        if not files or not (root / "gtFine" / split).is_dir():
            what = "annotations in gtFine" if files else "images"
            report.notes.append(f"{split}: no {what}, so no {split}.txt")
            images[split] = []
    if not any(images.values()):
        raise DataError(
            f"{root}: no leftImg8bit/<split>/<city>/*{_IMAGE_END} with a gtFine/<split>; expected "
            f"the folder that Cityscapes' packages were unpacked in"
        )
    jobs = {image: _job(image, root, out, source) for files in images.values() for image in files}
    draw = label_from_polygons if source == "polygons" else label_from_ids
    made = make_labels(
        report, [*jobs.values()], draw=draw, resume=resume, workers=workers, progress=progress
    )
    pairs = {
        split: [(image, jobs[image].target) for image in files if jobs[image].target in made]
        for split, files in images.items()
    }
    report.failures += _orphans(root, source, jobs, [split for split in SPLITS if images[split]])
    lists = {split: files for split, files in pairs.items() if images[split]}
    if images["train"] or images["val"]:
        lists["trainval"] = [*pairs["train"], *pairs["val"]]
    write_lists(report, lists, out=out, separator=separator)
    return report


def label_from_polygons(path: Path) -> NDArray[np.uint8]:
    """Return the (H, W) uint8 train ids that the polygons of an annotation file draw.

    Raises:
        DataError: no such file, no JSON, or not the layout of a Cityscapes annotation.
    """
    try:
        annotation = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    try:
        return _drawn(annotation)
    except KeyError as error:
        raise DataError(
            f"{path}: key {error} is missing; expected a Cityscapes annotation"
        ) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a Cityscapes annotation ({error})") from None


def label_from_ids(path: Path) -> NDArray[np.uint8]:
    """Return the (H, W) uint8 train ids of a file of raw label ids.

    Raises:
        DataError: the file is missing or broken, or holds an id that Cityscapes does not have.
    """
    label = read_label(path)
    table = label_table("label_ids", classes=len(CITYSCAPES.names), ignore_index=VOID)
    wrong = table.wrong_values(label)
    if wrong:
        allowed = f"raw ids 0..{max(CITYSCAPES_TRAIN_IDS)} or {VOID}"
        raise DataError(f"{path}: label values {wrong[:8]}; expected {allowed}")
    return table.to_train_ids(label)


def _drawn(annotation: Any) -> NDArray[np.uint8]:
    H, W = annotation["imgHeight"], annotation["imgWidth"]
    if not all(isinstance(side, int) and 0 < side <= _MAX_SIDE for side in (H, W)):
        raise ValueError(f"imgHeight {H} and imgWidth {W}; expected 1 to {_MAX_SIDE} pixels")
    picture = Image.new("L", (W, H), VOID)
    draw = ImageDraw.Draw(picture)
    for number, item in enumerate(annotation["objects"]):
        if item.get("deleted"):
            continue
        fill = _train_id(item["label"])
        if fill is None:
            continue
        try:
            draw.polygon([(x, y) for x, y in item["polygon"]], fill=fill)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"polygon of object {number}, {item['label']!r}: {error}") from None
    return np.asarray(picture)


def _train_id(name: Any) -> int | None:
    """Return the train id that a name is drawn with, None for one that is not drawn."""
    raw = LABEL_IDS.get(name)
    if raw is None and isinstance(name, str) and name.endswith(_GROUP):
        # several objects outlined as one, as cargroup
        raw = LABEL_IDS.get(name.removesuffix(_GROUP))
    if raw is None:
        raise ValueError(f"label {name!r} is none of Cityscapes' {len(LABEL_IDS)} names")
    return None if raw < 0 else CITYSCAPES_TRAIN_IDS.get(raw, VOID)


def _images(root: Path, split: str) -> list[Path]:
    return sorted((root / "leftImg8bit" / split).glob(f"*/*{_IMAGE_END}"))


def _job(image: Path, root: Path, out: Path, source: Source) -> LabelJob:
    inside = Path("gtFine") / image.parent.relative_to(root / "leftImg8bit")
    stem = image.name.removesuffix(_IMAGE_END)
    return LabelJob(
        root / inside / f"{stem}{_SOURCE_ENDS[source]}", out / inside / f"{stem}{_LABEL_END}"
    )


def _orphans(
    root: Path, source: Source, jobs: dict[Path, LabelJob], splits: list[str]
) -> list[Failure]:
    """Return the annotations whose image is missing."""
    known = {job.source for job in jobs.values()}
    end = _SOURCE_ENDS[source]
    found = [path for split in splits for path in (root / "gtFine" / split).glob(f"*/*{end}")]
    alone = sorted(path for path in found if path not in known)
    return [Failure(path, "no image for this annotation") for path in alone]
