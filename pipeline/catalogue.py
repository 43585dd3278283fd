"""What there is: a row per configuration, and a row per network.

    python -m pipeline.catalogue configs
    python -m pipeline.catalogue models --side torch --size 512x1024

Both print JSON. The networks are counted in one framework's process; the configurations need none.

A network's work is the multiply-accumulates of its convolutions (and linear layers) in evaluation:
per layer, outputs times weights per output. It is counted in a run on a small picture, whose
layers' sizes tell those of any other: a map of one pixel (after a global mean) stays one pixel,
every other one grows with the picture. BatchNorm, activations and resizes are not counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import load_config
from common.config_sections import Published
from common.errors import ConfigError, InputError

Side = Literal["torch", "paddle"]
SizeHW = tuple[int, int]

CONFIG_FOLDER = Path("configs")
TYPICAL_HW: SizeHW = (512, 1024)
"""The size that the papers give their numbers for."""
SMALL_HW: SizeHW = (32, 64)
"""Counted in a run at this size: its 1/32 maps are 1 x 2, so only a global mean leaves 1 x 1."""
PIXELS_MULTIPLE = 32
CLASSES = 19

MODEL_SOURCES: dict[str, str] = {
    "bisenetv1": "CoinCheung/BiSeNet@6b4b67a",
    "bisenetv1_2020": "CoinCheung/BiSeNet@a8ddd22",
    "bisenetv1_fp16_2020": "CoinCheung/BiSeNet@a8ddd22 fp16/",
    "bisenetv1_diss": "CoinCheung/BiSeNet@a8ddd22 diss/",
    "bisenetv1_diss_bn": "zllrunning/face-parsing.PyTorch",
    "bisenetv1_2019": "CoinCheung/BiSeNet@2d6d8f1",
    "bisenetv2": "CoinCheung/BiSeNet@6b4b67a",
    "bisenetv2_2020": "CoinCheung/BiSeNet@a8ddd22 bisenetv2/",
    "stdc1": "MichaelFan01/STDC-Seg@59ff37f",
    "stdc2": "MichaelFan01/STDC-Seg@59ff37f",
    "bisestdc": "bearking79/BiSeSTDC@06f8733",
    "bisestdc2": "bearking79/BiSeSTDC@06f8733",
}
"""Where each network comes from."""

FAMILY: dict[str, Path] = {
    model: CONFIG_FOLDER / f"{name}.yml"
    for model, name in {
        "bisenetv1": "bisenetv1_cityscapes",
        "bisenetv1_2020": "bisenetv1_2020_cityscapes",
        "bisenetv1_fp16_2020": "bisenetv1_fp16_2020_cityscapes",
        "bisenetv1_diss": "bisenetv1_diss_cityscapes",
        "bisenetv1_diss_bn": "bisenetv1_diss_face",
        "bisenetv1_2019": "bisenetv1_2019_cityscapes",
        "bisenetv2": "bisenetv2_cityscapes",
        "bisenetv2_2020": "bisenetv2_2020_cityscapes",
        "stdc1": "stdc1_seg50_cityscapes",
        "stdc2": "stdc2_seg50_cityscapes",
        "bisestdc": "bisestdc_seg50_cityscapes",
        "bisestdc2": "bisestdc2_cityscapes",
    }.items()
}
"""The configuration by which each network is verified in a run over the family."""
FAMILY_OVERRIDES = (
    "verify.train_iters=30",
    "verify.train_iters_float32=10",
    "verify.train_warmup_iters=6",
    "verify.image_hw=[32, 64]",
)
"""What a run over the family makes smaller."""


@dataclass(frozen=True)
class CatalogueRow:
    """One configuration, as its row in a table."""

    config: str
    """File name without suffix."""
    model: str
    dataset: str
    classes: int
    crop: str
    """HxW in pixels."""
    batch: str
    """Images per process, and the number of processes it was published with: "8 x 2"."""
    iters: int
    lr: float
    published: str
    """Published mIoU in percent with protocols, "none" without; never a measurement of ours."""
    source: str


@dataclass(frozen=True)
class ModelRow:
    """One network, as its row in a table."""

    model: str
    parameters: int
    """All weights, auxiliary heads and unused layers included, buffers not."""
    trainable: int
    """Those that the published optimizer is given, also where the network never runs them."""
    gmacs: float
    """1e9 multiply-accumulates per picture in evaluation, main output only."""
    heads: tuple[str, ...]
    source: str


def catalogue_rows(folder: Path = CONFIG_FOLDER) -> list[CatalogueRow]:
    """Return a row for every configuration in a folder, sorted by name.

    Raises:
        ConfigError: the folder has no configuration, or one of them is wrong.
    """
    paths = sorted(folder.glob("*.yml"))
    if not paths:
        raise ConfigError(f"{folder}: no *.yml file; expected the folder of the configurations")
    return [_catalogue_row(path) for path in paths]


def _catalogue_row(path: Path) -> CatalogueRow:
    config = load_config(path)
    data = config.data
    return CatalogueRow(
        config=path.stem,
        model=config.model.name,
        dataset=data.dataset,
        classes=config.model.classes,
        crop=f"{data.crop_hw[0]}x{data.crop_hw[1]}",
        batch=f"{data.batch_size} x {config.gpus}",
        iters=config.schedule.max_iters,
        lr=config.optimizer.base_lr,
        published=published_text(config.published),
        source=config.source,
    )


def published_text(figures: Iterable[Published]) -> str:
    """Return "published: 75.44 ss, 78.86 mscf", or "none"."""
    shown = ", ".join(f"{figure.miou:.2f} {figure.protocol}" for figure in figures)
    return f"published: {shown}" if shown else "none"


def model_rows(
    side: Any, *, size_hw: SizeHW = TYPICAL_HW, names: Iterable[str] = ()
) -> list[ModelRow]:
    """Build every network once on a side and return its numbers.

    Args:
        side: the modules of one side; backend and models are used.
        size_hw: picture size that the work is given for, multiples of 32.
        names: networks to count; none given means all.

    Raises:
        ConfigError: a name is unknown or the size is no multiple of 32.
    """
    if any(size <= 0 or size % PIXELS_MULTIPLE for size in size_hw):
        raise ConfigError(
            f"size {size_hw[0]}x{size_hw[1]}: expected HxW, multiples of {PIXELS_MULTIPLE}, "
            f"for example {TYPICAL_HW[0]}x{TYPICAL_HW[1]}"
        )
    return [
        model_row(side, name, side.models.build_model(name, classes=CLASSES), size_hw=size_hw)
        for name in names or side.models.MODELS
    ]


def model_row(side: Any, name: str, model: Any, *, size_hw: SizeHW = TYPICAL_HW) -> ModelRow:
    """Return the numbers of a network that is built, and leave it in evaluation mode."""
    shapes = {key: array.shape for key, array in side.backend.state_arrays(model).items()}
    ungrouped: tuple[str, ...] = getattr(model, "ungrouped", ())
    sizes = {
        key: prod(tensor.shape) for key, tensor in side.backend.trainable_parameters(model).items()
    }
    model.eval()
    image = side.backend.to_tensor(np.zeros((1, 3, *SMALL_HW), np.float32))
    with side.backend.no_grad(), side.backend.capture_outputs(model) as outputs:
        model(image)
    return ModelRow(
        model=name,
        parameters=sum(prod(shape) for key, shape in shapes.items() if not _is_buffer(key)),
        trainable=sum(size for key, size in sizes.items() if key not in ungrouped),
        gmacs=round(macs(shapes, outputs, size_hw=size_hw) / 1e9, 4),
        heads=tuple(model.heads),
        source=MODEL_SOURCES.get(name, "unknown"),
    )


def macs(
    shapes: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, NDArray[Any]],
    *,
    size_hw: SizeHW,
) -> int:
    """Return the multiply-accumulates of one picture of size_hw.

    Args:
        shapes: shape of every parameter by name; a convolution's weight is (out, in / groups, kh,
            kw), a linear layer's (out, in).
        outputs: outputs of the layers by name, "name#1" for a second call, from one picture of
            SMALL_HW.
        size_hw: the size to count for.
    """
    total = 0
    for key, output in outputs.items():
        weight = shapes.get(f"{key.partition('#')[0]}.weight", ())
        if len(weight) == 4:
            maps = output.shape[1] * _grown(output.shape[2:], size_hw)
            total += maps * prod(weight[1:])
        elif len(weight) == 2:
            total += prod(weight)
    return total


def _grown(map_hw: tuple[int, ...], size_hw: SizeHW) -> int:
    """Return the number of pixels of a map whose size at SMALL_HW is map_hw."""
    if map_hw == (1, 1):
        return 1
    sizes = zip(map_hw, size_hw, SMALL_HW, strict=True)
    return prod(size * target // small for size, target, small in sizes)


def _is_buffer(name: str) -> bool:
    return name.endswith((".running_mean", ".running_var"))


def load_counting_side(name: Side) -> SimpleNamespace:
    """Import what counting needs of one side."""
    modules = ("backend", "models")
    loaded = {module: importlib.import_module(f"for_{name}.{module}") for module in modules}
    return SimpleNamespace(name=name, **loaded)


def parse_size(text: str) -> SizeHW:
    """Return (512, 1024) for "512x1024".

    Raises:
        ConfigError: the text is not two numbers with an x between them.
    """
    height, separator, width = text.partition("x")
    if not separator or not height.isdigit() or not width.isdigit():
        raise ConfigError(f"--size {text}: expected HxW in pixels, for example 512x1024")
    return int(height), int(width)


def main(arguments: list[str] | None = None) -> int:
    """Print one of the tables as JSON."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.catalogue", description=__doc__)
    parser.add_argument("table", choices=["configs", "models"])
    parser.add_argument("--folder", type=Path, default=CONFIG_FOLDER, help="of the configurations")
    parser.add_argument("--side", choices=["torch", "paddle"], default="torch", help="that counts")
    parser.add_argument("--size", default="512x1024", help="HxW of the picture, in pixels")
    parser.add_argument("--model", action="append", default=[], help="may be repeated; default all")
    options = parser.parse_args(arguments)
    try:
        rows: list[Any] = (
            list(catalogue_rows(options.folder))
            if options.table == "configs"
            else list(
                model_rows(
                    load_counting_side(options.side),
                    size_hw=parse_size(options.size),
                    names=options.model,
                )
            )
        )
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
