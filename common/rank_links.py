"""Connections between the ranks of a job, for common.rank_watch: every rank's to rank 0.

What is sent is a kind, a number or a short text; nothing received is executed. A connection counts
only after it has shown the job's token, drawn by rank 0 and handed around by the framework's own
collective.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

BEAT, GO, BYE, FAIL = b"B", b"G", b"Q", b"F"
"""Kinds: sign of life with the collectives entered; all have entered so many; end in order; end."""
_HELLO = b"H"
_HEAD = struct.Struct("!cQ")
_TOKEN_BYTES = 16
_MAX_TEXT = 4096
_GREETING_S = 5.0
PORTS = "between machines, their ports must be open to one another"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RankLostError(RuntimeError):
    """Another rank has died or hangs; raised only where the process is not ended instead."""


@dataclass(frozen=True)
class Message:
    """What came over a link."""

    kind: bytes
    number: int = 0
    text: str = ""


@dataclass
class Link:
    """A connection to one other rank."""

    rank: int
    connection: socket.socket
    heard: float
    """When something came last, on the monotonic clock."""
    finished: bool = False
    """It has said that it ends in order."""
    _buffer: bytes = b""

    def send(self, kind: bytes, number: int = 0, *, text: str = "") -> None:
        """Send one message; a broken connection is found by reading it."""
        body = text.encode("utf-8")[:_MAX_TEXT]
        with contextlib.suppress(OSError):
            self.connection.sendall(_HEAD.pack(kind, len(body) if kind == FAIL else number) + body)

    def receive(self, now: float) -> list[Message] | None:
        """Return the messages that are complete, None when the connection is over."""
        try:
            received = self.connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            return None
        self.heard = now
        self._buffer += received
        found: list[Message] = []
        while len(self._buffer) >= _HEAD.size:
            kind, number = _HEAD.unpack_from(self._buffer)
            end = _HEAD.size + (min(number, _MAX_TEXT) if kind == FAIL else 0)
            if len(self._buffer) < end:
                break
            body, self._buffer = self._buffer[_HEAD.size : end], self._buffer[end:]
            found.append(Message(kind, number, body.decode("utf-8", errors="replace")))
        return found

    def close(self) -> None:
        """Close this process's end."""
        with contextlib.suppress(OSError):
            self.connection.close()


def listen(host: str) -> socket.socket:
    """Return rank 0's listening socket on a free port: on this machine only, where host is it."""
    return socket.create_server(("127.0.0.1" if host in LOOPBACK else "", 0))


def accept_all(
    listener: socket.socket, *, token: bytes, world_size: int, timeout_s: float
) -> dict[int, Link]:
    """Return rank 0's links to all others, by rank, and close the listener.

    Raises:
        RankLostError: not all have connected within timeout_s.
    """
    deadline = time.monotonic() + timeout_s
    links: dict[int, Link] = {}
    with listener:
        while len(links) < world_size - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = sorted(set(range(1, world_size)) - set(links))
                raise RankLostError(
                    f"rank {listed(missing)} did not connect to rank 0 within {timeout_s:g} s: "
                    f"see its own output; {PORTS}"
                ) from None
            rank = _greeted(connection, token)
            if rank is None or rank in links or not 0 < rank < world_size:
                connection.close()
                continue
            links[rank] = Link(rank, connection, time.monotonic())
    return links


def connect(address: tuple[str, int], *, token: bytes, rank: int, timeout_s: float) -> Link:
    """Return another rank's link to rank 0, at its listener's (host, port).

    Raises:
        RankLostError: nobody answers there.
    """
    try:
        connection = socket.create_connection(address, timeout=timeout_s)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_HEAD.pack(_HELLO, rank) + token)
    except OSError as error:
        raise RankLostError(
            f"rank {rank} cannot reach rank 0 at {address[0]}:{address[1]} ({error}); {PORTS}"
        ) from error
    return Link(0, connection, time.monotonic())


def listed(ranks: Iterable[int]) -> str:
    """Return ranks as a text."""
    return ", ".join(str(rank) for rank in ranks)


def _greeted(connection: socket.socket, token: bytes) -> int | None:
    """Return the rank that a new connection belongs to, None when it does not know the token."""
    connection.settimeout(_GREETING_S)
    received = b""
    try:
        while len(received) < _HEAD.size + _TOKEN_BYTES:
            part = connection.recv(_HEAD.size + _TOKEN_BYTES - len(received))
            if not part:
                return None
            received += part
    except OSError:
        return None
    kind, rank = _HEAD.unpack_from(received)
    if kind != _HELLO or received[_HEAD.size :] != token:
        return None
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return int(rank)
