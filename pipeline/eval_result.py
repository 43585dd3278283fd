"""The result of an evaluation: every number with the conventions it was made under.

A mean IoU moves by points with the protocol, with what void and absent classes count for, and with
the mean being over the data set or over its pictures; so no number is written without these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from common import iou
from common.config import Config
from common.config_sections import AbsentClass
from common.protocols import Protocol

ABSENT_TEXT: dict[AbsentClass, str] = {
    "skip": "classes in neither labels nor predictions left out",
    "zero": "classes in neither labels nor predictions count 0",
    "one": "classes in neither labels nor predictions count 1",
    "plus_one": "every union increased by 1, so that absent classes count 0",
}
VOID_TEXT = {
    False: "void pixels not counted",
    True: "predictions on void pixels count as false positives",
}


@dataclass(frozen=True)
class Number:
    """One score of the whole data set."""

    name: str
    value: float
    convention: str
    protocol: str


@dataclass(frozen=True)
class EvalResult:
    """What was counted, and what it was counted with."""

    config: Config
    protocol: Protocol
    class_names: tuple[str, ...]
    matrix: NDArray[np.int64]
    """(classes + 1, classes): row = label (last: void), column = prediction; of all ranks."""
    image_names: tuple[str, ...]
    image_iou: NDArray[np.float64]
    """(images,): mean IoU of each picture over the classes in its label; NaN without a label."""
    seconds: float
    facts: dict[str, Any]
    """Provenance: command, versions, digests, device, processes."""

    def numbers(self) -> list[Number]:
        """Return the scores, mean IoU by the configuration's conventions first."""
        absent, void = self.config.eval.absent, self.config.eval.count_void
        kept, plain = self.matrix, VOID_TEXT[False]
        rows = [
            (
                "mIoU",
                iou.mean_iou(kept, absent=absent, count_void=void),
                f"{ABSENT_TEXT[absent]}; {VOID_TEXT[void]}",
            ),
            ("pixel accuracy", iou.pixel_accuracy(kept), plain),
            (
                "mean accuracy",
                iou.mean_accuracy(kept),
                f"classes without labelled pixels left out; {plain}",
            ),
            (
                "fwIoU",
                iou.frequency_weighted_iou(kept),
                f"weights: shares of the labelled pixels; {plain}",
            ),
            ("kappa", iou.kappa(kept), plain),
            (
                "mIoU per image",
                self._image_mean(),
                "mean over pictures of each one's own, over the classes in its label; not "
                f"comparable with mIoU; {plain}",
            ),
        ]
        return [Number(name, value, text, self.protocol.name) for name, value, text in rows]

    def other_conventions(self) -> list[Number]:
        """Return the mean IoU of the same counts by every convention there is."""
        return [
            Number(
                f"mIoU, absent: {absent}" + (", void counted" if void else ""),
                iou.mean_iou(self.matrix, absent=absent, count_void=void),
                f"{ABSENT_TEXT[absent]}; {VOID_TEXT[void]}",
                self.protocol.name,
            )
            for void in (False, True)
            for absent in get_args(AbsentClass)
        ]

    def worst(self, count: int) -> list[int]:
        """Return the indices of the pictures with the smallest mean IoU, the worst first."""
        return worst_images(self.image_iou, count)

    def as_json(self) -> dict[str, Any]:
        """Return everything for eval.json; NaN is null."""
        labelled = self.matrix[:-1].sum(axis=1)
        columns = {
            "iou": iou.iou_per_class(self.matrix, count_void=self.config.eval.count_void),
            "accuracy": iou.accuracy_per_class(self.matrix),
            "f1": iou.f1_per_class(self.matrix),
        }
        classes = [
            {
                "name": name,
                **{key: _finite(values[index]) for key, values in columns.items()},
                "labelled_pixels": int(labelled[index]),
            }
            for index, name in enumerate(self.class_names)
        ]
        return {
            **self.facts,
            "protocol": self.protocol.as_json(),
            "conventions": {
                "absent": self.config.eval.absent,
                "count_void": self.config.eval.count_void,
                "ignore_index": self.config.data.ignore_index,
            },
            "numbers": [_number(number) for number in self.numbers()],
            "miou_by_convention": [_number(number) for number in self.other_conventions()],
            "published": [row.model_dump() for row in self.config.published],
            "classes": classes,
            "confusion_matrix": {
                "rows": "label, the last one void",
                "columns": "prediction",
                "counts": self.matrix.tolist(),
            },
            "images": {
                name: _finite(value)
                for name, value in zip(self.image_names, self.image_iou, strict=True)
            },
            "seconds": round(self.seconds, 3),
            "images_per_second": round(len(self.image_names) / max(self.seconds, 1e-9), 4),
        }

    def json_text(self) -> str:
        """Return as_json as a text."""
        return json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"

    def _image_mean(self) -> float:
        known = self.image_iou[~np.isnan(self.image_iou)]
        return float(known.mean()) if known.size else math.nan


def worst_images(image_iou: NDArray[np.float64], count: int) -> list[int]:
    """Return the indices of the count smallest values, the smallest first; NaN never."""
    order = np.argsort(image_iou, kind="stable")
    return [int(index) for index in order if not np.isnan(image_iou[index])][:count]


def class_table(result: EvalResult) -> Table:
    """Return one row per class."""
    rule = result.config.eval
    table = Table(
        title=f"classes: protocol {result.protocol.name}, IoU: {VOID_TEXT[rule.count_void]}",
        title_justify="left",
    )
    for name in ("class", "IoU", "accuracy", "F1", "share of labels"):
        table.add_column(name, justify="left" if name == "class" else "right", no_wrap=True)
    labelled = result.matrix[:-1].sum(axis=1)
    total = max(int(labelled.sum()), 1)
    columns = (
        iou.iou_per_class(result.matrix, count_void=rule.count_void),
        iou.accuracy_per_class(result.matrix),
        iou.f1_per_class(result.matrix),
    )
    for index, name in enumerate(result.class_names):
        shown = [percent(float(values[index])) for values in columns]
        table.add_row(Text(name), *shown, f"{100 * labelled[index] / total:.2f} %")
    return table


def number_table(result: EvalResult) -> Table:
    """Return one row per score, with its protocol and conventions, and what was published."""
    table = Table(title="scores", title_justify="left")
    table.add_column("score", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("protocol", no_wrap=True)
    table.add_column("convention", overflow="fold")
    for number in result.numbers():
        shown = f"{number.value:.4f}" if number.name == "kappa" else percent(number.value)
        table.add_row(number.name, shown, number.protocol, number.convention)
    for row in result.config.published:
        # what differs between the evaluators of one name is told by the protocol's own
        if row.protocol == result.protocol.name.partition("_")[0]:
            table.add_row("published mIoU", f"{row.miou:.2f} %", row.protocol, Text(row.note))
    return table


def percent(value: float) -> str:
    """Return a share for a person; a dash where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"


def names_of_classes(known: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return the data set's names, or numbers where it has none for that many classes."""
    if known is not None and len(known) == classes:
        return tuple(known)
    return tuple(f"class {index}" for index in range(classes))


def _number(number: Number) -> dict[str, Any]:
    return {
        "name": number.name,
        "value": _finite(number.value),
        "protocol": number.protocol,
        "convention": number.convention,
    }


def _finite(value: Any) -> float | None:
    return None if math.isnan(float(value)) else float(value)
