"""What the pipeline needs of a framework, and where Torch and Paddle are free to differ.

Same functions, arguments and meaning on both sides; arrays are numpy at every boundary, names are
canonical (common/weight_names.py).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from common.errors import InputError
from common.weight_names import is_batch_counter
from common.weights import check_names_and_shapes

NAME = "torch"
Tensor: TypeAlias = torch.Tensor


def versions() -> dict[str, str]:
    """Return the versions that the numbers of a run depend on."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "cv2": cv2.__version__,
        "python": platform.python_version(),
    }


def set_device(device: Literal["cpu", "gpu"]) -> None:
    """Put tensors and models made from now on there.

    Raises:
        InputError: "gpu" is asked for and there is none.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError(
            "device is 'gpu', but torch sees no CUDA device; install a CUDA build of torch and its "
            "driver, or use device 'cpu'"
        )
    # None is the CPU without the per-call hook that a set default device costs
    torch.set_default_device("cuda" if device == "gpu" else None)


def set_default_dtype(dtype: Literal["float32", "float64"]) -> None:
    """Build models with parameters of this dtype from now on."""
    torch.set_default_dtype({"float32": torch.float32, "float64": torch.float64}[dtype])


def seed_everything(seed: int) -> None:
    """Seed the framework's generator, the only one that models draw from."""
    torch.manual_seed(seed)


def set_threads(count: int) -> None:
    """Let CPU kernels use this many threads."""
    torch.set_num_threads(count)


def to_tensor(array: NDArray[Any]) -> Tensor:
    """Copy an array to the current device; the dtype is kept."""
    return torch.tensor(array)


def leaf_tensor(array: NDArray[Any]) -> Tensor:
    """Copy an array to the current device, as a tensor that collects its gradient."""
    return to_tensor(array).requires_grad_(True)


def has_graph(tensor: Tensor) -> bool:
    """Tell whether a gradient can flow back into what the tensor was computed from."""
    return tensor.requires_grad


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor to the host, detached from the graph."""
    return np.array(tensor.detach().cpu().numpy())


def host_view(tensor: Tensor) -> NDArray[Any] | None:
    """Return a CPU tensor's values as an array, detached, without a copy where it can be.

    None for a tensor on another device. The array is for reading: it may share the memory.
    """
    return tensor.detach().numpy() if tensor.device.type == "cpu" else None


def pixel_cross_entropy(logits: Tensor, label: Tensor, *, ignore_index: int) -> Tensor:
    """Return the (N, H, W) cross entropy of each pixel, 0 where the label is ignore_index.

    Args:
        logits: (N, C, H, W) floating point.
        label: (N, H, W) int64, 0..C-1 or ignore_index.
        ignore_index: label value of void pixels.
    """
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.float64):
        return F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")
    # Torch's CPU kernel takes seven times as long for the loss of each pixel as for their mean,
    # a third of the whole step; looked up in the flat map of scores, the bits are the same
    N, C, H, W = logits.shape
    pictures, pixels = (torch.arange(n, device=logits.device) for n in (N, H * W))
    places = label.clamp(0, C - 1).mul_(H * W).add_(pixels.view(H, W))
    places.add_((pictures * (C * H * W)).view(N, 1, 1))
    scores = F.log_softmax(logits, dim=1).reshape(-1)
    # a documented form that the stubs lack
    found: Any = _LookUp.apply(scores, places.view(-1), (label == ignore_index).view(-1))
    return found.view(N, H, W)


def count_values(index: Tensor, *, size: int) -> Tensor:
    """Return how often each value occurs, (size,) int64, without waiting for the device.

    Args:
        index: integer values in 0..size-1, any shape.
        size: number of values. bincount would ask the device for the largest.
    """
    index = index.flatten().to(torch.int64)
    counts = torch.zeros(size, dtype=torch.int64, device=index.device)
    return counts.scatter_add(0, index, torch.ones_like(index))


def state_arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of all parameters and buffers: canonical name -> array, in model order."""
    return {name: to_numpy(tensor) for name, tensor in _state(model).items()}


