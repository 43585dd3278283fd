"""Cityscapes labels and lists; the oracle of every pixel is cityscapesscripts."""

import json
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from cityscapesscripts.preparation.json2labelImg import json2labelImg

from common.config_sections import DataConfig
from common.datasets import load_samples, read_sample
from common.errors import DataError
from common.images import label_png, read_label
from common.prepare.cityscapes import LABEL_IDS, label_from_ids, label_from_polygons, prepare
from common.prepare.lists import list_text
from fake_data.scenes import generate

# images per city of the official release
CITIES = {
    "train": {
        **{"aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85},
        **{"dusseldorf": 221, "erfurt": 109, "hamburg": 248, "hanover": 196, "jena": 119},
        **{"krefeld": 99, "monchengladbach": 94, "strasbourg": 365, "stuttgart": 196},
        **{"tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122},
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {
        **{"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298},
        "munich": 398,
    },
}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return generate(tmp_path / "scenes", train=3, val=2, size_hw=(96, 192))


def annotations(root: Path) -> list[Path]:
    return sorted(root.glob("gtFine/*/*/*_polygons.json"))


def label_files(root: Path) -> list[Path]:
    return sorted(root.glob("gtFine/*/*/*_labelTrainIds.png"))


def annotate(path: Path, objects: list[dict[str, Any]], hw: tuple[int, int] = (60, 80)) -> Path:
    content = {"imgHeight": hw[0], "imgWidth": hw[1], "objects": objects}
    path.write_text(json.dumps(content))
    return path


def official(path: Path) -> np.ndarray:
    target = path.with_suffix(".official.png")
    json2labelImg(str(path), str(target), "trainIds")
    label = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
    target.unlink()
    return label


# ---- pixels -------------------------------------------------------------------------------------
def test_names_are_the_official_ones() -> None:
    assert {row.name: row.id for row in official_labels} == LABEL_IDS


def test_labels_are_those_of_json2labelimg(scenes: Path) -> None:
    for path in annotations(scenes):
        label = label_from_polygons(path)
        assert len(np.unique(label)) > 10
        np.testing.assert_array_equal(label, official(path))


@pytest.mark.parametrize("seed", range(6))
def test_any_polygons_are_drawn_as_json2labelimg_does(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [*sorted(LABEL_IDS), "cargroup", "persongroup", "bicyclegroup"]
    objects: list[dict[str, Any]] = []
    for number in range(60):
        # self-intersecting, beyond the picture, down to two points; some with fractions
        points = rng.uniform(-20, 110, (int(rng.integers(2, 12)), 2))
        points = points.round(0 if number % 3 else 1)
        polygon = [[int(v) if number % 3 else float(v) for v in point] for point in points]
        label = names[int(rng.integers(len(names)))]
        objects.append({"label": label, "polygon": polygon, "deleted": int(number % 7 == 0)})
    path = annotate(tmp_path / "x_gtFine_polygons.json", objects)
    np.testing.assert_array_equal(label_from_polygons(path), official(path))


def test_what_is_drawn_by_hand(tmp_path: Path) -> None:
    square = [[0, 0], [3, 0], [3, 1], [0, 1]]
    path = annotate(
        tmp_path / "x_gtFine_polygons.json",
        [
            {"label": "road", "polygon": [[0, 0], [9, 0], [9, 9], [0, 9]]},
            {"label": "cargroup", "polygon": square},
            {"label": "license plate", "polygon": square},
            {"label": "bus", "polygon": square, "deleted": 1},
            {"label": "trailer", "polygon": [[5, 5], [6, 5], [6, 6], [5, 6]]},
        ],
        (8, 12),
    )
    label = label_from_polygons(path)
    assert label.shape == (8, 12)
    assert np.all(label[:2, :4] == 13)
    assert np.all(label[5:7, 5:7] == 255)
    assert np.all(label[:, 10:] == 255)  # nothing drawn: unlabeled
    assert label[4, 4] == 0


def test_both_sources_give_the_same_pixels(scenes: Path) -> None:
    for path in annotations(scenes):
        ids = path.with_name(path.name.replace("_polygons.json", "_labelIds.png"))
        np.testing.assert_array_equal(label_from_ids(ids), label_from_polygons(path))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 130)])
def test_our_png_holds_the_label(tmp_path: Path, shape: tuple[int, int]) -> None:
    label = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (tmp_path / "x.png").write_bytes(label_png(label))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "x.png"), -1), label)
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), label)


# ---- lists --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("split", "images", "size"),
    [("train", 2975, 398_780), ("val", 500, 65_900), ("test", 1525, 193_690)],
)
@pytest.mark.parametrize("separator", [",", " ", "\t"])
def test_lists_have_the_published_sizes(
    tmp_path: Path, split: str, images: int, size: int, separator: str
) -> None:
    pairs = []
    for city, count in CITIES[split].items():
        for number in range(count):
            inside, stem = Path(split) / city, f"{city}_{number:06d}_000019"
            pairs.append(
                (
                    tmp_path / "leftImg8bit" / inside / f"{stem}_leftImg8bit.png",
                    tmp_path / "gtFine" / inside / f"{stem}_gtFine_labelTrainIds.png",
                )
            )
    text = list_text(reversed(pairs), root=tmp_path, separator=separator)
    assert len(text.encode()) == size
    lines = text.splitlines()
    assert len(lines) == images
    assert lines == sorted(lines)


