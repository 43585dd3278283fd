"""Why a loader's batches differ: their order is drawn anew, with what ports get wrong about it.

Names of samples are compared as text and checksums as integers: a relation must give them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.sampling import sample_order, train_batches
from pipeline.explain.confirm import Candidate, confirmed, reproduces
from pipeline.failure import FailureCase, Hint
from pipeline.records import Array

EPOCHS = 200
"""Epochs of which the order is drawn at most, to look for another seed's or epoch's."""


def explain_batch(case: FailureCase) -> list[Hint]:
    """Return what reproduces the names or checksums of Paddle's batches (case kind "batch")."""
    candidates = list(_rearranged(case))
    if "names" in case.arrays and case.key.endswith("/names"):
        order = _Order(case) if case.settings["train"] else _Pass(case)
        if reproduces(case, order.right()):
            candidates += order.wrong()
    return confirmed(case, candidates)


def _rearranged(case: FailureCase) -> Iterator[Candidate]:
    reference = case.arrays["reference"]
    if case.key.endswith("/names"):
        yield Candidate(
            "batch-reversed", "each batch is in reverse order", lambda: reference[:, ::-1]
        )
    yield Candidate("order-reversed", "the batches come in reverse order", lambda: reference[::-1])
    flat = reference.reshape(-1)
    if case.key.endswith("/names"):
        for shift in (1, -1, 2, -2, 3, -3):
            text = f"the samples come {abs(shift)} too {'late' if shift > 0 else 'early'}"
            rolled = partial(np.roll, flat, shift)
            yield Candidate("order-shifted", text, partial(_shaped, rolled, reference.shape))
    for shift in (1, -1):
        text = f"the batches come one iteration too {'late' if shift > 0 else 'early'}"
        yield Candidate("order-shifted", text, partial(np.roll, reference, shift, 0))
    for key, array in case.arrays.items():
        if key.startswith("other/"):
            text = f"these are the batches of {key.removeprefix('other/')}"
            yield Candidate("swapped-ranks", text, partial(np.asarray, array))


def _shaped(make: Callable[[], Array], shape: tuple[int, ...]) -> Array:
    return make().reshape(shape)


