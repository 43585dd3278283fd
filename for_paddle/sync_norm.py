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

The framework's (GPU, BatchNorm2d alone; train.sync_bn: own keeps ours): one fused kernel. Paddle's
moves the running variance towards the biased one, takes the variance as a difference of sums, and
counts all ranks alike: they must have as many values each. The first is mended, as in norm.py, from
the statistics that the kernel leaves; the first call asks it which variance that is, and whether it
has seen the other ranks at all.

Not run: the framework's layer, which has no CPU kernel; anything on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

from common.config_sections import SyncBN
from common.errors import InputError
from for_paddle.distributed import all_reduce_sum, rank, world_size
from for_paddle.norm import BatchNorm2d, InPlaceABN, leaky_relu

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
    count = paddle.full_like(mean[:1], float(N * H * W))
    own = paddle.concat([mean, squares, count])
    # a sum in which every rank has a row of its own hands all rows around
    rows = [own if row == rank() else paddle.zeros_like(own) for row in range(world_size())]
    table = all_reduce_sum(paddle.stack(rows))
    means, squares, counts = table[:, :C], table[:, C : 2 * C], table[:, 2 * C :]
    total = counts.sum()
    if float(total) < 2:
        raise InputError(
            "Expected more than 1 value per channel when training, got input size "
            f"{list(x.shape)} on rank {rank()} and nothing on the others: train with larger batches"
        )
    mean = (means * counts).sum(axis=0) / total
    shifts = means - mean
    variance = (squares + counts * shifts * shifts).sum(axis=0) / total
    return BatchStatistics(mean, variance, float(total))


