"""What is refused, and what is warned of, where a training goes on from a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saved_checkpoints import save, save_best, writers
from test_train_state import CONFIG, progress

from common.checkpoint_store import Checkpoint, CheckpointStore
from common.config import Config, load_config
from common.errors import CheckpointError
from common.resuming import (
    changes_told,
    require_new,
    require_own_place,
    require_state,
    take_up_best,
)
from common.stopping import EarlyStopping
from common.train_state import EMA, MOMENTUM, WEIGHTS

BEST = {"best": 0.5, "best_iteration": 400, "waited": 2}


def config(*overrides: str) -> Config:
    return load_config(Path(CONFIG), overrides=overrides)


def checkpoint(folder: Path, *names: str) -> Checkpoint:
    return Checkpoint(folder, 500, {name: folder / name for name in names}, {})


# ---- what is in it -----------------------------------------------------------------------------
def test_best_holds_weights_only() -> None:
    best = checkpoint(Path("output/best"), WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        require_state(best, config())
    assert "output/best: best/ holds weights only; start from it with --weights " in str(
        caught.value
    )
    assert "--weights output/best/weights.safetensors" in str(caught.value)


def test_a_missing_average_is_told() -> None:
    folder = checkpoint(Path("output/checkpoints/iter_000500"), WEIGHTS, MOMENTUM)
    require_state(folder, config())
    with pytest.raises(CheckpointError, match=r"lacks ema\.safetensors"):
        require_state(folder, config("train.ema_decay=0.9"))
    whole = replace(folder, files={**folder.files, EMA: Path(EMA)})
    require_state(whole, config("train.ema_decay=0.9"))


# ---- where ---------------------------------------------------------------------------------------
def test_another_training_is_not_overwritten(tmp_path: Path) -> None:
    one, other = (CheckpointStore(tmp_path / name, keep=2) for name in ("one", "other"))
    found = one.load(save(one, 500))
    require_own_place(found, one)
    # also one that a later run has gone another way from
    save(one, 400)
    require_own_place(one.load(tmp_path / "one/checkpoints/superseded_iter_000500"), one)
    require_own_place(found, other)
    other.check_writable()
    require_own_place(found, other)
    save_best(other, 100)
    with pytest.raises(CheckpointError, match=r"other holds another training .*new --save_dir"):
        require_own_place(found, other)


def test_checkpoints_alone_are_a_training(tmp_path: Path) -> None:
    one, other = (CheckpointStore(tmp_path / name, keep=2) for name in ("one", "other"))
    found = one.load(save(one, 500))
    save(other, 900)
    with pytest.raises(CheckpointError, match="holds another training"):
        require_own_place(found, other)
    # what a killed run has begun to write is none
    third = CheckpointStore(tmp_path / "third", keep=2)
    third.check_writable()
    (tmp_path / "third/checkpoints/.part.iter_000002.abc").mkdir()
    require_own_place(found, third)


def test_a_new_run_needs_a_new_folder(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    require_new(store)
    save(store, 500)
    with pytest.raises(CheckpointError, match="holds a training already, at iteration 500"):
        require_new(store)


# ---- what may differ, but is told ----------------------------------------------------------------
def test_other_code_and_other_versions_are_told() -> None:
    saved = progress(code_digest="a" * 64, versions={"torch": "2.1", "numpy": "1.26"})

    def told(code: str, **versions: str) -> list[str]:
        return changes_told(saved, where="here", code_digest=code, versions=versions)

    assert told("a" * 64, torch="2.1", numpy="1.26", cv2="4") == []
    (code,) = told("b" * 64, torch="2.1", numpy="1.26")
    assert "here was made by other code (aaaaaaaaaaaa, commit 000000000000; now bbbbbbbbbbbb)" in (
        code
    )
    (versions,) = told("a" * 64, torch="2.2", numpy="1.26")
    assert "other versions (torch 2.1 -> 2.2)" in versions
    old = progress()
    assert changes_told(old, where="here", code_digest="b" * 64, versions={"torch": "2.2"}) == []


# ---- the best ------------------------------------------------------------------------------------
def taken_up(
    *overrides: str, own_place: bool = True, state: Any = None
) -> tuple[EarlyStopping, str | None, bool]:
    stopping = EarlyStopping(3)
    saved = progress(stopping=BEST if state is None else state)
    warning, void = take_up_best(stopping, saved, config(*overrides), own_place=own_place)
    return stopping, warning, void


def test_the_best_goes_on() -> None:
    stopping, warning, void = taken_up("train.save_interval=7")
    assert stopping.state_dict() == BEST
    assert (warning, void) == (None, False)


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("eval.protocol=ss@0.5", "eval.protocol 'none' -> 'ss@0.5'"),
        ("eval.count_void=true", "eval.count_void False -> True"),
        ("data.val_list=half.txt", "data.val_list "),
    ],
)
def test_another_measure_forgets_the_best(override: str, shown: str) -> None:
    stopping, warning, void = taken_up(override)
    assert stopping.state_dict() == {"best": None, "best_iteration": None, "waited": 0}
    assert warning is not None
    assert shown in warning
    assert "0.5000 at iteration 400, counts no more" in warning
    assert void


def test_without_a_best_there_is_nothing_to_forget() -> None:
    none = {"best": None, "best_iteration": None, "waited": 0}
    assert taken_up("eval.count_void=true", state=none)[1:] == (None, False)


def test_in_another_folder_the_best_stays_behind() -> None:
    stopping, warning, void = taken_up(own_place=False)
    assert stopping.state_dict() == BEST
    assert warning is not None
    assert "best/ is empty until a mIoU is above 0.5000, that of iteration 400" in warning
    assert not void
    # nor is anything set aside that is not of this training
    assert not taken_up("eval.count_void=true", own_place=False)[2]


def test_the_best_of_another_measure_is_kept_beside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    assert store.set_best_aside(500) is None
    for name in ("superseded_best_000500", "superseded_best_000500.1"):
        save_best(store, 400)
        assert store.set_best_aside(500) == tmp_path / name
        assert store.best() is None
        assert store.load(tmp_path / name).meta["miou"] == pytest.approx(0.4)


def test_a_folder_of_files_is_no_place_of_a_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    folder = store.save_best(5, writers({"a": b"a"}), miou=0.5, meta={})
    assert store.is_used()
    assert not store.holds(folder)
