"""Why counts of pixels or an average of them differ.

A matrix is counted anew from the saved predictions and labels; an average is taken anew from the
reference's matrix, which both sides agree in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from common import iou
from pipeline.explain.confirm import Candidate, confirmed, reproduces
from pipeline.failure import FailureCase, Hint
from pipeline.records import Array


def explain_metric(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's counts or average (case kind "metric")."""
    if case.name in ("matrix", "device_matrix"):
        return _explain_counts(case)
    return _explain_average(case)


def _explain_counts(case: FailureCase) -> list[Hint]:
    counts = _Counts(case)
    candidates = list(_rearranged(case.arrays["reference"]))
    if counts.known and reproduces(case, counts.right()):
        candidates += counts.wrong()
    return confirmed(case, candidates)


def _rearranged(reference: Array) -> Iterator[Candidate]:
    """Yield what needs the counts only."""
    hits = reference[:-1]
    void = reference[-1:]

    def stacked(top: Array, bottom: Array) -> Array:
        return np.concatenate([top, bottom])

    text = "rows are predictions and columns labels"
    yield Candidate("transposed-matrix", text, lambda: stacked(hits.T, void))
    text = "predictions on void pixels are not counted"
    yield Candidate("void-dropped", text, lambda: stacked(hits, 0 * void))
    for number, name in ((0, "the first"), (-1, "the last")):
        text = f"void pixels are counted as {name} class"
        yield Candidate("ignore-index", text, partial(_void_as, reference, number))
        text = f"void pixels are counted as {name} class as well as apart"
        yield Candidate("ignore-index", text, partial(_void_as, reference, number, void))
    for shift in (1, -1):
        text = f"labels are off by {shift}"
        yield Candidate(
            "classes-off-by-one", text, lambda s=shift: stacked(np.roll(hits, s, 0), void)
        )
        text = f"predictions are off by {shift}"
        yield Candidate("classes-off-by-one", text, lambda s=shift: np.roll(reference, s, 1))
    for dtype in ("float32", "float16", "int32", "uint8", "int16"):
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = np.nan_to_num(reference.astype(dtype).astype(np.float64), posinf=0.0)
        yield Candidate("dtype", f"counts are kept in {dtype}", _integers(rounded))


def _integers(array: Array) -> Callable[[], Array]:
    return lambda: array.astype(np.int64)


def _void_as(reference: Array, number: int, void: Array | None = None) -> Array:
    counts = reference.copy()
    counts[-1] = 0 if void is None else void
    counts[:-1][number] += reference[-1]
    return counts


class _Counts:
    """The counts of a case's predictions and labels."""

    def __init__(self, case: FailureCase) -> None:
        self.case = case
        self.known = {"prediction", "label"} <= set(case.arrays)
        self.classes = int(case.settings["classes"])
        self.ignore = int(case.settings["ignore_index"])
        self.updates = 1
        if self.known:
            self.prediction, self.label = case.arrays["prediction"], case.arrays["label"]
            if case.name == "matrix":
                self.updates = int(case.settings["repeats"])

    def one(self, chosen: slice = slice(None), **changes: Any) -> Array:
        """Return the counts of one update, of some of its images."""
        prediction = changes.get("prediction", self.prediction)[chosen]
        label = changes.get("label", self.label)[chosen]
        return iou.confusion_matrix(
            prediction, label, classes=self.classes, ignore_index=self.ignore
        )

    def right(self) -> Array:
        """Return the counts as they should be."""
        return self.updates * self.one()

    def wrong(self) -> Iterator[Candidate]:
        """Yield what needs the pictures."""
        if self.updates > 1:
            text = "holds the last update only: counts are overwritten instead of added"
            yield Candidate("overwritten", text, self.one)
            text = f"counts one update too many or too few of {self.updates}"
            for count in (self.updates - 1, self.updates + 1):
                yield Candidate("updates", text, lambda c=count: c * self.one())
            text = "counts are added up in float32, which stops at 2^24"
            yield Candidate("dtype", text, self._in_float32)
        if len(self.label) > 1:
            text = "holds the last image of the batch only"
            yield Candidate("overwritten", text, lambda: self.updates * self.one(slice(-1, None)))
            text = "holds the first image of the batch only"
            yield Candidate("overwritten", text, lambda: self.updates * self.one(slice(0, 1)))
        for axis, name in ((1, "top to bottom"), (2, "left to right")):
            text = f"predictions are mirrored {name}"
            flipped = np.flip(self.prediction, axis)
            yield Candidate("flip", text, lambda p=flipped: self.updates * self.one(prediction=p))

    def _in_float32(self) -> Array:
        total = np.zeros((self.classes + 1, self.classes), np.float32)
        for _ in range(self.updates):
            total += self.one().astype(np.float32)
        return total.astype(np.int64)


