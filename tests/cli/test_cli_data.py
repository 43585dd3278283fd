"""Frames, lists and weights that cannot be used: one message each."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import (
    CAMVID,
    CITYSCAPES,
    SMALL,
    Mistake,
    bisenet,
    recorders,
)

from common.weights import write_weights
from fake_data import scenes


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A small folder in the layout of Cityscapes."""
    return scenes.generate(tmp_path / "frames", train=1, val=1, size_hw=(64, 128))


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _write_text(path: Path) -> None:
    path.write_text("this is no picture")


def _write_small(path: Path) -> None:
    assert cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))


def _write_200(path: Path) -> None:
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    label[0, :5] = 200
    assert cv2.imwrite(str(path), label)


@pytest.mark.parametrize(
    ("file", "spoil", "expected"),
    [
        ("leftImg8bit/val/**/*.png", _truncate, "truncated PNG, its end is missing; copy or"),
        ("leftImg8bit/val/**/*.png", _write_text, "not a picture that OpenCV can decode; expected"),
        ("gtFine/val/**/*labelIds.png", _write_small, "the label is 8x8 (H x W), its image"),
        ("gtFine/val/**/*labelIds.png", _write_200, "5 pixels have label value 200; expected raw"),
        ("gtFine/val/**/*labelIds.png", Path.unlink, "1 of 1 files do not exist"),
        ("leftImg8bit/val", shutil.rmtree, "leftImg8bit/val: no such folder; data.root must hold"),
    ],
)
def test_a_bad_frame_is_one_message(
    mistake: Mistake, frames: Path, file: str, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(path := only(frames, file))
    text = mistake("--config", CITYSCAPES, "--data", frames, "--steps", "forward", *SMALL)
    assert text.startswith("error: ")
    assert expected in text
    assert path.name in text


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a.png,b.png\na.png\n", "train.txt:2: expected an image and a label, separated by"),
        ("a.png,b.png\n", "train.txt: 2 of 2 files do not exist"),
        ("\n", "train.txt: the list is empty"),
        (None, "train.txt: no such list file"),
    ],
)
def test_a_bad_list_is_one_message(
    mistake: Mistake, tmp_path: Path, lines: str | None, expected: str
) -> None:
    if lines is not None:
        (tmp_path / "train.txt").write_text(lines)
    text = mistake("--config", CAMVID, "--data", tmp_path, "--steps", "loss")
    assert text.startswith("error: ")
    assert expected in text


def test_what_only_a_recorder_sees_is_one_message_too(folder: Path, frames: Path) -> None:
    _truncate(path := only(frames, "leftImg8bit/train/**/*.png"))
    out = frames.parent / "out"
    words = ["--config", CITYSCAPES, "--data", frames, "--out", out, "--steps", "data", *SMALL]
    code, stdout, stderr = bisenet(folder, "verify", *words)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(rf"error: (torch|paddle) recorder: {path}: truncated PNG, .*\n", stderr)
    assert recorders(out) == {}


def test_weights_of_another_model_are_one_message(folder: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "other.safetensors", tmp_path / "out"
    write_weights(weights, {"backbone.conv.weight": np.ones((2, 2), np.float32)})
    words = ["--config", CITYSCAPES, "--weights", weights, "--out", out, "--steps", "optimizer"]
    code, stdout, stderr = bisenet(folder, "verify", *words)
    assert (code, stdout) == (2, "")
    assert "recorder: the weights do not fit the model" in stderr
    assert "left over: backbone.conv.weight, (2, 2)" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device", "gpu"], "recorder: device is 'gpu', but"),
        (["--set", "model.name=bisenetv9"], "recorder: model.name is 'bisenetv9'; expected one of"),
    ],
)
def test_what_the_frameworks_refuse_is_one_message(
    folder: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    common = ["--config", CITYSCAPES, "--out", tmp_path / "out", "--steps", "lr_schedule"]
    code, stdout, stderr = bisenet(folder, "verify", *common, *words, CUDA_VISIBLE_DEVICES="")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert expected in stderr
    assert len(stderr.splitlines()) == 1
