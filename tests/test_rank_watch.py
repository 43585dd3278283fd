"""The watch over ranks: meeting, dying, hanging, silence, leaving in order."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import rank_watch
from common.rank_links import BEAT, Link, Message, RankLostError, listen
from common.rank_watch import EXIT_RANK_LOST, RankWatch

ROOT = Path(__file__).resolve().parent.parent
TOKEN = bytes(range(16))
SOON_S = 5.0


class Job:
    """The watches of all ranks in this process, and what they complained of."""

    def __init__(self, world: int, *, timeout_s: float) -> None:
        self.failures: list[list[str]] = [[] for _ in range(world)]
        self.watches = [
            RankWatch(
                rank=rank,
                world_size=world,
                timeout_s=timeout_s,
                on_failure=self.failures[rank].append,
            )
            for rank in range(world)
        ]
        listener = listen("127.0.0.1")
        address = ("127.0.0.1", listener.getsockname()[1])
        starts = [
            threading.Thread(
                target=watch.start,
                kwargs={
                    "token": TOKEN,
                    "listener": listener if watch.rank == 0 else None,
                    "address": address,
                },
            )
            for watch in self.watches
        ]
        for start in starts:
            start.start()
        for start in starts:
            start.join()

    def cut(self, rank: int) -> None:
        """End a rank's connection without a farewell, as the death of its process does."""
        # its own thread must not live on to say something
        self.watches[rank]._state.failure = "dead"
        for link in self.watches[rank]._state.links.values():
            link.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        closing = [threading.Thread(target=watch.close) for watch in self.watches]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "BEAT_S", 0.05)
    monkeypatch.setattr(rank_watch, "GRACE_S", 0.2)


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job(3, timeout_s=60)
    yield job
    job.close()


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.01)
    assert condition()  # type: ignore[operator]


def test_ranks_meet(job: Job) -> None:
    entered: list[int] = []

    def enter(rank: int) -> None:
        for _ in range(3):
            job.watches[rank].enter(wait=True)
        entered.append(rank)

    early = [threading.Thread(target=enter, args=(rank,)) for rank in (0, 2)]
    for thread in early:
        thread.start()
    time.sleep(0.3)
    assert entered == []
    enter(1)
    for thread in early:
        thread.join(SOON_S)
    assert sorted(entered) == [0, 1, 2]
    assert job.failures == [[], [], []]


def test_without_waiting_nobody_waits(job: Job) -> None:
    for _ in range(3):
        job.watches[1].enter(wait=False)
    assert job.failures == [[], [], []]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_rank_is_named_by_every_other(job: Job, dead: int) -> None:
    job.cut(dead)
    others = [rank for rank in range(3) if rank != dead]
    _wait_for(lambda: all(job.failures[rank] for rank in others))
    for rank in others:
        (text,) = job.failures[rank]
        assert f"rank {dead} has ended before the job did" in text
        assert f"Rank {rank} ends, too" in text


def test_who_waits_for_a_dead_rank_is_told(job: Job) -> None:
    found: list[str] = []

    def enter() -> None:
        try:
            job.watches[0].enter(wait=True)
        except RankLostError as error:
            found.append(str(error))

    waiting = threading.Thread(target=enter)
    waiting.start()
    job.cut(2)
    waiting.join(SOON_S)
    assert "rank 2 has ended" in found[0]
    with pytest.raises(RankLostError, match="rank 2 has ended"):
        job.watches[1].settle()


def test_a_hanging_rank_is_named() -> None:
    job = Job(3, timeout_s=0.6)
    for rank in (0, 2):
        for _ in range(4):
            job.watches[rank].enter(wait=False)
    for _ in range(3):
        job.watches[1].enter(wait=False)
    _wait_for(lambda: all(job.failures))
    for rank, (text,) in enumerate(job.failures):
        assert "rank 1 hangs: the others have been waiting at collective 4 for 0.6 s" in text
        assert f"Rank {rank} ends, too" in text
    job.close()


def _hub(world: int) -> RankWatch:
    """A hub that is not started, for a clock of the test's own."""
    hub = RankWatch(rank=0, world_size=world, timeout_s=10)
    for rank in range(1, world):
        ours, theirs = socket.socketpair()
        theirs.close()
        ours.close()
        hub._state.links[rank] = Link(rank, ours, heard=0.0)
    return hub


def _comes(hub: RankWatch, rank: int, entered: int) -> None:
    hub._handle(hub._state.links[rank], Message(BEAT, entered))


def test_a_slow_rank_is_not_a_hanging_one() -> None:
    hub = _hub(2)
    for _ in range(2):
        hub.enter(wait=False)
    for turn in range(1, 100):
        # two behind all the time; but it moves
        hub.enter(wait=False)
        _comes(hub, 1, turn)
        for now in range(9 * turn, 9 * turn + 9):
            assert hub._behind(now) is None
    assert hub._behind(9 * 99 + 10.0) is None
    assert hub._behind(9 * 99 + 10.5) is not None


