"""Ends a distributed job, with a message that names the rank, when a rank dies or hangs.

Every rank but 0 keeps one TCP connection to rank 0 (the hub). A rank that dies closes its own,
which is seen at once, whatever the frameworks' collectives do: Paddle's gloo reports a killed rank
as "TIMEOUT", Torch's as a closed connection without a rank, and a collective on a GPU may wait for
minutes. A rank that hangs is one that another has been waiting for longer than ``timeout_s``: each
rank counts the collectives it enters and tells the hub. A rank from which nothing at all is heard
for that long (a stopped process, a machine that is gone) is told in the same way.

``enter(wait=True)`` makes the ranks meet before a collective. Paddle's gloo gives up after 30
seconds, a limit that nothing sets, which a rank that writes a checkpoint can exceed; ranks that
have met start the collective together.

There is no framework in it; the two sides call it from their distributed.py.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from common.rank_links import (
    BEAT,
    BYE,
    FAIL,
    GO,
    PORTS,
    Link,
    Message,
    RankLostError,
    accept_all,
    connect,
    listed,
)

EXIT_RANK_LOST = 76
"""Exit code of a rank that ends because another one did (or hung)."""
BEAT_S = 1.0
"""Seconds between two signs of life."""
GRACE_S = 2.0
"""Seconds a process is left after the message: a rank that fails too can say why."""
LINGER_S = 5.0
"""Seconds that the end in order waits for the other ranks' farewell at most."""
SETUP_S = 60.0
"""Seconds for all ranks to connect to rank 0."""


def end_process(text: str) -> None:
    """Write the text to standard error and end this process with EXIT_RANK_LOST after GRACE_S.

    Not through an exception: the main thread may be inside a collective that never returns.
    """
    # not through sys.stderr, whose lock the main thread may hold
    os.write(2, f"{text}\n".encode())
    # whoever fails by itself ends within this time, with a message of its own
    time.sleep(GRACE_S)
    os._exit(EXIT_RANK_LOST)


