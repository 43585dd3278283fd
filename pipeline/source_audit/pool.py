"""Work that is spread over Paddle processes, one piece at a time on each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from pipeline.source_audit.workers import Worker

Item = TypeVar("Item")
Made = TypeVar("Made")


def on_workers(
    items: Sequence[Item],
    workers: Sequence[Worker],
    act: Callable[[Item, Worker], Made],
    *,
    done: Callable[[Item, Made], None],
) -> None:
    """Do all items, on whichever worker is free.

    Args:
        items: what is to be done.
        workers: as many are done at the same time.
        act: does one with a worker; called in a thread.
        done: told about each, in this thread. When it or anything else raises, or on Ctrl-C, no
            further item is begun and the workers are stopped.
    """
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    stopped = threading.Event()

    def one(item: Item) -> Made:
        worker = free.get()
        try:
            if stopped.is_set():
                raise RuntimeError("stopped")
            return act(item, worker)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        tasks = {pool.submit(one, item): item for item in items}
        try:
            for task in as_completed(tasks):
                done(tasks[task], task.result())
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()
            raise
