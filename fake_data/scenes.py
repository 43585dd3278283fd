"""Synthetic street scenes in Cityscapes' own layout: images, polygons and label ids.

    python -m fake_data.scenes OUT --train 8 --val 4 --size 256 512 --seed 0

The same arguments give the same bytes. Label files are drawn from the polygons by Pillow, the
rasteriser of the official cityscapesscripts, so that json2labelImg gives the same pixels.
"""

import argparse
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.classes import CITYSCAPES, CITYSCAPES_TRAIN_IDS
from common.errors import DataError, InputError
from fake_data.objects import Polygon, Shape
from fake_data.street import street

VERSION = 1
"""Counts changes of the pictures: a folder made by another version is not reused."""

MIN_SIDE = 32
"""Pixels; below, most objects have no area."""

LABEL_IDS: dict[str, int] = {
    **{CITYSCAPES.names[train_id]: value for value, train_id in CITYSCAPES_TRAIN_IDS.items()},
    **{"unlabeled": 0, "ego vehicle": 1, "static": 4, "parking": 9, "license plate": -1},
}
"""Cityscapes' raw id of each label name that the scenes use; a negative one is not drawn."""

_CITIES = {"train": ("musterstadt", "beispielburg"), "val": ("pruefhausen",)}
_GRAIN: dict[str, float] = {"vegetation": 26, "terrain": 15, "road": 5, "sidewalk": 6, "sky": 2}
"""Amplitude of the texture's noise in grey values; 4 for the other classes."""
_MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def generate(
    root: Path,
    *,
    seed: int = 0,
    train: int = 8,
    val: int = 4,
    size_hw: tuple[int, int] = (256, 512),
) -> Path:
    """Make the data set, unless the folder already holds it.

    Three or more scenes in a split hold all 19 classes and void.

    Args:
        root: the folder to make; complete or absent, never half written.
        seed: of everything.
        train: number of training scenes.
        val: number of validation scenes.
        size_hw: (H, W) of the pictures in pixels.

    Returns:
        root, the value for data.root of a Cityscapes configuration.

    Raises:
        DataError: the folder exists and holds something else, or changed files.
        InputError: impossible numbers, or the folder cannot be written.
    """
    if train < 0 or val < 0 or seed < 0 or min(size_hw) < MIN_SIDE:
        raise InputError(
            f"train {train}, val {val}, seed {seed}, size {size_hw[0]} x {size_hw[1]}; expected "
            f"numbers >= 0 and sides of at least {MIN_SIDE} pixels"
        )
    parameters: dict[str, object] = {
        **{"version": VERSION, "seed": seed, "train": train, "val": val},
        "size_hw": list(size_hw),
    }
    if root.exists():
        _check_existing(root, parameters)
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    except OSError as error:
        raise InputError(f"{root}: cannot be made ({error}); choose another folder") from None
    try:
        for split, count in (("train", train), ("val", val)):
            for index in range(count):
                _write_scene(beside, split, index, seed=seed, size_hw=size_hw)
        manifest = parameters | {"digest": _digest(beside)}
        (beside / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        beside.chmod(0o755)
        _rename(beside, root, parameters)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info("%s: %d training and %d validation scenes", root, train, val)
    return root


def render(
    rng: np.random.Generator, *, index: int, size_hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[Shape]]:
    """Draw one scene.

    Args:
        rng: of the scene.
        index: number of the scene in its split.
        size_hw: (H, W) in pixels.

    Returns:
        (H, W, 3) uint8 RGB picture, (H, W) uint8 raw label ids, and the objects in drawing order.
    """
    shapes = street(rng, index=index, size_hw=size_hw)
    wh = (size_hw[1], size_hw[0])
    picture, label = Image.new("RGB", wh), Image.new("L", wh, LABEL_IDS["unlabeled"])
    on_picture, on_label = ImageDraw.Draw(picture), ImageDraw.Draw(label)
    for shape in shapes:
        if LABEL_IDS[shape.label] >= 0:
            on_label.polygon(shape.polygon, fill=LABEL_IDS[shape.label])
        on_picture.polygon(shape.polygon, fill=shape.colour)
        for polygon, colour in shape.details:
            on_picture.polygon(polygon, fill=colour)
    ids = np.array(label, np.uint8)
    return _photograph(np.array(picture, np.uint8), ids, rng), ids, shapes


def _photograph(
    picture: NDArray[np.uint8], ids: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Give flat colours texture, light, and the soft edges and noise of a camera."""
    H, W = ids.shape
    y, x = np.mgrid[:H, :W]
    period = max(4, H // 48)
    amplitude = np.full(256, 4.0)
    for name, value in _GRAIN.items():
        amplitude[LABEL_IDS[name]] = value
    coarse = cv2.resize(rng.standard_normal((-(-H // 2), -(-W // 2))), (W, H))
    shade = amplitude[ids] * coarse
    # boards of the fence, courses of the wall, slabs of the sidewalk, haze at the horizon
    shade += np.where(ids == LABEL_IDS["fence"], 34.0 * (x % period < period // 2), 0)
    shade += np.where(ids == LABEL_IDS["wall"], 26.0 * (y % period < period // 2), 0)
    slabs = (x % (2 * period) == 0) | (y % (2 * period) == 0)
    shade -= np.where(ids == LABEL_IDS["sidewalk"], 18.0 * slabs, 0)
    shade += np.where(ids == LABEL_IDS["sky"], 60.0 * y / H - 12, 0)
    light = rng.uniform(0.88, 1.08) * np.array(
        [rng.uniform(0.96, 1.04), 1, rng.uniform(0.96, 1.04)]
    )
    lit = (picture + shade[..., None]) * light
    soft = cv2.GaussianBlur(lit, (3, 3), 0.6) + 2.5 * rng.standard_normal((H, W, 3))
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def _write_scene(
    root: Path, split: str, index: int, *, seed: int, size_hw: tuple[int, int]
) -> None:
    stream = np.random.SeedSequence(seed, spawn_key=(list(_CITIES).index(split), index))
    image, ids, shapes = render(np.random.default_rng(stream), index=index, size_hw=size_hw)
    city = _CITIES[split][index % len(_CITIES[split])]
    stem = f"{city}_{index:06d}_000019"
    images, labels = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    _write_png(images / f"{stem}_leftImg8bit.png", image[..., ::-1])
    _write_png(labels / f"{stem}_gtFine_labelIds.png", ids)
    annotation = {
        **{"imgHeight": size_hw[0], "imgWidth": size_hw[1]},
        "objects": [{"label": s.label, "polygon": _as_lists(s.polygon)} for s in shapes],
    }
    text = json.dumps(annotation)
    (labels / f"{stem}_gtFine_polygons.json").write_text(text + "\n", encoding="utf-8")


def _as_lists(polygon: Polygon) -> list[list[int]]:
    return [[x, y] for x, y in polygon]


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(picture))
    path.write_bytes(encoded.tobytes())


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != _MANIFEST):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _check_existing(root: Path, parameters: dict[str, object]) -> None:
    advice = "delete the folder, or choose another"
    try:
        manifest = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
        found = {key: manifest[key] for key in (*parameters, "digest")}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{root}: exists and is no folder of synthetic scenes; {advice}") from None
    digest = found.pop("digest")
    if found != parameters:
        raise DataError(f"{root}: holds scenes of {found}, expected {parameters}; {advice}")
    if digest != _digest(root):
        raise DataError(f"{root}: files were changed since they were generated; {advice}")


def _rename(beside: Path, root: Path, parameters: dict[str, object]) -> None:
    try:
        beside.rename(root)
    except OSError:
        # another process was faster; its folder must hold the same
        if not root.exists():
            raise
        _check_existing(root, parameters)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Generate synthetic street scenes.")
    parser.add_argument("out", type=Path, help="folder to make, in Cityscapes' layout")
    parser.add_argument("--train", type=int, default=8, help="training scenes (default 8)")
    parser.add_argument("--val", type=int, default=4, help="validation scenes (default 4)")
    parser.add_argument(
        *("--size",), type=int, nargs=2, default=(256, 512), metavar=("H", "W"), help="in pixels"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    size_hw = (chosen.size[0], chosen.size[1])
    try:
        generate(chosen.out, seed=chosen.seed, train=chosen.train, val=chosen.val, size_hw=size_hw)
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
