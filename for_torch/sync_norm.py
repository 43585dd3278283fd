"""BatchNorm whose statistics are those of the whole batch, over all ranks.

Every rank normalises its part with the mean and the variance of all parts: training on n ranks is
then, in exact arithmetic, training on one with the whole batch. There are two kinds of it.

Ours (any device, any layer, any number of images per rank). Forward hands around each rank's mean,
sum of squared deviations and count (one transfer). They are combined after Chan, Golub and LeVeque
("Updating formulae and a pairwise algorithm for computing sample variances", 1979), which loses no
digits, as a difference of large sums would. The framework's own kernel then normalises with these
statistics as constants, and its gradient leaves the two sums over this rank that the whole batch's
gradient needs; backward adds them up over the ranks (one transfer) and adds what the statistics owe
to x: an affine map of x, by the same kernel. Transfers are in float64.

The framework's (GPU, BatchNorm2d alone; train.sync_bn: own keeps ours): one fused kernel. Torch's
is combined over the ranks as ours is, and has the conventions of the plain layer.

Not run: the framework's layer, which has no CPU kernel; anything on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config_sections import SyncBN
from common.errors import InputError
from for_torch.distributed import all_reduce_sum, rank, world_size
from for_torch.norm import BatchNorm2d, InPlaceABN, leaky_relu

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class BatchStatistics:
    """Of one layer's input over all ranks."""

    mean: Tensor
    """(C,) float64; of the framework's own layer, the dtype of its buffers."""
    variance: Tensor
    """(C,), of the same dtype, biased: what normalises."""
    count: float
    """Values per channel."""


def batch_statistics(x: Tensor) -> BatchStatistics:
    """Return the statistics per channel of all ranks' x together, the same bits on each rank.

    Args:
        x: (N, C, H, W); N, H and W may differ between ranks.

    Raises:
        InputError: there is one value per channel on all ranks together.
    """
    N, C, H, W = x.shape
    mean, squares = local_statistics(widened(x.detach()))
    count = torch.full_like(mean[:1], float(N * H * W))
    own = torch.cat([mean, squares, count])
    # a sum in which every rank has a row of its own hands all rows around
    rows = [own if row == rank() else torch.zeros_like(own) for row in range(world_size())]
    table = all_reduce_sum(torch.stack(rows))
    means, squares, counts = table[:, :C], table[:, C : 2 * C], table[:, 2 * C :]
    total = counts.sum()
    if float(total) < 2:
        raise InputError(
            "Expected more than 1 value per channel when training, got input size "
            f"{list(x.shape)} on rank {rank()} and nothing on the others: train with larger batches"
        )
    mean = (means * counts).sum(dim=0) / total
    shifts = means - mean
    variance = (squares + counts * shifts * shifts).sum(dim=0) / total
    return BatchStatistics(mean, variance, float(total))


def local_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return, in float64, mean and sum of squared deviations per channel of this rank's x alone.

    Three passes over x; Torch's var_mean and the statistics of its BatchNorm kernel take two to
    nine times as long on a CPU.
    """
    mean = x.mean(dim=[0, 2, 3])
    deviations = x - mean.reshape([1, -1, 1, 1])
    squares = deviations.square_().sum(dim=[0, 2, 3])
    return mean.to(torch.float64), squares.to(torch.float64)


def widened(x: Tensor) -> Tensor:
    """Return x as float32 if it is shorter: sums of half precision are worth nothing."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias; the statistics depend on all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, batch: BatchStatistics, eps: float
    ) -> Tensor:
        ctx.batch, ctx.eps = batch, eps
        ctx.save_for_backward(x, weight)
        return _affine(widened(x), weight, bias, batch=batch, eps=eps).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        batch, eps = ctx.batch, ctx.eps
        values = widened(x)
        dx, dweight, dbias = _gradients(values, weight, widened(gradient), batch=batch, eps=eps)
        with torch.no_grad():
            # of the loss on all ranks: each value moves every rank's mean and variance
            sums = torch.stack([dbias, dweight]).to(torch.float64)
            dy_mean, slope = all_reduce_sum(sums) / batch.count
            deviation = torch.sqrt(batch.variance + torch.full_like(batch.variance, eps))
            scale = -weight.to(torch.float64) / deviation
            # what the statistics owe to x: - (mean of dy + normal * slope) * weight / deviation
            owed = _affine(values, scale * slope, scale * dy_mean, batch=batch, eps=eps)
            total = owed.add_(dx).to(x.dtype)
        # of this rank's loss alone: average_gradients does the rest
        return total, dweight, dbias, None, None


