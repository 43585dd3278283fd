"""One transform of one sample, done anew with the same random numbers, and done wrong.

The random numbers follow from seed, epoch and sample, and the transforms are those of
common/transforms.py, so that a stage can be repeated exactly on the picture before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np

from common import pillow_arithmetic as pillow
from common.config_sections import DataConfig
from common.sampling import SampleKey, sample_rng
from common.transforms import CONTRAST_PIVOT, Transform, train_transform, val_transform
from pipeline.explain.confirm import Candidate
from pipeline.failure import FailureCase
from pipeline.records import Array


@dataclass(frozen=True)
class Stage:
    """One transform of one sample, with its random numbers."""

    case: FailureCase
    name: str
    previous: Array
    data: DataConfig
    transform: Transform

    @classmethod
    def of(cls, case: FailureCase) -> Stage | None:
        """Return the stage of a case; None for the file as read, and what the data set returns."""
        name = str(case.settings["stage"])
        data = DataConfig(**case.settings["data"])
        transform = (train_transform if case.settings["train"] else val_transform)(data)
        known = [step for step, _ in transform.steps]
        if "previous" not in case.arrays or name not in known:
            return None
        return cls(case, name, case.arrays["previous"], data, transform)

    def draws(self) -> np.random.Generator:
        """Return the generator as the stage finds it: the transforms before have drawn."""
        settings = self.case.settings
        key = SampleKey(int(settings["epoch"]), int(settings["index"]))
        rng = sample_rng(int(settings["seed"]), key=key)
        H, W = settings["read_hw"]
        # draws depend on sizes, never on pixels
        image, label = np.zeros((H, W, 3), np.uint8), np.zeros((H, W), np.uint8)
        for name, step in self.transform.steps:
            if name == self.name:
                break
            image, label = step(image, label, rng)
        return rng

    @property
    def is_picture(self) -> bool:
        """Tell a picture from a label map."""
        return self.case.key.endswith("/image")

    def done(self, step: Any, rng: np.random.Generator | None = None) -> Array:
        """Return what a step makes of the previous picture or label."""
        image = label = self.previous
        if self.is_picture:
            label = np.zeros(self.previous.shape[:2], np.uint8)
        else:
            image = np.zeros((*self.previous.shape, 3), np.uint8)
        image, label = step(image, label, self.draws() if rng is None else rng)
        return image if self.is_picture else label

    def right(self) -> Array:
        """Return what the stage should make."""
        return self.done(self.step())

    def step(self, name: str = "") -> Any:
        """Return the stage's own step, or that of another name."""
        return dict(self.transform.steps)[name or self.name]


def place_of(picture: Array, window: Array) -> tuple[int, int] | None:
    """Return (top, left) of a window in a picture, or None."""
    H, W = (a - b + 1 for a, b in zip(picture.shape[:2], window.shape[:2], strict=True))
    if H < 1 or W < 1:
        return None
    places: Any = np.ones((H, W), np.bool_)
    # a few pixels sort out nearly all places; those left are looked at in full
    for y, x in ((0, 0), (-1, -1), (0, -1), (-1, 0)):
        top, left = y % window.shape[0], x % window.shape[1]
        same = picture[top : top + H, left : left + W] == window[y, x]
        places &= same if same.ndim == 2 else same.all(axis=2)
    for top, left in np.argwhere(places)[:2000].tolist():
        part = picture[top : top + window.shape[0], left : left + window.shape[1]]
        if np.array_equal(part, window):
            return top, left
    return None


def _wrong_scale(stage: Stage) -> Iterator[Candidate]:
    reference = stage.case.arrays["reference"]
    H, W = reference.shape[:2]
    actual = stage.case.arrays["actual"]
    sizes = [(H, W)] + ([actual.shape[:2]] if actual.shape[:2] != (H, W) else [])
    ways = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "cubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
        "nearest, exact": cv2.INTER_NEAREST_EXACT,
        "bilinear, exact": cv2.INTER_LINEAR_EXACT,
    }
    for size in sizes:
        for name, way in ways.items():
            relation = "interpolation" if size == (H, W) else "resize-rounding"
            words = f" to {size[0]} x {size[1]} instead of {H} x {W}" if size != (H, W) else ""
            text = f"is resized by {name} interpolation{words}"
            yield Candidate(relation, text, partial(_resized, stage.previous, size, way))

    if stage.is_picture and stage.data.augmentation == "opencv":
        text = "is resized by Pillow's bilinear interpolation, which averages when it shrinks"
        yield Candidate(
            "interpolation", text, lambda: pillow.resize_image(stage.previous, size_hw=(H, W))
        )
    if not stage.is_picture:
        text = "is resized by Pillow's nearest interpolation"
        yield Candidate(
            "interpolation", text, lambda: pillow.resize_label(stage.previous, size_hw=(H, W))
        )


def _resized(array: Array, size_hw: tuple[int, int], way: int) -> Array:
    if any(abs(a / b - 1) > 0.9 for a, b in zip(size_hw, array.shape[:2], strict=True)):
        raise ValueError("another size altogether")
    return np.asarray(cv2.resize(array, (size_hw[1], size_hw[0]), interpolation=way))


