"""The tables of configurations and networks, without a framework."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from common.config import load_config
from common.errors import ConfigError
from pipeline.catalogue import CatalogueRow, catalogue_rows, macs, main, model_rows, parse_size

FOLDER = Path(__file__).resolve().parent.parent / "configs"

PUBLISHED = {
    # CoinCheung's README: ss, ssc, msf, mscf
    "bisenetv1_cityscapes": [75.44, 76.94, 77.45, 78.86],
    "bisenetv1_coco_stuff": [31.49, 31.42, 32.46, 32.55],
    "bisenetv1_ade20k": [36.15, 36.04, 37.27, 36.58],
    "bisenetv2_cityscapes": [74.95, 75.58, 76.53, 77.08],
    "bisenetv2_coco_stuff": [30.49, 30.55, 31.81, 31.73],
    "bisenetv2_ade20k": [32.53, 32.43, 33.23, 31.72],
    # its READMEs of 2020 and 2019
    "bisenetv1_2020_cityscapes": [78.45],
    "bisenetv1_diss_cityscapes": [78.48],
    "bisenetv2_2020_cityscapes": [74.39],
    "bisenetv1_2019_cityscapes": [69.1],
    # STDC-Seg's and BiSeSTDC's READMEs
    "stdc1_seg50_cityscapes": [72.2],
    "stdc1_seg75_cityscapes": [74.5],
    "stdc2_seg50_cityscapes": [74.2],
    "stdc2_seg75_cityscapes": [77.0],
    "bisestdc_seg50_cityscapes": [74.6],
    "bisestdc_seg75_cityscapes": [77.6],
    # PaddleSeg
    "bisenetv2_cityscapes_1024x1024_160k": [73.45, 73.19, 74.19, 74.61],
    # papers
    "bisenetv2_camvid": [72.4],
    "stdc1_camvid": [73.0],
    "stdc2_camvid": [73.9],
}

RECIPES = {
    # lr, weight decay, iterations, warm-up, batch, GPUs, crop; the published recipes, by hand
    "bisenetv1_cityscapes": (1e-2, 5e-4, 80000, 1000, 8, 2, (1024, 1024)),
    "bisenetv1_coco_stuff": (1e-2, 1e-4, 90000, 1000, 4, 4, (512, 512)),
    "bisenetv1_ade20k": (4e-2, 1e-4, 40000, 1000, 8, 8, (512, 512)),
    "bisenetv2_cityscapes": (5e-3, 5e-4, 150000, 1000, 8, 2, (512, 1024)),
    "bisenetv2_coco_stuff": (5e-3, 1e-4, 180000, 1000, 2, 8, (640, 640)),
    "bisenetv2_ade20k": (5e-3, 1e-4, 160000, 1000, 2, 8, (640, 640)),
    "bisenetv1_2020_cityscapes": (1e-2, 5e-4, 80000, 1000, 8, 2, (1024, 1024)),
    "bisenetv1_diss_cityscapes": (1e-2, 5e-4, 80000, 1000, 8, 2, (1024, 1024)),
    "bisenetv1_fp16_2020_cityscapes": (1e-2, 5e-4, 80000, 1000, 8, 2, (1024, 1024)),
    "bisenetv2_2020_cityscapes": (5e-2, 5e-4, 151000, 1000, 8, 2, (512, 1024)),
    "bisenetv1_2019_cityscapes": (2.5e-2, 1e-4, 91000, 1000, 16, 1, (360, 640)),
    "stdc1_seg50_cityscapes": (1e-2, 5e-4, 60000, 1000, 16, 3, (512, 1024)),
    "stdc2_seg75_cityscapes": (1e-2, 5e-4, 60000, 1000, 16, 3, (512, 1024)),
    "bisestdc_seg50_cityscapes": (1e-2, 5e-4, 160000, 1000, 6, 2, (512, 1024)),
    "bisenetv2_cityscapes_1024x1024_160k": (5e-2, 5e-4, 160000, 0, 4, 4, (1024, 1024)),
    "bisenetv2_camvid": (5e-2, 5e-4, 10000, 0, 16, 1, (720, 960)),
    "stdc1_camvid": (1e-2, 5e-4, 10000, 200, 6, 4, (720, 960)),
}

SCALES = {
    "bisenetv1_cityscapes": (0.75, 2.0),
    "bisenetv1_coco_stuff": (0.5, 2.0),
    "bisenetv1_ade20k": (0.5, 2.0),
    "bisenetv2_cityscapes": (0.25, 2.0),
    "bisenetv2_coco_stuff": (0.75, 2.0),
    "bisenetv2_ade20k": (0.5, 2.0),
    "bisenetv2_2020_cityscapes": (0.25, 2.0),
}


# ---- the configurations -------------------------------------------------------------------------
def test_published_figures() -> None:
    found = {path.stem: load_config(path).published for path in FOLDER.glob("*.yml")}
    assert {
        stem: [figure.miou for figure in figures] for stem, figures in found.items() if figures
    } == PUBLISHED
    for stem in ("bisenetv1_cityscapes", "bisenetv2_coco_stuff", "bisenetv1_ade20k"):
        assert [figure.protocol for figure in found[stem]] == ["ss", "ssc", "msf", "mscf"]
    recalled = {stem for stem, figures in found.items() for f in figures if "[recall]" in f.note}
    assert recalled == {"bisenetv2_camvid", "stdc1_camvid", "stdc2_camvid"}


@pytest.mark.parametrize("stem", RECIPES)
def test_recipes(stem: str) -> None:
    config = load_config(FOLDER / f"{stem}.yml")
    assert (
        *(config.optimizer.base_lr, config.optimizer.weight_decay),
        *(config.schedule.max_iters, config.schedule.warmup_iters),
        *(config.data.batch_size, config.gpus, config.data.crop_hw),
    ) == RECIPES[stem]


@pytest.mark.parametrize("stem", SCALES)
def test_continuous_scales_with_the_present_augmentation(stem: str) -> None:
    data = load_config(FOLDER / f"{stem}.yml").data
    assert data.scale_range == SCALES[stem]
    assert data.scale_choices is None
    assert data.augmentation == "opencv"
    assert data.brightness == data.contrast == data.saturation == (0.6, 1.4)


@pytest.mark.parametrize(
    ("stem", "scales", "jitter"),
    [
        ("bisenetv1_2020_cityscapes", (0.75, 1, 1.25, 1.5, 1.75, 2), (0.5, 1.5)),
        ("bisenetv1_2019_cityscapes", (0.75, 1, 1.5, 1.75, 2), None),
        ("stdc1_seg50_cityscapes", tuple(i / 8 for i in range(1, 13)), (0.5, 1.5)),
        ("bisestdc_seg75_cityscapes", tuple(i / 8 for i in range(1, 13)), (0.5, 1.5)),
        ("stdc2_camvid", tuple(i / 4 for i in range(2, 11)), (0.5, 1.5)),
    ],
)
def test_discrete_scales_with_the_older_augmentation(
    stem: str, scales: tuple[float, ...], jitter: tuple[float, float] | None
) -> None:
    data = load_config(FOLDER / f"{stem}.yml").data
    assert data.scale_choices == scales
    assert data.augmentation == "pillow"
    assert data.brightness == data.contrast == data.saturation == jitter
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def merged(path: Path) -> dict[str, Any]:
    """Return a file with its bases, flattened to dotted keys."""
    content = yaml.safe_load(path.read_text())
    bases = content.pop("_base_", [])
    flat: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        flat |= merged(path.parent / base)
    return flat | flattened(content)


def flattened(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        is_section = isinstance(value, dict) and key != "head_weights"
        flat |= flattened(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yml")), ids=lambda path: path.stem)
def test_nothing_of_a_base_is_said_again(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    bases = content.pop("_base_", [])
    inherited: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        inherited |= merged(path.parent / base)
    own = flattened(content)
    assert [key for key, value in own.items() if key in inherited and inherited[key] == value] == []


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yml")), ids=lambda path: path.stem)
def test_floats_are_written_with_a_dot(path: Path) -> None:
    # YAML 1.1 reads 5e-4 as a text
    texts = [value for value in flattened(yaml.safe_load(path.read_text())).values()]
    assert not [v for v in texts if isinstance(v, str) and v.replace("e-", "").isdigit()]


# ---- the table of configurations ----------------------------------------------------------------
def test_rows_of_the_repository() -> None:
    rows = {row.config: row for row in catalogue_rows(FOLDER)}
    assert list(rows) == sorted(path.stem for path in FOLDER.glob("*.yml"))
    assert rows["bisenetv1_coco_stuff"] == CatalogueRow(
        config="bisenetv1_coco_stuff",
        model="bisenetv1",
        dataset="coco_stuff",
        classes=171,
        crop="512x512",
        batch="4 x 4",
        iters=90000,
        lr=1e-2,
        published="published: 31.49 ss, 31.42 ssc, 32.46 msf, 32.55 mscf",
        source="CoinCheung/BiSeNet@6b4b67a configs/bisenetv1_coco.py",
    )
    assert rows["bisenetv1_camvid"].published == "none"
    assert rows["bisenetv1_2019_cityscapes"].published == "published: 69.10 per image"


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "--folder", str(FOLDER)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["config"] for row in rows] == sorted(path.stem for path in FOLDER.glob("*.yml"))


def test_a_folder_without_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"no \*\.yml file"):
        catalogue_rows(tmp_path)
    assert main(["configs", "--folder", str(tmp_path)]) == 2
    assert "no *.yml file" in capsys.readouterr().err


# ---- the work of a network ----------------------------------------------------------------------
def test_macs_by_hand() -> None:
    shapes = {
        "stem.weight": (8, 3, 3, 3),
        "stem.bias": (8,),
        "depthwise.weight": (8, 1, 3, 3),
        "attention.weight": (8, 8, 1, 1),
        "bn.weight": (8,),
        "fc.weight": (10, 8),
        "unused.weight": (100, 100, 3, 3),
    }
    outputs = {
        "stem": np.zeros((1, 8, 16, 32)),
        "bn": np.zeros((1, 8, 16, 32)),
        "depthwise": np.zeros((1, 8, 8, 16)),
        "depthwise#1": np.zeros((1, 8, 4, 8)),
        "attention": np.zeros((1, 8, 1, 1)),
        "fc": np.zeros((1, 10)),
    }
    small = 8 * 16 * 32 * 27 + 8 * 8 * 16 * 9 + 8 * 4 * 8 * 9
    after_the_mean = 8 * 8 + 80
    assert macs(shapes, outputs, size_hw=(32, 64)) == small + after_the_mean
    assert macs(shapes, outputs, size_hw=(64, 192)) == 6 * small + after_the_mean


@pytest.mark.parametrize("text", ["512", "512x", "x512", "512*1024", "-1x32", "5.5x32", ""])
def test_a_wrong_size_is_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="expected HxW in pixels"):
        parse_size(text)
    assert parse_size("512x1024") == (512, 1024)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size_hw", [(0, 32), (40, 64), (64, 40)])
def test_only_multiples_of_32_are_counted(size_hw: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 32, for example 512x1024"):
        model_rows(None, size_hw=size_hw)