def _affine(
    x: Tensor, weight: Tensor, bias: Tensor, *, batch: BatchStatistics, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, by one kernel."""
    return F.batch_norm(
        x,
        batch.mean.to(x.dtype),
        batch.variance.to(x.dtype),
        weight=weight.to(x.dtype),
        bias=bias.to(x.dtype),
        training=False,
        eps=eps,
    )


def _gradients(
    x: Tensor, weight: Tensor, dy: Tensor, *, batch: BatchStatistics, eps: float
) -> tuple[Tensor, ...]:
    """Return dx, dweight and dbias of _affine, the statistics being constants."""
    # the kernel that autograd calls for _affine
    return torch.ops.aten.native_batch_norm_backward(
        dy,
        x,
        weight,
        batch.mean.to(x.dtype),
        batch.variance.to(x.dtype),
        None,
        None,
        False,
        eps,
        [True, True, True],
    )


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, *, batch: BatchStatistics, eps: float
) -> Tensor:
    normalised = _Normalise.apply(x, weight, bias, batch, eps)
    assert isinstance(normalised, Tensor)
    return normalised


class SyncBatchNorm2d(BatchNorm2d):
    """BatchNorm2d over all ranks' batch in training; made by convert_sync_batchnorm."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        batch = batch_statistics(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        move_running(self.running_mean, self.running_var, batch=batch)
        self.num_batches_tracked.add_(1)
        return _normalise(x, self.weight, self.bias, batch=batch, eps=self.eps)


class NativeSyncBatchNorm2d(nn.SyncBatchNorm, BatchNorm2d):
    """BatchNorm2d over all ranks' batch by torch.nn.SyncBatchNorm; GPU only."""

    process_group = None
    """All ranks; an attribute of the class, as the layers are not made anew."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W)."""
        if not self.training or world_size() == 1:
            return BatchNorm2d.forward(self, x)
        return nn.SyncBatchNorm.forward(self, x)


class SyncInPlaceABN(InPlaceABN):
    """InPlaceABN over all ranks' batch in training; made by convert_sync_batchnorm."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate x, (N, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        batch = batch_statistics(x)
        move_running(self.running_mean, self.running_var, batch=batch)
        weight = torch.abs(self.weight) + self.EPS
        normalised = _normalise(x, weight, self.bias, batch=batch, eps=self.EPS)
        return leaky_relu(normalised) if self.activation == "leaky_relu" else normalised


def move_running(mean: Tensor, variance: Tensor, *, batch: BatchStatistics) -> None:
    """Move a layer's running statistics, in place, a tenth of the way to the batch's.

    The variance goes towards the unbiased one, over the values of all ranks.
    """
    with torch.no_grad():
        unbiased = batch.variance * (batch.count / (batch.count - 1))
        mean.copy_(0.9 * mean + 0.1 * batch.mean.to(mean.dtype))
        variance.copy_(0.9 * variance + 0.1 * unbiased.to(variance.dtype))


OWN: dict[type, type] = {BatchNorm2d: SyncBatchNorm2d, InPlaceABN: SyncInPlaceABN}
"""Our synchronised class of each class of layers."""
NATIVE: dict[type, type] = {BatchNorm2d: NativeSyncBatchNorm2d}
"""The framework's, where it has one: none knows InPlaceABN."""


def synchronised(kind: type, *, device: Device, sync_bn: SyncBN) -> type | None:
    """Return the class that layers of a class become; None if they stay what they are.

    Args:
        kind: class of a layer.
        device: cpu, where only ours runs, or gpu.
        sync_bn: of the configuration.
    """
    if sync_bn is False:
        return None
    native = NATIVE if device == "gpu" and sync_bn != "own" else {}
    return native.get(kind, OWN.get(kind))


def convert_sync_batchnorm(
    model: nn.Module, *, device: Device = "cpu", sync_bn: SyncBN = True
) -> int:
    """Let every BatchNorm2d and InPlaceABN of a model take its statistics over all ranks.

    The layers stay the objects they are, with their parameters, buffers, names and hooks, so an
    optimizer that was built before is still right. With one process nothing else changes.

    Args:
        model: its layers are changed.
        device: that it will run on.
        sync_bn: of the configuration; "own" keeps the framework's layers out.

    Returns:
        How many layers were converted; those that already are do not count.

    Raises:
        InputError: the model has another kind of BatchNorm, which would stay unsynchronised.
    """
    layers = [layer for _, layer in model.named_modules()]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and not isinstance(layer, BatchNorm2d):
            raise InputError(
                f"{type(layer).__name__} cannot be synchronised over ranks; build the model with "
                "norm.BatchNorm2d"
            )
    converted = 0
    for layer in layers:
        kind = synchronised(type(layer), device=device, sync_bn=sync_bn)
        if kind is not None:
            # same attributes, another forward: a new object would have to inherit what others hold
            layer.__class__ = kind
            converted += 1
    return converted