def _wrong_pad(stage: Stage) -> Iterator[Candidate]:
    previous, reference = stage.previous, stage.case.arrays["reference"]
    place = place_of(reference, previous)
    if place is None:
        return
    actual = stage.case.arrays["actual"]
    H, W = (a - b for a, b in zip(actual.shape[:2], previous.shape[:2], strict=True))
    if H < 0 or W < 0:
        return
    void = stage.data.ignore_index
    fills = dict.fromkeys((0, void, 255, 128, int(actual.reshape(-1)[0])))
    tops = dict.fromkeys((place[0], 0, H, H // 2))
    lefts = dict.fromkeys((place[1], 0, W, W // 2))
    for fill in fills:
        for top in tops:
            for left in lefts:
                sides = (top, H - top, left, W - left)
                text = f"is padded by {sides} (top, bottom, left, right) with {fill}"
                yield Candidate("padding", text, partial(_padded, previous, sides, fill))
    for name, way in (("mirrored", cv2.BORDER_REFLECT), ("repeated", cv2.BORDER_REPLICATE)):
        text = f"is padded with its border {name}"
        sides = (place[0], H - place[0], place[1], W - place[1])
        yield Candidate("padding", text, partial(cv2.copyMakeBorder, previous, *sides, way))


def _padded(array: Array, sides: tuple[int, int, int, int], fill: int) -> Array:
    if min(sides) < 0:
        raise ValueError("a negative padding")
    return cv2.copyMakeBorder(array, *sides, cv2.BORDER_CONSTANT, value=(fill,) * 4)


def _wrong_crop(stage: Stage) -> Iterator[Candidate]:
    crop = stage.data.crop_hw
    H, W = stage.previous.shape[:2]
    centre = ((H - crop[0]) // 2, (W - crop[1]) // 2)
    for words, (top, left) in {"the centre": centre, "the top left corner": (0, 0)}.items():
        part = stage.previous[top : top + crop[0], left : left + crop[1]]
        yield Candidate("crop", f"takes {words} instead of a random window", lambda part=part: part)


def _wrong_tone(stage: Stage) -> Iterator[Candidate]:
    """Yield wrong forms of brightness and contrast: a table of bytes with one factor."""
    pivot = CONTRAST_PIVOT if stage.name == "contrast" else 0
    factor = stage.draws().uniform(*getattr(stage.data, stage.name))
    lines: dict[str, Callable[[float], Array]] = {
        "rounded instead of truncated": lambda f: np.clip(np.rint(_line(f, pivot)), 0, 255),
        "not clipped, so that it wraps around": lambda f: _line(f, pivot).astype(np.int64) % 256,
        "with pivot 0": lambda f: np.clip(_line(f, 0), 0, 255),
        "with pivot 74": lambda f: np.clip(_line(f, 74), 0, 255),
        "with pivot 127": lambda f: np.clip(_line(f, 127), 0, 255),
        "with pivot 128": lambda f: np.clip(_line(f, 128), 0, 255),
    }
    for words, line in lines.items():
        text = f"{stage.name} {words}"
        yield Candidate("jitter", text, partial(_looked_up, stage.previous, line(factor)))
    yield from _as_pillow(stage, factor)
    mean = int(stage.previous.mean())
    text = f"{stage.name} with the picture's mean {mean} as pivot"
    line = np.clip(_line(factor, mean), 0, 255)
    yield Candidate("jitter", text, partial(_looked_up, stage.previous, line))
    for solved in _tone_factors(stage, pivot):
        text = f"{stage.name} by {solved:.5g} instead of {factor:.5g}"
        line = np.clip(_line(solved, pivot), 0, 255)
        yield Candidate("jitter-factor", text, partial(_looked_up, stage.previous, line))
    yield from _other_jitter(stage)


def _line(factor: float, pivot: float) -> Array:
    return pivot + (np.arange(256) - pivot) * factor


def _looked_up(picture: Array, table: Array) -> Array:
    return table.astype(np.uint8)[picture]


def _tone_factors(stage: Stage, pivot: int) -> list[float]:
    """Return factors that all unclipped pixels agree on: each byte allows an interval."""
    values = stage.previous.reshape(-1).astype(np.float64) - pivot
    found = stage.case.arrays["actual"].reshape(-1).astype(np.float64)
    if values.shape != found.shape:
        return []
    inside = (found > 0) & (found < 255) & (values != 0)
    if not inside.any():
        return []
    ends = np.stack([found[inside] - pivot, found[inside] + 1 - pivot]) / values[inside]
    low, high = float(ends.min(0).max()), float(ends.max(0).min())
    # an end that is hit exactly, as by 0.7 * 10, falls on either side by rounding
    if low > high + 1e-9:
        return []
    middle = (low + high) / 2
    return [*(round(middle, digits) for digits in (1, 2, 3, 4)), middle]


def _as_pillow(stage: Stage, factor: float) -> Iterator[Candidate]:
    enhance = {
        "brightness": pillow.enhance_brightness,
        "contrast": pillow.enhance_contrast,
        "saturation": pillow.enhance_colour,
    }[stage.name]
    text = f"{stage.name} as Pillow does it"
    yield Candidate("jitter", text, lambda: enhance(stage.previous, factor=factor))


def _other_jitter(stage: Stage) -> Iterator[Candidate]:
    for name, step in stage.transform.steps:
        if name in ("brightness", "contrast", "saturation") and name != stage.name:
            text = f"does {name} in the place of {stage.name}: another order of the jitter"
            yield Candidate("jitter-order", text, partial(stage.done, step))


def _wrong_saturation(stage: Stage) -> Iterator[Candidate]:
    low, high = stage.data.saturation or (1.0, 1.0)
    factor = stage.draws().uniform(low, high)
    yield from _as_pillow(stage, factor)
    previous = stage.previous.astype(np.float64)
    luma = previous @ np.array([0.299, 0.587, 0.114])
    for words, grey in (("the channels' mean", previous.mean(2)), ("the luma", luma)):
        blend = np.clip(factor * previous + (1 - factor) * grey[..., None], 0, 255)
        for rounding, made in (("truncated", np.floor(blend)), ("rounded", np.rint(blend))):
            text = f"saturation: blend with {words}, {rounding}"
            yield Candidate("jitter", text, partial(np.asarray, made.astype(np.uint8)))
    apart = previous - previous.mean(2, keepdims=True)
    rest = stage.case.arrays["actual"].astype(np.float64) - previous.mean(2, keepdims=True)
    size = float(np.vdot(apart, apart))
    if rest.shape == apart.shape and size > 0:
        solved = float(np.vdot(apart, rest)) / size
        text = f"saturation by about {solved:.4g} instead of {factor:.5g}"
        matrix = np.full((3, 3), (1 - solved) / 3) + solved * np.eye(3)
        yield Candidate("jitter-factor", text, lambda: cv2.transform(stage.previous, matrix))
    yield from _other_jitter(stage)


def _wrong_normalise(stage: Stage) -> Iterator[Candidate]:
    if not stage.is_picture:
        return
    mean, std = np.asarray(stage.data.mean), np.asarray(stage.data.std)
    imagenet = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
    halves = (np.full(3, 0.5), np.full(3, 0.5))
    wrong = {
        "with mean and std swapped": (std, mean, 255.0),
        "with the channels' statistics in the order BGR": (mean[::-1], std[::-1], 255.0),
        "with ImageNet's mean and std": (*imagenet, 255.0),
        "with mean and std 0.5": (*halves, 255.0),
        "without mean": (0 * mean, std, 255.0),
        "without std": (mean, np.ones(3), 255.0),
        "without mean and std": (0 * mean, np.ones(3), 255.0),
    }
    for words, (m, s, scale) in wrong.items():
        yield _normalised(stage, "mean-std", f"is normalised {words}", m, s, scale)
    for scale, words in ((1.0, "not divided by 255"), (256.0, "divided by 256 instead of 255")):
        yield _normalised(stage, "scale-255", words, mean, std, scale)
    yield _normalised(stage, "mean-std", "normalised bytes with mean / 255", mean / 255, std, 255.0)
    solved = _affine(stage)
    if solved is not None:
        m, s = solved
        shown = f"mean {np.round(m, 5).tolist()}, std {np.round(s, 5).tolist()}"
        yield _normalised(stage, "mean-std", f"is normalised with {shown}", m, s, 255.0)


def _normalised(
    stage: Stage, relation: str, text: str, mean: Array, std: Array, scale: float
) -> Candidate:
    def compute() -> Array:
        table = ((np.arange(256)[:, None] / scale - mean) / std).astype(np.float32)
        return np.stack([table[stage.previous[..., c], c] for c in range(3)])

    return Candidate(relation, text, compute)


def _affine(stage: Stage) -> tuple[Array, Array] | None:
    """Return mean and std per channel by least squares, or None where a channel is constant."""
    actual = stage.case.arrays["actual"].astype(np.float64)
    if actual.shape != stage.case.arrays["reference"].shape:
        return None
    means, stds = np.zeros(3), np.ones(3)
    for c in range(3):
        x, y = stage.previous[..., c].ravel() / 255, actual[c].ravel()
        spread = x - x.mean()
        slope = float(spread @ (y - y.mean())) / max(float(spread @ spread), 1e-300)
        if not np.isfinite(slope) or slope == 0.0 or not spread.any():
            return None
        stds[c] = 1 / slope
        means[c] = x.mean() - y.mean() / slope
    return means, stds


WRONG: dict[str, Callable[[Stage], Iterator[Candidate]]] = {
    "scale": _wrong_scale,
    "enlarge": _wrong_scale,
    "pad": _wrong_pad,
    "crop": _wrong_crop,
    "brightness": _wrong_tone,
    "contrast": _wrong_tone,
    "saturation": _wrong_saturation,
    "normalise": _wrong_normalise,
}
"""Stage -> what can be wrong with it, simplest first."""