class _Order:
    """The order of a training loader, drawn anew."""

    def __init__(self, case: FailureCase) -> None:
        self.names: Array = case.arrays["names"]
        settings = case.settings
        self.iterations, self.size = case.arrays["reference"].shape
        self.seed, self.world = int(settings["seed"]), int(settings["world_size"])
        self.rank = int(settings["rank"])

    def right(self) -> Array:
        """Return the names as common.sampling has them."""
        return self._named(self._batches())

    def _batches(self, **changes: Any) -> list[list[int]]:
        options: dict[str, Any] = {
            "batch_size": self.size,
            "world_size": self.world,
            "rank": self.rank,
            "seed": self.seed,
            "start_iteration": 0,
            "iterations": self.iterations,
        } | changes
        return [[key.index for key in b] for b in train_batches(len(self.names), **options)]

    def _named(self, batches: Sequence[Sequence[int]]) -> Array:
        return self.names[np.array(batches)]

    def wrong(self) -> Iterator[Candidate]:
        """Yield other orders, simplest first."""
        for rank in range(self.world):
            if rank != self.rank:
                text = f"rank {self.rank} takes the part of rank {rank}"
                yield Candidate("swapped-ranks", text, lambda r=rank: self._of(rank=r))
        if self.world > 1:
            text = "ranks take every other sample instead of a part in one piece"
            yield Candidate("rank-split", text, self._strided)
            text = "every rank takes the whole order: ranks are not told apart"
            yield Candidate("rank-split", text, lambda: self._of(world_size=1, rank=0))
        count = len(self.names)
        for shift in (1, -1, 2, -2):
            text = f"each sample is the one {shift:+d} in the data set's list"
            yield Candidate("sample-shifted", text, partial(self._moved, shift))
        yield Candidate("not-shuffled", "is not shuffled", lambda: self._from(np.arange))
        text = "drops the samples that do not fill a batch at the end of an epoch"
        yield Candidate("drop-last", text, lambda: self._from(self._shuffled, whole=True))
        for epoch in range(1, min(EPOCHS // max(count // 1000, 1), 20)):
            text = f"is shuffled as from epoch {epoch} on"
            yield Candidate("other-epoch", text, partial(self._epochs, epoch))
        text = "has the order of epoch 0 in every epoch"
        yield Candidate("other-epoch", text, lambda: self._from(lambda n: self._shuffled(n)))
        for seed in (self.seed + 1, self.seed - 1, 0, 1, 42):
            if seed >= 0 and seed != self.seed:
                text = f"is shuffled with seed {seed} instead of {self.seed}"
                yield Candidate("other-seed", text, lambda s=seed: self._of(seed=s))

    def _of(self, **changes: Any) -> Array:
        return self._named(self._batches(**changes))

    def _strided(self) -> Array:
        whole = self._batches(world_size=1, rank=0, batch_size=self.size * self.world)
        return self._named([batch[self.rank :: self.world] for batch in whole])

    def _moved(self, shift: int) -> Array:
        indices = np.array(self._batches())
        return self._named(((indices + shift) % len(self.names)).tolist())

    def _shuffled(self, count: int) -> NDArray[np.int64]:
        return sample_order(count, seed=self.seed, epoch=0, shuffle=True)

    def _from(self, order: Callable[[int], Array], *, whole: bool = False) -> Array:
        """Return the batches of one order in every epoch; ``whole``: of shuffled, cut epochs."""
        count, step = len(self.names), self.size * self.world
        needed = self.iterations * step
        kept = count // step * step if whole else count
        if kept == 0:
            raise ValueError("fewer samples than one batch")
        epochs = range(-(-needed // kept))
        orders = [
            sample_order(count, seed=self.seed, epoch=e, shuffle=True)[:kept]
            if whole
            else order(count)
            for e in epochs
        ]
        return self._parts(np.concatenate(orders)[:needed])

    def _epochs(self, first: int) -> Array:
        count, needed = len(self.names), self.iterations * self.size * self.world
        epochs = range(first, first + -(-needed // count))
        orders = [sample_order(count, seed=self.seed, epoch=e, shuffle=True) for e in epochs]
        return self._parts(np.concatenate(orders)[:needed])

    def _parts(self, order: Array) -> Array:
        parts = order.reshape(self.iterations, self.world, self.size)
        return self.names[parts[:, self.rank]]


class _Pass:
    """One pass over a validation set, in batches of one."""

    def __init__(self, case: FailureCase) -> None:
        self.names: Array = case.arrays["names"]
        settings = case.settings
        self.seed, self.world = int(settings["seed"]), int(settings["world_size"])
        self.rank = int(settings["rank"])

    def right(self) -> Array:
        """Return the names as common.sampling has them."""
        return self.names[self.rank :: self.world, None]

    def wrong(self) -> Iterator[Candidate]:
        """Yield other orders and other shares of a rank, simplest first."""
        names, world, rank = self.names, self.world, self.rank
        count = len(names)
        part = -(-count // world)
        text = "is shuffled"
        order = sample_order(count, seed=self.seed, epoch=0, shuffle=True)
        yield Candidate("shuffled", text, lambda: names[order][rank::world, None])
        for other in range(world):
            if other != rank:
                text = f"rank {rank} takes the part of rank {other}"
                part_of = partial(_every, names, other, world)
                yield Candidate("swapped-ranks", text, part_of)
        text = "ranks take a part in one piece instead of every other sample"
        yield Candidate("rank-split", text, lambda: names[rank * part : (rank + 1) * part, None])
        text = "every rank takes all samples: ranks are not told apart, and each counts twice"
        yield Candidate("rank-split", text, lambda: names[:, None])
        text = "repeats samples until every rank has as many: they count twice"
        repeated = np.concatenate([names, names])[: part * world]
        yield Candidate("repeated-samples", text, partial(_every, repeated, rank, world))
        text = "leaves out the last samples, of which not every rank has one"
        whole = names[: count // world * world]
        yield Candidate("drop-last", text, partial(_every, whole, rank, world))


def _every(names: Array, rank: int, world: int) -> Array:
    return names[rank::world, None]
