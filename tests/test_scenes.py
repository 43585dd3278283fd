"""Synthetic street scenes: complete, repeatable, and drawn as the official tool draws them."""

import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from common.config_sections import DataConfig
from common.datasets import load_samples, read_sample
from common.errors import DataError, InputError
from common.images import read_label
from fake_data import scenes
from fake_data.scenes import LABEL_IDS, generate, main

SIZE = (96, 192)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "s", seed=0, train=3, val=3, size_hw=SIZE)


def config(root: Path) -> DataConfig:
    normal = {"mean": (0, 0, 0), "std": (1, 1, 1), "crop_hw": (64, 64), "batch_size": 1}
    return DataConfig(dataset="cityscapes", root=root, **normal)


def contents(root: Path) -> dict[str, bytes]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def test_layout_is_that_of_cityscapes(root: Path) -> None:
    names = set(contents(root))
    stem = "pruefhausen/pruefhausen_000001_000019"
    assert f"leftImg8bit/val/{stem}_leftImg8bit.png" in names
    assert f"gtFine/val/{stem}_gtFine_labelIds.png" in names
    assert f"gtFine/val/{stem}_gtFine_polygons.json" in names
    assert len(names) == 3 * 6 + 1
    assert not [p for p in root.parent.iterdir() if p != root]  # nothing half made is left


def test_official_tool_draws_the_same_labels(root: Path) -> None:
    files = sorted(root.glob("gtFine/*/*/*_polygons.json"))
    assert len(files) == 6
    for file in files:
        annotation = Annotation()
        annotation.fromJsonFile(str(file))
        theirs = np.array(createLabelImage(annotation, "ids"))
        ours = read_label(file.with_name(file.name.replace("_polygons.json", "_labelIds.png")))
        np.testing.assert_array_equal(ours, theirs)
        assert ours.shape == SIZE


def test_label_ids_are_the_official_ones() -> None:
    assert {name: name2label[name].id for name in LABEL_IDS} == LABEL_IDS


def test_json_has_the_official_keys(root: Path) -> None:
    file = next(root.glob("gtFine/train/*/*_polygons.json"))
    content = json.loads(file.read_text())
    assert (content["imgHeight"], content["imgWidth"]) == SIZE
    assert {key for o in content["objects"] for key in o} == {"label", "polygon"}
    assert "license plate" in {o["label"] for o in content["objects"]}


@pytest.mark.parametrize("seed", range(4))
def test_three_scenes_hold_every_class_and_void(seed: int, tmp_path: Path) -> None:
    root = generate(tmp_path / "s", seed=seed, train=3, val=3, size_hw=SIZE)
    for split in ("train", "val"):
        found: set[int] = set()
        for sample in load_samples(config(root), split):
            _, label = read_sample(sample, classes=19, ignore_index=255)
            found |= set(np.unique(label).tolist())
        assert found == {*range(19), 255}


def test_colour_tells_the_class(root: Path) -> None:
    """The nearest class mean, learnt on train, is right on far more val pixels than a guess."""
    sums, counts = np.zeros((19, 5)), np.zeros(19)
    right = total = 0
    for split in ("train", "val"):
        for sample in load_samples(config(root), split):
            image, label = read_sample(sample, classes=19, ignore_index=255)
            y, x = np.mgrid[: SIZE[0], : SIZE[1]] / SIZE[0] * 255
            features = np.dstack([image, y, np.abs(x - 255)])[label != 255]
            truth = label[label != 255]
            if split == "train":
                counts += np.bincount(truth, minlength=19)
                sums += [features[truth == c].sum(axis=0) for c in range(19)]
            else:
                means = sums / counts[:, None]
                distance = ((features[:, None] - means) ** 2).sum(axis=2)
                right += int((distance.argmin(axis=1) == truth).sum())
                total += len(truth)
    assert right / total > 0.4


def test_same_arguments_same_bytes(root: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", seed=0, train=3, val=3, size_hw=SIZE)
    assert contents(again) == contents(root)
    other = generate(tmp_path / "other", seed=1, train=3, val=3, size_hw=SIZE)
    assert not set(contents(other).values()) & set(contents(root).values())


def test_scenes_do_not_depend_on_how_many_there_are(root: Path, tmp_path: Path) -> None:
    fewer = contents(generate(tmp_path / "few", seed=0, train=1, val=0, size_hw=SIZE))
    whole = contents(root)
    assert all(whole[name] == c for name, c in fewer.items() if name != "manifest.json")


def test_existing_folder_is_kept(root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    generate(root, seed=0, train=3, val=3, size_hw=SIZE)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_existing_folder_with_other_parameters(root: Path) -> None:
    with pytest.raises(DataError, match=r"'seed': 0.*expected .*'seed': 2.*delete the folder"):
        generate(root, seed=2, train=3, val=3, size_hw=SIZE)


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="is no folder of synthetic scenes"):
        generate(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_changed_file_is_noticed(tmp_path: Path) -> None:
    root = generate(tmp_path / "s", train=1, val=0, size_hw=(32, 64))
    next(root.rglob("*_labelIds.png")).write_bytes(b"")
    with pytest.raises(DataError, match="files were changed"):
        generate(root, train=1, val=0, size_hw=(32, 64))


def test_nothing_is_left_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "_write_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"train": 1, "val": 0, "size_hw": (32, 64)}
    exists, asked = Path.exists, []

    def late(path: Path) -> bool:
        # the first look finds nothing although the folder is there
        asked.append(path)
        return len(asked) > 1 and exists(path)

    generate(tmp_path / "s", **arguments)
    monkeypatch.setattr(Path, "exists", late)
    assert generate(tmp_path / "s", **arguments) == tmp_path / "s"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("changes", [{"train": -1}, {"seed": -1}, {"size_hw": (16, 64)}])
def test_impossible_numbers(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(InputError, match="expected numbers >= 0"):
        generate(tmp_path / "s", **changes)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "s"
    arguments = [str(out), "--train", "1", "--val", "1", "--size", "32", "64", "--seed", "3"]
    main(arguments)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["size_hw"] == [32, 64]
    assert manifest["seed"] == 3
    with pytest.raises(SystemExit) as error:
        main([*arguments[:-1], "4"])
    assert error.value.code == 2
    assert "delete the folder" in capsys.readouterr().err
