"""Records: what one side writes is what the comparison reads, or nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from pipeline.records import (
    has_record,
    read_arrays,
    read_record,
    record_name,
    remove_record,
    write_arrays,
    write_record,
)


def test_names() -> None:
    assert record_name("loss", "float64", "torch") == "loss.float64.torch"
    assert record_name("training", "float64", "paddle", "floor") == "training.float64.paddle.floor"


def test_what_is_written_is_read_in_its_order(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "z/layer/0": np.array([[1.5, -0.0]], np.float32),
        "a/names": np.array([["x.png", "weiß"]]),
        "a/scalar": np.asarray(3.0),
        "empty": np.zeros((0, 2), np.int64),
        "big": np.array([2**63 - 1, -(2**63)]),
    }
    write_record(tmp_path / "new", "r", arrays, {"side": "torch", "seed": 3})
    record = read_record(tmp_path / "new", "r")
    assert list(record.arrays) == list(arrays) == record.meta["keys"]
    for key, array in arrays.items():
        assert record.arrays[key].dtype == array.dtype
        np.testing.assert_array_equal(record.arrays[key], array, strict=True)
    assert (record.meta["side"], record.meta["seed"]) == ("torch", 3)
    assert len(record.meta["digest"]) == 64


@settings(deadline=None, max_examples=30)
@given(
    array=arrays_of.arrays(
        st.sampled_from(["f4", "f8", "i8", "u1", "?"]),
        arrays_of.array_shapes(min_dims=0, max_dims=4),
    )
)
def test_every_bit_survives(tmp_path_factory: pytest.TempPathFactory, array: Any) -> None:
    path = tmp_path_factory.mktemp("bits") / "a.npz"
    write_arrays(path, {"key": array})
    found = read_arrays(path)["key"]
    assert (found.dtype, found.shape, found.tobytes()) == (
        array.dtype,
        array.shape,
        array.tobytes(),
    )


def test_objects_are_refused_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(TypeError, match="record key bad has dtype object"):
        write_arrays(path, {"bad": np.array([{}], dtype=object)})
    assert not path.exists()
    np.savez(path, bad=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(path)


def test_the_side_car_is_written_last_and_removed_first(tmp_path: Path) -> None:
    assert not has_record(tmp_path, "r")
    write_arrays(tmp_path / "r.npz", {"a": np.ones(2)})
    assert not has_record(tmp_path, "r")
    write_record(tmp_path, "r", {"a": np.ones(2)}, {})
    assert has_record(tmp_path, "r")
    remove_record(tmp_path, "r")
    assert list(tmp_path.iterdir()) == []
    remove_record(tmp_path, "r")


def test_equal_arrays_have_equal_digests(tmp_path: Path) -> None:
    digests = []
    for name, value in (("one", 1.0), ("two", 1.0), ("three", 2.0)):
        write_record(tmp_path, name, {"a": np.full(3, value)}, {})
        digests.append(json.loads((tmp_path / f"{name}.json").read_text())["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_a_recorder_that_is_killed_while_writing_leaves_no_record(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, numpy\n"
        "from pathlib import Path\n"
        "from pipeline import records\n"
        "records.np.savez = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "records.write_record(Path(sys.argv[1]), 'r', {'a': numpy.ones(2)}, {})\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == -9
    assert not has_record(tmp_path, "r")
    assert not (tmp_path / "r.npz").exists()


def test_a_record_is_a_view_that_outlives_its_file(tmp_path: Path) -> None:
    arrays = {
        "float": np.arange(6.0).reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array(["sky", "building"]),
        "scalar": np.asarray(np.float32(2.5)),
        "empty": np.zeros((0, 4)),
        "a/b/ü": np.array([True, False]),
    }
    write_record(tmp_path, "r", arrays, {})
    found = read_record(tmp_path, "r").arrays
    remove_record(tmp_path, "r")
    assert list(found) == list(arrays)
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype
        assert found[key].shape == array.shape
        assert np.array_equal(found[key], array)
    with pytest.raises(ValueError, match="read-only"):
        found["float"][0, 0] = 1


def test_a_compressed_record_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, "r", {"a": np.ones(2)}, {})
    np.savez_compressed(tmp_path / "r.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="compressed"):
        read_record(tmp_path, "r")
