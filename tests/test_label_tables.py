"""The label numbering of COCO-Stuff and ADE20K, by hand, and reading such files."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from common.classes import (
    ADE20K_TRAIN_IDS,
    COCO_STUFF_GAPS,
    COCO_STUFF_TRAIN_IDS,
    LabelEncoding,
    label_table,
)
from common.config_sections import DataConfig
from common.datasets import Sample, load_samples, read_sample
from common.errors import DataError


def data_config(root: Path, dataset: str) -> DataConfig:
    return DataConfig(
        **{"dataset": dataset, "root": root, "mean": (0, 0, 0), "std": (1, 1, 1)},
        **{"crop_hw": (4, 4), "batch_size": 1},
    )


def sample(root: Path, label: list[list[int]], encoding: LabelEncoding) -> Sample:
    array = np.array(label, np.uint8)
    assert cv2.imwrite(str(root / "label.png"), array)
    assert cv2.imwrite(str(root / "image.png"), np.zeros((*array.shape, 3), np.uint8))
    (root / "train.txt").write_text("image.png,label.png\n")
    return Sample(root / "image.png", root / "label.png", "image", encoding)


def test_coco_stuff_closes_its_gaps() -> None:
    assert len(COCO_STUFF_TRAIN_IDS) == 171
    assert list(COCO_STUFF_TRAIN_IDS.values()) == list(range(171))
    assert not set(COCO_STUFF_GAPS) & set(COCO_STUFF_TRAIN_IDS)
    # by hand: nothing is missing before 11, then 1, 3 (25), 4 (28), 5 (29) ... 11 (90) values are
    by_hand = {0: 0, 10: 10, 12: 11, 24: 23, 26: 24, 27: 25, 30: 26, 43: 39, 45: 40, 66: 60}
    by_hand |= {69: 61, 71: 62, 81: 72, 83: 73, 89: 79, 91: 80, 181: 170}
    assert {raw: COCO_STUFF_TRAIN_IDS[raw] for raw in by_hand} == by_hand


def test_ade20k_counts_from_one() -> None:
    assert len(ADE20K_TRAIN_IDS) == 150
    assert (ADE20K_TRAIN_IDS[1], ADE20K_TRAIN_IDS[150]) == (0, 149)


@pytest.mark.parametrize("ignore_index", [255, 200])
def test_values_become_train_ids(ignore_index: int) -> None:
    void = ignore_index
    coco = label_table("coco_stuff_ids", classes=171, ignore_index=void)
    assert coco.to_train_ids(np.array([[0, 12, 181, 255]], np.uint8)).tolist() == [
        [0, 11, 170, void]
    ]
    assert coco.wrong_values(np.array([[11, 90, 182, 254, 0, 255]], np.uint8)) == [11, 90, 182, 254]
    ade = label_table("ade20k_ids", classes=150, ignore_index=void)
    assert ade.to_train_ids(np.array([[0, 1, 150]], np.uint8)).tolist() == [[void, 0, 149]]
    assert ade.wrong_values(np.array([[150, 151, 0, 255]], np.uint8)) == [151, 255]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("coco_stuff_ids", "COCO-Stuff's label values map to 171 classes, but the model has 19"),
        ("ade20k_ids", "ADE20K's label values map to 150 classes, but the model has 19"),
    ],
)
def test_the_number_of_classes_must_fit(encoding: LabelEncoding, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        label_table(encoding, classes=19, ignore_index=255)


@pytest.mark.parametrize(
    ("dataset", "classes", "label", "expected"),
    [
        ("coco_stuff", 171, [[0, 91], [255, 181]], [[0, 80], [255, 170]]),
        ("ade20k", 150, [[0, 1], [2, 150]], [[255, 0], [1, 149]]),
    ],
)
def test_files_are_read_in_their_own_numbering(
    tmp_path: Path, dataset: str, classes: int, label: list[list[int]], expected: list[list[int]]
) -> None:
    sample(tmp_path, label, "train_ids")
    (found,) = load_samples(data_config(tmp_path, dataset), "train")
    _, train_ids = read_sample(found, classes=classes, ignore_index=255)
    assert train_ids.tolist() == expected


@pytest.mark.parametrize(
    ("encoding", "classes", "value", "expected"),
    [
        (
            "coco_stuff_ids",
            171,
            90,
            r"1 pixels have label value 90; expected 0\.\.181 without 11, ",
        ),
        ("ade20k_ids", 150, 255, r"1 pixels have label value 255; expected 0\.\.150, 0 for void"),
    ],
)
def test_a_wrong_value_is_told(
    tmp_path: Path, encoding: LabelEncoding, classes: int, value: int, expected: str
) -> None:
    wrong = sample(tmp_path, [[value, 1]], encoding)
    with pytest.raises(DataError, match=expected):
        read_sample(wrong, classes=classes, ignore_index=255)
