"""Paddle's weights files without Paddle: what the real one writes is read, and the reverse."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import run_program

from common import pdparams
from common.errors import WeightsError
from common.weights import read_checkpoint, read_weights, write_weights

PADDLE = """
import sys, warnings
warnings.filterwarnings("ignore", message="No ccache found")
import numpy as np
import paddle
from paddle import nn
folder = sys.argv[1] + "/"

class Block(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(1, 2, 1)
        self.bn = nn.BatchNorm2D(2)
        self.fc = nn.Linear(2, 3)

def arrays(model):
    return {k: np.array(v.numpy()) for k, v in model.state_dict().items()}

model = Block()
state = model.state_dict()
np.savez(folder + "expected.npz", **arrays(model))
paddle.save(state, folder + "state.pdparams")
paddle.save(arrays(model), folder + "arrays.pdparams")
paddle.save({"model": state, "epoch": 3, "lr": 0.5}, folder + "nested.pdparams")
paddle.save(state, folder + "protocol2.pdparams", protocol=2)
model.fc.weight.set_value(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32))
paddle.save(model.state_dict(), folder + "known.pdparams")
x = paddle.to_tensor(np.array([[10.0, 1.0]], dtype=np.float32))
np.savez(folder + "linear.npz", y=(model.fc(x) - model.fc.bias).numpy())
"""

READ_BACK = """
import json, sys, warnings
warnings.filterwarnings("ignore", message="No ccache found")
import numpy as np
import paddle
from paddle import nn
loaded = paddle.load(sys.argv[1])
layer = nn.Linear(2, 3, bias_attr=False)
missing, unexpected = layer.set_state_dict({"weight": loaded["fc.weight"]})
y = layer(paddle.to_tensor(np.array([[10.0, 1.0]], dtype=np.float32)))
print(json.dumps([missing, unexpected, y.numpy().tolist(), sorted(loaded),
                  np.asarray(loaded["bn._mean"]).tolist(), str(np.asarray(loaded["half"]).dtype)]))
"""


WITH_MODEL = """
import json, sys, warnings
warnings.filterwarnings("ignore", message="No ccache found")
import paddle
from paddle import nn
layer = nn.Linear(2, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loaded = paddle.load(sys.argv[1])
    missing, unexpected = layer.set_state_dict(loaded)
print(json.dumps([missing, unexpected, layer.weight.numpy().tolist(),
                  [str(warning.message) for warning in caught]]))
paddle.save(loaded, sys.argv[2])
"""


@pytest.fixture(scope="module")
def paddle_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that paddle.save has written: a convolution, a BatchNorm, a fully connected layer."""
    folder = tmp_path_factory.mktemp("paddle")
    run_program(PADDLE, str(folder))
    return folder


@pytest.mark.parametrize("name", ["state", "arrays", "nested", "protocol2"])
def test_what_paddle_writes_is_read(paddle_files: Path, name: str) -> None:
    found = read_weights(paddle_files / f"{name}.pdparams")
    with np.load(paddle_files / "expected.npz") as file:
        expected = dict(file)
    names = {"bn._mean": "bn.running_mean", "bn._variance": "bn.running_var"}
    assert set(found) == {names.get(key, key) for key in expected}
    for key, array in expected.items():
        own = found[names.get(key, key)]
        assert own.dtype == np.float32
        np.testing.assert_array_equal(own, array.T if key == "fc.weight" else array)


def test_fully_connected_weights_are_turned(paddle_files: Path) -> None:
    found = read_weights(paddle_files / "known.pdparams")["fc.weight"]
    np.testing.assert_array_equal(found, [[1, 4], [2, 5], [3, 6]])
    with np.load(paddle_files / "linear.npz") as file:
        # Torch's convention, y = x W^T: 10 * 1 + 1 * 4 = 14
        np.testing.assert_array_equal(file["y"], [[14, 25, 36]])


def test_paddle_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "w.pdparams"
    arrays: dict[str, NDArray[Any]] = {
        "fc.weight": np.array([[1, 4], [2, 5], [3, 6]], dtype=np.float32),
        "bn.running_mean": np.array([0.5, -2.0]),
        "bn.num_batches_tracked": np.array(3),
        "half": np.zeros(2, dtype=np.float16),
    }
    write_weights(path, arrays)
    missing, unexpected, y, names, mean, half = json.loads(run_program(READ_BACK, str(path)))
    assert (missing, unexpected) == ([], [])
    assert y == [[14, 25, 36]]
    assert names == ["bn._mean", "fc.weight", "half"]
    assert mean == [0.5, -2.0]
    assert half == "float16"
    assert [p.name for p in tmp_path.iterdir()] == ["w.pdparams"]


def test_paddle_passes_over_the_model_beside_the_weights(tmp_path: Path) -> None:
    path, again = tmp_path / "w.pdparams", tmp_path / "again.pdparams"
    arrays: dict[str, NDArray[Any]] = {
        "weight": np.array([[1, 4], [2, 5], [3, 6]], dtype=np.float32),
        "bias": np.zeros(3, dtype=np.float32),
    }
    write_weights(path, arrays, model="stdc1")
    missing, unexpected, weight, warned = json.loads(run_program(WITH_MODEL, str(path), str(again)))
    assert (missing, warned) == ([], [])
    assert unexpected == ["bisenet.model"]
    assert weight == [[1, 2, 3], [4, 5, 6]]
    # a state dict that Paddle has loaded and saved still tells
    found = read_checkpoint(again)
    assert found.model == "stdc1"
    np.testing.assert_array_equal(found.arrays["weight"], arrays["weight"])


@pytest.mark.parametrize(
    "entry", [{"bisenet.model": 1}, {"bisenet.model": ["stdc1"]}, {"bisenet.other": "stdc1"}]
)
def test_no_other_text_beside_the_weights_is_accepted(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"a": np.zeros(1, dtype=np.float32), **entry}))
    with pytest.raises(WeightsError, match=next(iter(entry))):
        read_weights(path)


