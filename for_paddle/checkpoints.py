"""Paddle's own weights files, and what our models consist of, for ``bisenet convert``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from common.checkpoints import Array, Checkpoint
from common.errors import WeightsError
from common.fitting import Structure
from common.weights import PADDLE_SUFFIX, TORCH_SUFFIXES, read_checkpoint, write_weights
from for_paddle.backend import state_arrays
from for_paddle.models import build_model
from for_paddle.norm import InPlaceABN


def read_own(path: Path) -> Checkpoint:
    """Read a file of paddle.save, with a restricted unpickler: it cannot run code.

    Raises:
        WeightsError: the file is missing, truncated, damaged, or refused because it holds more
            than data.
    """
    return read_checkpoint(path)


def read_any(path: Path) -> Checkpoint:
    """Read a weights file of any origin: .safetensors or .pdparams.

    Raises:
        WeightsError: the file is missing, of another type (torch.save's has to be converted
            first), truncated, damaged, or refused because it holds more than data.
    """
    if path.suffix in TORCH_SUFFIXES:
        raise WeightsError(
            f"{path}: a file of torch.save, which only torch reads. Convert it first: bisenet "
            f"convert {path.name} {path.with_suffix(PADDLE_SUFFIX).name} --model NAME, with "
            "--backbone-only if it is a backbone"
        )
    return read_checkpoint(path)


def write_own(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a state dict that paddle.load reads.

    Args:
        path: where; its folder is made if need be.
        arrays: canonical names -> arrays; batch counters are not written.

    Raises:
        InputError: the folder cannot be written.
    """
    write_weights(path, arrays)


@functools.cache
def model_structure(name: str, *, classes: int) -> Structure:
    """Return what a model consists of.

    Raises:
        ConfigError: there is no such model.
    """
    model = build_model(name, classes=classes)
    other = build_model(name, classes=classes + 1)
    shapes = {key: array.shape for key, array in state_arrays(model).items()}
    return Structure(
        model=name,
        classes=classes,
        shapes=shapes,
        # Paddle counts no batches: its names are the canonical ones
        names=tuple(shapes),
        inplace_abn=frozenset(
            f"{key}.weight"
            for key, layer in model.named_sublayers()
            if isinstance(layer, InPlaceABN)
        ),
        class_dependent=frozenset(
            key for key, array in state_arrays(other).items() if array.shape != shapes[key]
        ),
    )
