"""Order of samples and their random streams: the same for every number of workers and ranks."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sampling import SampleKey, sample_order, sample_rng, train_batches, val_batches


def run(length: int, *, batch_size: int, world_size: int, iterations: int, start: int = 0):
    """Return per iteration the keys of all ranks together."""
    ranks = [
        list(
            train_batches(
                length,
                batch_size=batch_size,
                world_size=world_size,
                rank=rank,
                seed=7,
                start_iteration=start,
                iterations=iterations,
            )
        )
        for rank in range(world_size)
    ]
    return [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]


@given(
    length=st.integers(1, 40),
    split=st.sampled_from([(12, 1), (6, 2), (4, 3), (3, 4), (1, 12)]),
    iterations=st.integers(0, 12),
)
@settings(deadline=None, max_examples=50)
def test_an_iteration_sees_the_same_samples_for_every_split(length, split, iterations) -> None:
    batch_size, world_size = split
    whole = run(length, batch_size=12, world_size=1, iterations=iterations)
    parts = run(length, batch_size=batch_size, world_size=world_size, iterations=iterations)
    assert parts == whole


@given(length=st.integers(1, 40), start=st.integers(0, 12))
@settings(deadline=None, max_examples=50)
def test_a_resumed_run_goes_on_where_it_stopped(length: int, start: int) -> None:
    whole = run(length, batch_size=3, world_size=2, iterations=12)
    assert run(length, batch_size=3, world_size=2, iterations=12, start=start) == whole[start:]


@given(length=st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_every_epoch_visits_every_sample_once(length: int) -> None:
    keys = list(chain.from_iterable(run(length, batch_size=length, world_size=1, iterations=3)))
    for epoch in range(3):
        assert sorted(k.index for k in keys if k.epoch == epoch) == list(range(length))
    assert [k.epoch for k in keys] == sorted(k.epoch for k in keys)


def test_epochs_are_joined_without_a_gap() -> None:
    keys = list(chain.from_iterable(run(5, batch_size=4, world_size=1, iterations=5)))
    orders = [sample_order(5, seed=7, epoch=e, shuffle=True).tolist() for e in range(4)]
    assert [k.index for k in keys] == list(chain.from_iterable(orders))
    assert [k.epoch for k in keys] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return sample_order(100, seed=seed, epoch=epoch, shuffle=True).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9
    assert sample_order(4, seed=1, epoch=2, shuffle=False).tolist() == [0, 1, 2, 3]
    np.random.default_rng(0).random(10)
    assert order(1, 2) == order(1, 2)


def test_streams_of_samples_epochs_seeds_and_orders_differ() -> None:
    keys = [SampleKey(e, i) for e in range(4) for i in range(4)]
    draws = {sample_rng(s, key=k).integers(2**63) for s in range(4) for k in keys}
    assert len(draws) == 64
    # [seed, epoch] and [seed, epoch, 0] would be one stream; this pins that ours are not
    order_like = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(1, 2)))
    assert sample_rng(3, key=SampleKey(2, 0)).integers(2**63) != order_like.integers(2**63)


def test_stream_of_a_sample_is_pinned() -> None:
    stream = np.random.SeedSequence(11, spawn_key=(2, 5, 3))
    expected = np.random.Generator(np.random.PCG64(stream)).random(3)
    np.testing.assert_array_equal(sample_rng(11, key=SampleKey(5, 3)).random(3), expected)


@given(length=st.integers(0, 30), batch_size=st.integers(1, 5), world_size=st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_validation_counts_no_sample_twice(length, batch_size, world_size) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in val_batches(length, batch_size=batch_size, world_size=world_size, rank=rank)
    ]
    assert sorted(key.index for batch in batches for key in batch) == list(range(length))
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_validation_of_one_rank_is_in_order() -> None:
    batches = list(val_batches(5, batch_size=2, world_size=1, rank=0))
    assert [[k.index for k in b] for b in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, r"rank is 2; expected 0\.\.1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"start_iteration": 11}, r"start_iteration is 11; expected 0\.\.iterations \(10\)"),
        ({"length": 0}, "no samples"),
    ],
)
def test_impossible_requests_fail_at_the_call(changes: dict[str, int], message: str) -> None:
    usual = {"batch_size": 1, "world_size": 2, "rank": 0, "seed": 0}
    request = {"length": 3, **usual, "start_iteration": 0, "iterations": 10, **changes}
    length = request.pop("length")
    with pytest.raises(ValueError, match=message):
        train_batches(length, **request)
