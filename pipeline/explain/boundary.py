"""The boundary heads' loss once more in NumPy, for explanations: with wrong rules too.

What it computes and where it comes from stands in for_torch/detail_loss.py. Targets are exact in
any dtype: edges are sums of integers, and the fusion of the three scales is a choice among eight
combinations, written down as a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.explain.confirm import Candidate
from pipeline.failure import FailureCase
from pipeline.records import Array

Floats = NDArray[np.float64]

FINE, MIDDLE, COARSE = 1, 2, 4
"""Bits of a combination of scales."""


def fused_table(weights: tuple[float, float, float] = (0.6, 0.3, 0.1)) -> tuple[bool, ...]:
    """Return for each of the 8 combinations of scales whether it makes an edge; float32 as there.

    The coarsest scale alone does not: 0.1 is not above 0.1.
    """
    scales = np.asarray(weights, np.float32)
    table: list[bool] = []
    for bits in range(8):
        fused = np.float32(0)
        for number in range(3):
            fused = np.float32(fused + scales[number] * np.float32(bool(bits >> number & 1)))
        table.append(bool(fused > np.float32(0.1)))
    return tuple(table)


@dataclass(frozen=True)
class Detail:
    """The rules of the boundary loss."""

    ignore_index: int
    ignore_void: bool = False
    ignore_frame: bool = False
    strides: tuple[int, int, int] = (1, 2, 4)
    table: tuple[bool, ...] = fused_table()
    lower_side: bool = False
    align_corners: bool = True
    squared: bool = False
    """Dice with squares in the denominator."""
    whole_batch: bool = False
    """One Dice loss for the batch."""
    scale: float = 1.0
    """Factor on the cross entropy."""

    @classmethod
    def of(cls, case: FailureCase) -> Detail:
        """Return the rules of a case's configuration."""
        loss: dict[str, Any] = dict(case.settings["loss"])
        return cls(
            int(case.settings["ignore_index"]),
            bool(loss["detail_ignore_void"]),
            bool(loss["detail_ignore_frame"]),
        )

    def edges(self, label: Array, stride: int) -> NDArray[np.bool_]:
        """Return the edges at one scale, at full size: (N, H, W)."""
        numbers = label.astype(np.int64)
        mode = {"mode": "edge"} if self.ignore_frame else {"mode": "constant"}
        padded = np.pad(numbers, ((0, 0), (1, 1), (1, 1)), **mode)  # pyright: ignore[reportArgumentType, reportCallIssue]
        found = 9 * numbers - _neighbourhood(padded, numbers.shape)
        edges = (found < 0 if self.lower_side else found > 0)[:, ::stride, ::stride]
        if self.ignore_void:
            void = np.pad((label == self.ignore_index).astype(np.int64), ((0, 0), (1, 1), (1, 1)))
            near = _neighbourhood(void, numbers.shape)[:, ::stride, ::stride]
            edges = edges & (near == 0)
        rows, columns = (
            np.arange(size) * kept // size
            for size, kept in zip(label.shape[1:], edges.shape[1:], strict=True)
        )
        return edges[:, rows][:, :, columns]

    def targets(self, label: Array) -> Floats:
        """Return (N, H, W), 1 where an edge is."""
        bits = np.zeros(label.shape, np.int64)
        for number, stride in enumerate(self.strides):
            bits |= self.edges(label, stride).astype(np.int64) << number
        return np.array(self.table, np.float64)[bits]

    def enlarged(self, logits: Floats, size_hw: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
        """Return (N, H, W) logits, and the matrices that made them from (N, h, w)."""
        rows, columns = (
            interpolation(small, large, align_corners=self.align_corners)
            for small, large in zip(logits.shape[1:], size_hw, strict=True)
        )
        return np.asarray(rows @ logits @ columns.T), rows, columns


def _neighbourhood(padded: Array, shape: tuple[int, ...]) -> Array:
    H, W = shape[1:]
    return np.sum([padded[:, y : y + H, x : x + W] for y, x in product(range(3), repeat=2)], axis=0)


def interpolation(size: int, new_size: int, *, align_corners: bool) -> Floats:
    """Return the (new_size, size) matrix of a bilinear resize along one axis."""
    if align_corners:
        places = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
    else:
        places = np.maximum((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0.0)
    low = np.minimum(places.astype(np.intp), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = places - low
    matrix = np.zeros((new_size, size))
    np.add.at(matrix, (np.arange(new_size), low), 1 - share)
    np.add.at(matrix, (np.arange(new_size), high), share)
    return matrix


@dataclass(frozen=True)
class _Made:
    bce: float
    dice: float
    gradient: Floats


def _make(case: FailureCase, head: str, detail: Detail) -> _Made:
    label = case.arrays["label"]
    small = case.arrays[f"logits/{head}"][:, 0].astype(np.float64)
    x, rows, columns = detail.enlarged(small, label.shape[1:])
    target = detail.targets(label)
    p = 1 / (1 + np.exp(-x))
    counted = np.ones_like(x)
    if detail.ignore_void:
        counted = (label != detail.ignore_index).astype(np.float64)
    count = max(float(counted.sum()), 1.0) / detail.scale
    losses = np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))
    dice, slope = _dice(p * counted, target * counted, detail)
    upstream = (p - target) * counted / count + slope * counted * p * (1 - p)
    gradient = rows.T @ upstream @ columns
    return _Made(float((losses * counted).sum()) / count, dice, gradient[:, None])


def _dice(p: Floats, t: Floats, detail: Detail) -> tuple[float, Floats]:
    """Return the Dice loss and its slope with the probabilities."""
    shape = p.shape
    groups = 1 if detail.whole_batch else len(p)
    p, t = p.reshape(groups, -1), t.reshape(groups, -1)
    above = 2 * (p * t).sum(1, keepdims=True) + 1
    sizes = (p * p, t * t) if detail.squared else (p, t)
    below = sizes[0].sum(1, keepdims=True) + sizes[1].sum(1, keepdims=True) + 1
    widened = 2 * p if detail.squared else np.ones_like(p)
    slope = -(2 * t * below - above * widened) / below**2 / groups
    return float((1 - above / below).mean()), slope.reshape(shape)


def boundary_terms(case: FailureCase, head: str) -> dict[str, float]:
    """Return {"bce": ..., "dice": ...} as the configuration has them."""
    made = _make(case, head, Detail.of(case))
    return {"bce": made.bce, "dice": made.dice}


def boundary_gradient(case: FailureCase, head: str) -> Floats:
    """Return the unweighted gradient at the head's logits: (N, 1, h, w)."""
    return _make(case, head, Detail.of(case)).gradient


def boundary_candidates(
    case: FailureCase, head: str, part: str, *, factor: float = 1.0
) -> Iterator[Candidate]:
    """Yield what can be wrong with "bce", "dice" or "gradient" of a boundary head."""

    def compute(detail: Detail) -> Array:
        return factor * np.asarray(getattr(_make(case, head, detail), part))

    for relation, text, detail in _wrong_details(Detail.of(case), len(case.arrays["label"])):
        yield Candidate(relation, text, partial(compute, detail))


def _wrong_details(right: Detail, images: int) -> Iterator[tuple[str, str, Detail]]:
    yield (
        "align-corners",
        "enlarges the boundary logits with align_corners the other way",
        replace(right, align_corners=not right.align_corners),
    )
    text = "takes the edges of void away" if not right.ignore_void else "keeps the edges of void"
    yield "ignore-index", text, replace(right, ignore_void=not right.ignore_void)
    text = "continues the label beyond its frame" if not right.ignore_frame else "pads with class 0"
    yield "boundary-frame", text, replace(right, ignore_frame=not right.ignore_frame)
    text = "takes the side of the lower number as the edge"
    yield "boundary-side", text, replace(right, lower_side=not right.lower_side)
    yield _at_steps(right, (1, 4, 8))
    yield (
        "reduction",
        f"adds the images up instead of averaging them ({images} images)",
        replace(right, scale=float(images)),
    )
    yield "dice", "squares in the denominator of the Dice loss", replace(right, squared=True)
    yield "dice", "takes one Dice loss for the whole batch", replace(right, whole_batch=True)
    for bits in product((False, True), repeat=7):
        table = (False, *bits)
        if table != right.table:
            yield "boundary-fusion", _words(table), replace(right, table=table)
    # on labels in large squares these are fusions, too
    for strides in ((2, 4, 8), (1, 2, 3), (1, 1, 1), (4, 2, 1)):
        yield _at_steps(right, strides)


def _at_steps(right: Detail, strides: tuple[int, int, int]) -> tuple[str, str, Detail]:
    text = f"looks for edges at steps {strides} instead of {right.strides}"
    return "boundary-strides", text, replace(right, strides=strides)


def _words(table: tuple[bool, ...]) -> str:
    names = {FINE: "fine", MIDDLE: "middle", COARSE: "coarse"}
    if table == tuple([False, *[True] * 7]):
        return (
            "makes an edge of the coarsest scale alone, too: a comparison that includes the "
            "threshold, or constants in float64"
        )
    made = [
        "+".join(name for bit, name in names.items() if bits & bit)
        for bits in range(8)
        if table[bits]
    ]
    return f"fuses the scales by other weights: an edge is {', '.join(made) or 'nowhere'}"
