"""Paddle's weights files (.pdparams), read and written without Paddle.

A .pdparams file is a pickle, and an ordinary unpickler calls whatever a pickle names. The one here
knows a handful of names: those with which numpy rebuilds an array, dictionaries and tuples. For
each of them it has a stand-in that only collects bytes, a dtype and a shape and checks them, so
that no function is ever taken from the file and numpy's own C code never sees unchecked state.
Anything else in a file is refused, named.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import WeightsError

PROTOCOL = 4
"""What paddle.save writes by default."""

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
BYTE_ORDERS = ("<", ">", "=", "|")
MODEL_KEY = "bisenet.model"
"""A text beside the arrays: the model the file was written for. paddle.load hands it on, and
set_state_dict returns it among the unexpected keys, without a warning."""
MAX_DEPTH = 8
"""Nesting of dictionaries and lists; a real file has three levels."""
MAX_ITEMS = 1_000_000
"""Values in all dictionaries and lists; a few references can stand for billions of them."""
MAX_OPCODES = 4 * MAX_ITEMS
"""Instructions of the pickle; a real file has about 30 per array."""


OBJECT = "O8"
"""numpy's name of an array of objects: what np.save makes of a dictionary."""


class RefusedContentError(Exception):
    """The pickle names something that a weights file has no use for."""


def decode(content: bytes, *, where: str, boxed: bool = False) -> object:
    """Return what a .pdparams file holds: nested dicts, lists, tuples, numbers, texts and arrays.

    Args:
        content: the bytes of the file.
        where: the file's name, for the messages.
        boxed: the whole lies in an array of one object, as np.save pickles a dictionary.

    Raises:
        WeightsError: the file is empty, truncated, damaged, or holds anything but plain data.
    """
    if not content:
        raise WeightsError(f"{where}: the weights file is empty; write or download it again")
    stream = io.BytesIO(content)
    try:
        _check_opcodes(content)
        loaded = _PlainUnpickler(stream, encoding="latin1").load()
        rest = len(content) - stream.tell()
        if rest:
            raise ValueError(f"{rest} bytes follow its end")
        if boxed:
            loaded = _unboxed(loaded)
        return _plain(loaded, count(), depth=0)
    except RefusedContentError as error:
        raise WeightsError(
            f"{where}: refused, {error}; a weights file holds arrays, dictionaries, texts and "
            "numbers only. Do not load it with paddle.load either unless you trust its origin"
        ) from None
    # bytes that are no pickle make the unpickler raise nearly anything
    except Exception as error:
        raise WeightsError(
            f"{where}: truncated or damaged, {len(content)} bytes are no .pdparams file "
            f"({error}); write or download it again"
        ) from None


def without_model(content: object) -> tuple[object, str]:
    """Split what decode returned into the rest and the model that encode has put beside it.

    Returns:
        The content without MODEL_KEY and the model's name; the content unchanged and an empty text
        if it names none. What is no text under that key stays, for the reader to refuse.
    """
    if not isinstance(content, dict) or not isinstance(content.get(MODEL_KEY), str):
        return content, ""
    rest = dict(content)
    return rest, rest.pop(MODEL_KEY)


def encode(arrays: Mapping[str, NDArray[Any]], *, model: str = "") -> bytes:
    """Return the bytes that paddle.load reads as a state dict.

    Args:
        arrays: Paddle's names -> arrays in Paddle's layout.
        model: name of our model, kept under MODEL_KEY; empty leaves the key out.
    """
    state: dict[str, object] = {name: np.array(array, order="C") for name, array in arrays.items()}
    if model:
        state[MODEL_KEY] = model
    return pickle.dumps(state, protocol=PROTOCOL)


