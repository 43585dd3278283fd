"""Checkpoints on disk: complete or absent, whatever moment a run is killed or a disk is full.

Kills are real: a forked child leaves by os._exit just before its k-th call into the file system,
for every k. So no clean-up of Python's runs, as none runs after SIGKILL.
"""

import errno
import json
import logging
import os
import resource
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from forking import in_child

from common import checkpoint_store
from common.checkpoint_store import Checkpoint, CheckpointStore
from common.errors import CheckpointError, WeightsError

CHANGING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "test.chunk"}
"""Audit events of calls that can change the disk; test.chunk is raised between two writes."""
KILLED = 137


def contents(iteration: int) -> dict[str, bytes]:
    return {"model.bin": b"model %d " % iteration * 50, "state.json": b'{"i": %d}' % iteration}


def writers(files: Mapping[str, bytes]) -> dict[str, Callable[[Path], None]]:
    def writer(content: bytes) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            with path.open("wb", buffering=0) as stream:
                half = len(content) // 2
                stream.write(content[:half])
                sys.audit("test.chunk")
                stream.write(content[half:])

        return write

    return {name: writer(content) for name, content in files.items()}


def save(store: CheckpointStore, iteration: int, **options: Any) -> Path:
    files = writers(contents(iteration))
    return store.save(iteration, files, meta={"epoch": iteration // 100}, **options)


def save_best(store: CheckpointStore, iteration: int) -> Path:
    files = writers(contents(iteration))
    return store.save_best(iteration, files, miou=iteration / 1000, meta={"epoch": 1})


def check_whole(checkpoint: Checkpoint | None) -> int:
    """Compare a checkpoint's bytes with what was written for its iteration; return that."""
    assert checkpoint is not None
    read = {name: path.read_bytes() for name, path in checkpoint.files.items()}
    assert read == contents(checkpoint.iteration)
    return checkpoint.iteration


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in (store.folder / "checkpoints").iterdir())


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


# --- writing and reading


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "output", keep=5)
    assert store.latest() is None
    assert store.best() is None
    store.check_writable()
    folder = save(store, 500)
    assert folder == tmp_path / "output" / "checkpoints" / "iter_000500"
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.bin", "state.json"]
    latest = store.latest()
    assert check_whole(latest) == 500
    assert latest is not None
    assert latest.meta == {"epoch": 5}
    assert latest.warnings == ()
    assert check_whole(store.load(folder)) == 500
    assert hidden(tmp_path) == []
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_manifest_is_sha256_and_size(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    folder = store.save(
        7, {"a": lambda path: path.write_bytes(b"abc") and None}, meta={"k": {1: 2}}
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    # sha256 of "abc", FIPS 180-2 appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["files"] == {"a": {"bytes": 3, "sha256": digest}}
    assert manifest["iteration"] == 7
    assert manifest["meta"] == {"k": {"1": 2}}
    assert store.load(folder).meta == {"k": {"1": 2}}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in (5, 10, 15, 999_999, 1_000_000):
        save(store, iteration)
    assert names(store) == ["iter_000015", "iter_1000000", "iter_999999"]
    assert store.iterations() == [15, 999_999, 1_000_000]
    assert check_whole(store.latest()) == 1_000_000
    single = CheckpointStore(tmp_path, keep=1)
    save(single, 1_000_001)
    assert names(single) == ["iter_1000001"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0; expected 1 or more"):
        CheckpointStore(tmp_path, keep=0)


def test_the_same_iteration_is_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for text in (b"old", b"new"):
        store.save(5, writers({"model.bin": text}), meta={})
    latest = store.latest()
    assert latest is not None
    assert latest.files["model.bin"].read_bytes() == b"new"
    assert names(store) == ["iter_000005"]


def test_later_ones_are_another_run_and_not_lost(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for _ in range(2):
        save(store, 900)
        save(store, 300)
        assert check_whole(store.latest()) == 300
    assert names(store) == ["iter_000300", "superseded_iter_000900", "superseded_iter_000900.1"]
    assert check_whole(store.load(tmp_path / "checkpoints" / "superseded_iter_000900")) == 900
    assert "iter_000900 is past iteration 300" in store.warnings[0]


def test_the_best_is_kept_apart(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 100)
    assert save_best(store, 100) == tmp_path / "best"
    for iteration in (200, 300):
        save(store, iteration)
    best = store.best()
    assert check_whole(best) == 100
    assert best is not None
    assert best.meta == {"epoch": 1, "miou": 0.1}
    save_best(store, 300)
    assert check_whole(store.best()) == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints"]


def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flushed(handle: int) -> None:
        steps.append("flush " + Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        steps.append(f"{Path(source).name} becomes {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    save(store, 2)
    part = steps[3].removeprefix("flush ")
    assert part.startswith(".part.iter_000002.")
    assert steps == [
        "flush model.bin",
        "flush state.json",
        "flush manifest.json",
        f"flush {part}",
        f"{part} becomes iter_000002",
        "flush checkpoints",
        "iter_000001 becomes .gone.iter_000001",
    ]


# --- damage


@pytest.mark.parametrize("name", ["model.bin", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["spoil", "cut", "lose"])
def test_a_damaged_newest_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in (1, 2, 3):
        save(store, iteration)
    path = tmp_path / "checkpoints" / "iter_000003" / name
    if how == "spoil":
        spoil(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        latest = store.latest()
    assert check_whole(latest) == 2
    assert latest is not None
    assert len(latest.warnings) == 1
    assert store.warnings == list(latest.warnings) == [r.getMessage() for r in caplog.records]
    assert "iter_000003" in latest.warnings[0]
    assert name in latest.warnings[0]


def test_when_all_are_damaged_nothing_is_started_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in (1, 2):
        spoil(save(store, iteration) / "model.bin")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged; move the folder"):
        store.latest()


def test_rotation_spares_the_new_one_beside_damaged_later_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 500)
    spoil(save(store, 1000) / "model.bin")
    save(store, 750)
    assert check_whole(store.latest()) == 750


def test_everything_wrong_is_listed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1)
    folder = save(store, 2)
    spoil(folder / "model.bin")
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        store.load(folder)
    text = str(caught.value)
    assert "2 of 2 files" in text
    assert "model.bin: its bytes were changed (sha256)" in text
    assert "state.json: missing" in text
    assert "holds iter_000001, iter_000002; auto takes the newest whole one" in text


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: None, "no such folder; expected the folder of a checkpoint"),
        (lambda path: path.write_text(""), "is a file; expected the folder of a checkpoint"),
        (lambda path: path.mkdir(), "no checkpoint, there is no manifest.json in it"),
        (
            lambda path: (path.mkdir(), (path / "manifest.json").write_text("[1")),
            "the checkpoint is damaged, this is no JSON",
        ),
        (
            lambda path: (path.mkdir(), (path / "manifest.json").write_text("[1]")),
            "the checkpoint is damaged, its manifest was changed",
        ),
        (
            lambda path: (path / "manifest.json").mkdir(parents=True),
            "cannot be read (Is a directory)",
        ),
    ],
)
def test_what_is_no_checkpoint_is_told(
    tmp_path: Path, make: Callable[[Path], object], expected: str
) -> None:
    make(tmp_path / "x")
    with pytest.raises(CheckpointError) as caught:
        CheckpointStore(tmp_path / "output", keep=1).load(tmp_path / "x")
    assert expected in str(caught.value)
    assert str(tmp_path / "x") in str(caught.value)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    monkeypatch.setattr("common.checkpoint_files.FORMAT", 2)
    folder = save(store, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2; this version reads format 1"):
        store.load(folder)


@pytest.mark.parametrize("name", ["../model.bin", "a/b", "manifest.json", "", ".", ".."])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    with pytest.raises(ValueError, match="expected a plain name"):
        store.save(1, writers({name: b"x"}), meta={})
    assert store.iterations() == []
    assert hidden(tmp_path) == []


def test_a_writer_that_leaves_nothing_is_a_bug(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    with pytest.raises(RuntimeError, match=r"the writer of model\.bin has left no file"):
        store.save(1, {"model.bin": lambda _: None}, meta={})
    assert store.iterations() == []
    assert hidden(tmp_path) == []


# --- full disks and forbidden folders


def test_a_full_device_leaves_the_last_good_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)

    def write(path: Path) -> None:
        path.write_bytes(b"begun")
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")

    with pytest.raises(CheckpointError) as caught:
        store.save(2, {"model.bin": write}, meta={})
    text = str(caught.value)
    assert "No space left on device" in text
    assert f"The last good checkpoint is whole: {tmp_path / 'checkpoints' / 'iter_000001'}" in text
    assert check_whole(store.latest()) == 1
    assert hidden(tmp_path) == []
    assert names(store) == ["iter_000001"]


def test_a_writers_own_input_error_is_told_with_the_last_good_one(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        raise WeightsError(f"cannot write {path.name}")

    with pytest.raises(CheckpointError, match=r"cannot write m\. .*There is no checkpoint before"):
        CheckpointStore(tmp_path, keep=1).save(2, {"m": write}, meta={})


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    usage = shutil.disk_usage(tmp_path)
    with pytest.raises(CheckpointError, match=r"MiB are free; a checkpoint takes .* is whole"):
        save(store, 2, expected_bytes=usage.total)
    with pytest.raises(CheckpointError, match="MiB are free"):
        store.check_writable(expected_bytes=usage.total)
    # without an estimate, the newest one's size is taken: its bytes and a MiB are one too many
    free = sum(p.stat().st_size for p in (tmp_path / "checkpoints" / "iter_000001").iterdir())
    short = usage._replace(free=free + (1 << 20) - 1)
    monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", lambda _: short)
    for attempt in (lambda: save(store, 2), lambda: save_best(store, 2), store.check_writable):
        with pytest.raises(CheckpointError, match="MiB are free"):
            attempt()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}.keys() == before.keys()
    enough = usage._replace(free=free + (1 << 20))
    monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", lambda _: enough)
    save(store, 2)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    store = CheckpointStore(tmp_path / "output", keep=1)
    for attempt in (store.check_writable, lambda: save(store, 1)):
        with pytest.raises(CheckpointError, match=r"Not a directory|File exists") as caught:
            attempt()
        assert "choose another --save_dir. There is no checkpoint before it." in str(caught.value)


# --- in a child process


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


def test_permissions_are_told(tmp_path: Path) -> None:
    save(CheckpointStore(tmp_path, keep=1), 1)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def work() -> None:
        os.chdir(tmp_path)
        if os.geteuid() == 0:
            # root may write anywhere
            os.setuid(65534)
        store = CheckpointStore(Path(), keep=1)
        for attempt in (store.check_writable, lambda: save(store, 2)):
            with pytest.raises(CheckpointError) as caught:
                attempt()
            assert "Permission denied" in str(caught.value)
            assert "is whole: checkpoints/iter_000001" in str(caught.value)

    assert in_child(work) == 0


def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(CheckpointError, match=r"File too large.*iter_000001"):
            store.save(2, writers({"model.bin": bytes(10_000)}), meta={})
        assert names(store) == ["iter_000001"]
        # what fits is written
        save(store, 3)

    assert in_child(work) == 0
    assert check_whole(store.latest()) == 3


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
