"""Small pictures of both sides for the report page: samples of the data, and predictions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from common.config import Config
from common.pictures import palette_of, shown_image
from pipeline.differences import Array, difference
from pipeline.evidence_series import Number, number
from pipeline.records import read_arrays

WIDTH = 128
"""Pixels of a picture's longer side at most."""
JPEG_QUALITY = 75
SHOWN_FLIP, SHOWN_SAME = (255, 214, 0), (38, 38, 38)
"""RGB of pixels that differ and of those that do not."""


class Picture(BaseModel):
    """An encoded picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """"png" or "jpeg"."""
    data: str
    """base64."""
    width: int
    height: int


class PicturePair(BaseModel):
    """The same picture of both sides, and where they differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    torch: Picture
    paddle: Picture | None = None
    """None: every pixel is Torch's."""
    apart: Picture | None = None
    """Where they differ; None: nowhere."""
    differing: int
    """Elements that differ, before the picture was made smaller."""
    size: int
    largest: Number = None
    """Largest difference of an image in its normalised units."""
    margin: Number = None
    """Of a prediction: by how much the winning class led where the sides disagree, at most, over
    the largest logit. Rounding flips where classes are nearly equal."""
    frame: Picture | None = None
    """Of a prediction: the image it was made from."""


def _stride(shape: Sequence[int]) -> int:
    """Return by how much a picture of this (H, W) is made smaller."""
    return -(-max(shape[:2]) // WIDTH)


def jpeg(pixels: NDArray[np.uint8]) -> Picture:
    """Encode an (H, W, 3) RGB picture, made smaller by averaging if it is wide."""
    step = _stride(pixels.shape)
    if step > 1:
        size = (pixels.shape[1] // step, max(1, pixels.shape[0] // step))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(small, dtype=np.uint8)
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return _picture("jpeg", content.tobytes(), pixels)


def class_map(label: Array, palette: Sequence[tuple[int, int, int]]) -> Picture:
    """Encode an (H, W) map of train ids in the classes' colours; any other value is black."""
    step = _stride(label.shape)
    small: NDArray[Any] = label[::step, ::step]
    known = (small >= 0) & (small < len(palette))
    index: NDArray[np.uint8] = np.full(small.shape, len(palette), np.uint8)
    index[known] = small[known]
    return _indexed(index, [*palette, (0, 0, 0)])


def flip_map(differs: NDArray[np.bool_]) -> Picture:
    """Encode where an (H, W) map is true; made smaller, a pixel stands for any below it."""
    step = _stride(differs.shape)
    H, W = (-(-size // step) * step for size in differs.shape)
    padded = np.zeros((H, W), np.bool_)
    padded[: differs.shape[0], : differs.shape[1]] = differs
    small = padded.reshape(H // step, step, W // step, step).any(axis=(1, 3))
    return _indexed(np.asarray(small, dtype=np.uint8), [SHOWN_SAME, SHOWN_FLIP])


def _indexed(index: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]) -> Picture:
    image = Image.fromarray(np.ascontiguousarray(index))
    image.putpalette([value for colour in colours for value in colour])
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return _picture("png", stream.getvalue(), index)


def _picture(kind: str, content: bytes, pixels: NDArray[Any]) -> Picture:
    height, width = pixels.shape[:2]
    data = base64.b64encode(content).decode()
    return Picture(kind=kind, data=data, width=width, height=height)


PREFIXES: Mapping[str, str] = {
    "train_padded": "training sample, crop larger than the picture",
    "train": "training sample, crop of the short training",
    "val": "validation sample",
}


def sample_pairs(pair: Sequence[Mapping[str, Array]], config: Config) -> list[PicturePair]:
    """Return a sample of each kind after all transforms, image and label.

    The first sample that differs, if one does.
    """
    pairs: list[PicturePair] = []
    for prefix, title in PREFIXES.items():
        stages = [key for key in pair[0] if _is_final_image(key, prefix)]
        shown = [key for key in stages if _drawable(pair, key)]
        if not shown:
            continue
        key = next((key for key in shown if _differs(pair, key)), shown[0])
        pairs += _sample(pair, key.removesuffix("/image"), title, config)
    return pairs


def _is_final_image(key: str, prefix: str) -> bool:
    return key.startswith(f"{prefix}/") and key.endswith("_dataset/image")


def _drawable(pair: Sequence[Mapping[str, Array]], key: str) -> bool:
    """Tell whether both sides have an image and a label of the same sizes there."""
    other = f"{key.removesuffix('/image')}/label"
    if any(name not in arrays for arrays in pair for name in (key, other)):
        return False
    image, label = ([arrays[name] for arrays in pair] for name in (key, other))
    same = image[0].shape == image[1].shape and label[0].shape == label[1].shape
    return same and image[0].ndim == 3 and label[0].ndim == 2


def _differs(pair: Sequence[Mapping[str, Array]], key: str) -> bool:
    other = f"{key.removesuffix('/image')}/label"
    return any((pair[0][name] != pair[1][name]).any() for name in (key, other))


def _sample(
    pair: Sequence[Mapping[str, Array]], where: str, title: str, config: Config
) -> list[PicturePair]:
    data = config.data
    image = [arrays[f"{where}/image"] for arrays in pair]
    label = [arrays[f"{where}/label"] for arrays in pair]
    palette = palette_of(data, classes=config.model.classes)
    words = ", ".join(where.split("/")[1:3])
    apart = difference(image[0], image[1]).max(axis=0)
    return [
        _pair(
            f"{title} ({words}): image",
            [jpeg(shown_image(one, data)) for one in image],
            apart > 0,
            largest=number(float(apart.max())),
        ),
        _pair(
            f"{title} ({words}): label",
            [class_map(one, palette) for one in label],
            label[0] != label[1],
        ),
    ]


def _pair(
    title: str, sides: Sequence[Picture], differs: NDArray[np.bool_], **numbers: Any
) -> PicturePair:
    any_differs = bool(differs.any())
    return PicturePair(
        title=title,
        torch=sides[0],
        paddle=sides[1] if any_differs else None,
        apart=flip_map(differs) if any_differs else None,
        differing=int(differs.sum()),
        size=int(differs.size),
        **numbers,
    )


def prediction_pairs(
    pair: Sequence[Mapping[str, Array]], dtype: str, config: Config, *, inputs: Path
) -> list[PicturePair]:
    """Return the class maps of both sides of every frame of the forward step.

    Args:
        pair: (torch, paddle) arrays of its record.
        dtype: of the record.
        config: for the classes' colours, and to show the frames.
        inputs: the step's saved inputs; they hold the frames.
    """
    frames = read_arrays(inputs) if inputs.is_file() else {}
    pairs: list[PicturePair] = []
    for key in pair[0]:
        name, _, rest = key.partition("/")
        if not name.startswith("frame") or rest != "head/main" or key not in pair[1]:
            continue
        logits = [arrays[key] for arrays in pair]
        if logits[0].shape != logits[1].shape or logits[0].ndim != 4:
            continue
        frame = None
        if name in frames and dtype == "float64":
            frame = jpeg(shown_image(frames[name][0], config.data))
        title = f"validation frame {name.removeprefix('frame')}, {dtype}"
        pairs.append(_prediction(title, logits, config, frame))
    return pairs


def _prediction(
    title: str, logits: Sequence[Array], config: Config, frame: Picture | None
) -> PicturePair:
    palette = palette_of(config.data, classes=config.model.classes)
    classes = [one[0].argmax(axis=0) for one in logits]
    flipped = classes[0] != classes[1]
    return _pair(
        title,
        [class_map(one, palette) for one in classes],
        flipped,
        margin=_margin(logits[0][0], flipped),
        frame=frame,
    )


def _margin(logits: Array, flipped: NDArray[np.bool_]) -> Number:
    """Return the largest lead of the winning class among flipped pixels, over the largest logit."""
    largest = float(np.abs(logits).max())
    if not flipped.any() or not largest:
        return None
    best = np.sort(logits[:, flipped], axis=0)[-2:]
    return number(float((best[-1] - best[0]).max()) / largest)