# ---- stand-ins for what a pickled array names ---------------------------------------------------
class _DType:
    """Stands for numpy.dtype: one of DTYPES and a byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: object) -> None:
        if code not in (*DTYPES, OBJECT):
            raise RefusedContentError(f"an array's dtype is {code!r}, expected one of {DTYPES}")
        self.dtype: np.dtype[Any] = np.dtype(str(code))

    def __setstate__(self, state: object) -> None:
        # (version, byte order, sub-array, names, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in BYTE_ORDERS:
            raise ValueError("a dtype's state is not numpy's")
        if any(part is not None for part in state[2:5]):
            raise RefusedContentError("an array has a dtype with fields")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray until its bytes have been checked."""

    __slots__ = ("array", "boxed")

    def __init__(self) -> None:
        self.array: NDArray[Any] | None = None
        self.boxed: list[object] = []
        """The one object of an array of objects, which only decode(boxed=True) takes out."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array's state is not numpy's")
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, _DType) and dtype.dtype.hasobject:
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise RefusedContentError("an array holds objects instead of numbers")
            self.boxed = data
            return
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


class _Call:
    """Stands for a function; a pickle can call it and do nothing else with it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __call__(self, *arguments: object) -> object:
        return self.function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise RefusedContentError("it sets attributes of a function")


_NDARRAY = "numpy.ndarray"


def _array(data: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if isinstance(data, str):
        # protocol 2 of Python 2 has no bytes
        data = data.encode("latin1")
    plain = isinstance(dtype, _DType) and not dtype.dtype.hasobject
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _DType) or not plain:
        raise RefusedContentError("an array holds objects instead of numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array's shape is not one")
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError(f"an array of shape {shape} and {dtype.dtype} has {len(data)} bytes")
    flat = np.frombuffer(data, dtype=dtype.dtype).astype(dtype.dtype.newbyteorder("="))
    return np.array(flat.reshape(shape, order="F" if order == "F" else "C"), order="C")


def _reconstruct(subtype: object, shape: object, code: object) -> _Array:
    if subtype is not _NDARRAY or shape != (0,) or code not in (b"b", "b"):
        raise RefusedContentError(f"it rebuilds {subtype!r}, expected a numpy.ndarray")
    return _Array()


def _scalar(dtype: object, data: object) -> NDArray[Any]:
    return _array(data, dtype, (), "C")


def _dtype(code: object, *_: object) -> _DType:
    return _DType(code)


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedContentError(f"it encodes with {encoding!r}, expected latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # protocol 2 spells the bytes of an empty array so
    return b""


def _ordered(*arguments: Any) -> dict[Any, Any]:
    return dict(*arguments)


def _tuple(*arguments: Any) -> tuple[Any, ...]:
    return tuple(*arguments)


_KNOWN: dict[tuple[str, str], Callable[..., object] | str] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered,
    ("builtins", "tuple"): _tuple,
    ("__builtin__", "tuple"): _tuple,
    ("__builtin__", "bytes"): _no_bytes,
    # numpy 2 renamed its core package
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _KNOWN.get((module_name, global_name))
        if known is None:
            raise RefusedContentError(f"it asks for {module_name}.{global_name}")
        return known if isinstance(known, str) else _Call(known)

    def persistent_load(self, pid: Any, /) -> Any:
        raise RefusedContentError(f"it asks for the outside object {pid!r}")


def _check_opcodes(content: bytes) -> None:
    """Refuse what costs more than the file's size: the unpickler's memo is a list, by index."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if number >= MAX_OPCODES:
            raise RefusedContentError(f"it has over {MAX_OPCODES} instructions")
        if opcode.name in _PUTS and not 0 <= int(argument or 0) <= len(content):
            raise RefusedContentError(f"it numbers an object {argument}, in {len(content)} bytes")


_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


def _unboxed(value: object) -> object:
    if not isinstance(value, _Array) or not value.boxed:
        raise ValueError("it is no array of one object")
    return value.boxed[0]


def _plain(value: object, counter: Iterator[int], *, depth: int) -> object:
    """Replace the stand-ins by arrays; a pickle can nest without end."""
    if depth > MAX_DEPTH or next(counter) > MAX_ITEMS:
        raise RefusedContentError(
            f"it nests deeper than {MAX_DEPTH} levels or over {MAX_ITEMS} values"
        )
    if isinstance(value, _Array):
        if value.boxed:
            raise RefusedContentError("an array holds objects instead of numbers")
        if value.array is None:
            raise ValueError("an array has no content")
        return value.array
    if isinstance(value, dict):
        return {key: _plain(item, counter, depth=depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(item, counter, depth=depth + 1) for item in value])
    if value is None or isinstance(value, (str, bytes, bool, int, float, np.ndarray)):
        return value
    raise RefusedContentError(f"it holds a {type(value).__name__.lstrip('_')}")
