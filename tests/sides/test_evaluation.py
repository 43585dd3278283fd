"""`bisenet eval` from weights to pictures, with one process and under the framework's launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.config import load_config
from common.datasets import load_samples
from common.errors import DataError, InputError, WeightsError
from common.iou import confusion_matrix, image_mean_iou, kappa, mean_iou, pixel_accuracy
from common.transforms import normalise
from common.weights import write_weights
from fake_data import rules
from fake_data.scenes import generate
from pipeline import evaluation
from pipeline.eval_settings import parse_settings
from pipeline.evaluation import run

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "bisenetv2_cityscapes.yml"
SIZE = (64, 128)
PICTURES = 5


@pytest.fixture(scope="module")
def folder(side: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and weights by rule with and without auxiliary heads."""
    out = tmp_path_factory.mktemp("eval")
    generate(out / "scenes", seed=4, train=1, val=PICTURES, size_hw=SIZE)
    for name, aux_heads in (("full", True), ("main", False)):
        model = side.models.build_model("bisenetv2", classes=19, aux_heads=aux_heads)
        shapes = {key: a.shape for key, a in side.backend.state_arrays(model).items()}
        arrays = {key: rules.weight(key, s).astype(np.float32) for key, s in shapes.items()}
        write_weights(out / f"{name}.safetensors", arrays, model="bisenetv2")
    return out


def words(side: Any, folder: Path, out: Path, *more: str, weights: str = "full") -> list[str]:
    return [
        *("--config", str(CONFIG), "--data", str(folder / "scenes"), "--workers", "0"),
        *("--weights", str(folder / f"{weights}.safetensors"), "--out", str(out)),
        *("--side", side.name, *more),
    ]


def evaluated(side: Any, folder: Path, out: Path, *more: str, **options: str) -> dict[str, Any]:
    assert run(parse_settings(words(side, folder, out, *more, **options))) == 0
    return json.loads((out / "eval.json").read_text())


def by_hand(side: Any, folder: Path) -> list[np.ndarray]:
    """The confusion matrix of every picture, predicted without the evaluation engine."""
    config = load_config(CONFIG, overrides=[f"data.root={folder / 'scenes'}"])
    model = side.models.build_model("bisenetv2", classes=19)
    shapes = {key: a.shape for key, a in side.backend.state_arrays(model).items()}
    arrays = {key: rules.weight(key, s).astype(np.float32) for key, s in shapes.items()}
    side.backend.load_arrays(model, arrays)
    model.eval()
    matrices = []
    for sample in load_samples(config.data, "val"):
        image = cv2.cvtColor(cv2.imread(str(sample.image)), cv2.COLOR_BGR2RGB)
        raw = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED)
        label = sample_label(raw)
        rng = np.random.default_rng(0)
        x, _ = normalise(image, raw, rng, mean=config.data.mean, std=config.data.std)
        with side.backend.no_grad():
            logits = side.backend.to_numpy(model(side.backend.to_tensor(x[None]))["main"])
        prediction = logits[0].argmax(axis=0)
        matrices.append(confusion_matrix(prediction, label, classes=19, ignore_index=255))
    return matrices


def sample_label(raw: np.ndarray) -> np.ndarray:
    # the environments with another Paddle do without it
    official = pytest.importorskip("cityscapesscripts.helpers.labels")
    return np.vectorize(lambda value: official.id2label[int(value)].trainId % 256)(raw)


def values(result: dict[str, Any]) -> dict[str, float]:
    return {number["name"]: number["value"] for number in result["numbers"]}


def test_numbers_files_and_conventions(side: Any, folder: Path, tmp_path: Path) -> None:
    result = evaluated(side, folder, tmp_path, "--worst", "2")
    matrices = by_hand(side, folder)
    total = sum(matrices)
    np.testing.assert_array_equal(result["confusion_matrix"]["counts"], total)
    found = values(result)
    assert found["mIoU"] == pytest.approx(mean_iou(total, absent="skip"), rel=1e-12)
    assert found["pixel accuracy"] == pytest.approx(pixel_accuracy(total), rel=1e-12)
    assert found["kappa"] == pytest.approx(kappa(total), rel=1e-12)
    own = [image_mean_iou(matrix) for matrix in matrices]
    assert list(result["images"].values()) == pytest.approx(own, rel=1e-12)
    assert found["mIoU per image"] == pytest.approx(np.mean(own), rel=1e-12)
    for number in result["numbers"] + result["miou_by_convention"]:
        assert number["protocol"] == "none"
        assert "void" in number["convention"]
    assert "left out" in result["numbers"][0]["convention"]
    assert str(folder) not in (tmp_path / "eval.json").read_text()
    picture = cv2.imread(str(tmp_path / "confusion_matrix.png"))
    assert picture is not None
    # the two worst of five, in order
    names = [list(result["images"])[i].replace("/", "_") for i in np.argsort(own)[:2]]
    worst = sorted(path.name for path in (tmp_path / "worst").iterdir())
    assert worst == [f"{i + 1:02d}_{name}.png" for i, name in enumerate(names)]


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_a_device_is_read_at_most_twice_for_every_block(
    side: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: str
) -> None:
    more = ("--worst", "2", "--batch_size", batch_size)
    expected = evaluated(side, folder, tmp_path / "host", *more)
    reads = 0

    def read(tensor: Any) -> Any:
        nonlocal reads
        reads += 1
        return side.backend.to_numpy(tensor)

    monkeypatch.setattr(evaluation, "BLOCK_IMAGES", 2)
    monkeypatch.setattr(side.metrics, "host_view", lambda _tensor: None)
    monkeypatch.setattr(side.metrics, "to_numpy", read)
    found = evaluated(side, folder, tmp_path / "device", *more)
    # five pictures in blocks of two: matrices of each block, and predictions while any are kept
    assert 3 <= reads <= 6
    for key in ("confusion_matrix", "numbers", "images", "classes"):
        assert found[key] == expected[key]
    drawn = [sorted((tmp_path / out / "worst").iterdir()) for out in ("host", "device")]
    assert [path.name for path in drawn[0]] == [path.name for path in drawn[1]]
    for own, other in zip(*drawn, strict=True):
        assert own.read_bytes() == other.read_bytes()


