"""The curves of a training drawn from its log: loss, learning rates, mIoU of the evaluations.

Drawn by matplotlib, imported only when a curve is drawn, without its global state (pyplot).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import TrainingError
from common.figures import new_figure, write_figure
from common.log_lines import read_lines

SMOOTHED_OVER = 40
"""The smoothed loss is a mean over a window of this part of the curve."""

Lines = Sequence[dict[str, Any]]


def draw_curves(log: Path, out: Path) -> None:
    """Draw the curves of a ``train_log.jsonl`` into a PNG.

    Args:
        log: the log of a run.
        out: the picture; replaced atomically.

    Raises:
        InputError: the log cannot be read, or holds no line of a training; the picture cannot be
            written; matplotlib is not installed.
    """
    lines = read_lines(log)
    training = [line for line in lines if line.get("kind") == "train"]
    evaluations = [line for line in lines if line.get("kind") == "eval"]
    if not training:
        raise TrainingError(f"{log}: holds no line of a training; there is no curve to draw")
    resumed = [
        line["iteration"] for line in lines if line.get("kind") == "header" and line["iteration"]
    ]
    rows = 3 if evaluations else 2
    figure = new_figure("the training curve", (9, 1 + 2.6 * rows))
    panels: list[Any] = list(
        figure.subplots(rows, 1, sharex=True, height_ratios=[2, *[1] * (rows - 1)])
    )
    _draw_loss(panels[0], training)
    _draw_rates(panels[1], training)
    if evaluations:
        _draw_miou(panels[2], evaluations)
    for panel in panels:
        panel.grid(visible=True, alpha=0.3)
        for iteration in resumed:
            panel.axvline(iteration, color="grey", linewidth=0.8, linestyle=":")
    panels[-1].set_xlabel("iteration" + (" (dotted: resumed)" if resumed else ""))
    write_figure(out, figure)


def _draw_loss(panel: Any, training: Lines) -> None:
    names = list(dict.fromkeys(name for line in training for name in line["loss"]))
    # a norm beside the terms has a scale of its own
    names = [name for name in names if name != "grad_norm"]
    for name in names:
        x, y = _points(training, "loss", name)
        faint = name == "total"
        # a line needs two points to be seen
        mark = "." if len(x) < 3 else ""
        panel.plot(x, y, linewidth=1, marker=mark, alpha=0.35 if faint else 0.8, label=name)
    if "total" in names:
        x, y = _points(training, "loss", "total")
        panel.plot(x, smoothed(y), color="black", linewidth=1.8, label="total, smoothed")
    panel.set_ylabel("loss")
    panel.set_ylim(bottom=0)
    panel.legend(fontsize="small", ncols=2)


def _draw_rates(panel: Any, training: Lines) -> None:
    for label, points in rate_lines(training):
        panel.plot(*zip(*points, strict=True), linewidth=1.4, label=label)
    panel.set_ylabel("learning rate")
    panel.set_yscale("log")
    panel.legend(fontsize="small", ncols=2)


def _draw_miou(panel: Any, evaluations: Lines) -> None:
    points = [(line["iteration"], line["miou"]) for line in evaluations]
    # a NaN was written as a text
    points = [(iteration, miou) for iteration, miou in points if isinstance(miou, int | float)]
    if points:
        best = max(points, key=lambda point: point[1])
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4)
        panel.set_title(f"best {best[1]:.4f} at iteration {best[0]}", fontsize="small", loc="left")
    panel.set_ylabel("val mIoU")


def rate_lines(training: Lines) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return the lines of the rates: label, and (iteration, rate) of each point.

    Groups whose rates are the same would lie on top of each other; they are one line with all their
    names.
    """
    together: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name in dict.fromkeys(name for line in training for name in line["lr"]):
        x, y = _points(training, "lr", name)
        points = tuple(zip(x.tolist(), y.tolist(), strict=True))
        together.setdefault(points, []).append(name)
    return [(", ".join(names), list(points)) for points, names in together.items() if points]


def _points(
    lines: Lines, section: str, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return iterations and values of one number, where it is one."""
    rows = [
        (line["iteration"], line[section][name])
        for line in lines
        if isinstance(line[section].get(name), int | float)
    ]
    array = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def smoothed(values: NDArray[np.float64], *, over: int = SMOOTHED_OVER) -> NDArray[np.float64]:
    """Return the mean over a centred window, the over-th part long and narrower at the two ends."""
    half = len(values) // (2 * over)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
