"""Evaluation engine: scores of pictures under a protocol, and the confusion matrix of a data set.

Which passes a protocol asks for is decided in common/protocols.py. Here they are made: windows and
mirror images of one scale in batches of a bounded number of pixels, every one of them once.

Departures from CoinCheung/BiSeNet@6b4b67a, beside the batches: scores are summed in the network's
own dtype (whole pictures there in float32 always), and a resize to the same size is left out, which
changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.protocols import NONE, Protocol
from for_torch.backend import no_grad, to_tensor
from for_torch.layers import resize_bilinear
from for_torch.metrics import ConfusionMatrix

T = TypeVar("T")

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
        max_pixels: as in ``scores``.

    Returns:
        The filled matrix; common.iou turns it into IoU and mIoU. With several processes add
        them up first (distributed.all_reduce_array).
    """
    was_training = model.training
    model.eval()
    confusion = ConfusionMatrix(classes=classes, ignore_index=ignore_index)
    for batch in batches:
        label = batch["label"]
        size_hw = (label.shape[1], label.shape[2])
        prediction = predict(
            model, batch["image"], protocol=protocol, size_hw=size_hw, max_pixels=max_pixels
        )
        confusion.update(prediction, label)
    if was_training:
        model.train()
    return confusion


def predict(
    model: nn.Module,
    image: Tensor,
    *,
    protocol: Protocol,
    size_hw: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Return the (N, H', W') int64 classes with the largest score, the first one of equals.

    Arguments as for ``scores``.
    """
    found = scores(model, image, protocol=protocol, size_hw=size_hw, max_pixels=max_pixels)
    return found.argmax(dim=1)


def scores(
    model: nn.Module,
    image: Tensor,
    *,
    protocol: Protocol,
    size_hw: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Return the (N, C, H', W') scores of pictures under a protocol.

    Besides the network's own memory for max_pixels, three maps of scores are held: one of the
    result's size, one of the scaled picture's and one of a batch's.

    Args:
        model: in evaluation mode; returns a dict whose "main" is (N, C, H, W).
        image: (N, 3, H, W), RGB, normalised.
        protocol: which passes, and what is added up of them.
        size_hw: (H', W') of the result, usually the label's.
        max_pixels: bound of the input pixels of one forward pass; one window or one picture is
            never divided, whatever its size.
    """
    with no_grad():
        start_hw = protocol.start.size_hw(image.shape[2], image.shape[3])
        start = _resized(image, start_hw, align_corners=False)
        total = _scale_scores(model, start, protocol.scales[0], protocol, size_hw, max_pixels)
        for scale in protocol.scales[1:]:
            total += _scale_scores(model, start, scale, protocol, size_hw, max_pixels)
    return total


def _scale_scores(
    model: nn.Module,
    start: Tensor,
    scale: float,
    protocol: Protocol,
    size_hw: tuple[int, int],
    max_pixels: int,
) -> Tensor:
    """Scores of one scale: (N, 3, H, W) of the start size -> (N, C, H', W')."""
    scaled_hw = protocol.scaled_hw(start.shape[2], start.shape[3], scale=scale)
    scaled = _resized(start, scaled_hw, align_corners=protocol.align_corners)
    if protocol.crop_hw is None:
        return _picture_scores(model, scaled, protocol, size_hw, max_pixels)
    found = _window_scores(model, scaled, protocol, max_pixels)
    return _resized(found, size_hw, align_corners=protocol.align_corners)


def _picture_scores(
    model: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size_hw: tuple[int, int],
    max_pixels: int,
) -> Tensor:
    """Scores of whole pictures of one scale: (N, 3, h, w) -> (N, C, H', W')."""
    pixels = image.shape[2] * image.shape[3]
    parts = [
        _added_scores(model, torch.cat(group, dim=0), protocol, size_hw, max_pixels)
        for group in _groups(_single(image), pixels, protocol, max_pixels)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=0)


def _window_scores(model: nn.Module, image: Tensor, protocol: Protocol, max_pixels: int) -> Tensor:
    """Scores of pictures of one scale, gathered from windows: (N, 3, h, w) -> (N, C, h, w)."""
    N, _, h, w = image.shape
    crop_h, crop_w = protocol.crop_hw or (h, w)
    canvas = protocol.canvas(h, w)
    canvas_h, canvas_w = canvas.size_hw
    below, right = canvas_h - h - canvas.top, canvas_w - w - canvas.left
    padded = F.pad(image, [canvas.left, right, canvas.top, below], mode="constant", value=0.0)
    total = None
    jobs = [(n, top, left) for top, left in canvas.windows for n in range(N)]
    for group in _groups(jobs, crop_h * crop_w, protocol, max_pixels):
        windows = [
            padded[n : n + 1, :, top : top + crop_h, left : left + crop_w] for n, top, left in group
        ]
        found = _added_scores(
            model, torch.cat(windows, dim=0), protocol, (crop_h, crop_w), max_pixels
        )
        if total is None:
            total = torch.zeros([N, found.shape[1], canvas_h, canvas_w], dtype=found.dtype)
        for i, (n, top, left) in enumerate(group):
            total[n : n + 1, :, top : top + crop_h, left : left + crop_w] += found[i : i + 1]
    assert total is not None  # a canvas has at least one window
    if protocol.overlap == "mean":
        counts = canvas.window_counts((crop_h, crop_w)).astype(np.float64)
        total = total / to_tensor(counts).to(total.dtype)
    return total[:, :, canvas.top : canvas.top + h, canvas.left : canvas.left + w]


def _added_scores(
    model: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size_hw: tuple[int, int],
    max_pixels: int,
) -> Tensor:
    """Scores of one batch, the mirror images' added: in one pass if the bound allows it."""
    if not protocol.flip:
        found = _forward(model, image, protocol, size_hw)
    elif 2 * image.shape[0] * image.shape[2] * image.shape[3] <= max_pixels:
        both = torch.cat([image, torch.flip(image, [3])], dim=0)
        both = _forward(model, both, protocol, size_hw)
        found = both[: image.shape[0]] + torch.flip(both[image.shape[0] :], [3])
    else:
        found = _forward(model, image, protocol, size_hw)
        found += torch.flip(_forward(model, torch.flip(image, [3]), protocol, size_hw), [3])
    return torch.exp(found) if protocol.rule == "exp_softmax" else found


def _forward(
    model: nn.Module, image: Tensor, protocol: Protocol, size_hw: tuple[int, int]
) -> Tensor:
    logits = _resized(model(image)["main"], size_hw, align_corners=protocol.align_corners)
    return logits if protocol.rule == "logits" else F.softmax(logits, dim=1)


def _resized(x: Tensor, size_hw: tuple[int, int], *, align_corners: bool) -> Tensor:
    if (x.shape[2], x.shape[3]) == tuple(size_hw):
        return x
    return resize_bilinear(x, size_hw=size_hw, align_corners=align_corners)


def _single(image: Tensor) -> list[Tensor]:
    return [image[n : n + 1] for n in range(image.shape[0])]


def _groups(jobs: list[T], pixels: int, protocol: Protocol, max_pixels: int) -> Iterator[list[T]]:
    """Cut jobs of so many pixels each, mirror image not counted, into batches."""
    size = max(max_pixels // (pixels * (2 if protocol.flip else 1)), 1)
    return (jobs[start : start + size] for start in range(0, len(jobs), size))