def test_weights_without_auxiliary_heads_give_the_same(
    side: Any, folder: Path, tmp_path: Path
) -> None:
    full = evaluated(side, folder, tmp_path / "a", "--mode", "ss")
    main = evaluated(side, folder, tmp_path / "b", "--mode", "ss", weights="main")
    assert full["numbers"] == main["numbers"]
    assert full["weights_sha256"] != main["weights_sha256"]


def test_void_and_absent_rules_are_followed(side: Any, folder: Path, tmp_path: Path) -> None:
    rules = ("--set", "eval.absent=plus_one", "--set", "eval.count_void=true")
    result = evaluated(side, folder, tmp_path, *rules)
    total = np.array(result["confusion_matrix"]["counts"])
    expected = mean_iou(total, absent="plus_one", count_void=True)
    assert values(result)["mIoU"] == pytest.approx(expected, rel=1e-12)
    assert "void pixels count as false positives" in result["numbers"][0]["convention"]
    assert "increased by 1" in result["numbers"][0]["convention"]


@pytest.mark.slow
def test_the_launcher_evaluates_each_picture_once(side: Any, folder: Path, tmp_path: Path) -> None:
    protocol = ("--mode", "mscf", "--crop", "64", "64", "--scales", "0.5", "1")
    alone = evaluated(side, folder, tmp_path / "alone", *protocol)
    launcher = {
        "torch": ["torch.distributed.run", "--standalone"],
        "paddle": ["paddle.distributed.launch", "--log_dir", str(tmp_path / "launcher")],
    }[side.name]
    out = tmp_path / "two"
    done = subprocess.run(
        [
            *(sys.executable, "-m", *launcher, "--nproc_per_node", "2"),
            *(str(ROOT / "tools" / "eval.py"), *words(side, folder, out, *protocol)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    logs = sorted((tmp_path / "launcher").glob("workerlog.*"))
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in logs)
    two = json.loads((out / "eval.json").read_text())
    assert (alone["processes"], two["processes"]) == (1, 2)
    for key in ("confusion_matrix", "numbers", "images", "classes"):
        assert two[key] == alone[key]
    drawn = [sorted(p.name for p in (d / "worst").iterdir()) for d in (out, tmp_path / "alone")]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == PICTURES


def test_the_worst_pictures_are_those_of_this_evaluation(
    side: Any, folder: Path, tmp_path: Path
) -> None:
    evaluated(side, folder, tmp_path, "--worst", "3")
    own = tmp_path / "worst" / "notes.txt"
    own.write_text("a person's", encoding="utf-8")
    evaluated(side, folder, tmp_path, "--worst", "1")
    names = sorted(path.name for path in (tmp_path / "worst").iterdir())
    assert [name[:3] for name in names] == ["01_", "not"]


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    side: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", None)  # is not reached
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="file"):
        evaluated(side, folder, tmp_path / "file")


def test_the_numbers_outlive_a_disk_that_fills_up_while_drawing(
    side: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise InputError("cannot write: no space left on device")

    monkeypatch.setattr(evaluation, "draw_errors", full)
    with pytest.raises(InputError, match="no space"):
        evaluated(side, folder, tmp_path, "--worst", "1")
    assert json.loads((tmp_path / "eval.json").read_text())["numbers"]


def test_a_picture_that_is_left_out_or_counted_twice_is_an_error() -> None:
    names = ["a", "b", "c"]
    evaluation.require_each_once(np.array([1, 1, 1]), names)
    with pytest.raises(RuntimeError, match=r"2 pictures .*: a \(2 times\), c \(0 times\)"):
        evaluation.require_each_once(np.array([2, 1, 0]), names)


def test_missing_weights_are_no_such_file(side: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.safetensors: no such file"):
        evaluated(side, folder, tmp_path, weights="nowhere")


def test_a_backbone_is_refused(side: Any, folder: Path, tmp_path: Path) -> None:
    arrays = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    write_weights(folder / "other.safetensors", arrays)
    with pytest.raises(WeightsError, match="missing"):
        evaluated(side, folder, tmp_path, weights="other")
    assert not (tmp_path / "eval.json").exists()


def test_a_picture_named_twice_is_refused(side: Any, folder: Path, tmp_path: Path) -> None:
    data = load_config(CONFIG, overrides=[f"data.root={folder / 'scenes'}"]).data
    sample = load_samples(data, "val")[0]
    line = f"{sample.image.relative_to(data.root)},{sample.label.relative_to(data.root)}\n"
    (folder / "scenes" / "twice.txt").write_text(line * 2)
    with pytest.raises(DataError, match="more than once"):
        evaluated(side, folder, tmp_path, "--set", "data.val_list=twice.txt")
