"""The time limit of a batch: which process is named, what is killed, what is let alone."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest
from forking import in_child

from common import loader_watch
from common.loader_watch import LoaderHungError, batches_within, hung_text

FORK = multiprocessing.get_context("fork")


def never(message: str) -> None:
    raise AssertionError(message)


def test_batches_in_time_come_through() -> None:
    assert list(batches_within([1, 2, 3], 5, end=never)) == [1, 2, 3]
    assert list(batches_within([1, 2], 0, end=never)) == [1, 2]


def test_an_error_of_the_loader_stays_what_it_is() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    source = batches_within(failing(), 5, end=never)
    assert next(source) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(source)


@pytest.mark.parametrize("ends_by", ["error", "silence"])
def test_a_stopped_loader_process_is_named_and_killed(ends_by: str) -> None:
    """What a framework does when its process is killed: it raises, or the batches end."""
    worker = FORK.Process(target=time.sleep, args=(600,))
    worker.start()
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    def batches() -> Iterator[int]:
        worker.join()
        if ends_by == "error":
            raise RuntimeError(f"DataLoader worker {pid} is killed by signal: Killed")
        yield from ()

    with pytest.raises(LoaderHungError) as caught:
        next(batches_within(batches(), 0.3, end=never))
    text = str(caught.value)
    assert "no batch has come within 0.3 s" in text
    assert f"loader process {pid} is stopped by a signal" in text
    assert "train.loader_timeout_s=SECONDS" in text
    assert worker.exitcode == -signal.SIGKILL


def test_a_training_process_that_hangs_itself_is_ended() -> None:
    def work() -> None:
        def batches() -> Iterator[int]:
            time.sleep(600)
            yield 1

        next(batches_within(batches(), 0.2))

    assert in_child(work) == loader_watch.USAGE


def test_a_process_that_does_not_die_does_not_keep_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # one in a read that no signal interrupts; here: one that the framework does not notice
    monkeypatch.setattr(loader_watch, "GRACE_S", 0.2)
    worker = FORK.Process(target=time.sleep, args=(600,))
    worker.start()
    told: list[str] = []

    def batches() -> Iterator[int]:
        while not told:
            time.sleep(0.01)
        yield 1

    assert next(batches_within(batches(), 0.2, end=told.append)) == 1
    worker.join()
    assert f"loader process {worker.pid} sleeps" in told[0]


def test_a_training_that_was_stopped_as_a_whole_is_not_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour in Ctrl-Z counts as one tick."""
    clock = [0.0]

    def monotonic() -> float:
        clock[0] += 3600
        return clock[0]

    monkeypatch.setattr(loader_watch, "TICK_S", 0.05)
    monkeypatch.setattr(loader_watch.time, "monotonic", monotonic)

    def batches() -> Iterator[int]:
        time.sleep(0.3)
        yield 1

    assert next(batches_within(batches(), 60, end=never)) == 1


def test_the_one_that_waits_for_a_disk_is_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {7: "S", 8: "D", 9: "R"}
    monkeypatch.setattr(loader_watch, "_state", states.__getitem__)
    head = hung_text([7, 8, 9], limit_s=300).splitlines()[0]
    assert head.endswith(
        "within 300 s (train.loader_timeout_s): loader process 8 waits for a disk or network "
        "drive; loader process 7 sleeps; loader process 9 runs"
    )
    assert "the training process itself hangs" in hung_text([], limit_s=300)