def _explain_average(case: FailureCase) -> list[Hint]:
    matrix = case.arrays.get("matrix")
    if matrix is None:
        return []
    ways = _ways(matrix)
    if not reproduces(case, ways.get(case.name, lambda: np.zeros(0))()):
        return []
    own, candidates = case.name, list[Candidate]()
    for name, compute in ways.items():
        if name != own and name not in ("iou", "iou_void"):
            relation, text = _words(own, name)
            candidates.append(Candidate(relation, text, compute))
    if own == "iou":
        text = "predictions on void pixels count as false positives"
        candidates.insert(0, Candidate("void-counted", text, ways["iou_void"]))
        for words, changed in _ious(matrix):
            candidates.append(Candidate("iou-denominator", words, changed))
    text = "is in percent"
    candidates.append(Candidate("scale-100", text, lambda: 100 * case.arrays["reference"]))
    return confirmed(case, candidates)


def _ways(matrix: Array) -> dict[str, Callable[[], Array]]:
    """Return every average of a matrix by the name of its record key, and some more."""
    ways: dict[str, Callable[[], Array]] = {
        "iou": lambda: np.nan_to_num(iou.iou_per_class(matrix), nan=-1.0),
        "iou_void": lambda: np.nan_to_num(iou.iou_per_class(matrix, count_void=True), nan=-1.0),
    }
    for absent in ("skip", "zero", "one", "plus_one"):
        for void in (False, True):
            name = f"miou_{absent}{'_void' if void else ''}"
            ways[name] = partial(_mean_iou, matrix, absent, void)
    ways["accuracy"] = lambda: np.asarray(iou.pixel_accuracy(matrix))
    ways["mean_accuracy"] = lambda: np.asarray(iou.mean_accuracy(matrix))
    ways["frequency_weighted_iou"] = lambda: np.asarray(iou.frequency_weighted_iou(matrix))
    ways["accuracy_void"] = lambda: np.asarray(np.trace(matrix[:-1]) / matrix.sum())
    ways["kappa"] = lambda: np.asarray(iou.kappa(matrix))
    return ways


def _mean_iou(matrix: Array, absent: Any, void: bool) -> Array:
    return np.asarray(iou.mean_iou(matrix, absent=absent, count_void=void))


def _words(own: str, other: str) -> tuple[str, str]:
    """Return the relation between two averages, and what it means."""
    if own.removesuffix("_void") == other.removesuffix("_void"):
        counted = "count" if other.endswith("_void") else "do not count"
        return "void-counted", f"pixels that are void {counted} in the denominator"
    if own.startswith("miou_") and other.startswith("miou_"):
        rules = {
            "skip": "are left out",
            "zero": "count as 0",
            "one": "count as 1",
            "plus_one": "have a denominator increased by 1, as all have",
        }
        return "absent-class", f"absent classes {rules[other[5:].removesuffix('_void')]}"
    return "another-average", f"is {other} instead"


def _ious(matrix: Array) -> Iterator[tuple[str, Callable[[], Array]]]:
    hit = np.diagonal(matrix).astype(np.float64)
    labelled, predicted = matrix[:-1].sum(1), matrix[:-1].sum(0)
    for words, below in (
        ("is divided by the labelled pixels: accuracy per class", labelled),
        ("is divided by the predicted pixels: precision per class", predicted),
        ("is divided by labelled and predicted pixels together: the hits count twice",
         labelled + predicted),
        ("has 1 added to the denominator", labelled + predicted - hit + 1),
    ):  # fmt: skip
        yield words, partial(_divided, hit, np.asarray(below, np.float64))


def _divided(hit: Array, below: Array) -> Array:
    return np.where(below > 0, hit / np.where(below > 0, below, 1.0), -1.0)
