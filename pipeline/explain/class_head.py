"""A class head's loss, computed right and wrong: the rules that ports are known to get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.explain.confirm import Candidate
from pipeline.explain.pixel_loss import (
    Floats,
    Pixels,
    Rule,
    hard_pixels,
    hardest,
    means_of_hardest,
    of_hard,
    pixels_from,
    pixels_of,
    smoothed,
    weights_of,
)
from pipeline.failure import FailureCase
from pipeline.records import Array


@dataclass(frozen=True)
class Variant:
    """One way to compute a class head's loss: which losses the pixels have, and which weights."""

    relation: str
    text: str
    make: Callable[[], tuple[Pixels, Floats]]
    differentiable: bool = True
    """False where the pixels' losses have another gradient than softmax minus target."""

    def value(self) -> Array:
        """Return the loss, a scalar."""
        pixels, weights = self.make()
        return np.asarray(pixels.losses @ weights)

    def gradient(self, head_weight: float) -> Array:
        """Return the gradient of the weighted loss at the logits."""
        pixels, weights = self.make()
        return head_weight * pixels.gradient(weights)


class ClassHead:
    """A class head's loss, computed right and wrong."""

    def __init__(self, case: FailureCase, head: str) -> None:
        self.case, self.loss = case, case.settings["loss"]
        self.ignore = int(case.settings["ignore_index"])
        self.logits: Array = case.arrays[f"logits/{head}"]
        self.label: Array = case.arrays["label"]
        self.rule = Rule.of(self.loss)
        self.pixels = pixels_of(self.logits, self.label, ignore_index=self.ignore)
        self.valid = int(self.pixels.valid.sum())

    def right(self) -> Variant:
        """Return the loss as the configuration has it."""
        return Variant("", "", partial(self._with, self.rule))

    def variants(self) -> Iterator[Variant]:
        """Yield what can be wrong, simplest first."""
        yield from self._void()
        yield from self._rules()
        yield from self._reductions()
        yield from self._probabilities()
        yield from self._rounded()

    def counted(self) -> Iterator[Candidate]:
        """Yield the number of pixels kept that gives the actual value, if there is one."""
        actual = float(self.case.arrays["actual"])
        losses = self.pixels.losses
        for way, words in (
            ("kept", "the mean of the hardest {} pixels"),
            ("fraction", "PaddleSeg's rule with min_kept (OHEM) keeping {} pixels"),
        ):
            values = means_of_hardest(losses, way)
            nearest = int(np.abs(values - actual).argmin())
            text = f"takes {words.format(nearest + 1)}{self._why(nearest + 1)}"
            relation = "ohem-kept" if way == "kept" else "ohem-rule"
            yield Candidate(relation, text, partial(np.asarray, values[nearest]))

    def _why(self, kept: int) -> str:
        """Return what number of pixels this is, where it is a simple share."""
        for name, count in (("valid", self.valid), ("all", self.pixels.losses.size)):
            for divisor in range(1, 65):
                if count // divisor == kept:
                    share = "" if divisor == 1 else f" // {divisor}"
                    return f": {name} pixels{share}"
        return f" instead of {int((weights_of(self.pixels, self.rule) > 0).sum())}"

    def _with(self, rule: Rule, pixels: Pixels | None = None) -> tuple[Pixels, Floats]:
        pixels = self.pixels if pixels is None else pixels
        return pixels, weights_of(pixels, rule)

    def _void(self) -> Iterator[Variant]:
        classes = self.logits.shape[1]
        if self.valid < self.label.size:
            for number in (0, classes - 1):
                text = f"counts void pixels as class {number} (ignore_index {self.ignore} unused)"
                yield Variant("ignore-index", text, partial(self._void_as, number))
        count = self.pixels.losses.size
        text = "divides the sum over the valid pixels by the number of all pixels, void included"
        yield Variant(
            "ignore-index-in-mean", text, lambda: (self.pixels, np.full(count, 1.0 / count))
        )
        text = "divides the sum over the hard pixels by the number of all pixels"
        yield Variant("ohem-mean", text, lambda: self._rescaled(lambda w: (w > 0) / count))
        text = "divides the sum over the hard pixels by the number of all valid pixels"
        yield Variant(
            "ohem-mean", text, lambda: self._rescaled(lambda w: (w > 0) / max(self.valid, 1))
        )

    def _void_as(self, number: int) -> tuple[Pixels, Floats]:
        label = np.where(self.label == self.ignore, number, self.label)
        return self._with(
            self.rule, pixels_from(self.pixels.likely, label, ignore_index=self.ignore)
        )

    def _rescaled(self, change: Callable[[Floats], Any]) -> tuple[Pixels, Floats]:
        return self.pixels, change(weights_of(self.pixels, self.rule))

    def _rules(self) -> Iterator[Variant]:
        words = {
            "none": "takes the mean over all valid pixels: no hard example mining",
            "valid_fraction": "takes n_min from the valid pixels",
            "pixel_fraction": "takes n_min from all pixels, void included",
            "min_kept": f"keeps min_kept ({self.rule.min_kept}) pixels, PaddleSeg's rule and mean",
        }
        for ohem, text in words.items():
            if ohem != self.rule.ohem:
                rule = replace(self.rule, ohem=ohem)
                relation = "ohem-missing" if ohem == "none" else "ohem-rule"
                yield Variant(relation, text, partial(self._with, rule))
        if self.rule.ohem == "none":
            return
        yield from self._thresholds()
        least = self._least()
        hard, losses = hard_pixels(self.pixels.losses, self.rule), self.pixels.losses
        text = "always takes the n_min hardest pixels, even where more are hard"
        yield Variant(
            "ohem-always", text, lambda: (self.pixels, hardest(losses, least) / max(least, 1))
        )
        text = "never keeps n_min pixels: only those above the threshold"
        yield Variant("ohem-never", text, lambda: (self.pixels, hard / max(int(hard.sum()), 1)))
        text = "keeps what is equal to the threshold, too"
        yield Variant(
            "strict-comparison", text, partial(self._with, replace(self.rule, at_or_above=True))
        )
        for off in (-1, 1):
            if 0 < least + off <= losses.size:
                text = f"keeps {least + off} pixels at least instead of {least}"
                make = partial(of_hard, losses, self.rule, least + off)
                yield Variant("ohem-n-min", text, lambda make=make: (self.pixels, make()))
        for divisor in (1, 2, 4, 8, 10, 12, 16, 20, 32, 64):
            if divisor != self.rule.divisor:
                text = f"takes n_min = pixels // {divisor} instead of // {self.rule.divisor}"
                rule = replace(self.rule, divisor=divisor)
                yield Variant("ohem-n-min", text, partial(self._with, rule))

    def _least(self) -> int:
        count = self.pixels.losses.size if self.rule.ohem == "pixel_fraction" else self.valid
        if self.rule.ohem == "min_kept":
            return min(self.rule.min_kept, count)
        return max(count // self.rule.divisor, 1)

    def _thresholds(self) -> Iterator[Variant]:
        chance = float(self.loss["threshold"])
        wrong = {
            chance: f"takes the threshold {chance:g} as a loss, not as a probability",
            -math.log1p(-chance): f"takes the threshold as {1 - chance:g}, 1 - {chance:g}",
        }
        for other in (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9):
            if other != chance:
                wrong[-math.log(other)] = f"takes the threshold {other:g} instead of {chance:g}"
        for limit, text in wrong.items():
            rule = replace(self.rule, hard_loss=limit)
            yield Variant("ohem-threshold", text, partial(self._with, rule))

    def _reductions(self) -> Iterator[Variant]:
        images = len(self.label)
        plain = np.ones(self.pixels.losses.size)
        text = "adds the kept pixels up instead of averaging them"
        yield Variant("reduction", text, lambda: self._rescaled(lambda w: (w > 0) * 1.0))
        text = "adds all pixels up instead of averaging the kept ones"
        yield Variant("reduction", text, lambda: (self.pixels, plain))
        text = "adds the pixels up and divides by the number of images"
        yield Variant("reduction", text, lambda: (self.pixels, plain / images))
        text = "averages each image alone, then the images' means"
        yield Variant("reduction", text, self._image_by_image)

    def _image_by_image(self) -> tuple[Pixels, Floats]:
        images = len(self.label)
        parts: list[Floats] = []
        size = self.pixels.losses.size // images
        for i in range(images):
            part = slice(i * size, (i + 1) * size)
            one = replace(
                self.pixels, losses=self.pixels.losses[part], valid=self.pixels.valid[part]
            )
            parts.append(weights_of(one, self.rule) / images)
        return self.pixels, np.concatenate(parts)

    def _probabilities(self) -> Iterator[Variant]:
        for smoothing in (0.1, 0.05, 0.2, 0.01):
            text = f"smooths the labels by {smoothing:g}"
            yield Variant("label-smoothing", text, partial(self._smooth, smoothing))
        for axis, name in ((0, "the images"), (2, "the rows"), (3, "the columns")):
            text = f"takes the softmax over {name} instead of the classes (axis {axis})"
            make = partial(self._from, partial(pixels_of, axis=axis))
            yield Variant("softmax-axis", text, make, differentiable=False)
        text = "takes the softmax twice: the criterion is given probabilities"
        yield Variant(
            "softmax-twice",
            text,
            lambda: self._from(pixels_of, np.exp(self.pixels.likely)),
            differentiable=False,
        )
        for base in (2, 10):
            text = f"takes the logarithm to base {base}"
            yield Variant("log-base", text, partial(self._in_base, base))

    def _smooth(self, smoothing: float) -> tuple[Pixels, Floats]:
        return self._with(self.rule, smoothed(self.pixels, smoothing))

    def _in_base(self, base: int) -> tuple[Pixels, Floats]:
        pixels = replace(self.pixels, losses=self.pixels.losses / math.log(base))
        # the gradient's factor goes with the weights: what the pixels are made of stays
        _, weights = self._with(self.rule, pixels)
        return self.pixels, weights / math.log(base)

    def _from(
        self, make: Callable[..., Pixels], logits: Array | None = None
    ) -> tuple[Pixels, Floats]:
        given = self.logits if logits is None else logits
        return self._with(self.rule, make(given, self.label, ignore_index=self.ignore))

    def _rounded(self) -> Iterator[Variant]:
        for short in ("float16", "float32"):
            if short == self.case.dtype:
                continue
            text = f"rounds the logits to {short}"
            yield Variant("dtype", text, partial(self._from, pixels_of, _cast(self.logits, short)))
            for first in (self.logits, _cast(self.logits, short)):
                text = f"computes the log-softmax in {short}"
                yield Variant("dtype", text, partial(self._short, first, short))

    def _short(self, logits: Array, short: str) -> tuple[Pixels, Floats]:
        exact = pixels_of(logits, self.label, ignore_index=self.ignore).likely
        # a detour of a float32 run begins with the numbers of that run
        likely = _cast(exact.astype(self.case.dtype), short)
        return self._with(self.rule, pixels_from(likely, self.label, ignore_index=self.ignore))


def _cast(array: Array, short: str) -> Floats:
    return array.astype(short).astype(np.float64)
