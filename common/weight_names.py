"""How Torch and Paddle name the same weight.

Canonical names are Torch's state-dict names without ``num_batches_tracked``: published
checkpoints carry them. Paddle keeps the running statistics of BatchNorm as ``_mean`` and
``_variance`` and counts no batches. Everything else is named alike, and no layer of this family
needs its array turned (there is no fully connected layer, the only one laid out differently).
"""

from __future__ import annotations

_TORCH_TO_PADDLE = {"running_mean": "_mean", "running_var": "_variance"}
_PADDLE_TO_TORCH = {paddle: torch for torch, paddle in _TORCH_TO_PADDLE.items()}

BATCH_COUNTER = "num_batches_tracked"
"""Torch's count of training batches per BatchNorm; nothing is computed from it here."""


def is_batch_counter(name: str) -> bool:
    """Tell whether the state-dict name is a batch counter, which Paddle does not have."""
    return name.rpartition(".")[2] == BATCH_COUNTER


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
