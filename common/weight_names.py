"""How Torch and Paddle name the same weight, and which weights they lay out differently.

Canonical names are Torch's state-dict names without ``num_batches_tracked``: published
checkpoints carry them. Paddle keeps the running statistics of BatchNorm as ``_mean`` and
``_variance`` and counts no batches. Everything else is named alike.

Canonical arrays have Torch's layout. Paddle's differs for fully connected layers only: it
multiplies by (in, out), Torch by (out, in). STDC's unused classifier has such layers, one of them
square, which would load turned the wrong way without an error.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

_TORCH_TO_PADDLE = {"running_mean": "_mean", "running_var": "_variance"}
_PADDLE_TO_TORCH = {paddle: torch for torch, paddle in _TORCH_TO_PADDLE.items()}

BATCH_COUNTER = "num_batches_tracked"
"""Torch's count of training batches per BatchNorm; nothing is computed from it here."""


def is_batch_counter(name: str) -> bool:
    """Tell whether the state-dict name is a batch counter, which Paddle does not have."""
    return name.rpartition(".")[2] == BATCH_COUNTER


def is_linear_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a weight is a fully connected layer's: the only ones with two dimensions."""
    return name.rpartition(".")[2] == "weight" and len(shape) == 2


def turn_linear(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Turn a fully connected layer's weight from one framework's layout to the other's."""
    return array.T if is_linear_weight(name, array.shape) else array


def canonical_to_paddle(name: str) -> str:
    """Return Paddle's name of a weight: ``sp.conv1.bn.running_var`` -> ``sp.conv1.bn._variance``.

    Raises:
        KeyError: for a batch counter, which has no counterpart.
    """
    if is_batch_counter(name):
        raise KeyError(f"{name} has no counterpart in Paddle; drop it before converting")
    return _with_last_part(name, _TORCH_TO_PADDLE)


def paddle_to_canonical(name: str) -> str:
    """Return the canonical (Torch) name: ``sp.conv1.bn._mean`` -> ``sp.conv1.bn.running_mean``."""
    return _with_last_part(name, _PADDLE_TO_TORCH)


def _with_last_part(name: str, table: dict[str, str]) -> str:
    owner, dot, last = name.rpartition(".")
    return f"{owner}{dot}{table.get(last, last)}"
