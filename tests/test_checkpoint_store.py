"""Checkpoints on disk: what is saved is read, the newest whole one is found, damage is told."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from saved_checkpoints import check_whole, hidden, names, save, save_best, spoil, writers

from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError

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
