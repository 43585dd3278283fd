"""What a process could not read: told as an event, and to the other processes."""

from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import DataError, SampleError
from common.loader_watch import LoaderHungError
from common.read_failure import CannotReadError, Reader, ReadFailure, ReadingError

BAD = SampleError("a/label.png: value 77", sample="a", file="a/label.png")


class Batches:
    """A loader that promises three batches."""

    def __init__(self, error: Exception | None, *, there: int = 3) -> None:
        self.error, self.there = error, there

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.there):
            yield {"number": number}
        if self.error is not None:
            raise self.error


def reader(told: list[ReadFailure] | None = None) -> Reader:
    def end(message: str) -> None:
        raise AssertionError(message)

    return Reader(0, rank=1, on_stuck=(told if told is not None else []).append, end=end)


def failure(loader: Batches) -> ReadFailure:
    with pytest.raises(CannotReadError) as caught:
        list(reader().batches(loader, wanted=lambda: "iteration 5"))
    return caught.value.failure


def test_all_batches_come() -> None:
    found = list(reader().batches(Batches(None), wanted=lambda: "iteration 5"))
    assert found == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_bad_sample_is_an_event_that_names_it() -> None:
    found = failure(Batches(BAD, there=1))
    assert found.event == "data_failed"
    assert found.facts() == {
        **{"sample": "a", "file": "a/label.png", "rank": 1},
        "message": "a/label.png: value 77",
    }
    found = failure(Batches(DataError("two sizes in one batch"), there=1))
    assert (found.event, found.message) == ("data_failed", "two sizes in one batch")


def test_a_dead_loader_is_told_from_bad_data() -> None:
    found = failure(Batches(RuntimeError("DataLoader worker was killed"), there=1))
    assert found.event == "loader_failed"
    assert "no batch for iteration 5: DataLoader worker was killed" in found.message
    assert "lower --num_workers" in found.message
    # the memory is not the cause of one that hangs
    found = failure(Batches(LoaderHungError("no batch has come"), there=1))
    assert found.message == "no batch for iteration 5: no batch has come"


def test_a_loader_that_ends_too_early_is_told() -> None:
    """Paddle's does when a process of it was killed: an evaluation would miss pictures."""
    found = failure(Batches(None, there=2))
    assert found.event == "loader_failed"
    assert "the loader has ended after 2 of 3 batches" in found.message


def test_it_travels_between_processes() -> None:
    one = ReadFailure("data_failed", "first\nsecond", "a\nb", "", rank=3)
    found = ReadFailure.from_text(one.as_text())
    assert found == ReadFailure("data_failed", "first\nsecond", "a b", "", rank=3)
    long = ReadFailure("loader_failed", "x" * 5000 + " the end")
    assert ReadFailure.from_text(long.as_text()).message.endswith("x the end")
    assert len(long.as_text().encode()) < 4000


def test_every_rank_says_why() -> None:
    found = ReadFailure.of(BAD, rank=1, wanted="iteration 5")
    assert str(ReadingError(found, rank=1)) == "a/label.png: value 77"
    other = str(ReadingError(found, rank=0))
    assert other == "rank 1 failed to read its data: a/label.png: value 77"


def test_one_that_hangs_in_the_training_process_is_logged_before_it_ends() -> None:
    told: list[ReadFailure] = []
    order: list[str] = []

    class Hanging(Batches):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            while not order:
                pass
            yield {"number": 0}

    source = Reader(0.1, rank=0, on_stuck=told.append, end=order.append)
    next(source.batches(Hanging(None), wanted=lambda: "iteration 5"))
    assert told[0].event == "loader_failed"
    assert told[0].message == order[0]
    assert "the training process itself hangs" in order[0]
