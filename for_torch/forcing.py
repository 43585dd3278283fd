"""Teacher forcing: one pass in which every layer works on the reference's numbers.

A network is cut at every call of a layer, at what the call is given and at what it returns. In a
recording pass the pieces stay joined, and the values at the cuts are written down, with the
gradients there. In a forced pass each piece starts from the reference's values and, backwards, from
the reference's gradients: what it computes differs only where the piece itself is wrong. The piece
of a layer with sub-layers is its own arithmetic between their calls; that of the network itself has
the empty name.

Keys: ``input/<call>/<position>`` and ``output/<call><part>``, where a call is a layer's name, from
the second on with "#1", "#2", ..., and a part ".key" or ".0", as in backend.capture_outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from for_torch.backend import has_graph, leaf_tensor, to_numpy, to_tensor

Array = NDArray[Any]
Hook = Callable[..., Any]


class Trace:
    """What a pass through a network computed at its cuts.

    Attributes:
        values: key -> what was handed over there, in the order of the calls. In a forced pass it
            is what the piece itself computed; the reference's array itself where nothing differs.
        callers: call -> the call that made it; the network's own calls are made by "".
        arguments: call -> position -> what it was given besides tensors.
    """

    def __init__(self, reference: Mapping[str, Array] | None, *, graph: bool) -> None:
        self.reference, self.graph = reference, graph
        self.values: dict[str, Array] = {}
        self.callers: dict[str, str] = {}
        self.arguments: dict[str, dict[str, Any]] = {}
        self._gradients: dict[str, Array] = {}
        self._cuts: dict[str, tuple[Tensor, Tensor]] = {}
        self._calls: dict[str, int] = {}
        self._open: list[str] = []
        # what a layer returned is handed to the next as it is: one array for both keys
        self._known: dict[int, tuple[Tensor, Array]] = {}

    def entering(self, name: str) -> Hook:
        """Return the hook of a layer that is about to be called."""

        def hook(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            number = self._calls.get(name, 0)
            self._calls[name] = number + 1
            call = f"{name}#{number}" if number else name
            self.callers[call] = self._open[-1] if self._open else ""
            self._open.append(call)
            self.arguments[call] = {
                str(i): value for i, value in enumerate(inputs) if not isinstance(value, Tensor)
            }
            return tuple(self._cut(f"input/{call}/{i}", value) for i, value in enumerate(inputs))

        return hook

    def leaving(self) -> Hook:
        """Return the hook of a layer that has been called."""

        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> Any:
            key = f"output/{self._open.pop()}"
            if isinstance(output, Mapping):
                return {part: self._cut(f"{key}.{part}", value) for part, value in output.items()}
            if isinstance(output, (tuple, list)):
                return tuple(self._cut(f"{key}.{part}", value) for part, value in enumerate(output))
            return self._cut(key, output)

        return hook

    def _cut(self, key: str, tensor: Any) -> Any:
        """Write down what is handed over, and hand over the reference's in its place."""
        if not isinstance(tensor, Tensor):
            return tensor
        own = self._array(tensor)
        wanted = None if self.reference is None else self.reference.get(key)
        if wanted is not None:
            wanted = wanted if wanted.dtype == own.dtype else wanted.astype(own.dtype)
            own = wanted if np.array_equal(own, wanted) else own
        self.values[key] = own
        if own.dtype.kind != "f":
            return tensor
        handed = self._joined(key, tensor) if wanted is None else self._split(key, tensor, wanted)
        self._known[id(handed)] = (handed, own if wanted is None else wanted)
        return handed

    def _array(self, tensor: Tensor) -> Array:
        """Return the tensor's values; as the same array again, where they are still the same."""
        array = to_numpy(tensor)
        known = self._known.get(id(tensor))
        return known[1] if known is not None and np.array_equal(array, known[1]) else array

    def _joined(self, key: str, tensor: Tensor) -> Tensor:
        """Return the tensor; if it has a gradient, a copy where this call's alone arrives."""
        if not (self.graph and has_graph(tensor)):
            return tensor
        handed = tensor.clone()

        def keep(gradient: Tensor) -> None:
            self._gradients[key] = to_numpy(gradient)

        handed.register_hook(keep)
        return handed

    def _split(self, key: str, tensor: Tensor, wanted: Array) -> Tensor:
        """Return the reference's values, where the graph starts anew."""
        if not self.graph:
            return to_tensor(wanted)
        leaf = leaf_tensor(wanted)
        self._cuts[key] = (tensor, leaf)
        # not the leaf itself: a layer may work in place
        return leaf.clone()

    def with_reference_gradients(self, total: Tensor) -> Tensor:
        """Return a loss of the same value that starts every piece from the reference's gradient.

        Only a forced pass needs it: its pieces are joined by nothing.

        Args:
            total: the loss, a scalar, from the network's (forced) outputs.
        """
        for key, (own, _) in self._cuts.items():
            gradient = (self.reference or {}).get(f"gradient/{key}")
            if gradient is None or not has_graph(own) or tuple(own.shape) != gradient.shape:
                continue
            piece = (own * to_tensor(gradient.astype(self.values[key].dtype))).sum()
            total = total + (piece - piece.detach())
        return total

    def gradients(self) -> dict[str, Array]:
        """Return the gradients that arrived at the cuts: ``gradient/<key>`` -> array."""
        found = dict(self._gradients)
        for key, (_, leaf) in self._cuts.items():
            if leaf.grad is not None:
                found[key] = to_numpy(leaf.grad)
        return {f"gradient/{key}": array for key, array in found.items()}


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every layer by its name, the network itself first, as ""."""
    return {"": model} | {name: layer for name, layer in model.named_modules() if name}


@contextmanager
def traced(
    model: nn.Module, *, reference: Mapping[str, Array] | None = None, graph: bool
) -> Generator[Trace, None, None]:
    """Cut the network at its layers' calls while the context lasts.

    Args:
        model: the network; hooks are put on it and taken off.
        reference: values and gradients by key (a recording's ``values`` and ``gradients``), cast to
            the network's dtype; what is not in it is not forced. None records.
        graph: True for a pass whose gradients are wanted.

    Yields:
        The trace, filled by the next forward pass (one only) and by its backward pass.
    """
    trace = Trace(reference, graph=graph)
    handles = [
        handle
        for name, layer in named_layers(model).items()
        for handle in (
            layer.register_forward_pre_hook(trace.entering(name)),
            layer.register_forward_hook(trace.leaving()),
        )
    ]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
