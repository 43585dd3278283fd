"""Cross entropy over pixels, with online hard example mining, and its sum over the heads.

Rules: CoinCheung/BiSeNet@6b4b67a lib/ohem_ce_loss.py ("valid_fraction"), the same @a8ddd22 and
STDC-Seg@59ff37f ("pixel_fraction"), PaddleSeg@d7975e7 OhemCrossEntropyLoss ("min_kept").
Departures: a batch without any valid pixel gives 0 with zero gradient and a warning (upstream:
NaN or 0, by rule); at least one valid pixel is always kept; a minimum above the number of pixels
keeps them all (upstream: IndexError); labels out of range are reported by value and sample; a
loss that is NaN stays so (upstream: not hard, so left out).

Pixels are chosen by their loss. PaddleSeg chooses by the probability of the label; as
probability = exp(-loss), the order is the same.

Pixels that are left out are multiplied by 0, which costs less than to gather the others, and only
where too few are hard is their order looked for. For CPU tensors NumPy counts and orders: without
a copy, and faster than either framework. Another device is waited for once, for the counts that
decide between the two means.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import get_args

import numpy as np
import paddle
from paddle import Tensor, nn

from common.config_sections import LossConfig, OhemRule
from common.errors import ConfigError, DataError
from common.iou import check_labels
from for_paddle.backend import host_view, pixel_cross_entropy, to_numpy, to_tensor
from for_paddle.detail_loss import DetailAggregateLoss


class CrossEntropy(nn.Layer):
    """Cross entropy, mean over the valid pixels of the batch."""

    def __init__(self, *, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (N, C, H, W) floating point.
            label: (N, H, W) int64, 0..C-1 or ignore_index.
        """
        losses = pixel_losses(logits, label, ignore_index=self.ignore_index)
        valid, _ = count_pixels(losses, label, math.inf, logits.shape[1], self.ignore_index)
        return losses.sum() / max(valid, 1)


class OhemCrossEntropy(nn.Layer):
    """Cross entropy, mean over the hard pixels of the batch on this device.

    Args:
        rule: which pixels are kept; see LossConfig.ohem.
        threshold: a pixel is hard when the probability of its label is below this.
        divisor: valid (or all) pixels // divisor are kept at least.
        min_kept: pixels kept at least under the "min_kept" rule (upstream's strict comparison
            keeps one less).
        ignore_index: label value of void pixels.
    """

    def __init__(
        self,
        *,
        rule: OhemRule,
        threshold: float = 0.7,
        divisor: int = 16,
        min_kept: int = 10000,
        ignore_index: int,
    ) -> None:
        super().__init__()
        if rule not in get_args(OhemRule):
            raise ConfigError(
                f"loss.ohem is {rule!r}; expected one of {', '.join(get_args(OhemRule))}"
            )
        self.rule = rule
        self.hard_loss = hard_loss_of(threshold)
        self.divisor = divisor
        self.min_kept = min_kept
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (N, C, H, W) floating point.
            label: (N, H, W) int64, 0..C-1 or ignore_index.
        """
        losses = pixel_losses(logits, label, ignore_index=self.ignore_index).flatten()
        classes = logits.shape[1]
        valid, hard = count_pixels(losses, label, self.hard_loss, classes, self.ignore_index)
        if valid == 0:
            return losses.sum()
        if self.rule == "valid_fraction":
            return self._mean_of_hardest(losses, hard, max(valid // self.divisor, 1))
        if self.rule == "pixel_fraction":
            # upstream asks for more than n_min hard pixels; with n_min of them it is the same
            return self._mean_of_hardest(losses, hard, max(len(losses) // self.divisor, 1))
        if self.rule == "min_kept":
            return self._mean_of_kept(losses, label, valid, hard)
        return losses.sum() / valid

    def _mean_of_hardest(self, losses: Tensor, hard: int, n_min: int) -> Tensor:
        """Return the mean over the hard pixels, or over the n_min hardest if hard are fewer."""
        if hard >= n_min:
            return keep_where(losses > self.hard_loss, losses).sum() / hard
        return keep_where(hardest(losses, n_min), losses).sum() / n_min

    def _mean_of_kept(self, losses: Tensor, label: Tensor, valid: int, hard: int) -> Tensor:
        """Return PaddleSeg's mean: divided by (kept fraction + 1e-5), not by the kept pixels."""
        if valid > self.min_kept:
            limit = self.hard_loss
            if hard < self.min_kept:
                limit = kth_largest(losses, self.min_kept)
            kept = losses > limit
        else:
            kept = label.flatten() != self.ignore_index
        # PaddleSeg computes the fraction in float32, whatever the dtype of the losses
        weights = kept.astype(losses.dtype)
        fraction = weights.astype(paddle.float32).mean() + 1e-5
        return (losses * weights).mean() / fraction.astype(losses.dtype)


