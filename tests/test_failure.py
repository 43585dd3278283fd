"""A failure case survives the disk, and a damaged one is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from pipeline.failure import FailureCase, Hint, read_case, write_case


def case(**changes: object) -> FailureCase:
    arrays = {"reference": np.arange(3.0), "actual": np.arange(3.0) + 1, "input/0": np.ones((1, 2))}
    fields: dict[str, object] = {
        "step": "forward",
        "dtype": "float64",
        "key": "eval/layer/cp.bn1",
        "kind": "layer",
        "name": "cp.bn1",
        "where": "layer cp.bn1 (eval)",
        "arrays": arrays,
        "spec": {"torch": {"eps": 1e-5}, "paddle": {"eps": 1e-4}},
        "hints": [Hint("eps", "uses eps 1e-4", before=1e-3, residual=1e-15)],
    }
    return FailureCase(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


def test_a_case_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = case(iteration=7, phase="forward")
    write_case(tmp_path / "01", written)
    found = read_case(tmp_path / "01")
    assert found.hints == list(written.hints)
    assert found.spec == written.spec
    assert (found.iteration, found.phase) == (7, "forward")
    assert list(found.arrays) == list(written.arrays)
    for key, array in written.arrays.items():
        np.testing.assert_array_equal(found.arrays[key], array)


def test_a_later_case_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    write_case(tmp_path / "01", case())
    (tmp_path / "01" / "old.txt").write_text("x", encoding="utf-8")
    write_case(tmp_path / "01", case())
    assert sorted(path.name for path in (tmp_path / "01").iterdir()) == ["arrays.npz", "case.json"]


@pytest.mark.parametrize("damage", ["case.json", "arrays.npz"])
def test_a_damaged_or_missing_case_is_named(tmp_path: Path, damage: str) -> None:
    write_case(tmp_path / "01", case())
    (tmp_path / "01" / damage).write_bytes(b"{")
    with pytest.raises(InputError, match="damaged failure case"):
        read_case(tmp_path / "01")
    (tmp_path / "01" / damage).unlink()
    with pytest.raises(InputError, match="no failure case"):
        read_case(tmp_path / "01")


def test_an_unknown_kind_or_a_single_side_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 'tensor'"):
        case(kind="tensor")
    with pytest.raises(ValueError, match="no array 'actual'"):
        case(arrays={"reference": np.ones(1)})
