"""Checkpoints on disk: complete or absent, whatever moment a run is killed or a disk is full.

Kills are real: a forked child leaves by os._exit just before its k-th call into the file system,
for every k. So no clean-up of Python's runs, as none runs after SIGKILL.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from forking import in_child
from saved_checkpoints import check_whole, hidden, names, save, save_best, writers

from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError

CHANGING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "test.chunk"}
"""Audit events of calls that can change the disk; test.chunk is raised between two writes."""
KILLED = 137


def at_call(k: int, act: Callable[[], None]) -> None:
    """Have act called just before this process's k-th call (from 0) that can change the disk."""
    left = k

    def hook(event: str, _: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGING:
            left -= 1
            if left == -1:
                act()

    sys.addaudithook(hook)


def kill() -> NoReturn:
    os._exit(KILLED)


def refuse() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nothing(store: CheckpointStore) -> None:
    del store


def one_older(store: CheckpointStore) -> None:
    save(store, 10)


def two_older(store: CheckpointStore) -> None:
    save(store, 10)
    save(store, 20)


def same(store: CheckpointStore) -> None:
    save(store, 10)
    # not what is saved next, so that a mixture would show
    store.save(30, writers({"other.bin": b"old" * 40}), meta={})


def later(store: CheckpointStore) -> None:
    save(store, 10)
    save(store, 40)


Prepare = Callable[[CheckpointStore], None]


@pytest.fixture
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave flushing out: a kill loses nothing of what the system has, and hundreds take time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def outcome(store: CheckpointStore) -> int:
    """Return the iteration of the newest checkpoint, found whole; 0 without one."""
    latest = store.latest()
    if latest is None:
        return 0
    if "other.bin" in latest.files:
        assert latest.files["other.bin"].read_bytes() == b"old" * 40
        return -latest.iteration
    assert store.warnings == [] or all("goes another way" in text for text in store.warnings)
    return check_whole(latest)


@pytest.mark.parametrize(
    ("prepare", "keep", "allowed"),
    [
        (nothing, 1, {0, 30}),
        (one_older, 1, {10, 30}),
        (two_older, 2, {20, 30}),
        (same, 1, {-30, 30}),
        # 10 is where the run of 30 came from; 40 is of a run that went another way
        (later, 2, {40, 10, 30}),
    ],
)
@pytest.mark.usefixtures("no_flush")
def test_killed_at_every_moment_of_saving(
    tmp_path: Path, prepare: Prepare, keep: int, allowed: set[int]
) -> None:
    prepare(CheckpointStore(tmp_path / "start", keep=5))
    (tmp_path / "start" / "checkpoints").mkdir(parents=True, exist_ok=True)
    seen: list[int] = []
    for k in range(1000):
        store = CheckpointStore(tmp_path / f"k{k}", keep=keep)
        shutil.copytree(tmp_path / "start", store.folder)

        def work(store: CheckpointStore = store, k: int = k) -> None:
            at_call(k, kill)
            save(store, 30)

        code = in_child(work)
        seen.append(outcome(store))
        assert seen[-1] in allowed
        # the next start cleans up and finds the same
        store.check_writable()
        assert hidden(store.folder) == []
        assert outcome(store) == seen[-1]
        save(store, 30)
        assert outcome(store) == 30
        if code == 0:
            break
        assert code == KILLED
    # each call was a moment to be killed at, and before and after the decisive one differ
    assert len(seen) > 8
    assert set(seen) == allowed
    assert seen[-1] == 30


@pytest.mark.usefixtures("no_flush")
def test_killed_at_every_moment_of_replacing_the_best(tmp_path: Path) -> None:
    save_best(CheckpointStore(tmp_path / "start", keep=1), 10)
    seen: list[int] = []
    for k in range(1000):
        store = CheckpointStore(tmp_path / f"k{k}", keep=1)
        shutil.copytree(tmp_path / "start", store.folder)

        def work(store: CheckpointStore = store, k: int = k) -> None:
            at_call(k, kill)
            save_best(store, 30)

        code = in_child(work)
        seen.append(check_whole(store.best()))
        store.check_writable()
        assert check_whole(store.best()) == seen[-1]
        assert (store.folder / "best").is_dir()
        assert hidden(store.folder) == []
        if code == 0:
            break
        assert code == KILLED
    assert len(seen) > 8
    assert set(seen) == {10, 30}
    assert seen[-1] == 30


@pytest.mark.usefixtures("no_flush")
def test_killed_at_every_moment_of_cleaning_up(tmp_path: Path) -> None:
    start = CheckpointStore(tmp_path / "start", keep=5)
    two_older(start)
    save_best(start, 10)
    folder = start.folder / "checkpoints"
    # as kills leave them: a part, a set-aside with and without its successor, a half removed one
    shutil.copytree(folder / "iter_000010", folder / ".part.iter_000030.x")
    shutil.copytree(folder / "iter_000010", folder / ".aside.iter_000010")
    (folder / "iter_000020").rename(folder / ".aside.iter_000020")
    shutil.copytree(folder / "iter_000010", folder / ".gone.aside.iter_000010")
    (start.folder / "best").rename(start.folder / ".aside.best")
    for k in range(1000):
        store = CheckpointStore(tmp_path / f"k{k}", keep=5)
        shutil.copytree(start.folder, store.folder)

        def work(store: CheckpointStore = store, k: int = k) -> None:
            at_call(k, kill)
            store.check_writable()

        code = in_child(work)
        assert outcome(store) == 20
        assert check_whole(store.best()) == 10
        if code == 0:
            break
        assert code == KILLED
        store.check_writable()
        assert hidden(store.folder) == []
        assert names(store) == ["iter_000010", "iter_000020"]
    assert k > 8


HARMLESS, BEFORE, FLUSH, REMOVAL = 10, 11, 12, 13
"""Which part of a save a failing call was in, in their order. The making of a folder that is there
already fails without harm."""


@pytest.mark.parametrize(("prepare", "old"), [(one_older, 10), (same, -30)])
@pytest.mark.usefixtures("no_flush")
def test_every_call_may_fail(tmp_path: Path, prepare: Prepare, old: int) -> None:
    prepare(CheckpointStore(tmp_path / "start", keep=5))
    codes: list[int] = []
    for k in range(1000):
        store = CheckpointStore(tmp_path / f"k{k}", keep=1)
        shutil.copytree(tmp_path / "start", store.folder)

        def work(store: CheckpointStore = store, k: int = k) -> None:
            fired: list[int] = []

            saving = True

            def act() -> None:
                if saving:
                    fired.append(k)
                    refuse()

            at_call(k, act)
            error = None
            try:
                save(store, 30)
            except CheckpointError as caught:
                error = str(caught)
            saving = False
            now = outcome(CheckpointStore(store.folder, keep=1))
            if error is None:
                # if a call failed, it was one that removes the old one: told, no reason to stop
                assert now == 30
                os._exit(REMOVAL if store.warnings else HARMLESS if fired else 0)
            assert fired
            assert "No space left on device" in error
            folder = store.folder / "checkpoints" / f"iter_{abs(now):06d}"
            assert f"is whole: {folder}" in error
            # the one call after the decisive rename flushes it to the disk
            os._exit(BEFORE if now == old else FLUSH)

        code = in_child(work)
        if code == 0:
            break
        codes.append(code)
        store.check_writable()
        assert hidden(store.folder) == []
        assert outcome(store) == (old if code == BEFORE else 30)
    assert set(codes) == {HARMLESS, BEFORE, FLUSH, REMOVAL}
    assert codes == sorted(codes)
    assert codes.count(HARMLESS) == 1
    assert codes.count(BEFORE) > 5
    assert codes.count(FLUSH) == 1