def load_arrays(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Set every parameter and buffer, cast to the model's dtype.

    Args:
        model: the model to fill.
        arrays: canonical name -> array; batch counters (num_batches_tracked) are passed over.

    Raises:
        WeightsError: names missing, left over or with another shape; all are listed, and the
            model is left as it was.
    """
    state = _state(model)
    check_names_and_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, arrays)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.tensor(arrays[name], dtype=tensor.dtype, device=tensor.device))


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that training changes: canonical name -> tensor, in model order."""
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def gradients(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of all gradients; a parameter that has none is absent."""
    return {
        name: to_numpy(tensor.grad)
        for name, tensor in trainable_parameters(model).items()
        if tensor.grad is not None
    }


def set_gradients(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give parameters their gradients: canonical name -> array; the others keep theirs."""
    parameters = trainable_parameters(model)
    for name, array in arrays.items():
        parameters[name].grad = to_tensor(array)


def clear_gradients(model: nn.Module) -> None:
    """Let the next backward pass start anew; what is left of a gradient is zero or absent."""
    model.zero_grad(set_to_none=True)


def layers_of(model: nn.Module, kind: type) -> list[str]:
    """Return the names of all layers of a class, in model order."""
    return [name for name, layer in model.named_modules() if isinstance(layer, kind)]


DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def disable_dropout(model: nn.Module) -> None:
    """Let every dropout layer pass its input: the frameworks' generators can never agree."""
    for layer in model.modules():
        if isinstance(layer, DROPOUTS):
            layer.p = 0.0


def dropout_options(model: nn.Module) -> dict[str, dict[str, float]]:
    """Return what the dropout layers do, by name: all that can be compared of them.

    Per layer: p, the probability of a zero; whole_maps, 1 where it takes whole channels; and
    eval_scale, by which it multiplies in evaluation.
    """
    return {
        name: {
            "p": float(layer.p),
            "whole_maps": float(isinstance(layer, nn.Dropout2d | nn.Dropout3d)),
            "eval_scale": 1.0,
        }
        for name, layer in model.named_modules()
        if isinstance(layer, DROPOUTS)
    }


@contextmanager
def capture_outputs(model: nn.Module) -> Generator[dict[str, NDArray[Any]], None, None]:
    """Record what every named sub-layer returns while the context lasts.

    Yields:
        Layer name -> array, in the order in which the layers return. A layer called again gets
        "#1", "#2", ...; the parts of a dict or tuple get ".key" or ".0".
    """
    outputs: dict[str, NDArray[Any]] = {}

    def record(key: str, tensor: Tensor) -> None:
        outputs[key] = to_numpy(tensor)

    with _hooked(model, record):
        yield outputs


@contextmanager
def visit_outputs(
    model: nn.Module, visit: Callable[[str, Tensor], None]
) -> Generator[None, None, None]:
    """Call visit(key, tensor) for what every named sub-layer returns while the context lasts.

    Keys are those of capture_outputs; nothing is kept.
    """
    with _hooked(model, visit):
        yield


@contextmanager
def capture_gradients(model: nn.Module) -> Generator[dict[str, NDArray[Any]], None, None]:
    """Record the gradient at every named sub-layer's output, for forward passes in the context.

    Yields:
        The keys of capture_outputs -> array, filled by backward in its own order. An output that
        the loss does not depend on is absent.
    """
    recorded: dict[str, NDArray[Any]] = {}

    def record(key: str, tensor: Tensor) -> None:
        def keep(gradient: Tensor) -> None:
            recorded[key] = to_numpy(gradient)

        if tensor.requires_grad:
            tensor.register_hook(keep)

    with _hooked(model, record):
        yield recorded


def no_grad() -> AbstractContextManager[None]:
    """Return a context in which no graph is recorded."""
    return torch.no_grad()


class _LookUp(torch.autograd.Function):
    """-scores[places], 0 where void; no place occurs twice, so its gradient is written, not added.

    That, and passing over the same pixels only once, is what Torch's own operations cannot know.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, places: Tensor, void: Tensor) -> Tensor:
        ctx.save_for_backward(places, void)
        ctx.count = len(scores)
        return scores.index_select(0, places).neg_().masked_fill_(void, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        places, void = ctx.saved_tensors
        own = gradient.neg().masked_fill_(void, 0.0)
        return gradient.new_zeros(ctx.count).scatter_(0, places, own), None, None


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in model.state_dict().items() if not is_batch_counter(name)
    }


@contextmanager
def _hooked(model: nn.Module, record: Any) -> Generator[None, None, None]:
    calls: dict[str, int] = {}

    def hook_for(name: str) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            key = f"{name}#{call}" if call else name
            for suffix, tensor in _parts(output):
                record(key + suffix, tensor)

        return hook

    handles = [
        layer.register_forward_hook(hook_for(name)) for name, layer in model.named_modules() if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(output: Any) -> list[tuple[str, Tensor]]:
    if isinstance(output, Mapping):
        return [(f".{key}", tensor) for key, tensor in output.items()]
    if isinstance(output, (tuple, list)):
        return [(f".{index}", tensor) for index, tensor in enumerate(output)]
    return [("", output)]
