"""COCO-Stuff, ADE20K, CamVid and own data: pairs, labels and lists, by hand; and the processes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from common.classes import CAMVID
from common.config_sections import DataConfig
from common.datasets import load_samples, read_sample
from common.errors import DataError, InputError
from common.prepare import ade20k, camvid, coco_stuff, custom
from common.prepare.lists import held_out
from fake_data.scenes import generate
from pipeline.cli import app

SKY, CAR, VOID = 0, 8, 255


def write(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(pixels, np.uint8)
    # RGB, as people write colours
    assert cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
    return path


def pair(root: Path, images: str, labels: str, name: str, label) -> None:
    label = np.asarray(label, np.uint8)
    write(root / images / f"{name}.jpg", np.zeros((*label.shape[:2], 3), np.uint8))
    write(root / labels / f"{name}.png", label)


def read_labels(root: Path, dataset: str, classes: int, split="train") -> list[list[list[int]]]:
    data = DataConfig(
        **{"dataset": dataset, "root": root, "mean": (0, 0, 0), "std": (1, 1, 1)},
        **{"crop_hw": (4, 4), "batch_size": 1, "train_list": "train.txt", "val_list": "val.txt"},
    )
    samples = load_samples(data, split)
    return [read_sample(s, classes=classes, ignore_index=VOID)[1].tolist() for s in samples]


# ---- as published -------------------------------------------------------------------------------
def test_coco_stuff(tmp_path: Path) -> None:
    pair(tmp_path, "images/train2017", "labels/train2017", "b", [[0, 12, 181, 255]])
    pair(tmp_path, "images/train2017", "labels/train2017", "a", [[91, 89, 10, 24]])
    pair(tmp_path, "images/val2017", "labels/val2017", "c", [[0, 0, 0, 0]])
    report = coco_stuff.prepare(tmp_path)
    assert (report.exit_code, report.checked) == (0, 3)
    lines = (tmp_path / "train.txt").read_text()
    assert lines == (
        "images/train2017/a.jpg,labels/train2017/a.png\n"
        "images/train2017/b.jpg,labels/train2017/b.png\n"
    )
    # 11 of the 182 values do not exist: 1 below 12, 10 below 89, 11 below 91 and 181
    assert read_labels(tmp_path, "coco_stuff", 171) == [[[80, 79, 10, 23]], [[0, 11, 170, VOID]]]


def test_coco_stuff_values_that_do_not_exist(tmp_path: Path) -> None:
    pair(tmp_path, "train2017", "stuffthingmaps/train2017", "bad", [[0, 11, 182]])
    pair(tmp_path, "train2017", "stuffthingmaps/train2017", "good", [[0, 12, 181]])
    report = coco_stuff.prepare(tmp_path)
    (failure,) = report.failures
    assert failure.file.name == "bad.png"
    assert "11, 182" in failure.reason
    assert report.exit_code == 1
    assert (tmp_path / "train.txt").read_text().startswith("train2017/good.jpg,")
    assert report.lists == {"train.txt": 1}
    assert report.notes == ["val: no folder images/val2017 or val2017"]


def test_ade20k(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    pair(root, "images/training", "annotations/training", "a", [[0, 1, 150]])
    pair(root, "images/validation", "annotations/validation", "b", [[2, 2, 2]])
    assert ade20k.prepare(tmp_path).exit_code == 0
    assert read_labels(tmp_path, "ade20k", 150) == [[[VOID, 0, 149]]]
    assert read_labels(tmp_path, "ade20k", 150, "val") == [[[1, 1, 1]]]
    pair(root, "images/validation", "annotations/validation", "c", [[151, 255, 0]])
    (failure,) = ade20k.prepare(tmp_path).failures
    assert "151, 255" in failure.reason


def test_files_without_partner(tmp_path: Path) -> None:
    pair(tmp_path, "images/training", "annotations/training", "a", [[1]])
    write(tmp_path / "images/training/alone.jpg", np.zeros((2, 2, 3)))
    write(tmp_path / "annotations/training/lonely.png", [[1]])
    write(tmp_path / "images/training/a.png", np.zeros((1, 1, 3)))
    failures = {failure.file.name: failure.reason for failure in ade20k.prepare(tmp_path).failures}
    assert set(failures) == {"alone.jpg", "lonely.png", "a.png"}
    assert "no label" in failures["alone.jpg"]
    assert "no image" in failures["lonely.png"]
    assert "same name" in failures["a.png"]


@pytest.mark.parametrize(
    ("maker", "images", "labels"),
    [
        (ade20k, "images/training", "annotations/training"),
        (coco_stuff, "images/train2017", "labels/train2017"),
        (camvid, "images/train", "labels/train"),
        (custom, "images/train", "labels/train"),
    ],
)
def test_an_image_that_does_not_fit_its_label_is_a_failure(
    tmp_path: Path, maker, images: str, labels: str
) -> None:
    for name in ("good", "junk", "small"):
        pair(tmp_path, images, labels, name, [[1, 2], [1, 1]])
    (tmp_path / images / "junk.jpg").write_bytes(b"no picture at all")
    write(tmp_path / images / "small.jpg", np.zeros((3, 2, 3)))
    report = maker.prepare(tmp_path)
    reasons = {failure.file.name: failure.reason for failure in report.failures}
    assert report.exit_code == 1
    assert len(reasons) == 2
    assert "label is 2x2 (H x W), its image 3x2" in reasons["small.png"]
    assert any("junk.jpg: " in reason for reason in reasons.values())
    assert (tmp_path / "train.txt").read_text().startswith(f"{images}/good.jpg,")
    assert report.lists["train.txt"] == 1


def test_a_list_whose_files_are_broken_now_is_removed(tmp_path: Path) -> None:
    pair(tmp_path, "images/training", "annotations/training", "a", [[1]])
    pair(tmp_path, "images/validation", "annotations/validation", "b", [[2]])
    assert ade20k.prepare(tmp_path).exit_code == 0
    (tmp_path / "annotations/validation/b.png").write_bytes(b"")
    report = ade20k.prepare(tmp_path)
    assert (report.exit_code, report.lists) == (1, {"train.txt": 1})
    assert not (tmp_path / "val.txt").exists()
    assert report.notes == ["val: no usable pair; the list of an earlier run was removed"]


def test_no_data_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train2017"):
        coco_stuff.prepare(tmp_path)
    with pytest.raises(DataError, match="labels/train"):
        camvid.prepare(tmp_path)
    with pytest.raises(DataError, match="images"):
        custom.prepare(tmp_path)


# ---- CamVid -------------------------------------------------------------------------------------
def test_camvid_numbers_of_segnet(tmp_path: Path) -> None:
    pair(tmp_path, "train", "trainannot", "a", [[0, 10, 11, 8]])
    pair(tmp_path, "val", "valannot", "b", [[255, 3, 3, 3]])
    report = camvid.prepare(tmp_path)
    assert (report.written, report.exit_code) == (2, 0)
    assert (tmp_path / "train.txt").read_text() == "train/a.jpg,labelTrainIds/train/a.png\n"
    assert read_labels(tmp_path, "camvid", 11) == [[[0, 10, VOID, 8]]]
    assert read_labels(tmp_path, "camvid", 11, "val") == [[[VOID, 3, 3, 3]]]
    assert camvid.prepare(tmp_path).kept == 2
    pair(tmp_path, "train", "trainannot", "c", [[12]])
    assert "12" in camvid.prepare(tmp_path).failures[0].reason


def test_camvid_colours(tmp_path: Path) -> None:
    # sky, bridge, traffic cone, lane marking, shoulder, vegetation, traffic light, fence, SUV,
    # child, scooter, void
    colours = [
        *([128, 128, 128], [0, 128, 64], [0, 0, 64], [128, 0, 192], [128, 128, 192]),
        *([192, 192, 0], [0, 64, 64], [64, 64, 128], [64, 128, 192], [192, 128, 64]),
        *([192, 0, 192], [0, 0, 0]),
    ]
    write(tmp_path / "images/train/a.png", np.zeros((1, 12, 3)))
    write(tmp_path / "labels/train/a_L.png", [colours])
    assert camvid.prepare(tmp_path).exit_code == 0
    assert read_labels(tmp_path, "camvid", 11) == [[[*range(11), VOID]]]


def test_camvid_colours_of_segnet_are_understood(tmp_path: Path) -> None:
    pair(tmp_path, "images/train", "labels/train", "a", [CAMVID.palette])
    camvid.prepare(tmp_path)
    assert read_labels(tmp_path, "camvid", 11) == [[[*range(11)]]]


def test_camvid_thirty_two_classes() -> None:
    colours = [colour for group in camvid.COLOURS.values() for colour in group]
    # CamVid's 32 without void, and SegNet's own road marking
    assert len(colours) == len(set(colours)) == 31 + 1
    assert tuple(camvid.COLOURS) == CAMVID.names
    # SegNet's pavement is a colour of its own
    others = set(CAMVID.palette) - set(colours)
    assert others == {(60, 40, 222)}


def test_camvid_stray_colours(tmp_path: Path) -> None:
    label = np.full((20, 20, 3), (64, 0, 128))
    label[0, :4] = (1, 2, 3)
    pair(tmp_path, "images/train", "labels/train", "few", label)
    assert camvid.prepare(tmp_path).exit_code == 0
    (few,) = read_labels(tmp_path, "camvid", 11)
    assert (few[0], few[1]) == ([VOID] * 4 + [CAR] * 16, [CAR] * 20)
    label[0, :5] = (1, 2, 3)
    pair(tmp_path, "images/train", "labels/train", "many", label)
    (failure,) = camvid.prepare(tmp_path).failures
    assert failure.file.name == "many.png"
    assert "#010203" in failure.reason


def test_camvid_real_labels_stay_as_they_are(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "camvid"
    for split, names in (("train", ["0001TP_006690"]), ("val", ["0016E5_07959"])):
        for name in names:
            for kind, end in (("images", ".jpg"), ("labels", ".png")):
                target = tmp_path / kind / split / f"{name}{end}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((source / kind / split / f"{name}{end}").read_bytes())
    assert camvid.prepare(tmp_path).exit_code == 0
    for made in (tmp_path / camvid.FOLDER).rglob("*.png"):
        original = tmp_path / "labels" / made.parent.name / made.name
        np.testing.assert_array_equal(cv2.imread(str(made), -1), cv2.imread(str(original), -1))
    assert len(list((tmp_path / camvid.FOLDER).rglob("*.png"))) == 2


# ---- own data -----------------------------------------------------------------------------------
def test_own_data_with_folders_of_splits(tmp_path: Path) -> None:
    pair(tmp_path, "photos/train", "masks/train", "a", [[0, 4, 255]])
    pair(tmp_path, "photos/val", "masks/val", "b", [[1, 1, 3]])
    report = custom.prepare(tmp_path, images=Path("photos"), labels=Path("masks"), separator="\t")
    assert report.lists == {"train.txt": 1, "val.txt": 1}
    assert (tmp_path / "val.txt").read_text() == "photos/val/b.jpg\tmasks/val/b.png\n"
    assert report.notes == ["label values 0..4, of which 2 never occur: model.classes 5"]
    assert read_labels(tmp_path, "list", 5) == [[[0, 4, VOID]]]


def test_own_data_are_split_by_name(tmp_path: Path) -> None:
    for number in range(60):
        pair(tmp_path, "images", "labels", f"n{number}", [[number % 3]])
    report = custom.prepare(tmp_path, val_fraction=0.25)
    first = set((tmp_path / "val.txt").read_text().splitlines())
    assert report.lists["train.txt"] + report.lists["val.txt"] == 60
    assert 5 <= len(first) <= 25
    assert not first & set((tmp_path / "train.txt").read_text().splitlines())
    for number in range(60, 90):
        pair(tmp_path, "images", "labels", f"n{number}", [[0]])
    custom.prepare(tmp_path, val_fraction=0.25)
    later = set((tmp_path / "val.txt").read_text().splitlines())
    assert {line for line in later if int(line[8:].split(".")[0]) < 60} == first


def test_nothing_held_out() -> None:
    pairs = [(Path("a.png"), Path("b.png"))]
    assert held_out(pairs, fraction=0) == (pairs, [])
    with pytest.raises(DataError, match="leaves"):
        held_out(pairs, fraction=0.5)
    with pytest.raises(DataError, match="less than 1"):
        held_out(pairs, fraction=1)


def test_own_data_that_do_not_fit(tmp_path: Path) -> None:
    pair(tmp_path, "images/train", "labels/train", "good", [[0]])
    write(tmp_path / "images/train/other.png", np.zeros((3, 2, 3)))
    write(tmp_path / "labels/train/other.png", [[0, 0, 0], [0, 0, 0]])
    cut = write(tmp_path / "images/train/cut.png", np.zeros((9, 9, 3)))
    write(tmp_path / "labels/train/cut.png", np.zeros((9, 9)))
    cut.write_bytes(cut.read_bytes()[:-12])
    failures = {failure.file.stem: str(failure) for failure in custom.prepare(tmp_path).failures}
    assert "2x3" in failures["other"]
    assert "3x2" in failures["other"]
    assert "truncated" in failures["cut"]
    assert (tmp_path / "train.txt").read_text() == "images/train/good.jpg,labels/train/good.png\n"


# ---- command line -------------------------------------------------------------------------------
def test_command_line(tmp_path: Path) -> None:
    root = generate(tmp_path / "scenes", train=2, val=1, size_hw=(64, 128))
    out = tmp_path / "out"
    command = ["prepare", "cityscapes", str(root), "--out", str(out), "--workers", "0"]
    done = CliRunner().invoke(app, [*command, "--separator", "tab", "--from", "label_ids"])
    assert done.exit_code == 0, done.output
    assert "3 labels written" in done.output
    assert all(line.count("\t") == 1 for line in (out / "train.txt").read_text().splitlines())
    assert "3 labels kept" in CliRunner().invoke(app, command).output
    assert "3 labels written" in CliRunner().invoke(app, [*command, "--no-resume"]).output
    broken = next(root.rglob("*_polygons.json"))
    broken.write_text("[]")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert str(broken) in done.output
    report = json.loads((out / "prepare.json").read_text())
    assert [failure["file"] for failure in report["failures"]] == [str(broken)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing", "."], "expected one of cityscapes, coco_stuff"),
        (["cityscapes", "./no-such-folder"], "no such folder"),
        (["cityscapes", ".", "--from", "pictures"], "polygons or label_ids"),
        (["cityscapes", ".", "--separator", ";"], "expected ','"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    done = CliRunner().invoke(app, ["prepare", *arguments])
    assert isinstance(done.exception, InputError)
    assert text in str(done.exception)
