"""The .npy pairs and *_diff.log files of reprod_log, made in a process of their own."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import reprod
from pipeline.reprod import LARGEST, artefact_arrays, remove_artefacts, write_artefacts
from pipeline.steps import STEP_NAMES

Sides = dict[str, dict[str, NDArray[Any]]]
NEEDS_REPROD = pytest.mark.skipif(
    find_spec("reprod_log") is None, reason="the optional package reprod_log is not installed"
)


def sides(offset: float) -> Sides:
    reference = {"easy/loss/main/float64": np.array([1.0, 2.0])}
    actual = {key: array + offset for key, array in reference.items()}
    return {"torch": reference, "paddle": actual}


def load(path: Path) -> dict[str, NDArray[Any]]:
    return np.load(path, allow_pickle=True).item()


def test_every_step_has_a_pair_of_its_own_name() -> None:
    names = [reprod.WANTED[step][0] for step in STEP_NAMES]
    assert len(set(names)) == len(STEP_NAMES)


def test_only_numbers_of_the_wanted_keys_are_kept() -> None:
    arrays = {
        "lr/decay": np.ones(3),
        "lr/name": np.array(["a"]),
        "group/conv.weight": np.asarray("decay"),
        "options/decay/momentum": np.asarray(0.9),
    }
    assert set(artefact_arrays("lr_schedule", "float64", arrays)) == {"lr/decay/float64"}
    assert artefact_arrays("lr_schedule", "float32", arrays) == {}


@pytest.mark.parametrize(
    ("size", "kept"), [(LARGEST, LARGEST), (LARGEST + 2, LARGEST // 2 + 1), (3 * LARGEST, LARGEST)]
)
def test_of_a_large_array_every_nth_element_is_kept(size: int, kept: int) -> None:
    array = np.arange(size, dtype=np.float64).reshape(2, -1)
    found = artefact_arrays("lr_schedule", "float64", {"lr/x": array})["lr/x/float64"]
    assert found.size == kept
    stride = 1 if size == LARGEST else (2 if size < 2 * LARGEST else 3)
    np.testing.assert_array_equal(found.ravel(), np.arange(0, size, stride))


@pytest.mark.parametrize("layer", ["conv_out.conv_out.weight", "head.conv_out.1.weight"])
def test_the_last_layer_of_every_network_is_wanted(layer: str) -> None:
    # as BiSeNetV1 and STDC, and as BiSeNetV2 call it
    step5 = {f"step5/{kind}/{layer}": np.ones(2) for kind in ("param", "momentum")}
    assert len(artefact_arrays("optimizer", "float64", step5)) == 2
    assert len(artefact_arrays("backward", "float64", {f"grad/{layer}": np.ones(2)})) == 1


@pytest.mark.parametrize("side", ["torch", "paddle", "both"])
def test_an_empty_pair_would_pass_by_itself(tmp_path: Path, side: str) -> None:
    pair = {name: {} if side in (name, "both") else arrays for name, arrays in sides(0.0).items()}
    with pytest.raises(RuntimeError, match="no arrays of step loss for reprod_log"):
        write_artefacts(tmp_path, {"loss": pair})
    with pytest.raises(RuntimeError, match="no arrays of step metric for reprod_log"):
        write_artefacts(tmp_path, {"metric": {}})
    assert list(tmp_path.iterdir()) == []


def test_the_artefacts_of_a_step_are_removed_and_no_others(tmp_path: Path) -> None:
    names = ("lr_diff.log", "lr_torch.npy", "lr_paddle.npy")
    kept = ("loss_diff.log", "loss_torch.npy", "loss_paddle.npy", "notes.txt")
    for name in (*names, *kept):
        (tmp_path / name).write_text("")
    # metric has none, and a folder need not be there
    remove_artefacts(tmp_path, ["lr_schedule", "metric"])
    remove_artefacts(tmp_path / "nowhere", STEP_NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@NEEDS_REPROD
def test_reprod_log_judges_each_pair_in_a_log_of_its_own(tmp_path: Path) -> None:
    verdicts = write_artefacts(tmp_path / "r", {"loss": sides(0.0), "metric": sides(0.5)})
    assert verdicts == {"loss": True, "metric": False}
    names = [f"{n}_{end}" for n in ("loss", "metric") for end in ("paddle.npy", "torch.npy")]
    logs = ["loss_diff.log", "metric_diff.log"]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == sorted(names + logs)
    passed = (tmp_path / "r" / "loss_diff.log").read_text()
    assert "diff check passed" in passed
    assert "failed" not in passed
    # its logger repeats the lines of one comparison in the files of the others, if it may
    assert passed.count("diff check") == 1
    assert "diff check failed" in (tmp_path / "r" / "metric_diff.log").read_text()


@NEEDS_REPROD
def test_the_pairs_hold_what_was_recorded(tmp_path: Path) -> None:
    write_artefacts(tmp_path, {"lr_schedule": sides(1e-9)})
    for side, arrays in sides(1e-9).items():
        found = load(tmp_path / f"lr_{side}.npy")
        assert list(found) == list(arrays)
        np.testing.assert_array_equal(found["easy/loss/main/float64"], next(iter(arrays.values())))


def test_without_reprod_log_the_pairs_are_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reprod, "find_spec", {}.get)
    assert write_artefacts(tmp_path, {"loss": sides(0.0)}) == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss_paddle.npy", "loss_torch.npy"]


def test_a_crash_of_reprod_log_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="boom")

    monkeypatch.setattr(reprod, "find_spec", {"reprod_log": True}.get)
    monkeypatch.setattr(reprod.subprocess, "run", crash)
    with pytest.raises(RuntimeError, match=r"reprod_log failed on .*\nboom"):
        write_artefacts(tmp_path, {"loss": sides(0.0)})


def test_importing_it_loads_neither_reprod_log_nor_paddle() -> None:
    assert not {"reprod_log", "paddle", "torch"} & set(sys.modules)
