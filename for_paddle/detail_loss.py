"""The loss of boundary heads: edges of the label map, found at three scales.

Source: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", and
MichaelFan01/STDC-Seg@59ff37f, loss/detail_loss.py.

Departures from upstream: the weights that fuse the scales are constants. Upstream hands them to
the optimizer, where they get no gradient and decay until no edge is left. Two options, off by
default, take away edges that are none: those of void regions and those of the image's frame.
"""

from __future__ import annotations

import numpy as np
from paddle import Tensor, nn
from paddle.nn import functional as F

from common.errors import DataError
from for_paddle.backend import no_grad, to_tensor
from for_paddle.layers import resize_bilinear, resize_nearest

STRIDES = (1, 2, 4)
"""Steps of the Laplacian, one per scale."""
THRESHOLD = 0.1
"""A pixel is an edge above this, at each scale and after the fusion."""


class DetailAggregateLoss(nn.Layer):
    """Binary cross entropy and Dice loss of boundary logits.

    Args:
        ignore_index: label value of void pixels.
        ignore_void: no edge where the Laplacian sees a void pixel; void pixels do not count.
        ignore_frame: the image goes on beyond its frame, instead of ending in class 0.
    """

    laplacian: Tensor
    neighbourhood: Tensor
    fusion: Tensor

    def __init__(
        self, *, ignore_index: int, ignore_void: bool = False, ignore_frame: bool = False
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.ignore_void = ignore_void
        self.ignore_frame = ignore_frame
        laplacian = np.full((1, 1, 3, 3), -1.0, dtype=np.float32)
        laplacian[0, 0, 1, 1] = 8.0
        fusion = np.array([0.6, 0.3, 0.1], dtype=np.float32).reshape(1, 3, 1, 1)
        self.register_buffer("laplacian", to_tensor(laplacian))
        self.register_buffer("neighbourhood", to_tensor(np.ones_like(laplacian)))
        self.register_buffer("fusion", to_tensor(fusion))

    def forward(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross entropy and Dice loss, scalars.

        Args:
            logits: (N, 1, h, w) floating point, of any size; they are enlarged to the label's.
            label: (N, H, W) int64.

        Raises:
            DataError: the shapes do not fit.
        """
        if logits.ndim != 4 or label.ndim != 3 or tuple(logits.shape[:2]) != (len(label), 1):
            raise DataError(
                f"boundary logits have shape {tuple(logits.shape)} and labels "
                f"{tuple(label.shape)}; expected (N, 1, h, w) and (N, H, W)"
            )
        size_hw = (label.shape[1], label.shape[2])
        if (logits.shape[2], logits.shape[3]) != size_hw:
            logits = resize_bilinear(logits, size_hw=size_hw, align_corners=True)
        target = self.targets(label).astype(logits.dtype)
        counted = None
        if self.ignore_void:
            counted = (label != self.ignore_index).unsqueeze(1).astype(logits.dtype)
        return binary_cross_entropy(logits, target, counted), dice_loss(logits, target, counted)

    def targets(self, label: Tensor) -> Tensor:
        """Return the edges of (N, H, W) labels: (N, 1, H, W) float32, 0 or 1."""
        # float32 in a float64 run too: there 0.1f > 0.1 would hold, and every edge that the
        # coarsest scale alone sees would count
        with no_grad():
            edges = [self.edges(label, stride=stride) for stride in STRIDES]
            fused = edges[0] * self.fusion[:, 0:1]
            for scale in (1, 2):
                fused = fused + edges[scale] * self.fusion[:, scale : scale + 1]
            return above(fused, THRESHOLD)

    def edges(self, label: Tensor, *, stride: int) -> Tensor:
        """Return the edges at one scale, at full size: (N, 1, H, W) float32, 0 or 1.

        Only the side with the higher number is an edge. Void has the highest of all.
        """
        numbers = label.unsqueeze(1).astype(self.laplacian.dtype)
        padded = F.pad(numbers, [1, 1, 1, 1], mode="replicate") if self.ignore_frame else numbers
        padding = 0 if self.ignore_frame else 1
        found = F.conv2d(padded, self.laplacian, stride=stride, padding=padding)
        edges = above(found, THRESHOLD)
        if self.ignore_void:
            void = (numbers == self.ignore_index).astype(numbers.dtype)
            near = F.conv2d(void, self.neighbourhood, stride=stride, padding=1)
            edges = edges * (1.0 - above(near, THRESHOLD))
        size_hw = (label.shape[1], label.shape[2])
        return edges if stride == 1 else resize_nearest(edges, size_hw=size_hw)


def above(x: Tensor, threshold: float) -> Tensor:
    """Return 1 where x > threshold, else 0, in the dtype of x."""
    return (x > threshold).astype(x.dtype)


def binary_cross_entropy(logits: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean over all pixels, or over those where ``counted`` is 1."""
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if counted is None:
        return losses.mean()
    return (losses * counted).sum() / counted.sum().clip(min=1.0)


def dice_loss(logits: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean over the images of 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)."""
    probability = F.sigmoid(logits)
    if counted is not None:
        probability, target = probability * counted, target * counted
    probability, target = probability.flatten(1), target.flatten(1)
    shared = (probability * target).sum(1)
    return (1.0 - (2.0 * shared + 1.0) / (probability.sum(1) + target.sum(1) + 1.0)).mean()