@pytest.mark.parametrize("dtype", pdparams.DTYPES)
def test_every_dtype_comes_back(dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(1, 2, 3)
    found = pdparams.decode(pdparams.encode({"a": array}), where="w")
    assert isinstance(found, dict)
    assert found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].flags.writeable


def test_layouts_and_byte_orders_of_numpy() -> None:
    turned = np.arange(6.0).reshape(2, 3).T
    big = np.array([1.5, -2.0], dtype=">f4")
    whole = {"turned": turned, "big": big, "empty": np.zeros((0, 3)), "scalar": np.float32(2.5)}
    for protocol in range(2, 6):
        found: Any = pdparams.decode(pickle.dumps(whole, protocol=protocol), where="w")
        np.testing.assert_array_equal(found["turned"], turned)
        assert found["big"].tolist() == [1.5, -2.0]
        assert found["big"].dtype == np.dtype("f4")
        assert found["empty"].shape == (0, 3)
        assert found["scalar"] == np.float32(2.5)


def test_numpy_1_names_are_known() -> None:
    content = pickle.dumps({"a": np.arange(3.0)}, protocol=2)
    old = content.replace(b"numpy._core.", b"numpy.core.")
    assert old != content
    found: Any = pdparams.decode(old, where="w")
    np.testing.assert_array_equal(found["a"], [0, 1, 2])


