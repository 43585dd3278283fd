"""A failure case alone: what is read, what is refused, what a difference is."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InputError
from pipeline import investigate
from pipeline.failure import FailureCase, write_case
from pipeline.replay import compared, replay
from pipeline.replay_side import relative_key

ROOT = Path(__file__).resolve().parent.parent
RATE = FailureCase(
    step="training",
    dtype="float64",
    key="schedule/decay",
    kind="series",
    name="decay",
    where="rate of group decay",
    arrays={"reference": np.array([1.0, 2.0]), "actual": np.array([1.0, 2.5])},
    iteration=3,
    phase="schedule",
)


def settings(**changes: Any) -> dict[str, Any]:
    model = {"name": "bisenetv1", "classes": 4, "options": {}}
    return {"model": model, "layer": "", "call": "", "cut": "", "arguments": {}, **changes}


def command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "replay", str(folder), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_saved_arrays_of_other_kinds_are_compared(tmp_path: Path) -> None:
    write_case(tmp_path / "case", RATE)
    found = replay(tmp_path / "case")
    assert (found.rerun, found.persists, found.exit_code) == (False, True, 1)
    assert found.comparisons[0].relative == 0.25
    assert found.comparisons[0].detail == "largest at [1]"
    equal = replace(RATE, arrays={"reference": np.ones(2), "actual": np.ones(2)})
    write_case(tmp_path / "equal", equal)
    assert replay(tmp_path / "equal").exit_code == 0


def test_the_command(tmp_path: Path) -> None:
    write_case(tmp_path / "case", RATE)
    done = command(tmp_path / "case")
    assert done.returncode == 1
    assert "iteration 3, schedule: rate of group decay" in done.stdout
    assert "2.5e-01" in done.stdout
    done = command(tmp_path / "case", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["comparisons"][0]["relative"] == "2.500e-01"
    done = command(tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no failure case" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    write_case(folder, RATE)
    (folder / "arrays.npz").write_bytes(b"no zip file")
    with pytest.raises(InputError, match="damaged failure case"):
        replay(folder)
    layer = replace(RATE, kind="layer", settings={}, spec={"torch": {}, "paddle": {}})
    write_case(folder, layer)
    with pytest.raises(InputError, match="no model, layer, call, cut, arguments"):
        replay(folder)
    write_case(folder, replace(layer, settings=settings()))
    with pytest.raises(InputError, match="no input/0"):
        replay(folder)


def test_arrays_that_cannot_be_compared() -> None:
    assert compared("x", np.ones(2), np.ones(3)).relative == np.inf
    assert compared("x", np.ones(2), np.array([1.0, np.nan])).relative == np.inf
    assert compared("x", np.zeros(2), np.ones(2)).relative == np.inf
    assert compared("x", np.array(["a", "b"]), np.array(["a", "c"])).relative == 1.0
    assert compared("x", np.array([3]), np.array([5])).relative == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("layer", "call", "cut", "relative"),
    [
        ("sp.conv", "sp.conv", "output/sp.conv", "output/"),
        ("b.relu", "b.relu#1", "output/b.relu#1", "output/"),
        ("ffm", "ffm", "input/ffm.convblk/0", "input/convblk/0"),
        ("cp", "cp", "output/cp.2", "output/.2"),
        ("", "", "output/.main", "output/.main"),
        ("", "", "input/cp/0", "input/cp/0"),
        ("b.bn", "b.bn", "gradient/input/b.bn/0", "gradient/input//0"),
        ("b", "b", "gradient/output/b.conv", "gradient/output/conv"),
        ("b.conv", "b.conv", "grad/b.conv.weight", "grad/b.conv.weight"),
        ("b.bn", "b.bn", "buffer/b.bn.running_mean", "buffer/b.bn.running_mean"),
    ],
)
def test_the_tensor_of_a_layer_alone(layer: str, call: str, cut: str, relative: str) -> None:
    children = {"handed/convblk/0": np.ones(1), "child/conv": np.ones(1), "child/cp.0": np.ones(1)}
    case = replace(
        RATE,
        kind="layer",
        arrays={**RATE.arrays, **children},
        settings=settings(layer=layer, call=call, cut=cut),
    )
    assert relative_key(case) == relative


def test_a_crash_of_the_explanation_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(investigate, "_optional", lambda *_: crash)
    write_case(tmp_path / "case", RATE)
    found = replay(tmp_path / "case")
    assert (found.persists, found.hints) == (True, ())
    assert found.note == "(the explanation failed: RuntimeError('boom'))"
