"""Evaluation protocols: how one picture's scores are made of several passes through the network.

Sources: CoinCheung/BiSeNet@6b4b67a tools/evaluate.py (ss, ssc, msf, mscf and its size rules),
@a8ddd22 evaluate.py (mscf_2020) and its BiSeNetV2, read at the picture's own size (none);
MichaelFan01/STDC-Seg@59ff37f evaluation.py MscEvalV0 (ss@0.5, ss@0.75); PaddleSeg@d7975e7
core/infer.py (flip, msf_paddleseg). What a class map is averaged to is another matter: common.iou.

Here are the sizes and places only; the arithmetic on scores is for_*/evaluate.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

ScoreRule = Literal["logits", "softmax", "exp_softmax"]
"""What is added up over passes: the logits; their softmax; or e to the power of the softmax, that
of the picture and of its mirror image first added where there is one (which makes e to the sum the
product of both). The largest total is the prediction."""
Overlap = Literal["sum", "mean"]
"""Where windows overlap: sum, so that a pixel seen by two windows weighs double within its scale
(as published); or mean, divided by the number of windows that saw it."""
SizeRounding = Literal["down", "nearest"]

MULTISCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
DEFAULT_CROP_HW = (1024, 1024)
"""Window of the published Cityscapes evaluations."""


@dataclass(frozen=True)
class StartSize:
    """The size a picture is brought to before any scale; at most one of the three is given."""

    shape_hw: tuple[int, int] | None = None
    """This very (H, W)."""
    short_side: int | None = None
    """The shorter side gets this length, the other keeps the aspect, rounded down."""
    long_side: int | None = None
    """The longer side gets at most this length; a smaller picture stays as it is."""

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} are given; expected at most one rule for the start size"
            )
        if any(side < 1 for side in np.ravel(list(given.values()))):
            raise InputError(f"the start size is {given}; expected sides of at least one pixel")

    def size_hw(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) for a picture of this size."""
        if self.shape_hw is not None:
            return self.shape_hw
        if self.short_side is not None:
            factor, fixed = self.short_side / min(height, width), self.short_side
            rows_are_fixed = height < width
        elif self.long_side is not None and max(height, width) > self.long_side:
            factor, fixed = self.long_side / max(height, width), self.long_side
            rows_are_fixed = height >= width
        else:
            return height, width
        # as upstream computes it, in floating point; a sliver keeps a pixel
        if rows_are_fixed:
            return fixed, max(int(factor * width), 1)
        return max(int(factor * height), 1), fixed


@dataclass(frozen=True)
class Canvas:
    """A scaled picture on zeros, large enough for one window, and the windows on it."""

    size_hw: tuple[int, int]
    top: int
    left: int
    windows: tuple[tuple[int, int], ...]
    """(top, left) of every window on the canvas, row by row."""

    def window_counts(self, crop_hw: tuple[int, int]) -> NDArray[np.int64]:
        """Return (H, W) int64: how many windows see each pixel of the canvas."""
        counts = np.zeros(self.size_hw, dtype=np.int64)
        for top, left in self.windows:
            counts[top : top + crop_hw[0], left : left + crop_hw[1]] += 1
        return counts


