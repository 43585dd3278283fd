"""The check of a whole data set: each kind of problem, and every count by hand."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from common.classes import ADE20K, CITYSCAPES, COCO_STUFF, ClassTable, class_table
from common.config_sections import DataConfig
from common.prepare.check import SplitCheck, check_data
from common.prepare.check_pictures import histogram_picture, samples_picture
from fake_data.scenes import generate
from pipeline.cli import app

VOID = 255
TABLE = ClassTable(("one", "two"), ((200, 0, 0), (0, 0, 200)))


def write(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(pixels, np.uint8)
    assert cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
    return path


def config(root: Path, **changes: Any) -> DataConfig:
    usual = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_hw": (4, 4), "batch_size": 1}
    lists = {"train_list": "train.txt", "val_list": "val.txt"}
    return DataConfig(dataset="list", root=root, **{**usual, **lists, **changes})


def data_set(root: Path, train: int = 3, val: int = 1) -> DataConfig:
    """Images of 2 x 4: the left half (255, 0, 51), the right half black; labels 0 0 1 255."""
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}{number}" for number in range(count)]
        for name in names:
            image = np.zeros((2, 4, 3))
            image[:, :2] = (255, 0, 51)
            write(root / f"{name}.png", image)
            write(root / f"{name}_label.png", [[0, 0, 1, VOID]] * 2)
        lines = [f"{name}.png,{name}_label.png\n" for name in names]
        (root / f"{split}.txt").write_text("".join(lines))
    return config(root)


def kinds(data: DataConfig, **changes: Any) -> list[tuple[str, str]]:
    check = check_data(data, **{"classes": 2, **changes})
    return [(problem.kind, problem.file.name) for problem in check.problems]


def test_counts_by_hand(tmp_path: Path) -> None:
    check = check_data(data_set(tmp_path), classes=2)
    assert check.problems == []
    assert check.exit_code == 0
    train = check.splits["train"]
    # 3 images of 8 pixels: 4 of class 0, 2 of class 1, 2 void
    assert train.labels.tolist() == [12, 6, 6]
    assert train.label_images.tolist() == [3, 3, 3]
    assert train.sizes == {(2, 4): 3}
    mean, std = train.statistics() or ([], [])
    # half of the pixels 1, 0, 0.2; the other half 0
    np.testing.assert_allclose(mean, [0.5, 0.0, 0.1], rtol=1e-12)
    np.testing.assert_allclose(std, [0.5, 0.0, 0.1], rtol=1e-12)
    assert check.splits["val"].labels.tolist() == [4, 2, 2]
    # green and blue are far from the configuration's 0.5
    assert [warning[:11] for warning in check.warnings] == ["train: mean", "train: std "]


def test_classes_without_a_pixel_are_a_warning(tmp_path: Path) -> None:
    check = check_data(data_set(tmp_path), classes=4)
    assert check.exit_code == 0
    assert check.warnings[:2] == ["train: no pixel of class 2, 3", "val: no pixel of class 2, 3"]


def test_missing_files(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    (tmp_path / "train0.png").unlink()
    (tmp_path / "train2_label.png").unlink()
    assert kinds(data) == [("missing", "train0.png"), ("missing", "train2_label.png")]


@pytest.mark.parametrize("name", ["train1.png", "train1_label.png"])
@pytest.mark.parametrize("fault", ["cut", "byte", "empty", "text"])
def test_broken_files(tmp_path: Path, name: str, fault: str) -> None:
    data = data_set(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[45] ^= 0xFF
    contents = {"cut": content[:-14], "byte": bytes(changed), "empty": b"", "text": b"a picture"}
    path.write_bytes(contents[fault])
    assert kinds(data) == [("unreadable", name)]


def test_truncated_jpeg(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    path = write(tmp_path / "photo.jpg", np.random.default_rng(0).integers(0, 256, (2, 4, 3)))
    (tmp_path / "val.txt").write_text("photo.jpg,val0_label.png\n")
    assert kinds(data) == []
    path.write_bytes(path.read_bytes()[:-30])
    assert kinds(data) == [("unreadable", "photo.jpg")]


def test_sizes_that_differ(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    write(tmp_path / "train1_label.png", [[0, 0]])
    check = check_data(data, classes=2)
    (problem,) = check.problems
    assert problem.kind == "size"
    assert "1x2" in problem.text
    assert "2x4" in problem.text
    assert len(check.splits["train"].good) == 2


def test_values_out_of_range(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    write(tmp_path / "train1_label.png", [[0, 0, 2, 254], [0, 7, 7, VOID]])
    check = check_data(data, classes=2)
    (problem,) = check.problems
    assert problem.kind == "values"
    assert "2 (1 pixels), 7 (2 pixels), 254 (1 pixels)" in problem.text
    # not counted
    assert check.splits["train"].labels.tolist() == [8, 4, 4]


def test_images_that_come_twice(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    val.write_text(val.read_text() + "train0.png,train0_label.png\n")
    train.write_text(train.read_text() + "train1.png,train1_label.png\n")
    assert kinds(data) == [("twice", "train1.png"), ("both splits", "train0.png")]


def test_a_missing_list(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    (tmp_path / "val.txt").unlink()
    check = check_data(data, classes=2)
    assert [problem.kind for problem in check.problems] == ["data set"]
    assert list(check.splits) == ["train"]


def test_cityscapes_labels_that_are_missing(tmp_path: Path) -> None:
    root = generate(tmp_path / "scenes", train=2, val=1, size_hw=(64, 128))
    data = config(root).model_copy(
        update={"dataset": "cityscapes", "train_list": None, "val_list": None}
    )
    assert kinds(data, classes=19) == []
    label = next(root.glob("gtFine/train/*/*_labelIds.png"))
    label.unlink()
    assert kinds(data, classes=19) == [("missing", label.name)]


def test_processes_find_the_same(tmp_path: Path) -> None:
    data = data_set(tmp_path, train=6)
    (tmp_path / "train3.png").write_bytes(b"")
    one, two = check_data(data, classes=2), check_data(data, classes=2, workers=2)
    assert one.problems == two.problems
    for split in ("train", "val"):
        assert np.array_equal(one.splits[split].labels, two.splits[split].labels)
        assert np.array_equal(one.splits[split].colours, two.splits[split].colours)


# ---- pictures -----------------------------------------------------------------------------------
def test_bars_are_as_long_as_the_logarithm_of_the_share() -> None:
    check = SplitCheck([], 2)
    check.labels[:] = [100, 10, 9890]
    picture = histogram_picture(check, TABLE, title="x")
    lengths = [int((picture == colour).all(axis=2).sum(axis=1).max()) for colour in TABLE.palette]
    # 1 % is half, 0.1 % a quarter of the way from 0.01 %; here three decades: 640 px * (1 - 2/3)
    assert lengths[0] == pytest.approx(640 / 3, abs=3)
    assert lengths[1] <= 2


def test_samples_show_the_labels_over_the_images(tmp_path: Path) -> None:
    root = generate(tmp_path / "scenes", train=2, val=1, size_hw=(64, 128))
    data = config(root).model_copy(
        update={"dataset": "cityscapes", "train_list": None, "val_list": None}
    )
    check = check_data(data, classes=19).splits["train"]
    picture = samples_picture(check.good, CITYSCAPES, classes=19, ignore_index=VOID)
    assert picture is not None
    assert picture.shape == (6 + 20 + 256 + 6, 2 * (512 + 6) + 6, 3)
    # the middle of the sky: half of the image's blue, half of (70, 130, 180)
    image = cv2.imread(str(check.good[0].image))[..., ::-1]
    expected = np.mean([image[2, 64], (70, 130, 180)], axis=0)
    actual = picture[6 + 20 + 8 : 6 + 20 + 12, 6 + 254 : 6 + 258].mean(axis=(0, 1))
    np.testing.assert_allclose(actual, expected, atol=12)
    assert samples_picture([], CITYSCAPES, classes=19, ignore_index=VOID) is None


def test_colours_by_rule() -> None:
    # PASCAL VOC's, from 1 on
    by_hand = ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128))
    by_hand += ((128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0))
    table = class_table("list", classes=10)
    assert table.palette == by_hand
    assert table.names[:2] == ("class 0", "class 1")
    for known, count in ((COCO_STUFF, 171), (ADE20K, 150)):
        assert len(known.names) == len(set(known.names)) == count
        assert len(set(known.palette)) == count
    # COCO's 80 things come first; ADE20K has them by frequency
    assert (COCO_STUFF.names[79], COCO_STUFF.names[80]) == ("toothbrush", "banner")
    assert (ADE20K.names[0], ADE20K.names[149]) == ("wall", "flag")
    assert class_table("cityscapes", classes=19) is CITYSCAPES
    assert class_table("cityscapes", classes=3).names[0] == "class 0"


# ---- command line -------------------------------------------------------------------------------
def test_command_line(tmp_path: Path) -> None:
    root = generate(tmp_path / "scenes", train=3, val=3, size_hw=(64, 128))
    out = tmp_path / "out"
    path = Path(__file__).parent.parent / "configs" / "bisenetv2_cityscapes.yml"
    command = ["check-data", str(path), "--data", str(root), "--out", str(out), "--workers", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    report = json.loads((out / "check.json").read_text())
    assert report["passed"]
    classes = report["splits"]["train"]["classes"]
    assert [row["name"] for row in classes] == [*CITYSCAPES.names, "void"]
    assert sum(row["pixels"] for row in classes) == 3 * 64 * 128
    for name in ("histogram_train", "samples_train", "histogram_val", "samples_val"):
        assert cv2.imread(str(out / f"{name}.png")) is not None
    next(root.glob("leftImg8bit/train/*/*.png")).write_bytes(b"")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "unreadable" in done.output
    assert not json.loads((out / "check.json").read_text())["passed"]
