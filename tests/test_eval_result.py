"""Settings, tables, JSON and pictures of an evaluation, without a framework."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from common.config import load_config
from common.errors import ConfigError, InputError
from common.protocols import PROTOCOLS, StartSize
from pipeline.eval_display import speed_text
from pipeline.eval_pictures import BAR, PANEL_WIDTH, draw_confusion, draw_errors
from pipeline.eval_result import (
    EvalResult,
    class_table,
    names_of_classes,
    number_table,
    worst_images,
)
from pipeline.eval_settings import CPU_PIXELS, GPU_PIXELS, EvalSettings, parse_settings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CONFIG = CONFIGS / "bisenetv1_camvid.yml"
MATRIX = np.array([[6, 1, 1, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [5, 0, 0, 0]])


def settings(*words: str, config: Path = CONFIG) -> EvalSettings:
    return parse_settings(["--config", str(config), "--weights", "w.safetensors", *words])


def result(**changes: Any) -> EvalResult:
    usual = {
        "config": load_config(CONFIG, overrides=["model.classes=4"]),
        "protocol": PROTOCOLS["ss"],
        "class_names": ("a", "b", "c", "d"),
        "matrix": MATRIX,
        "image_names": ("x/1", "x/2", "x/3"),
        "image_iou": np.array([0.5, np.nan, 0.25]),
        "seconds": 1.5,
        "facts": {"framework": "none"},
    }
    return EvalResult(**{**usual, **changes})


def shown(table: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_defaults_and_the_configuration_s_own_protocol() -> None:
    made = settings()
    assert (made.framework, made.device, made.batch_size) == ("paddle", "cpu", 1)
    assert made.protocol == PROTOCOLS["none"]
    assert made.out == Path("output/eval/bisenetv1_camvid")
    assert made.max_pixels == CPU_PIXELS
    assert settings("--device", "gpu").max_pixels == GPU_PIXELS
    assert settings("--set", "eval.protocol=msf").protocol == PROTOCOLS["msf"]
    assert settings("--set", "eval.protocol=msf", "--mode", "ss").protocol == PROTOCOLS["ss"]
    with pytest.raises(ConfigError, match=r"eval\.protocol: .*'mms'; expected one of none, ss"):
        settings("--set", "eval.protocol=mms")


def test_options_replace_the_protocol_s() -> None:
    words = ("--mode", "mscf", "--scales", "0.5", "1", "--no-flip", "--crop", "256", "320")
    made = settings(*words, "--stride", "0.5", "--overlap", "mean", "--short_side", "300").protocol
    assert made.name == "mscf, changed"
    assert (made.scales, made.flip, made.crop_hw) == ((0.5, 1.0), False, (256, 320))
    assert (made.stride_rate, made.overlap) == (0.5, "mean")
    assert made.start == StartSize(short_side=300)
    assert settings("--mode", "ss", "--flip").protocol.flip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch_size", "0"), "--batch_size 0: expected at least 1"),
        (("--max_pixels", "-1"), "--max_pixels -1: expected at least 1"),
        (("--worst", "-1"), "expected 0 or more"),
        (("--mode", "ss", "--overlap", "mean"), "has no sliding window"),
        (("--stride", "2", "--mode", "mscf"), "never seen"),
        (("--scales", "-1"), "expected one or more above 0"),
    ],
)
def test_wrong_options_are_told(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(*words)


def test_the_command_is_kept_without_this_machine_s_folders() -> None:
    command = settings("--data", "/home/me/camvid", "--set", "data.root=/somewhere/else").command
    assert "--data camvid --set data.root=else" in command
    assert str(CONFIGS) not in command


@pytest.mark.parametrize(
    ("name", "crop_hw", "short_side"),
    [
        ("bisenetv1_cityscapes", (1024, 1024), None),
        ("bisenetv2_cityscapes", (1024, 1024), None),
        ("bisenetv1_coco_stuff", (512, 512), None),
        ("bisenetv2_coco_stuff", (640, 640), None),
        ("bisenetv1_ade20k", (512, 512), 512),
        ("bisenetv2_ade20k", (640, 640), 640),
    ],
)
def test_windows_of_the_published_recipes(
    name: str, crop_hw: tuple[int, int], short_side: int | None
) -> None:
    made = settings("--mode", "mscf", config=CONFIGS / f"{name}.yml").protocol
    assert (made.name, made.crop_hw) == ("mscf", crop_hw)
    assert made.start == StartSize(short_side=short_side)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("stdc1_seg50", "ss@0.5"), ("stdc2_seg75", "ss@0.75"), ("bisestdc_seg75", "ss@0.75")],
)
def test_stdc_is_read_at_its_scale(name: str, protocol: str) -> None:
    assert settings(config=CONFIGS / f"{name}_cityscapes.yml").protocol == PROTOCOLS[protocol]


def test_how_a_network_is_read_is_no_part_of_the_digests() -> None:
    plain = load_config(CONFIG)
    changed = ["eval.protocol=mscf", "eval.crop_hw=[64,64]", "eval.short_side=99"]
    other = load_config(CONFIG, overrides=changed)
    assert other.digest() == plain.digest()
    assert other.recipe_digest() == plain.recipe_digest()
    void = load_config(CONFIG, overrides=["eval.count_void=true"])
    assert void.digest() != plain.digest()
    assert void.recipe_digest() != plain.recipe_digest()


def test_numbers_carry_their_conventions() -> None:
    numbers = {number.name: number for number in result().numbers()}
    assert numbers["mIoU"].value == pytest.approx((6 / 10 + 4 / 7) / 3, rel=1e-15)
    assert numbers["mean accuracy"].value == pytest.approx((6 / 8 + 4 / 6) / 2, rel=1e-15)
    assert numbers["mIoU per image"].value == pytest.approx(0.375, rel=1e-15)
    for number in numbers.values():
        assert number.protocol == "ss"
        assert "void" in number.convention
    void = load_config(CONFIG, overrides=["model.classes=4", "eval.count_void=true"])
    number = result(config=void).numbers()[0]
    assert number.value == pytest.approx((6 / 15 + 4 / 7) / 3, rel=1e-15)
    assert number.convention.endswith("predictions on void pixels count as false positives")
    others = {number.name: number.value for number in result().other_conventions()}
    assert len(others) == 8
    assert others["mIoU, absent: one"] == pytest.approx((6 / 10 + 4 / 7 + 1) / 4, rel=1e-15)
    assert others["mIoU, absent: zero, void counted"] == pytest.approx(
        (6 / 15 + 4 / 7) / 4, rel=1e-15
    )


def test_json_holds_everything_and_no_nan() -> None:
    content = json.loads(result().json_text())
    assert content["protocol"]["name"] == "ss"
    assert content["protocol"]["multiple"] == 32
    assert content["conventions"] == {"absent": "skip", "count_void": False, "ignore_index": 255}
    assert content["confusion_matrix"]["counts"] == MATRIX.tolist()
    assert content["images"] == {"x/1": 0.5, "x/2": None, "x/3": 0.25}
    assert content["classes"][3] == {
        **{"name": "d", "iou": None, "accuracy": None, "f1": None, "labelled_pixels": 0}
    }
    assert content["images_per_second"] == 2.0


def test_tables_name_protocol_and_convention() -> None:
    text = shown(class_table(result()))
    assert "protocol ss" in text
    assert "60.00 %" in text
    text = shown(number_table(result()))
    assert "39.05 %" in text
    assert "void pixels not counted" in text
    city = load_config(CONFIGS / "bisenetv1_cityscapes.yml")
    matrix = np.eye(20, 19, dtype=np.int64)
    names = tuple(str(i) for i in range(19))
    text = shown(number_table(result(config=city, matrix=matrix, class_names=names)))
    assert "published mIoU" in text
    assert "75.44 %" in text


def test_the_worst_pictures_come_first_and_unlabelled_ones_never() -> None:
    assert worst_images(np.array([0.5, np.nan, 0.25, 0.5]), 10) == [2, 0, 3]
    assert worst_images(np.array([0.5, np.nan, 0.25, 0.5]), 1) == [2]
    assert worst_images(np.array([np.nan]), 3) == []


def test_names_of_classes() -> None:
    assert names_of_classes(("x", "y"), 2) == ("x", "y")
    assert names_of_classes(("x", "y"), 3) == ("class 0", "class 1", "class 2")
    assert names_of_classes(None, 1) == ("class 0",)


def test_speed_and_time_left() -> None:
    assert speed_text(10, 30, 4.0) == "2.50 images/s, ETA 0:00:08"
    assert speed_text(1, 21, 4.0) == "4.00 s/image, ETA 0:01:20"
    assert speed_text(0, 21, 4.0) == ""


def test_the_confusion_matrix_is_drawn_with_and_without_names(tmp_path: Path) -> None:
    for classes in (4, 40):
        matrix = np.eye(classes + 1, classes, dtype=np.int64)
        names = [f"class {i}" for i in range(classes)]
        draw_confusion(tmp_path / f"{classes}.png", matrix, names, title="a title")
        picture = cv2.imread(str(tmp_path / f"{classes}.png"))
        # a full diagonal in the darkest blue of the map, on a pale ground
        assert (np.abs(picture.astype(int) - (107, 48, 8)).max(axis=2) <= 2).mean() > 0.001
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4.png", "40.png"]


def test_errors_are_red_right_pixels_dark_and_void_black(tmp_path: Path) -> None:
    image = np.full((8, PANEL_WIDTH, 3), 200, np.uint8)
    label = np.zeros((8, PANEL_WIDTH), np.int64)
    label[:, PANEL_WIDTH // 2 :] = 1
    label[:4] = 255
    prediction = np.zeros((8, PANEL_WIDTH), np.uint8)
    palette = ((10, 20, 30), (200, 100, 50))
    path = tmp_path / "worst" / "x.png"
    options: dict[str, Any] = {"palette": palette, "ignore_index": 255, "text": "x"}
    draw_errors(path, image, label, prediction, **options)
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert picture.shape == (BAR + 8, 4 * PANEL_WIDTH, 3)
    row = picture[BAR + 7]
    panels = [row[i * PANEL_WIDTH : (i + 1) * PANEL_WIDTH] for i in range(4)]
    left, right = 3, PANEL_WIDTH - 3
    assert panels[0][left].tolist() == [200, 200, 200]
    assert [panels[1][i].tolist() for i in (left, right)] == [[10, 20, 30], [200, 100, 50]]
    assert [panels[2][i].tolist() for i in (left, right)] == [[10, 20, 30], [10, 20, 30]]
    assert [panels[3][i].tolist() for i in (left, right)] == [[70, 70, 70], [236, 70, 70]]
    void = picture[BAR + 1]
    assert void[PANEL_WIDTH + left].tolist() == [0, 0, 0]
    assert void[3 * PANEL_WIDTH + left].tolist() == [0, 0, 0]


def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        draw_confusion(tmp_path / "file" / "x.png", MATRIX, ["a", "b", "c", "d"], title="")
    shutil.rmtree(tmp_path)