@dataclass(frozen=True)
class Protocol:
    """Everything that decides a picture's scores besides the network."""

    name: str
    source: str
    scales: tuple[float, ...] = (1.0,)
    """Of the start size; the scores of all are added up."""
    flip: bool = False
    """True adds the scores of the mirror image, mirrored back."""
    crop_hw: tuple[int, int] | None = None
    """Size of the sliding window in pixels; None gives the network the whole scaled picture."""
    stride_rate: float = 2 / 3
    """Distance of windows as a fraction of the window, rounded up to pixels."""
    rule: ScoreRule = "softmax"
    overlap: Overlap = "sum"
    multiple: int = 1
    """The scaled size is rounded up to a multiple of this (whole pictures only)."""
    rounding: SizeRounding = "down"
    """How scale * side becomes pixels."""
    align_corners: bool = True
    """Of the resizes to the scaled size and of the scores back to the label's; the resize to the
    start size never aligns corners."""
    start: StartSize = StartSize()

    def __post_init__(self) -> None:
        if not self.scales or any(scale <= 0 for scale in self.scales):
            raise InputError(
                f"protocol {self.name}: scales {self.scales}; expected one or more above 0"
            )
        if self.crop_hw is not None and min(self.crop_hw) < 1:
            raise InputError(
                f"protocol {self.name}: window {self.crop_hw}; expected at least 1 x 1 pixels"
            )
        if not 0 < self.stride_rate <= 1:
            raise InputError(
                f"protocol {self.name}: stride rate {self.stride_rate}; expected above 0 and at "
                "most 1, for beyond that pixels between windows are never seen"
            )

    def scaled_hw(self, height: int, width: int, *, scale: float) -> tuple[int, int]:
        """Return the (H, W) of the network's picture for a start size and one of the scales."""
        extra = 0.5 if self.rounding == "nearest" else 0.0
        rows, columns = (max(int(scale * side + extra), 1) for side in (height, width))
        if self.crop_hw is not None:
            return rows, columns
        return ceil(rows / self.multiple) * self.multiple, (
            ceil(columns / self.multiple) * self.multiple
        )

    def canvas(self, height: int, width: int) -> Canvas:
        """Lay the windows over a scaled picture; only for protocols with a window.

        A picture that is not larger than the window is put into the middle of zeros (in a
        normalised image: of the mean colour); an odd remainder goes to the bottom and right.
        """
        crop_h, crop_w = self.crop_hw or (height, width)
        size_hw = (max(height, crop_h), max(width, crop_w))
        starts = [
            window_starts(length, window=window, stride=ceil(window * self.stride_rate))
            for length, window in zip(size_hw, (crop_h, crop_w), strict=True)
        ]
        windows = tuple((top, left) for top in starts[0] for left in starts[1])
        return Canvas(size_hw, (size_hw[0] - height) // 2, (size_hw[1] - width) // 2, windows)

    def passes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return (H, W, times) of the network's inputs for one picture, mirror images included."""
        found: list[tuple[int, int, int]] = []
        mirrored = 2 if self.flip else 1
        start = self.start.size_hw(height, width)
        for scale in self.scales:
            rows, columns = self.scaled_hw(*start, scale=scale)
            if self.crop_hw is None:
                found.append((rows, columns, mirrored))
            else:
                windows = len(self.canvas(rows, columns).windows)
                found.append((*self.crop_hw, windows * mirrored))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return every field, for a log."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "start"}
        given = {f.name: getattr(self.start, f.name) for f in fields(self.start)}
        shown["start"] = {name: value for name, value in given.items() if value is not None}
        return shown

    def text(self) -> str:
        """Return one line for a person."""
        parts = ["scale" + ("s " if len(self.scales) > 1 else " ")]
        parts[0] += ", ".join(f"{scale:g}" for scale in self.scales)
        if self.start != StartSize():
            rule, value = next(iter(self.as_json()["start"].items()))
            parts.append(f"start {rule} {value}")
        if self.flip:
            parts.append("mirror image")
        if self.crop_hw is not None:
            h, w = self.crop_hw
            parts.append(f"windows {h}x{w} at {self.stride_rate:.4g}, overlap {self.overlap}")
        parts.append(self.rule)
        return f"{self.name} ({'; '.join(parts)})"


def window_starts(length: int, *, window: int, stride: int) -> tuple[int, ...]:
    """Return where windows start along one side: every stride, the last moved back to the end.

    Args:
        length: of the side, at least ``window``.
        window: of the window.
        stride: distance of two windows.
    """
    count = ceil((length - window) / stride) + 1
    return tuple(min(index * stride, length - window) for index in range(count))


_CURRENT = "CoinCheung/BiSeNet@6b4b67a tools/evaluate.py"
_STDC = "MichaelFan01/STDC-Seg@59ff37f evaluation.py MscEvalV0"
_PADDLESEG = "PaddlePaddle/PaddleSeg@d7975e7 core/infer.py"

_ALL = (
    Protocol("none", "CoinCheung/BiSeNet@a8ddd22, BiSeNetV2", rule="logits"),
    Protocol("ss", _CURRENT, multiple=32),
    Protocol("ssc", _CURRENT, crop_hw=DEFAULT_CROP_HW),
    Protocol("msf", _CURRENT, scales=MULTISCALE, flip=True, multiple=32),
    Protocol(
        "mscf", _CURRENT, scales=MULTISCALE, flip=True, crop_hw=DEFAULT_CROP_HW, rule="exp_softmax"
    ),
    Protocol(
        "mscf_2020",
        "CoinCheung/BiSeNet@a8ddd22 evaluate.py",
        scales=MULTISCALE,
        flip=True,
        crop_hw=DEFAULT_CROP_HW,
        stride_rate=5 / 6,
        rule="exp_softmax",
    ),
    Protocol("ss@0.5", _STDC, scales=(0.5,)),
    Protocol("ss@0.75", _STDC, scales=(0.75,)),
    Protocol(
        "ss@720x960",
        "STDC-Seg's paper on CamVid [recall]: the picture brought to that size",
        start=StartSize(shape_hw=(720, 960)),
    ),
    Protocol("flip", _PADDLESEG, flip=True, rule="logits", rounding="nearest", align_corners=False),
    Protocol(
        "msf_paddleseg",
        f"{_PADDLESEG}; scales as its documentation gives them [recall]",
        scales=(0.75, 1.0, 1.25),
        flip=True,
        rule="logits",
        rounding="nearest",
        align_corners=False,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
NONE = PROTOCOLS["none"]


def protocol_named(name: str) -> Protocol:
    """Return a published protocol.

    Raises:
        InputError: no such protocol; all are listed.
    """
    if name not in PROTOCOLS:
        raise InputError(f"evaluation protocol {name!r}; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def configured(
    name: str, *, crop_hw: tuple[int, int] | None = None, short_side: int | None = None
) -> Protocol:
    """Return a published protocol with the window and start size of a data set's recipe.

    Args:
        name: a key of PROTOCOLS.
        crop_hw: window, where the protocol has one; None: the table's.
        short_side: start size; None: the table's.

    Raises:
        InputError: no such protocol.
    """
    protocol = protocol_named(name)
    if crop_hw is not None and protocol.crop_hw is not None:
        protocol = replace(protocol, crop_hw=crop_hw)
    if short_side is not None:
        protocol = replace(protocol, start=StartSize(short_side=short_side))
    return protocol


def changed(protocol: Protocol, **options: Any) -> Protocol:
    """Return a protocol with some fields changed, and its name marked if any of them really is.

    Args:
        protocol: where to start from.
        **options: fields of Protocol; None leaves a field as it is.

    Raises:
        InputError: values that cannot be, or a window's options for a protocol without one.
    """
    wanted = {
        name: value
        for name, value in options.items()
        if value is not None and value != getattr(protocol, name)
    }
    if not wanted:
        return protocol
    made = replace(protocol, **wanted)
    alone = {"stride_rate", "overlap"} & set(wanted)
    if made.crop_hw is None and alone:
        raise InputError(
            f"protocol {protocol.name} has no sliding window for {' and '.join(sorted(alone))} to "
            "change; give a window too, or take ssc or mscf"
        )
    return replace(made, name=f"{protocol.name}, changed")
