"""Pictures of a checked data set: how often each class occurs, and samples with their labels."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.classes import ClassTable, colourise
from common.datasets import Sample, read_sample
from common.prepare.check import SplitCheck

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _FAINT, _WHITE = (30, 30, 30), (215, 215, 215), (255, 255, 255)
_ROW, _NAME_WIDTH, _BAR_WIDTH, _TEXT_WIDTH, _MARGIN = 20, 190, 640, 200, 14
_TITLE = 34
_TILE_WIDTH, _COLUMNS, _GAP = 512, 3, 6
_LABEL_SHARE = 0.5


def histogram_picture(check: SplitCheck, table: ClassTable, *, title: str) -> Picture:
    """Draw the share of pixels of every class, and of void, on a logarithmic scale.

    Args:
        check: of one split.
        table: names and colours of its classes.
        title: first line.
    """
    shares = check.labels / max(int(check.labels.sum()), 1)
    names = [*table.names, "void"]
    colours = [*table.palette, (120, 120, 120)]
    present = shares[shares > 0]
    # at least one decade, so that a data set of one class has an axis
    decades = max(1, -floor(log10(present.min()))) if len(present) else 1
    height = _TITLE + _ROW * (len(names) + 1) + _MARGIN
    picture = np.full((height, _MARGIN + _NAME_WIDTH + _BAR_WIDTH + _TEXT_WIDTH, 3), 255, np.uint8)
    left, bottom = _MARGIN + _NAME_WIDTH, _TITLE + _ROW * len(names)
    _write(picture, title, (_MARGIN, 22), scale=0.55)
    for decade in range(decades + 1):
        x = left + _BAR_WIDTH * (decades - decade) // decades
        cv2.line(picture, (x, _TITLE - 4), (x, bottom + 2), _FAINT, 1)
        text = "100 %" if decade == 0 else f"{10.0 ** (2 - decade):g} %"
        _write(picture, text, (x - 18, bottom + 17), scale=0.38)
    for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
        y = _TITLE + _ROW * row
        _write(picture, name[:26], (_MARGIN, y + 14))
        images = int(check.label_images[row])
        if shares[row] <= 0:
            _write(picture, "no pixel", (left + 4, y + 14), colour=(200, 0, 0))
            continue
        length = max(2, round(_BAR_WIDTH * (1 + log10(shares[row]) / decades)))
        cv2.rectangle(picture, (left, y + 3), (left + length, y + _ROW - 4), colour, -1)
        cv2.rectangle(picture, (left, y + 3), (left + length, y + _ROW - 4), _INK, 1)
        text = f"{shares[row]:.3%}, {images} images"
        _write(picture, text, (left + _BAR_WIDTH + 12, y + 14))
    return picture


def samples_picture(
    samples: list[Sample], table: ClassTable, *, classes: int, ignore_index: int, count: int = 12
) -> Picture | None:
    """Draw samples, spread over the split, with the colours of their labels over the images.

    Void is darkened, borders between labels are drawn white. None without samples.

    Args:
        samples: of one split, without those that cannot be read.
        table: names and colours of the classes.
        classes: number of classes.
        ignore_index: value of void.
        count: pictures at most.
    """
    count = min(count, len(samples))
    chosen = [samples[i * len(samples) // count] for i in range(count)]
    tiles = [_tile(one, table, classes=classes, ignore_index=ignore_index) for one in chosen]
    if not tiles:
        return None
    columns = min(_COLUMNS, len(tiles))
    height = max(len(tile) for tile in tiles)
    rows = ceil(len(tiles) / columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (_TILE_WIDTH + _GAP) + _GAP, 3)
    picture = np.full(shape, 255, np.uint8)
    for number, tile in enumerate(tiles):
        top = _GAP + number // columns * (height + _GAP)
        left = _GAP + number % columns * (_TILE_WIDTH + _GAP)
        picture[top : top + len(tile), left : left + _TILE_WIDTH] = tile
    return picture


def _tile(sample: Sample, table: ClassTable, *, classes: int, ignore_index: int) -> Picture:
    image, label = read_sample(sample, classes=classes, ignore_index=ignore_index)
    size = (_TILE_WIDTH, max(1, round(len(image) * _TILE_WIDTH / image.shape[1])))
    small: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    label = np.asarray(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    colours = colourise(label, table.palette)
    shown = cv2.addWeighted(small, 1 - _LABEL_SHARE, colours, _LABEL_SHARE, 0)
    border = cv2.morphologyEx(label, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    shown[border] = _WHITE
    caption = np.full((_ROW, _TILE_WIDTH, 3), 255, np.uint8)
    name = sample.name.rsplit("/", 1)[-1]
    _write(caption, name[-70:], (2, 14))
    return np.concatenate([caption, np.asarray(shown, np.uint8)])


def _write(
    picture: Picture,
    text: str,
    at: tuple[int, int],
    *,
    scale: float = 0.42,
    colour: tuple[int, int, int] = _INK,
) -> None:
    # OpenCV's fonts have ASCII only
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, at, _FONT, scale, colour, 1, cv2.LINE_AA)
