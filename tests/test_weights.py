"""Weight names and weights files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import InputError, WeightsError
from common.weight_names import (
    canonical_to_paddle,
    is_batch_counter,
    is_linear_weight,
    paddle_to_canonical,
    turn_linear,
)
from common.weights import check_names_and_shapes, read_checkpoint, read_weights, write_weights

ARRAYS: dict[str, NDArray[Any]] = {
    "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn.running_var": np.array([1.5, 2.5]),
}


@pytest.mark.parametrize(
    ("canonical", "paddle"),
    [
        ("sp.conv1.bn.running_mean", "sp.conv1.bn._mean"),
        ("sp.conv1.bn.running_var", "sp.conv1.bn._variance"),
        ("sp.conv1.bn.weight", "sp.conv1.bn.weight"),
        ("running_mean.conv.bias", "running_mean.conv.bias"),
        ("running_var", "_variance"),
    ],
)
def test_names_convert_both_ways(canonical: str, paddle: str) -> None:
    assert canonical_to_paddle(canonical) == paddle
    assert paddle_to_canonical(paddle) == canonical


def test_batch_counters_have_no_counterpart() -> None:
    assert is_batch_counter("bn.num_batches_tracked")
    assert not is_batch_counter("num_batches_tracked.weight")
    with pytest.raises(KeyError, match="no counterpart"):
        canonical_to_paddle("bn.num_batches_tracked")


def test_every_published_name_converts(published_keys: Path) -> None:
    keys = json.loads((published_keys / "bisenetv1.json").read_text())["keys"]
    names = [key for key in keys if not is_batch_counter(key)]
    converted = [canonical_to_paddle(name) for name in names]
    assert len(set(converted)) == len(names) == 186
    assert [paddle_to_canonical(name) for name in converted] == names
    assert sum(name.endswith(("._mean", "._variance")) for name in converted) == 72


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, ARRAYS)
    found = read_weights(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_an_array_that_is_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_weights(path, {"a": turned})
    np.testing.assert_array_equal(read_weights(path)["a"], [[0, 3], [1, 4], [2, 5]])


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, ARRAYS)

    def full(_handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_weights(path, {"other": np.zeros(3)})
    assert set(read_weights(path)) == set(ARRAYS)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such weights file"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(WeightsError, match=r"folder\.safetensors: cannot be read"):
        read_weights(tmp_path / "folder.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*w\.safetensors"):
        write_weights(tmp_path / "file" / "w.safetensors", ARRAYS)


@pytest.mark.parametrize("keep", [0, 4, 20, 120, -1])
def test_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"w\.safetensors: (truncated or damaged|the weights)"):
        read_weights(path)


def test_a_file_of_other_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"PK\x03\x04 this is a zip archive, not a weights file")
    with pytest.raises(WeightsError, match="truncated or damaged"):
        read_weights(path)


@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w"])
def test_other_types_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=r"not supported; expected \.safetensors or \.pdparams"):
        read_weights(tmp_path / name)
    with pytest.raises(WeightsError, match="not supported"):
        write_weights(tmp_path / name, ARRAYS)


def test_torch_files_are_told_to_be_converted(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"bisenet convert w\.pth w\.safetensors --model NAME"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pdparams"])
def test_the_model_is_kept_beside_the_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    write_weights(path, ARRAYS, model="stdc1")
    assert read_checkpoint(path).model == "stdc1"
    assert read_checkpoint(path).arrays.keys() == ARRAYS.keys()
    write_weights(path, ARRAYS)
    assert read_checkpoint(path).model == ""


def test_fully_connected_weights_alone_are_turned() -> None:
    assert is_linear_weight("cp.backbone.fc.weight", (4, 4))
    assert not is_linear_weight("conv.weight", (4, 4, 1, 1))
    assert not is_linear_weight("bn.weight", (4,))
    assert not is_linear_weight("weight.table", (4, 4))
    array = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(turn_linear("fc.weight", array), [[0, 3], [1, 4], [2, 5]])
    assert turn_linear("fc.table", array) is array


def test_every_misfit_is_listed() -> None:
    expected = {"a": (2, 3), "b": (2,), "c": (1,)}
    arrays = {
        "b": np.zeros(3),
        "c": np.zeros(1),
        "d": np.zeros(4),
        "bn.num_batches_tracked": np.zeros(()),
    }
    with pytest.raises(WeightsError) as caught:
        check_names_and_shapes(expected, arrays)
    text = str(caught.value)
    assert "missing: a, (2, 3)" in text
    assert "left over: d, (4,)" in text
    assert "shape: b is (3,), the model has (2,)" in text
    assert "num_batches_tracked" not in text
    assert len(text.splitlines()) == 4


def test_a_fit_passes() -> None:
    check_names_and_shapes({"a": (2,)}, {"a": np.zeros(2), "bn.num_batches_tracked": np.zeros(())})
