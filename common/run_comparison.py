"""Two trainings of one recipe beside each other: their losses, rates and how far apart they are.

The two sides of a training see the same samples in the same order from the same start, so their
first losses differ by float32's rounding alone. What follows is not expected to agree to any bound:
training amplifies rounding, in one framework as between two. The table says how soon and how far;
the proof of a port is ``bisenet verify``, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.curves import smoothed
from common.errors import TrainingError
from common.figures import new_figure, write_figure
from common.log_lines import read_lines

SAME_RECIPE = ("config_digest", "world_size")
"""What the headers of two logs must have in common."""


@dataclass(frozen=True)
class Pair:
    """The losses and rates of two trainings at the iterations that both logged."""

    names: tuple[str, str]
    iterations: NDArray[np.int64]
    losses: NDArray[np.float64]
    """(2, iterations): the total loss of each."""
    rate_difference: float
    """Largest |difference| of any group's learning rate."""

    @property
    def differences(self) -> NDArray[np.float64]:
        """(iterations,): |difference| of the total loss, relative to the first training's."""
        return np.abs(self.losses[1] - self.losses[0]) / np.abs(self.losses[0])

    def table(self) -> list[tuple[str, float]]:
        """Return what was measured, by name."""
        count = len(self.iterations)
        width = max(1, count // 10)
        means = self.losses[:, -width:].mean(axis=1)
        curves = [smoothed(loss, over=10) for loss in self.losses]
        apart = np.abs(curves[1] - curves[0]) / np.abs(curves[0])
        return [
            ("iterations compared", float(count)),
            (f"relative difference at iteration {self.iterations[0]}", float(self.differences[0])),
            ("median relative difference", float(np.median(self.differences))),
            ("largest relative difference", float(self.differences.max())),
            ("largest, of curves smoothed over a tenth", float(apart.max())),
            (f"mean of the last tenth, {self.names[0]}", float(means[0])),
            (f"mean of the last tenth, {self.names[1]}", float(means[1])),
            ("largest difference of a learning rate", self.rate_difference),
        ]


def read_pair(first: Path, second: Path) -> Pair:
    """Read two logs of one recipe.

    Args:
        first: ``train_log.jsonl`` of a training.
        second: that of another with the same configuration and number of processes; it may have
            ended earlier.

    Raises:
        InputError: a log cannot be read, the recipes differ, or no iteration is in both.
    """
    logs = [read_lines(path) for path in (first, second)]
    headers = [_header(lines, path) for lines, path in zip(logs, (first, second), strict=True)]
    for key in SAME_RECIPE:
        values = [header.get(key) for header in headers]
        if values[0] != values[1]:
            raise TrainingError(
                f"{first} and {second}: {key} is {values[0]!r} and {values[1]!r}; expected two "
                "trainings of one configuration by equally many processes"
            )
    tables = [
        {line["iteration"]: line for line in lines if line.get("kind") == "train"} for lines in logs
    ]
    common = sorted(tables[0].keys() & tables[1].keys())
    if not common:
        raise TrainingError(
            f"{first} and {second}: no iteration is in both; expected logs at the same interval"
        )
    losses = np.array([[_number(table[i]["loss"]["total"]) for i in common] for table in tables])
    rates = [
        abs(tables[0][i]["lr"][group] - tables[1][i]["lr"][group])
        for i in common
        for group in tables[0][i]["lr"]
    ]
    names = tuple(_name(header) for header in headers)
    return Pair((names[0], names[1]), np.array(common), losses, max(rates))


def draw_pair(pair: Pair, out: Path) -> None:
    """Draw both losses, and their relative difference, into a PNG.

    Args:
        pair: of read_pair.
        out: the picture; replaced atomically.

    Raises:
        InputError: the picture cannot be written; matplotlib is not installed.
    """
    figure = new_figure("the picture of two curves", (9, 6.4))
    panels: list[Any] = list(figure.subplots(2, 1, sharex=True, height_ratios=[2, 1]))
    styles: Sequence[dict[str, Any]] = ({"linewidth": 2.4}, {"linewidth": 1.3, "linestyle": "--"})
    for name, loss, style in zip(pair.names, pair.losses, styles, strict=True):
        panels[0].plot(pair.iterations, loss, label=name, **style)
    panels[0].set_ylabel("total loss")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(fontsize="small")
    # equal numbers have no place on a logarithmic axis
    shown = np.where(pair.differences > 0, pair.differences, np.nan)
    panels[1].plot(pair.iterations, shown, color="black", linewidth=1.2, marker=".")
    panels[1].set_yscale("log")
    panels[1].set_ylabel("relative difference")
    panels[1].set_xlabel("iteration")
    for panel in panels:
        panel.grid(visible=True, alpha=0.3)
    write_figure(out, figure)


def _header(lines: Sequence[dict[str, Any]], path: Path) -> dict[str, Any]:
    header = next((line for line in lines if line.get("kind") == "header"), None)
    if header is None:
        raise TrainingError(f"{path}: has no header; expected the train_log.jsonl of a training")
    return header


def _name(header: dict[str, Any]) -> str:
    """Return "Paddle 3.3.1" or "Torch 2.13.0+cpu"; the log names the one framework that ran."""
    versions = header.get("versions", {})
    for package in ("paddle", "torch"):
        if package in versions:
            return f"{package.capitalize()} {versions[package]}"
    return "a training"


def _number(value: Any) -> float:
    """Return a logged number; one that is not finite was written as a text."""
    return float(value)
