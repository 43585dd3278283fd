"""Torch's own weights files, and what our models consist of, for ``bisenet convert``."""

from __future__ import annotations

import functools
import io
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from common.checkpoints import Array, Checkpoint, checkpoint_from
from common.errors import WeightsError
from common.files import atomic_path
from common.fitting import Structure
from common.pdparams import MAX_DEPTH
from common.weight_names import is_batch_counter
from common.weights import TORCH_SUFFIXES, read_checkpoint
from for_torch.models import build_model
from for_torch.norm import InPlaceABN

_REFUSED = re.compile(r"unsupported (?:global|class):?\s+(?:GLOBAL )?([\w.]+)", re.IGNORECASE)
"""How torch's explanation names what weights_only does not allow."""


def read_own(path: Path) -> Checkpoint:
    """Read a file of torch.save, with weights_only: it cannot run code.

    Raises:
        WeightsError: the file is missing, truncated, damaged, or refused because it holds more
            than data.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib raises on names that are too long
        raise WeightsError(f"{path}: no such weights file")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the weights file is empty; write or download it again")
    try:
        with warnings.catch_warnings():
            # told below, in the error
            warnings.filterwarnings("ignore", message=".*TorchScript")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    # bytes that are no checkpoint make torch raise nearly anything
    except Exception as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path}: a TorchScript archive, which holds a program; expected a state dict. "
                "Save torch.jit.load(...).state_dict() with torch.save, if you trust its origin"
            ) from None
        asked = _REFUSED.search(str(error))
        if asked:
            raise WeightsError(
                f"{path}: refused, it holds more than weights or is damaged (it asks for "
                f"{asked[1]}); a pickled model has to be saved as model.state_dict() by the code "
                "it came from. Do not load it with weights_only=False unless you trust its origin"
            ) from None
        raise WeightsError(
            f"{path}: truncated or damaged, {path.stat().st_size} bytes are no checkpoint of "
            f"torch ({_reason(error)}); write or download it again"
        ) from None
    narrow: list[str] = []
    arrays = _arrays(content, path, (), narrow)
    return checkpoint_from(arrays, where=str(path), counted=True, widened=len(narrow))


def read_any(path: Path) -> Checkpoint:
    """Read a weights file of any type and origin: of torch.save, .safetensors or .pdparams.

    Raises:
        WeightsError: the file is missing, of another type, truncated, damaged, or refused because
            it holds more than data.
    """
    return read_own(path) if path.suffix in TORCH_SUFFIXES else read_checkpoint(path)


def write_own(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a state dict that torch.load reads with weights_only.

    Args:
        path: where; its folder is made if need be.
        arrays: Torch's state-dict names -> arrays, in order. Names with the same array share one
            tensor in the file.

    Raises:
        InputError: the folder cannot be written.
        OSError: the file cannot be written in full; what was there is unchanged.
    """
    tensors = {id(array): torch.from_numpy(np.array(array, order="C")) for array in arrays.values()}
    state = OrderedDict((name, tensors[id(array)]) for name, array in arrays.items())
    # torch hides why a file cannot be written
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())


@functools.cache
def model_structure(name: str, *, classes: int) -> Structure:
    """Return what a model consists of.

    Raises:
        ConfigError: there is no such model.
    """
    model = build_model(name, classes=classes)
    other = build_model(name, classes=classes + 1)
    names = tuple(model.state_dict())
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return Structure(
        model=name,
        classes=classes,
        shapes={key: shape for key, shape in shapes.items() if not is_batch_counter(key)},
        names=names,
        inplace_abn=frozenset(
            f"{key}.weight" for key, layer in model.named_modules() if isinstance(layer, InPlaceABN)
        ),
        class_dependent=frozenset(
            key for key, tensor in other.state_dict().items() if tuple(tensor.shape) != shapes[key]
        ),
    )


def _arrays(content: object, path: Path, keys: tuple[object, ...], narrow: list[str]) -> object:
    """Replace tensors by arrays, which share their memory; add bfloat16's names to ``narrow``."""
    if len(keys) > MAX_DEPTH:
        raise WeightsError(f"{path}: nests deeper than {MAX_DEPTH} levels; expected a state dict")
    if isinstance(content, Mapping):
        return {key: _arrays(value, path, (*keys, key), narrow) for key, value in content.items()}
    if not isinstance(content, torch.Tensor):
        return content
    name = ".".join(map(str, keys))
    if content.layout != torch.strided or content.is_quantized:
        raise WeightsError(
            f"{path}: {name} has layout {content.layout}, quantised: {content.is_quantized}; "
            "expected dense, unquantised weights"
        )
    dense = content.detach()
    held = dense.untyped_storage().nbytes() // dense.element_size()
    if dense.numel() > held:
        raise WeightsError(
            f"{path}: {name} has shape {tuple(dense.shape)}, but only {held} numbers of it are in "
            "the file; expected all of them (tensor.contiguous() before torch.save)"
        )
    if dense.dtype == torch.bfloat16:
        narrow.append(name)
        # numpy has no bfloat16; float32 holds its values exactly
        dense = dense.float()
    try:
        return dense.numpy()
    except (TypeError, RuntimeError):
        raise WeightsError(
            f"{path}: {name} is {dense.dtype} on {dense.device}, which is not read here; expected "
            "float16, bfloat16, float32 or float64 weights"
        ) from None


def _reason(error: Exception) -> str:
    """Return the core of torch's explanation, which is long and advises to load unsafely."""
    lines = str(error).splitlines()
    core = [line.partition("WeightsUnpickler error: ")[2] for line in lines]
    if "weights_only" not in str(error) and lines:
        core.append(lines[0])
    return next(filter(None, core), type(error).__name__)
