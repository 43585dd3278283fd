"""Series of both sides for the report page: learning rates, losses, IoU per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from common.classes import CLASS_TABLES
from common.config import Config
from common.iou import iou_per_class, mean_iou
from pipeline.chaos import BAND_FACTOR, band_of, perturbed_losses
from pipeline.differences import Array, magnitude
from pipeline.training import NUDGES

Number = float | str | None
"""A number of three digits; a text where it is infinite or NaN, which JSON cannot hold; None where
it was not recorded."""
POINTS = 40, 12
"""Points of a learning-rate series that are kept: evenly spread, and more in the warm-up."""


class Saved(BaseModel):
    """A part of the file: frozen, and strict about what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rates(Saved):
    """The learning rates of one group, thinned, on both sides."""

    group: str
    iterations: list[int]
    torch: list[Number]
    paddle: list[Number]
    largest: Number
    """Largest difference over all iterations, relative to the largest rate."""
    total: int
    """Iterations that were compared."""


class Curve(Saved):
    """One loss term of the training, per iteration."""

    dtype: str
    term: str
    torch: list[Number]
    paddle: list[Number]
    apart: list[Number]
    """|paddle - torch|."""
    band: list[Number] | None = None
    """float32: how far Torch is from itself when its weights move by one unit in the last place."""
    factor: float | None = None
    """How many bands Paddle may be away."""


class Scores(Saved):
    """IoU per class of both sides; None for a class that occurs on neither."""

    title: str
    classes: list[str]
    torch: list[Number]
    paddle: list[Number]
    torch_mean: Number
    paddle_mean: Number
    pixels_apart: int
    """Half the sum of |difference| of the two confusion matrices."""


def number(value: float, digits: int = 3) -> float | str:
    """Return a number of so many digits, or a text if it is infinite or NaN."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else str(float(value))


def _series(values: Array, digits: int) -> list[Number]:
    return [number(float(value), digits) for value in values]


def _shared(pair: Sequence[Mapping[str, Array]], prefix: str) -> list[str]:
    """Return the keys of numbers with this prefix that both sides have, of one shape."""
    return [
        key
        for key, array in pair[0].items()
        if key.startswith(prefix) and key in pair[1] and array.shape == pair[1][key].shape
    ]


def rates_of(pair: Sequence[Mapping[str, Array]]) -> list[Rates]:
    """Return the learning rates of a (torch, paddle) record of the schedule."""
    found: list[Rates] = []
    for key in _shared(pair, "lr/"):
        torch, paddle = pair[0][key], pair[1][key]
        spread = np.linspace(0, len(torch) - 1, POINTS[0]), np.geomspace(1, len(torch), POINTS[1])
        at = np.unique(np.concatenate([spread[0], spread[1] - 1]).astype(np.int64))
        scale = magnitude(torch) or 1.0
        found.append(
            Rates(
                group=key.removeprefix("lr/"),
                iterations=at.tolist(),
                torch=_series(torch[at], 5),
                paddle=_series(paddle[at], 5),
                largest=number(float(np.abs(paddle - torch).max()) / scale),
                total=len(torch),
            )
        )
    return found


def curves_of(pair: Sequence[Mapping[str, Array]], dtype: str, work: Path) -> list[Curve]:
    """Return the losses of a (torch, paddle) training record; ``work`` has the perturbed."""
    perturbed = perturbed_losses(work) if dtype == "float32" else {}
    curves: list[Curve] = []
    for key in _shared(pair, "loss/"):
        torch, paddle = pair[0][key].astype(np.float64), pair[1][key].astype(np.float64)
        runs = [perturbed[f"{run}/{key}"] for run in NUDGES if f"{run}/{key}" in perturbed]
        band = band_of(pair[0][key], runs) if runs else None
        curves.append(
            Curve(
                dtype=dtype,
                term=key.removeprefix("loss/"),
                torch=_series(torch, 6),
                paddle=_series(paddle, 6),
                apart=_series(np.abs(paddle - torch), 3),
                band=None if band is None else _series(band, 3),
                factor=None if band is None else BAND_FACTOR,
            )
        )
    return curves


def _class_names(config: Config) -> list[str]:
    classes = config.model.classes
    table = CLASS_TABLES.get(config.data.dataset)
    if table is not None and len(table.names) == classes:
        return list(table.names)
    return [f"class {index}" for index in range(classes)]


def _scores(title: str, pair: Sequence[Array], config: Config) -> Scores:
    per_class = [iou_per_class(matrix) for matrix in pair]
    means = [mean_iou(matrix, absent="skip", count_void=False) for matrix in pair]
    return Scores(
        title=title,
        classes=_class_names(config),
        torch=[None if np.isnan(x) else number(float(x), 6) for x in per_class[0]],
        paddle=[None if np.isnan(x) else number(float(x), 6) for x in per_class[1]],
        torch_mean=number(means[0], 6),
        paddle_mean=number(means[1], 6),
        pixels_apart=int(np.abs(pair[1] - pair[0]).sum()) // 2,
    )


def metric_scores(pair: Sequence[Mapping[str, Array]], config: Config) -> list[Scores]:
    """Return the IoU on real frames of a (torch, paddle) record of the metric step."""
    return [
        _scores("real frames, weights by rule or as given", [a[key] for a in pair], config)
        for key in _shared(pair, "frames/matrix")
    ]


def training_scores(
    pair: Sequence[Mapping[str, Array]], dtype: str, config: Config
) -> list[Scores]:
    """Return the IoU after a training, of its (torch, paddle) record."""
    return [
        _scores(
            f"validation samples after the short training, {dtype}", [a[key] for a in pair], config
        )
        for key in _shared(pair, "val/matrix")
    ]
