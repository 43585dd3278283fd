"""Pictures of an evaluation: the confusion matrix, and the worst pictures with their errors.

The matrix is drawn by matplotlib, imported only then, without its global state (pyplot).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.classes import colourise
from common.figures import new_figure, write_figure
from common.pictures import save_png

PANEL_WIDTH = 480
"""Pixels of each of the four panels beside one another."""
BAR = 28
"""Pixels of the line of text above the panels."""
_WRONG, _SHADE = (255, 0, 0), 0.35
"""Colour over wrong pixels, and what is left of the picture below it and where it is right."""
_MOST_NUMBERED = 32
"""Classes up to which a cell of the matrix holds its number, and its row a name."""


def draw_confusion(
    path: Path, matrix: NDArray[np.int64], names: Sequence[str], *, title: str
) -> None:
    """Draw a confusion matrix, each row as shares of its label's pixels; atomically.

    Args:
        path: the PNG.
        matrix: (classes + 1, classes) counts; the last row, void, is drawn below a gap.
        names: of the classes.
        title: above the picture: what was evaluated, and how.

    Raises:
        InputError: the picture cannot be written; matplotlib is not installed.
    """
    classes = len(names)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, matrix / np.maximum(totals, 1), np.nan)
    numbered = classes <= _MOST_NUMBERED
    side = 2.5 + 0.42 * classes if numbered else 12.0
    figure = new_figure("the confusion matrix", (side, side))
    axes: Any = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.axhline(classes - 0.5, color="black", linewidth=1.5)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label; void below the line: no error")
    axes.set_title(f"{title}\nper cent of the row's pixels; an empty row has none", fontsize=9)
    if numbered:
        axes.set_xticks(range(classes), names, rotation=90, fontsize=8)
        axes.set_yticks(range(classes + 1), [*names, "void"], fontsize=8)
        _write_shares(axes, shares)
    write_figure(path, figure)


def _write_shares(axes: Any, shares: NDArray[np.float64]) -> None:
    """Write what is not below half a per cent into its cell."""
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005):
        share = shares[row, column]
        axes.text(
            *(column, row, f"{100 * share:.0f}"),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if share > 0.5 else "black",
        )


def draw_errors(
    path: Path,
    image: NDArray[np.uint8],
    label: NDArray[np.integer],
    prediction: NDArray[np.integer],
    *,
    palette: tuple[tuple[int, int, int], ...],
    ignore_index: int,
    text: str,
) -> None:
    """Draw image, label, prediction and errors beside one another; atomically.

    Args:
        path: the PNG.
        image: (H, W, 3) uint8 RGB.
        label: (H, W); void is black.
        prediction: (H, W).
        palette: colours of the classes.
        ignore_index: label value of void.
        text: the line above.
    """
    void = label == ignore_index
    shaded = image * _SHADE
    wrong = ((prediction != label) & ~void)[..., None]
    shaded = np.where(wrong, shaded + (1 - _SHADE) * np.array(_WRONG), shaded)
    errors = np.asarray(np.rint(shaded), np.uint8)
    errors[void] = 0
    H, W = label.shape
    height = max(1, round(H * PANEL_WIDTH / W))
    panels = [
        _scaled(image, height, cv2.INTER_AREA),
        _scaled(colourise(label, palette), height, cv2.INTER_NEAREST),
        _scaled(colourise(prediction, palette), height, cv2.INTER_NEAREST),
        _scaled(errors, height, cv2.INTER_AREA),
    ]
    bar = np.full((BAR, len(panels) * PANEL_WIDTH, 3), 255, np.uint8)
    titles = [f"image: {text}", "label (void black)", "prediction", "errors red (void black)"]
    for index, title in enumerate(titles):
        place = (index * PANEL_WIDTH + 6, BAR - 9)
        cv2.putText(bar, _shortened(title), place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1)
    save_png(path, np.concatenate([bar, np.concatenate(panels, axis=1)], axis=0))


def _scaled(picture: NDArray[np.uint8], height: int, interpolation: int) -> NDArray[np.uint8]:
    size_wh = (PANEL_WIDTH, height)
    return np.asarray(cv2.resize(picture, size_wh, interpolation=interpolation), np.uint8)


def _shortened(title: str, *, letters: int = 54) -> str:
    return title if len(title) <= letters else f"{title[: letters - 3]}..."