def test_all_ranks_may_be_away_together() -> None:
    hub = _hub(3)
    hub.enter(wait=False)
    _comes(hub, 1, 1)
    _comes(hub, 2, 1)
    assert hub._behind(0.0) is None
    assert hub._behind(1e6) is None
    # a first one comes; the others have as long from now on
    _comes(hub, 2, 2)
    assert hub._behind(1e6 + 1) is None
    assert hub._behind(1e6 + 11) is None
    text = hub._behind(1e6 + 11.5)
    assert text is not None
    assert "rank 0, 1 hangs" in text


def test_a_silent_rank_is_named() -> None:
    hub = _hub(3)
    for rank in (1, 2):
        hub._state.links[rank].heard = 100.0
    assert hub._silent(110.0) is None
    hub._state.links[2].heard = 105.0
    text = hub._silent(110.5)
    assert text is not None
    assert "rank 1 has given no sign of life for 10 s" in text
    # who has left in order may be silent
    hub._state.links[1].finished = True
    assert hub._silent(110.5) is None


def test_a_process_that_was_stopped_itself_accuses_nobody() -> None:
    hub = _hub(2)
    hub.enter(wait=False)
    assert hub._behind(0.0) is None
    hub._excuse_all(1000.0)
    assert hub._silent(1001.0) is None
    assert hub._behind(1001.0) is None


def test_leaving_in_order_is_no_death() -> None:
    job = Job(3, timeout_s=60)
    closing = threading.Thread(target=job.watches[1].close)
    closing.start()
    time.sleep(0.5)
    assert job.failures == [[], [], []]
    job.close()
    closing.join(SOON_S)
    assert job.failures == [[], [], []]


def test_a_stranger_is_not_let_in() -> None:
    listener = listen("127.0.0.1")
    address = ("127.0.0.1", listener.getsockname()[1])
    hub, rank = (RankWatch(rank=r, world_size=2, timeout_s=60) for r in range(2))
    accepting = threading.Thread(
        target=hub.start, kwargs={"token": TOKEN, "listener": listener, "address": address}
    )
    accepting.start()
    with socket.create_connection(address) as stranger:
        stranger.sendall(b"H" + (1).to_bytes(8, "big") + bytes(16))
        # turned away: its connection is closed
        assert stranger.recv(1) == b""
    rank.start(token=TOKEN, listener=None, address=address)
    accepting.join(SOON_S)
    assert list(hub._state.links) == [1]
    closing = threading.Thread(target=hub.close)
    closing.start()
    rank.close()
    closing.join(SOON_S)


def test_a_rank_that_never_connects_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "SETUP_S", 0.2)
    watch = RankWatch(rank=0, world_size=3, timeout_s=60)
    listener = listen("127.0.0.1")
    with pytest.raises(RankLostError, match="rank 1, 2 did not connect to rank 0"):
        watch.start(token=TOKEN, listener=listener, address=("127.0.0.1", 1))
    with pytest.raises(RankLostError, match="rank 1 cannot reach rank 0 at"):
        RankWatch(rank=1, world_size=2, timeout_s=60).start(
            token=TOKEN, listener=None, address=listener_address()
        )


def listener_address() -> tuple[str, int]:
    """An address at which nobody listens any more."""
    with listen("127.0.0.1") as closed:
        return "127.0.0.1", closed.getsockname()[1]


RANK_ONE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from common.rank_watch import RankWatch
watch = RankWatch(rank=1, world_size=2, timeout_s=60)
watch.start(token=bytes(range(16)), listener=None, address=("127.0.0.1", int(sys.argv[2])))
# a loader worker, which outlives its parent
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def _rank_one(listener: socket.socket) -> tuple[subprocess.Popen[str], RankWatch, list[str]]:
    failures: list[str] = []
    port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RANK_ONE), str(ROOT), str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    hub = RankWatch(rank=0, world_size=2, timeout_s=60, on_failure=failures.append)
    hub.start(token=TOKEN, listener=listener, address=("127.0.0.1", port))
    return process, hub, failures


def test_a_worker_of_a_killed_rank_does_not_hide_its_death() -> None:
    process, hub, failures = _rank_one(listen("127.0.0.1"))
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        _wait_for(lambda: failures)
        assert "rank 1 has ended before the job did" in failures[0]
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()
        hub.close()


def test_the_process_is_ended_with_its_code() -> None:
    process, hub, _ = _rank_one(listen("127.0.0.1"))
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        hub._fail("rank 0 is lost")
        assert process.wait(timeout=SOON_S + 5) == EXIT_RANK_LOST
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()
        hub.close()


JOINING = """
import ctypes, sys, time
sys.path.insert(0, sys.argv[1])
from common import rank_watch
rank_watch.GRACE_S = 0.2
with rank_watch.joining(3, timeout_s=10):
    pass
with rank_watch.joining(3, timeout_s=0.3):
    {waiting}
"""


@pytest.mark.parametrize(
    ("waiting", "code", "said"),
    [
        ("time.sleep(60)", EXIT_RANK_LOST, "rank 3 has been waiting for the other ranks for 0.3 s"),
        # Python's lock is held: no thread of Python's can say anything
        ("ctypes.PyDLL(None).sleep(60)", 1, "Timeout"),
    ],
)
def test_waiting_for_ranks_that_never_come_ends(waiting: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOINING.format(waiting=waiting), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