@contextlib.contextmanager
def joining(rank: int, *, timeout_s: float) -> Generator[None, None, None]:
    """End this process when what is done in the context, the start-up, takes longer than timeout_s.

    Paddle's start-up waits for a rank that never comes without a word, and holds Python's lock
    all the while, so that no thread of Python's can end it. A timer below Python does, a little
    later: with a dump of the stack, for it can say nothing else, and exit code 1.
    """
    done = threading.Event()

    def guard() -> None:
        if not done.wait(timeout_s):
            end_process(
                f"rank {rank} has been waiting for the other ranks for {timeout_s:g} s and ends: "
                f"were all of them started, and is rank 0 reachable? See their output; {PORTS}"
            )

    threading.Thread(target=guard, name="joining", daemon=True).start()
    faulthandler.dump_traceback_later(timeout_s + 2 * GRACE_S, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        done.set()


@dataclass
class _Count:
    """How many collectives a rank has entered, and since when it is behind another."""

    entered: int = 0
    seen: int = 0
    """entered, when last looked at."""
    behind_since: float | None = None


@dataclass
class _State:
    counts: list[_Count]
    released: int = 0
    """Every rank has entered this many collectives."""
    failure: str | None = None
    closing: bool = False
    links: dict[int, Link] = field(default_factory=dict)


class RankWatch:
    """The watch of one rank; ``start`` connects it, ``close`` ends it in order.

    Args:
        rank: of this process, 0..world_size-1; rank 0 is the hub.
        world_size: number of ranks.
        timeout_s: seconds after which a rank that others wait for, or that is silent, is lost.
        on_failure: called in the watch's thread with the message; the default ends the process.
            After it returns, ``enter`` and ``settle`` raise RankLostError.
    """

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        on_failure: Callable[[str], None] = end_process,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.timeout_s = timeout_s
        self._on_failure = on_failure
        self._state = _State([_Count() for _ in range(world_size)])
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    # ---- set-up -------------------------------------------------------------------------------
    def start(
        self, *, token: bytes, listener: socket.socket | None, address: tuple[str, int]
    ) -> None:
        """Connect all ranks and begin to watch. All ranks call it at the same time.

        Args:
            token: 16 bytes, the same on all ranks.
            listener: rank 0: what ``listen`` returned; None on the others.
            address: (host, port) of rank 0's listener.

        Raises:
            RankLostError: not all ranks have connected within a minute.
        """
        if listener is not None:
            self._state.links = accept_all(
                listener, token=token, world_size=self.world_size, timeout_s=SETUP_S
            )
        else:
            link = connect(address, token=token, rank=self.rank, timeout_s=SETUP_S)
            self._state.links = {0: link}
        _close_in_forked_children(self)
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
        self._thread.start()

    # ---- called by the main thread ------------------------------------------------------------
    def enter(self, *, wait: bool) -> None:
        """Count a collective that this rank is about to enter.

        Args:
            wait: return only when every rank has come to this collective (all ranks must ask).
                False returns at once; the hub hears of it with the next sign of life.

        Raises:
            RankLostError: a rank is lost (where on_failure returns).
        """
        with self._changed:
            count = self._state.counts[self.rank]
            count.entered += 1
            if wait:
                self._tell_entered()
                self._changed.wait_for(
                    lambda: self._state.released >= count.entered or self._state.failure is not None
                )
        self._raise_failure()

    def settle(self) -> None:
        """Give the watch the time to find out why a collective has failed, and to say it.

        Raises:
            RankLostError: it has found it out (where on_failure returns).
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state.failure is not None, GRACE_S + 2 * BEAT_S)
        self._raise_failure()

    def close(self) -> None:
        """Tell the others that this rank ends in order, and stop watching."""
        with self._changed:
            self._state.closing = True
            for link in self._state.links.values():
                link.send(BYE)
                with contextlib.suppress(OSError):
                    link.connection.shutdown(socket.SHUT_WR)
        # read on until the others have closed: a connection closed with something unread in it is
        # torn down, and the farewell with it
        if self._thread is not None:
            self._thread.join(timeout=LINGER_S)
        self._close_connections()

    def _raise_failure(self) -> None:
        if self._state.failure is not None:
            raise RankLostError(self._state.failure)

    # ---- the thread ---------------------------------------------------------------------------
    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for link in self._state.links.values():
                selector.register(link.connection, selectors.EVENT_READ, link)
            beaten = turned = time.monotonic()
            while selector.get_map() and self._state.failure is None:
                ready = selector.select(timeout=BEAT_S / 4)
                now = time.monotonic()
                if now - turned > 5 * BEAT_S:
                    self._excuse_all(now)
                turned = now
                for key, _ in ready:
                    if not self._read(key.data, now):
                        selector.unregister(key.fileobj)
                if now - beaten >= BEAT_S:
                    beaten = now
                    self._beat(now)

    def _excuse_all(self, now: float) -> None:
        # this process itself was stopped for a while: what it did not hear says nothing
        with self._changed:
            for link in self._state.links.values():
                link.heard = now
            for count in self._state.counts:
                count.behind_since = None

    def _read(self, link: Link, now: float) -> bool:
        """Take in what has come; False when the connection is over."""
        messages = link.receive(now)
        if messages is None:
            if not link.finished and not self._state.closing:
                self._fail(
                    f"rank {link.rank} has ended before the job did: killed (out of memory?), or "
                    "failed for the reason in its own output"
                )
            return False
        for message in messages:
            self._handle(link, message)
        return True

    def _handle(self, link: Link, message: Message) -> None:
        if message.kind == FAIL:
            self._fail(message.text)
        elif message.kind == BYE:
            link.finished = True
        elif message.kind == BEAT:
            with self._changed:
                self._state.counts[link.rank].entered = message.number
                if self.rank == 0:
                    self._release()
        elif message.kind == GO:
            with self._changed:
                self._state.released = max(self._state.released, message.number)
                self._changed.notify_all()

    def _beat(self, now: float) -> None:
        """Give a sign of life, and look for ranks that are silent or behind."""
        with self._changed:
            for link in self._state.links.values():
                if not link.finished and not self._state.closing:
                    link.send(BEAT, self._state.counts[self.rank].entered)
            if self._state.closing:
                return
        lost = self._silent(now)
        if lost is None and self.rank == 0:
            lost = self._behind(now)
        if lost is not None:
            self._fail(lost)

    def _silent(self, now: float) -> str | None:
        silent = [
            link.rank
            for link in self._state.links.values()
            if not link.finished and now - link.heard > self.timeout_s
        ]
        if not silent:
            return None
        return (
            f"rank {listed(silent)} has given no sign of life for {self.timeout_s:g} s: its "
            "process is stopped, or its machine or network is gone"
        )

    def _behind(self, now: float) -> str | None:
        """Return a text when others have waited longer than timeout_s for a rank to come."""
        with self._changed:
            front = max(count.entered for count in self._state.counts)
            lost: list[int] = []
            for rank, count in enumerate(self._state.counts):
                # how far each has come may be a beat old: whoever moves is not behind
                if count.entered == front:
                    count.behind_since = None
                elif count.behind_since is None or count.entered != count.seen:
                    count.behind_since = now
                count.seen = count.entered
                since = count.behind_since
                if since is not None and now - since > self.timeout_s:
                    lost.append(rank)
        if not lost:
            return None
        return (
            f"rank {listed(lost)} hangs: the others have been waiting at collective {front} for "
            f"{self.timeout_s:g} s (a loader, a disk, a deadlock?)"
        )

    # ---- under the lock -----------------------------------------------------------------------
    def _tell_entered(self) -> None:
        if self.rank == 0:
            self._release()
        else:
            self._state.links[0].send(BEAT, self._state.counts[self.rank].entered)

    def _release(self) -> None:
        reached = min(count.entered for count in self._state.counts)
        if reached > self._state.released:
            self._state.released = reached
            for link in self._state.links.values():
                link.send(GO, reached)
            self._changed.notify_all()

    # ---- the end ------------------------------------------------------------------------------
    def _fail(self, text: str) -> None:
        if self._state.closing or self._state.failure is not None:
            return
        with self._changed:
            for link in self._state.links.values():
                link.send(FAIL, text=text)
        message = f"{text}. Rank {self.rank} ends, too"
        self._on_failure(message)
        with self._changed:
            self._state.failure = message
            self._changed.notify_all()

    def _close_connections(self) -> None:
        for link in self._state.links.values():
            link.close()


def _close_in_forked_children(watch: RankWatch) -> None:
    # a forked loader worker would hold a copy of the connection, and keep it open after its
    # parent was killed
    reference = weakref.ref(watch)

    def close() -> None:
        found = reference()
        if found is not None:
            found._close_connections()  # pyright: ignore[reportPrivateUsage]

    os.register_at_fork(after_in_child=close)
