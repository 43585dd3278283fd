"""Evaluation engine: scores of pictures under a protocol, and the confusion matrix of a data set.

Which passes a protocol asks for is decided in common/protocols.py. Here they are made: windows and
mirror images of one scale in batches of a bounded number of pixels, every one of them once. Scores
of CPU tensors are made and added up by NumPy (common/score_sums.py).

Departures from CoinCheung/BiSeNet@6b4b67a, beside the batches: scores are summed in the network's
own dtype (whole pictures there in float32 always), and a resize to the same size is left out, which
changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.protocols import NONE, Protocol, ScoreRule
from common.score_sums import add_scores
from for_torch.backend import host_view, no_grad, to_tensor
from for_torch.layers import resize_bilinear
from for_torch.metrics import ConfusionMatrix

T = TypeVar("T")
Place: TypeAlias = tuple[int, int, int]
"""Of a window: the picture of the batch, top and left."""

MAX_PIXELS = 2**18
"""Input pixels of one forward pass, as far as more than one picture goes into it. On a CPU larger
batches gain next to nothing, and every activation of the network grows with them."""


def evaluate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    classes: int,
    ignore_index: int,
    protocol: Protocol = NONE,
    max_pixels: int = MAX_PIXELS,
) -> ConfusionMatrix:
    """Predict every batch and count predictions against labels: of this process's batches alone.

    Args:
        model: switched to evaluation mode here and back to its mode afterwards.
        batches: dicts with "image" (N, 3, H, W) and "label" (N, H', W') int64.
        classes: number of classes C; labels are 0..C-1 and ignore_index.
        ignore_index: label value of void pixels.
        protocol: how scores are made; usually one pass over the picture as it is.
        max_pixels: as of ``Scorer``.

    Returns:
        The filled matrix; common.iou turns it into IoU and mIoU. With several processes add
        them up first (distributed.all_reduce_array).
    """
    was_training = model.training
    model.eval()
    scorer = Scorer(model, protocol=protocol, max_pixels=max_pixels)
    confusion = ConfusionMatrix(classes=classes, ignore_index=ignore_index)
    for batch in batches:
        label = batch["label"]
        size_hw = (label.shape[1], label.shape[2])
        confusion.update(scorer.predict(batch["image"], size_hw=size_hw), label)
    if was_training:
        model.train()
    return confusion


class Scorer:
    """A network under a protocol.

    Besides the network's own memory for max_pixels, and its logits of so many, two maps of scores
    are held: one of the result's size and one of the scaled picture's.

    Args:
        model: in evaluation mode; returns a dict whose "main" is (N, C, H, W).
        protocol: which passes, and what is added up of them.
        max_pixels: bound of the input pixels of one forward pass; one window or one picture is
            never divided, whatever its size.
    """

    def __init__(
        self, model: nn.Module, *, protocol: Protocol, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.model = model
        self.protocol = protocol
        self.max_pixels = max_pixels

    def predict(self, image: Tensor, *, size_hw: tuple[int, int]) -> Tensor:
        """Return the (N, H', W') int64 classes with the largest score, the first one of equals.

        Arguments as of ``scores``.
        """
        return self.scores(image, size_hw=size_hw).argmax(dim=1)

    def scores(self, image: Tensor, *, size_hw: tuple[int, int]) -> Tensor:
        """Return the (N, C, H', W') scores of pictures.

        Args:
            image: (N, 3, H, W), RGB, normalised.
            size_hw: (H', W') of the result, usually the label's.
        """
        with no_grad():
            start_hw = self.protocol.start.size_hw(image.shape[2], image.shape[3])
            start = _resized(image, start_hw, align_corners=False)
            total = self._scale_scores(start, self.protocol.scales[0], size_hw)
            for scale in self.protocol.scales[1:]:
                total += self._scale_scores(start, scale, size_hw)
        return total

    def _scale_scores(self, start: Tensor, scale: float, size_hw: tuple[int, int]) -> Tensor:
        """Scores of one scale: (N, 3, H, W) of the start size -> (N, C, H', W')."""
        align_corners = self.protocol.align_corners
        scaled_hw = self.protocol.scaled_hw(start.shape[2], start.shape[3], scale=scale)
        scaled = _resized(start, scaled_hw, align_corners=align_corners)
        if self.protocol.crop_hw is None:
            return self._picture_scores(scaled, size_hw)
        return _resized(self._window_scores(scaled), size_hw, align_corners=align_corners)

    def _picture_scores(self, image: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Scores of whole pictures of one scale: (N, 3, h, w) -> (N, C, H', W')."""
        sums = ScoreSums(len(image), size_hw, self.protocol)
        pictures = [(n, 0, 0) for n in range(len(image))]
        for group in self._groups(pictures, image.shape[2] * image.shape[3]):
            logits, mirrored = self._logits([image[n : n + 1] for n, _, _ in group], size_hw)
            sums.add(group, logits, mirrored)
        return sums.result()

    def _window_scores(self, image: Tensor) -> Tensor:
        """Scores of pictures of one scale, gathered from windows: (N, 3, h, w) -> (N, C, h, w)."""
        N, _, h, w = image.shape
        crop_h, crop_w = self.protocol.crop_hw or (h, w)
        canvas = self.protocol.canvas(h, w)
        below = canvas.size_hw[0] - h - canvas.top
        right = canvas.size_hw[1] - w - canvas.left
        padded = F.pad(image, [canvas.left, right, canvas.top, below], mode="constant", value=0.0)
        sums = ScoreSums(N, canvas.size_hw, self.protocol)
        windows = [(n, top, left) for top, left in canvas.windows for n in range(N)]
        for group in self._groups(windows, crop_h * crop_w):
            parts = [
                padded[n : n + 1, :, top : top + crop_h, left : left + crop_w]
                for n, top, left in group
            ]
            logits, mirrored = self._logits(parts, (crop_h, crop_w))
            sums.add(group, logits, mirrored)
        total = sums.result()
        if self.protocol.overlap == "mean":
            counts = canvas.window_counts((crop_h, crop_w)).astype(np.float64)
            total = total / to_tensor(counts).to(total.dtype)
        return total[:, :, canvas.top : canvas.top + h, canvas.left : canvas.left + w]

    def _logits(
        self, images: list[Tensor], size_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of a batch in this size, and of its mirror images, in one pass if it may be."""
        image = images[0] if len(images) == 1 else torch.cat(images, dim=0)
        if not self.protocol.flip:
            return self._forward(image, size_hw), None
        N, _, h, w = image.shape
        mirror_image = torch.flip(image, [3])
        if 2 * N * h * w > self.max_pixels:
            return self._forward(image, size_hw), self._forward(mirror_image, size_hw)
        both = self._forward(torch.cat([image, mirror_image], dim=0), size_hw)
        return both[:N], both[N:]

    def _forward(self, image: Tensor, size_hw: tuple[int, int]) -> Tensor:
        logits = self.model(image)["main"]
        return _resized(logits, size_hw, align_corners=self.protocol.align_corners)

    def _groups(self, jobs: list[T], pixels: int) -> Iterator[list[T]]:
        """Cut jobs of so many pixels each, mirror image not counted, into batches."""
        size = max(self.max_pixels // (pixels * (2 if self.protocol.flip else 1)), 1)
        return (jobs[start : start + size] for start in range(0, len(jobs), size))


class ScoreSums:
    """Sums of the scores of pictures or windows: by NumPy for CPU tensors, else on the device.

    Args:
        pictures: number of pictures N.
        size_hw: (H, W) of the sums.
        protocol: what is summed up.
    """

    def __init__(self, pictures: int, size_hw: tuple[int, int], protocol: Protocol) -> None:
        self.pictures = pictures
        self.size_hw = size_hw
        self.rule: ScoreRule = protocol.rule
        self._host: NDArray[Any] | None = None
        self._total: Tensor | None = None

    def add(self, places: list[Place], logits: Tensor, mirrored: Tensor | None) -> None:
        """Add the scores of windows.

        Args:
            places: where each window lies.
            logits: (windows, C, h, w).
            mirrored: the same of the mirror images, as the network gave them; None for none.
        """
        counted_by_numpy = logits.dtype in (torch.float32, torch.float64)
        own = host_view(logits) if counted_by_numpy else None
        if own is None:
            self._add_on_device(places, logits, mirrored)
            return
        other = None if mirrored is None else host_view(mirrored)
        if self._host is None:
            shape = (self.pictures, own.shape[1], *self.size_hw)
            self._host = np.zeros(shape, dtype=own.dtype)
        for i, (n, top, left) in enumerate(places):
            part = self._host[n, :, top : top + own.shape[2], left : left + own.shape[3]]
            add_scores(part, own[i], None if other is None else other[i], rule=self.rule)

    def result(self) -> Tensor:
        """Return the (N, C, H, W) sums, which are not held here any longer."""
        if self._host is not None:
            self._total, self._host = to_tensor(self._host), None
        total, self._total = self._total, None
        assert total is not None  # a picture has at least one window
        return total

    def _add_on_device(self, places: list[Place], logits: Tensor, mirrored: Tensor | None) -> None:
        found = self._scores(logits)
        if mirrored is not None:
            found = found + torch.flip(self._scores(mirrored), [3])
        if self.rule == "exp_softmax":
            found = torch.exp(found)
        if self._total is None:
            shape = [self.pictures, found.shape[1], *self.size_hw]
            self._total = torch.zeros(shape, dtype=found.dtype)
        h, w = found.shape[2], found.shape[3]
        for i, (n, top, left) in enumerate(places):
            self._total[n : n + 1, :, top : top + h, left : left + w] += found[i : i + 1]

    def _scores(self, logits: Tensor) -> Tensor:
        return logits if self.rule == "logits" else F.softmax(logits, dim=1)


def _resized(x: Tensor, size_hw: tuple[int, int], *, align_corners: bool) -> Tensor:
    if (x.shape[2], x.shape[3]) == tuple(size_hw):
        return x
    return resize_bilinear(x, size_hw=size_hw, align_corners=align_corners)
