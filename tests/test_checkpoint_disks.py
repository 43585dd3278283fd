"""Checkpoints on full disks and in forbidden folders: told, and the last good one is whole."""

import os
import resource
import shutil
from pathlib import Path

import pytest
from forking import in_child
from saved_checkpoints import check_whole, hidden, names, save, save_best, writers

from common import checkpoint_store
from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError, WeightsError


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


def test_the_room_of_a_whole_run_is_asked_for_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checkpoints that are kept and the one that is written beside them; best/, old and new."""
    mib = 1 << 20
    usage = shutil.disk_usage(tmp_path)
    store = CheckpointStore(tmp_path, keep=3)

    def asks_for(wanted: int, **of_run: int) -> None:
        for free, enough in ((wanted, True), (wanted - 1, False)):
            short = usage._replace(free=free)
            monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", lambda _, s=short: s)
            if enough:
                store.check_writable(expected_bytes=10 * mib, **of_run)
            else:
                with pytest.raises(CheckpointError, match="lower --keep_checkpoint_max"):
                    store.check_writable(expected_bytes=10 * mib, **of_run)

    # one MiB is always spared: for the manifests and the log
    asks_for(11 * mib)
    asks_for(21 * mib, saves=2)
    asks_for(41 * mib, saves=100)
    asks_for(51 * mib, saves=100, best_bytes=5 * mib)
    # what is there already takes no more room
    monkeypatch.undo()
    save(store, 1)
    save(store, 2)
    save_best(store, 2)
    asks_for(26 * mib, saves=100, best_bytes=5 * mib)


def test_best_asks_for_its_own_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    files = writers({"weights": b"w"})
    store.save(1, writers({"weights": bytes(1000), "momentum": bytes(1000)}), meta={})
    usage = shutil.disk_usage(tmp_path)._replace(free=(1 << 20) + 1000)
    monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", lambda _: usage)
    store.save_best(1, files, miou=0.5, meta={}, expected_bytes=1000)
    with pytest.raises(CheckpointError, match="MiB are free"):
        store.save_best(2, files, miou=0.5, meta={}, expected_bytes=1001)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    store = CheckpointStore(tmp_path / "output", keep=1)
    for attempt in (store.check_writable, lambda: save(store, 1)):
        with pytest.raises(CheckpointError, match=r"Not a directory|File exists") as caught:
            attempt()
        assert "choose another --save_dir. There is no checkpoint before it." in str(caught.value)


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