class SegmentationLoss(nn.Layer):
    """Weighted sum over all heads: a criterion for class logits, another for boundaries.

    Args:
        criterion: (logits, label) -> scalar, applied to every class head.
        head_weights: weight by head name; a head that is not named has weight 1.
        detail: (logits, label) -> (cross entropy, Dice loss), applied to every boundary head:
            those whose name begins with "boundary".
    """

    def __init__(
        self,
        criterion: nn.Layer,
        *,
        head_weights: Mapping[str, float],
        detail: nn.Layer | None = None,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.head_weights = dict(head_weights)
        self.detail = detail

    def forward(self, outputs: Mapping[str, Tensor], label: Tensor) -> dict[str, Tensor]:
        """Return {"total": ..., "main": ..., ...}: the weighted sum, then each unweighted term.

        Args:
            outputs: (N, C, H, W) logits by head name; boundaries (N, 1, h, w) of any size. A
                boundary's terms are named "boundary8_bce" and "boundary8_dice".
            label: (N, H, W) int64.

        Raises:
            ConfigError: a weight is given for a head that the model does not have.
            DataError: a label value is neither a class nor void, or the shapes do not fit.
        """
        unknown = sorted(set(self.head_weights) - set(outputs))
        if unknown:
            raise ConfigError(
                f"loss.head_weights names {', '.join(unknown)}; the model's outputs are "
                f"{', '.join(outputs)}. Correct the name, or train with the auxiliary heads on"
            )
        terms: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for head, logits in outputs.items():
            own = self._terms(head, logits, label)
            weighted += [self.head_weights.get(head, 1.0) * term for term in own.values()]
            terms |= own
        total = weighted[0]
        for term in weighted[1:]:
            total = total + term
        return {"total": total, **terms}

    def _terms(self, head: str, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        if not head.startswith("boundary"):
            return {head: self.criterion(logits, label)}
        if self.detail is None:
            raise ConfigError(f"output {head} is a boundary, but the loss has no detail criterion")
        bce, dice = self.detail(logits, label)
        return {f"{head}_bce": bce, f"{head}_dice": dice}


def build_loss(config: LossConfig, *, classes: int, ignore_index: int) -> SegmentationLoss:
    """Return the loss of a configuration for labels 0..classes-1 and ignore_index."""
    if ignore_index < classes:
        raise ConfigError(
            f"data.ignore_index is {ignore_index}; expected a value that is no class, "
            f"{classes} or more"
        )
    if config.ohem == "none":
        criterion = CrossEntropy(ignore_index=ignore_index)
    else:
        criterion = OhemCrossEntropy(
            rule=config.ohem,
            threshold=config.threshold,
            divisor=config.divisor,
            min_kept=config.min_kept,
            ignore_index=ignore_index,
        )
    detail = DetailAggregateLoss(
        ignore_index=ignore_index,
        ignore_void=config.detail_ignore_void,
        ignore_frame=config.detail_ignore_frame,
    )
    return SegmentationLoss(criterion, head_weights=config.head_weights, detail=detail)


def hard_loss_of(probability: float) -> float:
    """Return -log(probability), computed in float32.

    Upstream keeps it as a float32 tensor: 0.35667497 for 0.7, not 0.35667494. The value is kept
    in float64 runs too, so that they choose the same pixels.
    """
    return float(np.float32(-math.log(np.float32(probability))))


def pixel_losses(logits: Tensor, label: Tensor, *, ignore_index: int) -> Tensor:
    """Return the (N, H, W) cross entropy of each pixel; 0 at void pixels.

    Labels out of range raise DataError; on a device that would have to be waited for, they are 0.
    """
    if logits.ndim != 4 or tuple(label.shape) != (len(logits), *logits.shape[2:]):
        raise DataError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(label.shape)}; "
            "expected (N, C, H, W) and (N, H, W)"
        )
    array = host_view(label)
    if array is not None:
        check_labels(array, classes=logits.shape[1], ignore_index=ignore_index)
    else:
        # an index out of range kills the CUDA context; count_pixels reports it a moment later
        known = (label >= 0) & (label < logits.shape[1])
        label = paddle.where(known, label, paddle.full_like(label, ignore_index))
    return pixel_cross_entropy(logits, label, ignore_index=ignore_index)


def count_pixels(
    losses: Tensor, label: Tensor, hard_loss: float, classes: int, ignore_index: int
) -> tuple[int, int]:
    """Return the number of valid and of hard pixels, of labels that are right.

    On a device other than the CPU the labels are checked here, and all counts come in one transfer.
    """
    label_array, losses_array = host_view(label), host_view(losses)
    if label_array is not None and losses_array is not None:
        # pixel_losses has checked the labels
        valid = int(np.count_nonzero(label_array != ignore_index))
        hard = int(np.count_nonzero(losses_array > hard_loss))
    else:
        known = (label >= 0) & (label < classes)
        void = label == ignore_index
        counts = [(known & ~void).sum(), (known | void).sum(), (losses > hard_loss).sum()]
        valid, expected, hard = (int(count) for count in to_numpy(paddle.stack(counts)))
        if expected != math.prod(label.shape):
            check_labels(to_numpy(label), classes=classes, ignore_index=ignore_index)
    if valid == 0:
        warnings.warn(
            "the batch has no labelled pixel (all are void): its loss is 0 without gradient",
            stacklevel=3,
        )
    return valid, hard


def keep_where(kept: Tensor, losses: Tensor) -> Tensor:
    """Return the losses with 0 where a pixel is not kept; no gradient reaches those."""
    return losses * kept.astype(losses.dtype)


def hardest(losses: Tensor, count: int) -> Tensor:
    """Return where the largest losses are, exactly so many: (pixels,) bool from (pixels,).

    Of equal losses at the limit the first are taken on the CPU, any on another device.
    """
    array = host_view(losses)
    if array is None:
        chosen = paddle.topk(losses.detach(), count)[1]
        kept = paddle.zeros_like(losses, dtype=paddle.bool)
        kept[chosen] = True
        return kept
    limit = np.partition(array, -count)[-count]
    # not "array > limit": what is NaN is kept
    kept = ~(array <= limit)
    kept[np.flatnonzero(array == limit)[: count - np.count_nonzero(kept)]] = True
    return to_tensor(kept)


def kth_largest(losses: Tensor, k: int) -> float | Tensor:
    """Return the k-th largest of (pixels,) losses, detached; on a device it stays there."""
    array = host_view(losses)
    if array is None:
        return paddle.topk(losses.detach(), k)[0][-1]
    return float(np.partition(array, -k)[-k])
