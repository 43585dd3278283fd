"""BatchNorm whose statistics are those of the whole batch, over all ranks, by our own all-reduce.

Every rank normalises its part with the mean and the variance of all parts: training on n ranks is
then, in exact arithmetic, training on one with the whole batch. Forward hands around each rank's
mean, sum of squared deviations and count (one transfer). They are combined after Chan, Golub and
LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances", 1979), which
loses no digits, as a difference of large sums would. Backward sums the two means that the gradient
of a BatchNorm needs (one transfer). Both are transferred in float64.

The frameworks' own layers are not used: neither runs on a CPU, where alone this could be proven,
neither knows InPlaceABN, and Paddle's documents a running variance without n / (n - 1), 7 % off for
the 16 values that a layer after a global pooling sees. The price on a GPU is about five elementwise
kernels per layer in place of one fused one, and 8 (2 C + 1) bytes per rank and layer each way.

Not run: on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn

from common.errors import InputError
from for_paddle.distributed import all_reduce_sum, rank, world_size
from for_paddle.norm import BatchNorm2d, InPlaceABN, leaky_relu


@dataclass(frozen=True)
class BatchStatistics:
    """Of one layer's input over all ranks."""

    mean: Tensor
    """(C,) float64."""
    variance: Tensor
    """(C,) float64, biased: what normalises."""
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
    values = widened(x.detach())
    mean = values.mean(axis=[0, 2, 3])
    deviations = values - mean.reshape([1, C, 1, 1])
    squares = (deviations * deviations).sum(axis=[0, 2, 3])
    count = paddle.full_like(mean[:1], float(N * H * W), dtype=paddle.float64)
    own = paddle.concat([mean.astype(paddle.float64), squares.astype(paddle.float64), count])
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


def widened(x: Tensor) -> Tensor:
    """Return x as float32 if it is shorter: sums of half precision are worth nothing."""
    return x.astype(paddle.float32) if x.dtype in (paddle.float16, paddle.bfloat16) else x


class _Normalise(paddle.autograd.PyLayer):
    """y = (x - mean) * inverse * weight + bias; mean and inverse depend on all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, batch: BatchStatistics, eps: float
    ) -> Tensor:
        values = widened(x)
        shape = [1, x.shape[1], 1, 1]
        inverse = 1 / paddle.sqrt(batch.variance + paddle.full_like(batch.variance, eps))
        ctx.mean = batch.mean.astype(values.dtype).reshape(shape)
        ctx.inverse = inverse.astype(values.dtype).reshape(shape)
        ctx.count = batch.count
        ctx.save_for_backward(x, weight)
        normal = (values - ctx.mean) * ctx.inverse
        return (normal * weight.reshape(shape) + bias.reshape(shape)).astype(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensor()
        normal = (widened(x) - ctx.mean) * ctx.inverse
        dy = widened(gradient)
        dbias = dy.sum(axis=[0, 2, 3])
        dweight = (dy * normal).sum(axis=[0, 2, 3])
        # of the loss on all ranks: each value moves every rank's mean and variance
        totals = all_reduce_sum(paddle.stack([dbias, dweight]).astype(paddle.float64)) / ctx.count
        dy_mean, slope = totals.astype(dy.dtype).reshape([2, 1, x.shape[1], 1, 1])
        dx = (dy - dy_mean - normal * slope) * (ctx.inverse * weight.reshape(ctx.inverse.shape))
        # of this rank's loss alone: average_gradients does the rest
        return dx.astype(x.dtype), dweight.astype(weight.dtype), dbias.astype(weight.dtype)


class SyncBatchNorm2d(BatchNorm2d):
    """BatchNorm2d over all ranks' batch in training; made by convert_sync_batchnorm."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        batch = batch_statistics(x)
        move_running(self._mean, self._variance, batch=batch)
        return _normalise(x, self.weight, self.bias, batch=batch, eps=self.EPS)


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


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, *, batch: BatchStatistics, eps: float
) -> Tensor:
    return _Normalise.apply(x, weight, bias, batch, eps)


SYNCHRONISED: dict[type, type] = {BatchNorm2d: SyncBatchNorm2d, InPlaceABN: SyncInPlaceABN}


def convert_sync_batchnorm(model: nn.Layer) -> int:
    """Let every BatchNorm2d and InPlaceABN of a model take its statistics over all ranks.

    The layers stay the objects they are, with their parameters, buffers, names and hooks, so an
    optimizer that was built before is still right. With one process nothing else changes.

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
    found = [layer for layer in layers if type(layer) in SYNCHRONISED]
    for layer in found:
        # same attributes, another forward: a new object would have to inherit what others hold
        layer.__class__ = SYNCHRONISED[type(layer)]
    return len(found)
