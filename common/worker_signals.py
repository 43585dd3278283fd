"""Signals in the processes of a loader: they outlive the one that asks their training to stop.

A terminal sends SIGINT, and torchrun SIGTERM, to the whole group of processes. The training process
finishes its iteration and saves; workers that died at once would take that from it, as both
frameworks raise an error in the training process as soon as a worker ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

CHECK_S = 1.0
"""Seconds between two looks for the training process."""


@contextmanager
def forking_workers() -> Generator[None, None, None]:
    """Hold SIGTERM back in the workers that are started in the context, from their first moment.

    Libraries start threads in a forked process before any code of ours runs in it, and a signal to
    a process goes to any of its threads that does not block it. What comes for the training process
    meanwhile is delivered at the end of the context.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_worker() -> None:
    """Leave SIGINT alone, and SIGTERM unless the training process sends it; end when that ends.

    To be called in the worker, which forking_workers has started. The last is for Paddle: one of
    its workers whose training process was killed would wait for its next order for ever, and hold
    the terminal or pipe open.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):
        # macOS tells no sender; there SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    # blocked in all threads, so that the one below gets it, with its sender
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        signalled = signal.sigtimedwait({signal.SIGTERM}, CHECK_S)
        if signalled is not None and signalled.si_pid == parent:
            break
    # not an error: Paddle would raise one in its training process, which is the one that ends it
    os._exit(0)