def test_prepared_data_are_read_as_train_ids(scenes: Path) -> None:
    report = prepare(scenes)
    assert report.exit_code == 0
    assert report.lists == {"train.txt": 3, "val.txt": 2, "trainval.txt": 5}
    both = (scenes / "train.txt").read_text() + (scenes / "val.txt").read_text()
    assert (scenes / "trainval.txt").read_text() == both
    data = DataConfig(
        **{"dataset": "cityscapes", "root": scenes, "mean": (0, 0, 0), "std": (1, 1, 1)},
        **{"crop_hw": (8, 8), "batch_size": 1, "val_list": "val.txt"},
    )
    listed, found = (
        load_samples(data, "val"),
        load_samples(data.model_copy(update={"val_list": None}), "val"),
    )
    assert {sample.encoding for sample in listed} == {"train_ids"}
    assert {sample.encoding for sample in found} == {"label_ids"}
    for ours, raw in zip(listed, found, strict=True):
        np.testing.assert_array_equal(
            read_sample(ours, classes=19, ignore_index=255)[1],
            read_sample(raw, classes=19, ignore_index=255)[1],
        )


@pytest.mark.parametrize("separator", [",", " ", "\t"])
def test_lists_elsewhere_find_their_files(scenes: Path, tmp_path: Path, separator: str) -> None:
    out = tmp_path / "elsewhere"
    prepare(scenes, out=out, separator=separator)
    assert not label_files(scenes)
    assert len(label_files(out)) == 5
    data = DataConfig(
        **{"dataset": "cityscapes", "root": scenes, "mean": (0, 0, 0), "std": (1, 1, 1)},
        **{"crop_hw": (8, 8), "batch_size": 1, "train_list": out / "train.txt"},
    )
    samples = load_samples(data, "train")
    assert [sample.label.resolve() for sample in samples] == label_files(out)[:3]


def test_a_path_with_the_separator_is_refused(tmp_path: Path) -> None:
    pairs = [(tmp_path / "a b.png", tmp_path / "a b_label.png")]
    assert list_text(pairs, root=tmp_path, separator=",") == "a b.png,a b_label.png\n"
    with pytest.raises(DataError, match=re.escape("a b.png")):
        list_text(pairs, root=tmp_path, separator=" ")


# ---- going on, failing --------------------------------------------------------------------------
def test_complete_labels_are_kept_and_others_made_again(scenes: Path) -> None:
    assert (prepare(scenes).written, prepare(scenes).kept) == (5, 5)
    whole = {path: path.read_bytes() for path in label_files(scenes)}
    cut, gone, old, kept, _ = label_files(scenes)
    cut.write_bytes(whole[cut][:-20])
    gone.unlink()
    os.utime(old, (1, 1))
    before = kept.stat().st_mtime_ns
    report = prepare(scenes)
    assert (report.written, report.kept) == (3, 2)
    assert {path: path.read_bytes() for path in label_files(scenes)} == whole
    assert kept.stat().st_mtime_ns == before
    assert (prepare(scenes, resume=False).written, prepare(scenes).kept) == (5, 5)


def test_every_failure_is_reported_with_its_file(scenes: Path) -> None:
    broken, unknown, point, shape, good = annotations(scenes)
    broken.write_text(broken.read_text()[:-30])
    annotate(unknown, [{"label": "spaceship", "polygon": [[0, 0], [1, 1], [1, 0]]}])
    annotate(point, [{"label": "car", "polygon": [[0, 0]]}])
    shape.write_text('{"imgHeight": 60, "objects": []}')
    seen: list[tuple[int, int]] = []
    report = prepare(scenes, progress=lambda done, total: seen.append((done, total)))
    assert report.exit_code == 1
    assert [failure.file for failure in report.failures] == [broken, unknown, point, shape]
    for failure, word in zip(
        report.failures, ("JSON", "'spaceship'", "object 0, 'car'", "'imgWidth'"), strict=True
    ):
        assert word in str(failure)
        assert str(failure.file) in str(failure)
    assert seen == [(number, 5) for number in range(1, 6)]
    # what failed is neither there nor listed
    (made,) = label_files(scenes)
    assert made.name[:20] == good.name[:20]
    assert report.lists == {"val.txt": 1, "trainval.txt": 1}


def test_missing_partners_are_failures(scenes: Path) -> None:
    first, second, *_ = annotations(scenes)
    first.unlink()
    folder = second.parent.name
    image = scenes / "leftImg8bit" / "train" / folder
    next(iter(sorted(image.glob(second.name[:19] + "*")))).unlink()
    reasons = {str(failure.file): failure.reason for failure in prepare(scenes).failures}
    assert set(reasons) == {str(first), str(second)}
    assert "no such file" in reasons[str(first)]
    assert "no image" in reasons[str(second)]


def test_nothing_half_written_when_writing_stops(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    report = prepare(scenes)
    assert len(report.failures) == 5
    assert "No space left" in report.failures[0].reason
    assert not [p for p in scenes.rglob("*") if "labelTrainIds" in p.name]


def test_no_cityscapes_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leftImg8bit"):
        prepare(tmp_path)


def test_processes_make_the_same_files(scenes: Path, tmp_path: Path) -> None:
    prepare(scenes, out=tmp_path / "one")
    annotations(scenes)[1].write_text("{}")
    report = prepare(scenes, out=tmp_path / "two", workers=2)
    assert [failure.file for failure in report.failures] == [annotations(scenes)[1]]
    one, two = label_files(tmp_path / "one"), label_files(tmp_path / "two")
    assert len(two) == 4
    for path in two:
        twin = tmp_path / "one" / path.relative_to(tmp_path / "two")
        assert twin in one
        assert path.read_bytes() == twin.read_bytes()


def test_the_largest_side_is_bounded(tmp_path: Path) -> None:
    path = annotate(tmp_path / "x_gtFine_polygons.json", [], (10**6, 10**6))
    with pytest.raises(DataError, match="1000000"):
        label_from_polygons(path)
