"""Which sample comes when, and the random generator of each sample.

Everything random in the data path derives from (seed, epoch, sample index) through NumPy's
SeedSequence, so it depends neither on the number of workers and ranks nor on the framework.
Upstream (CoinCheung/BiSeNet@6b4b67a, RepeatedDistSampler) concatenates the epochs' permutations
too, but strides them by rank and draws the augmentation from the workers' global generators.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# first word of the spawn key: keeps the two kinds of stream apart. A plain list of integers would
# not do: SeedSequence pads with zeros, so [seed, epoch] and [seed, epoch, 0] are one stream
_ORDER_STREAM = 1
_SAMPLE_STREAM = 2


class SampleKey(NamedTuple):
    """One visit to one sample."""

    epoch: int
    # the name says what it is; nobody looks up a value in a key, which is what tuple.index does
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]


def sample_rng(seed: int, *, key: SampleKey) -> np.random.Generator:
    """Return the generator for the augmentation of one sample in one epoch."""
    stream = np.random.SeedSequence(seed, spawn_key=(_SAMPLE_STREAM, key.epoch, key.index))
    return np.random.default_rng(stream)


def sample_order(length: int, *, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """Return the (length,) int64 order in which an epoch visits the samples."""
    if not shuffle:
        return np.arange(length, dtype=np.int64)
    stream = np.random.SeedSequence(seed, spawn_key=(_ORDER_STREAM, epoch))
    return np.random.default_rng(stream).permutation(length).astype(np.int64)


def train_batches(
    length: int,
    *,
    batch_size: int,
    world_size: int,
    rank: int,
    seed: int,
    start_iteration: int,
    iterations: int,
) -> Iterator[list[SampleKey]]:
    """Yield this rank's batches of iterations start_iteration .. iterations - 1.

    The shuffled epochs follow each other without a gap; an iteration takes the next
    batch_size * world_size samples, each rank a contiguous part of them. Iteration k therefore
    sees the same samples for every split of the global batch, and a resumed run goes on exactly
    where it stopped.

    Args:
        length: number of samples.
        batch_size: samples per rank.
        world_size: number of ranks.
        rank: 0..world_size-1.
        seed: of the order.
        start_iteration: first iteration, 0-based.
        iterations: number of iterations of the whole run, not of the rest.

    Raises:
        ValueError: sizes that cannot be served. At the call, not at the first batch.
    """
    _check_split(length, batch_size=batch_size, world_size=world_size, rank=rank)
    if not 0 <= start_iteration <= iterations:
        raise ValueError(
            f"start_iteration is {start_iteration}; expected 0..iterations ({iterations})"
        )
    if length == 0:
        raise ValueError("there are no samples to draw from; expected length >= 1")

    @lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return sample_order(length, seed=seed, epoch=epoch, shuffle=True)

    def batches() -> Iterator[list[SampleKey]]:
        for iteration in range(start_iteration, iterations):
            first = (iteration * world_size + rank) * batch_size
            visits = [divmod(first + i, length) for i in range(batch_size)]
            yield [SampleKey(epoch, int(order(epoch)[place])) for epoch, place in visits]

    return batches()


def val_batches(
    length: int, *, batch_size: int, world_size: int, rank: int
) -> Iterator[list[SampleKey]]:
    """Yield this rank's batches of one pass in order: every sample exactly once over all ranks.

    Ranks may get different numbers of samples; none is repeated to fill up, as a repeated sample
    would count twice in the confusion matrix.
    """
    _check_split(length, batch_size=batch_size, world_size=world_size, rank=rank)
    own = range(rank, length, world_size)
    return (
        [SampleKey(0, index) for index in own[start : start + batch_size]]
        for start in range(0, len(own), batch_size)
    )


def _check_split(length: int, *, batch_size: int, world_size: int, rank: int) -> None:
    if length < 0 or batch_size < 1 or world_size < 1:
        raise ValueError(
            f"length {length}, batch_size {batch_size}, world_size {world_size}; expected "
            f"length >= 0, batch_size >= 1 and world_size >= 1"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; expected 0..{world_size - 1} (world_size {world_size})")
