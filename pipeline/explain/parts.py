"""What a composite layer has to put together: inputs, its children's outputs, and those resized.

Between a child and what it is handed to, a layer may take a mean, resize, crop or pad without a
child of its own for it. Each is a part here, named after what it is made of and how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.explain import ops, pools
from pipeline.explain.target import Array
from pipeline.failure import FailureCase

MOST_PLAIN = 14
MOST = 150
"""Parts that are looked at, with those made of others."""


@dataclass(frozen=True)
class Part:
    """One array that a combination may use."""

    base: str
    """What it is made of: "input 0", "child conv"."""
    how: str
    """What is done to that, in words; empty if nothing."""
    array: Array

    @property
    def name(self) -> str:
        """What it is called in a text."""
        return f"{self.base} {self.how}".strip()


def given_parts(case: FailureCase) -> dict[str, Array]:
    """Return a case's inputs and children's outputs by what they are called in a text."""
    given: dict[str, Array] = {}
    for group in ("child", "input"):
        for key, array in case.arrays.items():
            if key.startswith(f"{group}/") and array.dtype.kind == "f":
                given[f"{group} {key.removeprefix(f'{group}/')}"] = array
    return given


def parts_for(given: Mapping[str, Array], wanted: Array) -> dict[str, Part]:
    """Return the parts that fit an array or some of its channels, plain ones first."""
    plain = [Part(name, "", array) for name, array in given.items() if _fits(array, wanted)]
    made = [
        Part(name, how, made)
        for name, array in given.items()
        if array.ndim == wanted.ndim == 4 and array.shape[0] == wanted.shape[0]
        for how, made in _made(array, (wanted.shape[2], wanted.shape[3]))
    ]
    return {part.name: part for part in [*plain[:MOST_PLAIN], *made][:MOST]}


def _fits(array: Array, wanted: Array) -> bool:
    """Tell whether an array can be broadcast, leaving the channels aside."""
    if array.ndim != wanted.ndim:
        return False
    sizes = zip(array.shape, wanted.shape, strict=True)
    return all(a in (1, w) for axis, (a, w) in enumerate(sizes) if axis != 1)


def _made(array: Array, size_hw: ops.Pair) -> Iterator[tuple[str, Array]]:
    """Yield what can be made of a map to give it another size, or with its own."""
    H, W = array.shape[2:]
    if size_hw == (H, W):
        if array.shape[1] == 3:
            yield "with its channels reversed", array[:, ::-1]
        yield "flipped left to right", array[..., ::-1]
        return
    if size_hw == (1, 1):
        yield "averaged", pools.spatial_mean(array)
        yield "at its maximum", array.max(axis=(2, 3), keepdims=True)
        return
    if (H, W) == (1, 1):
        return
    if size_hw[0] >= H and size_hw[1] >= W:
        yield from _padded(array, size_hw)
        yield from _resized(array, size_hw)
    elif size_hw[0] <= H and size_hw[1] <= W:
        yield from _cropped(array, size_hw)
        yield from _resized(array, size_hw)


def _padded(array: Array, size_hw: ops.Pair) -> Iterator[tuple[str, Array]]:
    down, right = (new - old for new, old in zip(size_hw, array.shape[2:], strict=True))
    behind = {"zeros": "with zeros", "replicate": "by its last pixels", "reflect": "by reflection"}
    for mode, words in behind.items():
        if mode == "reflect" and (down >= array.shape[2] or right >= array.shape[3]):
            continue
        yield f"padded {words}", ops.pad(array, (0, down, 0, right), mode=mode)
    yield "padded before it", ops.pad(array, (down, 0, right, 0))
    if down > 1 or right > 1:
        half = down // 2, down - down // 2, right // 2, right - right // 2
        yield "padded around it", ops.pad(array, half)


def _cropped(array: Array, size_hw: ops.Pair) -> Iterator[tuple[str, Array]]:
    H, W = size_hw
    down, right = array.shape[2] - H, array.shape[3] - W
    places = {(0, 0), (down // 2, right // 2), (down, right)}
    places |= set(product((0, min(1, down)), (0, min(1, right))))
    for top, left in sorted(places):
        yield f"cropped from ({top}, {left})", array[:, :, top : top + H, left : left + W]


RESIZE: dict[str, dict[str, Any]] = {
    "align_corners=False": {"align_corners": False},
    "align_corners=True": {"align_corners": True},
    "align_mode=1": {"align_corners": False, "align_mode": 1},
}
KEPT = ", ratio in float32"


def _resized(array: Array, size_hw: ops.Pair) -> Iterator[tuple[str, Array]]:
    pairs = list(zip(array.shape[2:], size_hw, strict=True))
    nearest = [pools.nearest_matrix(o, n) for o, n in pairs]
    yield "resized, nearest", pools.apply_axes(array, *nearest)
    for words, options in RESIZE.items():
        exact = [pools.bilinear_matrix(o, n, **options) for o, n in pairs]
        yield f"resized, bilinear, {words}", pools.apply_axes(array, *exact)
        kept = [
            pools.bilinear_matrix(o, n, **options, rounding=rounding)
            for (o, n), rounding in zip(pairs, pools.PADDLE_ROUNDING, strict=True)
        ]
        yield f"resized, bilinear, {words}{KEPT}", pools.apply_axes(array, *kept)


def relation_of_ways(right: str, found: str) -> str | None:
    """Return the name of what is between two ways of making a part, or None."""
    if right == found:
        return None
    right, kept = right.removesuffix(KEPT), found.endswith(KEPT)
    found = found.removesuffix(KEPT)
    if right == found:
        return "dtype-float32" if kept else None
    words = (right, found)
    if all(text.startswith("resized") for text in words):
        return _relation_of_resizings(right, found)
    for start, relation in (
        ("cropped", "off-by-one-crop"),
        ("padded with", "padding-mode"),
        ("padded", "padding-side"),
    ):
        if all(text.startswith(start[:6]) for text in words) and any(
            text.startswith(start) for text in words
        ):
            by_side = "before" in found or "around" in found
            return "padding-side" if start == "padded with" and by_side else relation
    return {"with": "swapped-channels", "flip": "flip"}.get((right or found)[:4])


def _relation_of_resizings(right: str, found: str) -> str:
    nearest = ("nearest" in right, "nearest" in found)
    if nearest == (False, True):
        return "nearest-for-bilinear"
    if nearest == (True, False):
        return "bilinear-for-nearest"
    return "align-mode" if "align_mode" in right + found else "align-corners"