class _Runs:
    """Unpickled by an ordinary unpickler, this runs a command."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    path = tmp_path / "w.pdparams"
    evil = {"w": np.zeros(1), "x": _Runs(os.system, f"touch {witness}")}
    path.write_bytes(pickle.dumps(evil, protocol=protocol))
    with pytest.raises(WeightsError, match=r"w\.pdparams: refused, it asks for \w+\.system"):
        read_weights(path)
    assert not witness.exists()
    # the file is really dangerous
    pickle.loads(path.read_bytes())
    assert witness.exists()


@pytest.mark.parametrize(
    "call",
    [
        (eval, "1"),
        (exec, ""),
        (getattr, "", "join"),
        (np.load, "x.npy"),
        (np.frombuffer, b"12"),
        (open, "x"),
    ],
)
def test_any_other_function_is_refused(call: Any) -> None:
    content = pickle.dumps({"x": _Runs(*call)})
    with pytest.raises(WeightsError, match=r"refused, it asks for"):
        pdparams.decode(content, where="w")


@pytest.mark.parametrize(
    "content",
    [
        {"x": np.array([{}, []], dtype=object)},
        {"x": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])},
        {"x": np.array(["text"])},
        {"x": {1, 2}},
        {"x": 1j},
        {"x": os.system},
        {"x": OrderedDict},
        {"x": np.dtype("f4")},
    ],
)
def test_other_content_is_refused(content: Any) -> None:
    with pytest.raises(WeightsError, match="refused"):
        pdparams.decode(pickle.dumps(content), where="w")


def test_an_array_of_objects_is_refused_in_its_state() -> None:
    state = (1, (1,), np.dtype("f4"), False, [os.system])

    class Crafted:
        def __reduce__(self) -> Any:
            return (*np.zeros(1).__reduce__()[:2], state)

    content = pickle.dumps({"x": Crafted()})
    with pytest.raises(WeightsError, match="refused"):
        pdparams.decode(content, where="w")


def test_sizes_that_lie_are_damage() -> None:
    content = pickle.dumps({"a": np.arange(3, dtype=np.float32)}, protocol=2)
    lying = content.replace(b"K\x03\x85", b"K\x09\x85")
    assert lying != content
    with pytest.raises(WeightsError, match=r"truncated or damaged.*12 bytes"):
        pdparams.decode(lying, where="w")


def test_endless_nesting_is_refused() -> None:
    ring: dict[str, Any] = {}
    ring["self"] = ring
    with pytest.raises(WeightsError, match="nests deeper"):
        pdparams.decode(pickle.dumps(ring), where="w")
    many: list[Any] = [0] * 1000
    for _ in range(4):
        many = [many] * 1000
    with pytest.raises(WeightsError, match="refused"):
        pdparams.decode(pickle.dumps(many), where="w")


def test_functions_cannot_be_changed() -> None:
    # GLOBAL numpy.dtype, then BUILD with a state: an attempt to set attributes of the function
    content = b"\x80\x02cnumpy\ndtype\nN}U\x01aK\x01s\x86b."
    with pytest.raises(WeightsError, match="sets attributes"):
        pdparams.decode(content, where="w")


@pytest.mark.parametrize("put", [b"r\x00\x00\x00\x10", b"q\x20", b"p268435456\n"])
def test_a_memo_larger_than_the_file_is_refused(put: bytes) -> None:
    """An unpickler would fill gigabytes with a table up to that index."""
    with pytest.raises(WeightsError, match=r"refused, it numbers an object \d+, in \d+ bytes"):
        pdparams.decode(b"\x80\x04}" + put + b".", where="w")


def test_too_many_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdparams, "MAX_OPCODES", 100)
    with pytest.raises(WeightsError, match="refused, it has over 100 instructions"):
        pdparams.decode(b"\x80\x04" + b"N0" * 60 + b"N.", where="w")


def test_bfloat16_of_paddle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pdparams"
    write_weights(path, {"w": np.zeros(2, dtype=np.uint16)})
    with pytest.raises(WeightsError, match="Paddle keeps bfloat16 as uint16, not to be told"):
        read_weights(path)
    write_weights(path, {"w": np.zeros(2, dtype=np.int64)})
    with pytest.raises(WeightsError, match="not of a floating type") as caught:
        read_weights(path)
    assert "Paddle" not in str(caught.value)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, part: float) -> None:
    path = tmp_path / "w.pdparams"
    write_weights(path, {"a": np.arange(100.0), "b": np.zeros((2, 3))})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(WeightsError, match=r"w\.pdparams: (truncated or damaged|the weights file)"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 zip", b"\x00" * 50, b"text", b"\x80\x04N.rest"])
def test_other_bytes_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pdparams"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        read_weights(path)


def boxed(content: Any, *, dtype: Any = object) -> bytes:
    """Pickle as np.save does: the whole in an array without dimensions."""
    return pickle.dumps(np.array(content, dtype=dtype), protocol=4)


def test_a_dictionary_that_numpy_saved() -> None:
    content = {"a": np.arange(6.0).reshape(2, 3), "b": np.float64(2.5), "c": np.zeros((), "i8")}
    found: Any = pdparams.decode(boxed(content), where="w", boxed=True)
    assert list(found) == ["a", "b", "c"]
    for key, value in content.items():
        np.testing.assert_array_equal(found[key], value)
    # a weights file is none, and nothing is boxed twice
    with pytest.raises(WeightsError, match="refused, an array holds objects"):
        pdparams.decode(boxed(content), where="w")
    with pytest.raises(WeightsError, match="refused, an array holds objects"):
        pdparams.decode(boxed({"x": np.array({}, dtype=object)}), where="w", boxed=True)


@pytest.mark.parametrize("content", [{"x": os.system}, {"x": Path("x")}, {"x": {1}}])
def test_a_box_hides_nothing(content: Any) -> None:
    with pytest.raises(WeightsError, match="refused"):
        pdparams.decode(boxed(content), where="w", boxed=True)


@pytest.mark.parametrize("content", [[{}, {}], 1.5])
def test_what_is_no_box(content: Any) -> None:
    wanted = "refused|no array of one object"
    dtype = object if isinstance(content, list) else float
    with pytest.raises(WeightsError, match=wanted):
        pdparams.decode(boxed(content, dtype=dtype), where="w", boxed=True)