def local_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return, in float64, mean and sum of squared deviations per channel of this rank's x alone.

    By the BatchNorm kernel, whose output is thrown away: with momentum 0 it leaves the statistics
    in its buffers. Paddle's broadcasts and its sums over several axes are much slower on a CPU.
    """
    N, C, H, W = x.shape
    count = N * H * W
    with paddle.no_grad():
        mean, variance = paddle.zeros([C], dtype=x.dtype), paddle.zeros([C], dtype=x.dtype)
        if count == 1:
            # the kernel would not touch its buffers
            return x.reshape([C]).astype(paddle.float64), variance.astype(paddle.float64)
        one, zero = paddle.ones_like(mean), paddle.zeros_like(mean)
        F.batch_norm(x, mean, variance, weight=one, bias=zero, training=True, momentum=0.0)
        device = paddle.device.get_device()
        biased = BatchNorm2d._kernel_variance_is_biased(device, x.dtype)  # pyright: ignore[reportPrivateUsage]
        squares = variance.astype(paddle.float64) * float(count if biased else count - 1)
        return mean.astype(paddle.float64), squares


def widened(x: Tensor) -> Tensor:
    """Return x as float32 if it is shorter: sums of half precision are worth nothing."""
    return x.astype(paddle.float32) if x.dtype in (paddle.float16, paddle.bfloat16) else x


class _Normalise(paddle.autograd.PyLayer):
    """(x - mean) / sqrt(variance + eps) * weight + bias; the statistics depend on all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, batch: BatchStatistics, eps: float
    ) -> Tensor:
        ctx.batch, ctx.eps = batch, eps
        ctx.save_for_backward(x, weight)
        return _affine(widened(x), weight, bias, batch=batch, eps=eps).astype(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensor()
        batch, eps = ctx.batch, ctx.eps
        values = widened(x)
        dx, dweight, dbias = _gradients(values, weight, widened(gradient), batch=batch, eps=eps)
        with paddle.no_grad():
            # of the loss on all ranks: each value moves every rank's mean and variance
            sums = paddle.stack([dbias, dweight]).astype(paddle.float64)
            dy_mean, slope = all_reduce_sum(sums) / batch.count
            deviation = paddle.sqrt(batch.variance + paddle.full_like(batch.variance, eps))
            scale = -weight.astype(paddle.float64) / deviation
            # what the statistics owe to x: - (mean of dy + normal * slope) * weight / deviation
            owed = _affine(values, scale * slope, scale * dy_mean, batch=batch, eps=eps)
            total = owed.add_(dx).astype(x.dtype)
        # of this rank's loss alone: average_gradients does the rest
        return total, dweight, dbias


def _affine(
    x: Tensor, weight: Tensor, bias: Tensor, *, batch: BatchStatistics, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, by one kernel."""
    # the kernel rounds its eps to float32; what that leaves out goes into the variance
    kernel_eps = float(np.float32(eps))
    variance = batch.variance + (eps - kernel_eps)
    return F.batch_norm(
        x,
        batch.mean.astype(x.dtype),
        variance.astype(x.dtype),
        weight=weight.astype(x.dtype),
        bias=bias.astype(x.dtype),
        training=False,
        epsilon=kernel_eps,
        data_format="NCHW",
    )


def _gradients(
    x: Tensor, weight: Tensor, dy: Tensor, *, batch: BatchStatistics, eps: float
) -> tuple[Tensor, ...]:
    """Return dx, dweight and dbias of _affine, the statistics being constants."""
    # Paddle offers no call of the kernel's gradient: one more pass forward, and no second copy of x
    leaves = (x.detach(), weight.detach(), paddle.zeros_like(weight))
    for leaf in leaves:
        leaf.stop_gradient = False
    with paddle.enable_grad():
        y = _affine(*leaves, batch=batch, eps=eps)
    paddle.autograd.backward([y], [dy])
    return tuple(leaf.grad for leaf in leaves if leaf.grad is not None)


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, *, batch: BatchStatistics, eps: float
) -> Tensor:
    return _Normalise.apply(x, weight, bias, batch, eps)


class SyncBatchNorm2d(BatchNorm2d):
    """BatchNorm2d over all ranks' batch in training; made by convert_sync_batchnorm."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        batch = batch_statistics(x)
        move_running(self._mean, self._variance, batch=batch)
        return _normalise(x, self.weight, self.bias, batch=batch, eps=self.EPS)


class NativeSyncBatchNorm2d(SyncBatchNorm2d):
    """BatchNorm2d over all ranks' batch by paddle.nn.SyncBatchNorm's kernel; GPU only."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W), in training the same shape on every rank."""
        # the kernel keeps its eps as float32: in float64 ours is exact
        if not self.training or world_size() == 1 or x.dtype == paddle.float64:
            return super().forward(x)
        biased = _native_variance_is_biased(paddle.device.get_device())
        mean, variance = paddle.zeros_like(self._mean), paddle.zeros_like(self._variance)
        normalised = _native_kernel(x, mean, variance, self.weight, self.bias, self.EPS)
        count = float(x.shape[0] * x.shape[2] * x.shape[3] * world_size())
        with paddle.no_grad():
            variance = variance if biased else variance * ((count - 1) / count)
        move_running(self._mean, self._variance, batch=BatchStatistics(mean, variance, count))
        return normalised


def _native_kernel(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Normalise x over all ranks; leave the statistics of the batch in mean and variance."""
    # what the layer paddle.nn.SyncBatchNorm calls (2.6 and 3.3), with a momentum of 0, under which
    # the kernel leaves exactly this batch's statistics, and not with its running buffers
    results = paddle._C_ops.sync_batch_norm_(  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        x, mean, variance, weight, bias, False, 0.0, eps, "NCHW", False, False
    )
    return results[0]


@functools.cache
def _native_variance_is_biased(device: str) -> bool:  # noqa: ARG001 - asked once per device
    """Ask the kernel which variance it leaves; all ranks must come here together.

    Raises:
        InputError: its statistics are not those of all ranks.
    """
    # rank r has 8 r .. 8 r + 7: all together 0 .. n - 1
    n = 8 * world_size()
    x = (paddle.arange(8, dtype="float32") + 8.0 * rank()).reshape([2, 1, 2, 2])
    mean, variance = paddle.zeros([1], dtype="float32"), paddle.zeros([1], dtype="float32")
    one, zero = paddle.ones([1], dtype="float32"), paddle.zeros([1], dtype="float32")
    with paddle.no_grad():
        _native_kernel(x, mean, variance, one, zero, BatchNorm2d.EPS)
    if abs(mean.item() - (n - 1) / 2) > 1e-3 * n:
        raise InputError(
            f"paddle.nn.SyncBatchNorm found a mean of {mean.item()} over {world_size()} ranks "
            f"where {(n - 1) / 2} is right: it does not synchronise here; set train.sync_bn to own"
        )
    found = variance.item()
    return abs(found - (n * n - 1) / 12) < abs(found - n * (n + 1) / 12)


class SyncInPlaceABN(InPlaceABN):
    """InPlaceABN over all ranks' batch in training; made by convert_sync_batchnorm."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate x, (N, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        batch = batch_statistics(x)
        move_running(self._mean, self._variance, batch=batch)
        # a tensor: Paddle 2.6 rounds a number that is added to float32, also in float64
        weight = paddle.abs(self.weight) + paddle.full_like(self.weight, self.EPS)
        normalised = _normalise(x, weight, self.bias, batch=batch, eps=self.EPS)
        return leaky_relu(normalised) if self.activation == "leaky_relu" else normalised


def move_running(mean: Tensor, variance: Tensor, *, batch: BatchStatistics) -> None:
    """Move a layer's running statistics, in place, a tenth of the way to the batch's.

    The variance goes towards the unbiased one, over the values of all ranks.
    """
    with paddle.no_grad():
        unbiased = batch.variance * (batch.count / (batch.count - 1))
        paddle.assign(0.9 * mean + 0.1 * batch.mean.astype(mean.dtype), output=mean)
        paddle.assign(0.9 * variance + 0.1 * unbiased.astype(variance.dtype), output=variance)


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
    model: nn.Layer, *, device: Device = "cpu", sync_bn: SyncBN = True
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
    layers = [layer for _, layer in model.named_sublayers()]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2D) and not isinstance(layer, BatchNorm2d):
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
