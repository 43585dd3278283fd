"""Work on several workers: each has one piece at a time, and a failure stops all of them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pipeline.source_audit.pool import on_workers


class FakeWorker:
    """Counts what is asked of it at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


def halved(item: int, worker: Any) -> float:
    assert worker.lock.acquire(blocking=False), "two pieces on one worker"
    try:
        if item < 0:
            raise ValueError(f"{item} is negative")
        return item / 2
    finally:
        worker.lock.release()


def test_everything_is_done_once() -> None:
    workers: Any = [FakeWorker(), FakeWorker(), FakeWorker()]
    found: dict[int, float] = {}
    on_workers(range(50), workers, halved, done=found.__setitem__)
    assert found == {item: item / 2 for item in range(50)}
    assert not any(worker.stopped for worker in workers)


def test_a_failure_stops_the_rest() -> None:
    workers: Any = [FakeWorker(), FakeWorker()]
    found: dict[int, float] = {}
    with pytest.raises(ValueError, match="-1 is negative"):
        on_workers([2, -1, *range(4000)], workers, halved, done=found.__setitem__)
    assert all(worker.stopped for worker in workers)
    assert len(found) < 4000


def test_nothing_to_do() -> None:
    workers: Any = [FakeWorker()]
    on_workers([], workers, halved, done=lambda *_: pytest.fail("nothing was to be done"))
