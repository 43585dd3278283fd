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
import paddle
from numpy.typing import NDArray
from paddle import nn
from paddle.base import core
from paddle.nn import functional as F

from common.errors import InputError
from common.weight_names import paddle_to_canonical
from common.weights import check_names_and_shapes

NAME = "paddle"
Tensor: TypeAlias = paddle.Tensor


def versions() -> dict[str, str]:
    """Return the versions that the numbers of a run depend on."""
    return {
        "paddle": paddle.version.full_version,
        "numpy": np.__version__,
        "cv2": cv2.__version__,
        "python": platform.python_version(),
    }


def set_device(device: Literal["cpu", "gpu"]) -> None:
    """Put tensors and models made from now on there.

    Raises:
        InputError: "gpu" is asked for and there is none.
    """
    if device == "gpu" and not _gpu_is_present():
        raise InputError(
            "device is 'gpu', but paddle sees no CUDA device; install paddlepaddle-gpu and its "
            "driver, or use device 'cpu'"
        )
    paddle.device.set_device(device)


def set_default_dtype(dtype: Literal["float32", "float64"]) -> None:
    """Build models with parameters of this dtype from now on."""
    paddle.set_default_dtype(dtype)


def seed_everything(seed: int) -> None:
    """Seed the framework's generator, the only one that models draw from."""
    paddle.seed(seed)


def set_threads(count: int) -> None:
    """Let CPU kernels use this many threads."""
    core.set_num_threads(count)


def to_tensor(array: NDArray[Any]) -> Tensor:
    """Copy an array to the current device; the dtype is kept."""
    return paddle.to_tensor(array)


def leaf_tensor(array: NDArray[Any]) -> Tensor:
    """Copy an array to the current device, as a tensor that collects its gradient."""
    tensor = to_tensor(array)
    tensor.stop_gradient = False
    return tensor


def has_graph(tensor: Tensor) -> bool:
    """Tell whether a gradient can flow back into what the tensor was computed from."""
    return not tensor.stop_gradient


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor to the host, detached from the graph."""
    return np.array(tensor.detach().cpu().numpy())


def host_view(tensor: Tensor) -> NDArray[Any] | None:
    """Return a CPU tensor's values as an array, detached, without a copy where it can be.

    None for a tensor on another device. The array is for reading: it may share the memory.
    """
    if not tensor.place.is_cpu_place():
        return None
    tensor = tensor.detach()
    # numpy() copies: 7 ms for the labels of one Cityscapes frame. Paddle 2.6 has nothing else
    return np.from_dlpack(tensor) if hasattr(tensor, "__dlpack__") else tensor.numpy()


def pixel_cross_entropy(logits: Tensor, label: Tensor, *, ignore_index: int) -> Tensor:
    """Return the (N, H, W) cross entropy of each pixel, 0 where the label is ignore_index.

    Args:
        logits: (N, C, H, W) floating point.
        label: (N, H, W) int64, 0..C-1 or ignore_index.
        ignore_index: label value of void pixels.
    """
    return F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none", axis=1)


def count_values(index: Tensor, *, size: int) -> Tensor:
    """Return how often each value occurs, (size,) int64, without waiting for the device.

    Args:
        index: integer values in 0..size-1, any shape.
        size: number of values. bincount would ask the device for the largest.
    """
    index = index.flatten().astype(paddle.int64)
    counts = paddle.zeros([size], dtype=paddle.int64)
    return paddle.scatter_nd_add(counts, index.unsqueeze(1), paddle.ones_like(index))


def state_arrays(model: nn.Layer) -> dict[str, NDArray[Any]]:
    """Return copies of all parameters and buffers: canonical name -> array, in model order."""
    return _canonical_arrays(model, _state(model))


def load_arrays(model: nn.Layer, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Set every parameter and buffer, cast to the model's dtype.

    Args:
        model: the model to fill.
        arrays: canonical name -> array; batch counters (num_batches_tracked) are passed over.

    Raises:
        WeightsError: names missing, left over or with another shape; all are listed, and the
            model is left as it was.
    """
    state, turned = _state(model), _linear_weights(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_names_and_shapes({n: s[::-1] if n in turned else s for n, s in shapes.items()}, arrays)
    for name, tensor in state.items():
        array = np.asarray(arrays[name], dtype=tensor.numpy().dtype)
        tensor.set_value(array.T if name in turned else array)


def trainable_parameters(model: nn.Layer) -> dict[str, Tensor]:
    """Return the parameters that training changes: canonical name -> tensor, in model order."""
    # Paddle lists the running statistics as parameters too, with stop_gradient
    return {
        paddle_to_canonical(name): tensor
        for name, tensor in model.named_parameters()
        if not tensor.stop_gradient
    }


def gradients(model: nn.Layer) -> dict[str, NDArray[Any]]:
    """Return copies of all gradients; a parameter that has none is absent."""
    found = {
        name: tensor.grad
        for name, tensor in trainable_parameters(model).items()
        if tensor.grad is not None
    }
    return _canonical_arrays(model, found)


def set_gradients(model: nn.Layer, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give parameters their gradients: canonical name -> array; the others keep theirs."""
    parameters, turned = trainable_parameters(model), _linear_weights(model)
    for name, array in arrays.items():
        parameters[name].grad = to_tensor(array.T if name in turned else array)


def clear_gradients(model: nn.Layer) -> None:
    """Let the next backward pass start anew; what is left of a gradient is zero or absent."""
    for parameter in model.parameters():
        # Layer.clear_gradients has no set_to_zero in Paddle 2.6
        parameter.clear_gradient(set_to_zero=False)


def layers_of(model: nn.Layer, kind: type) -> list[str]:
    """Return the names of all layers of a class, in model order."""
    return [name for name, layer in model.named_sublayers() if isinstance(layer, kind)]


DROPOUTS = (nn.Dropout, nn.Dropout2D, nn.Dropout3D, nn.AlphaDropout)


def disable_dropout(model: nn.Layer) -> None:
    """Let every dropout layer pass its input: the frameworks' generators can never agree."""
    for layer in model.sublayers():
        if isinstance(layer, DROPOUTS):
            layer.p = 0.0


def dropout_options(model: nn.Layer) -> dict[str, dict[str, float]]:
    """Return what the dropout layers do, by name: all that can be compared of them.

    Per layer: p, the probability of a zero; whole_maps, 1 where it takes whole channels; and
    eval_scale, by which it multiplies in evaluation.
    """
    return {
        name: {
            "p": float(layer.p),
            "whole_maps": float(isinstance(layer, nn.Dropout2D | nn.Dropout3D)),
            # the mode of Paddle's alone that changes an evaluation
            "eval_scale": 1.0 - layer.p
            if getattr(layer, "mode", "") == "downscale_in_infer"
            else 1.0,
        }
        for name, layer in model.named_sublayers()
        if isinstance(layer, DROPOUTS)
    }


@contextmanager
def capture_outputs(model: nn.Layer) -> Generator[dict[str, NDArray[Any]], None, None]:
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
    model: nn.Layer, visit: Callable[[str, Tensor], None]
) -> Generator[None, None, None]:
    """Call visit(key, tensor) for what every named sub-layer returns while the context lasts.

    Keys are those of capture_outputs; nothing is kept.
    """
    with _hooked(model, visit):
        yield


@contextmanager
def capture_gradients(model: nn.Layer) -> Generator[dict[str, NDArray[Any]], None, None]:
    """Record the gradient at every named sub-layer's output, for forward passes in the context.

    Yields:
        The keys of capture_outputs -> array, filled by backward in its own order. An output that
        the loss does not depend on is absent.
    """
    recorded: dict[str, NDArray[Any]] = {}

    def record(key: str, tensor: Tensor) -> None:
        def keep(gradient: Tensor) -> None:
            recorded[key] = to_numpy(gradient)

        if not tensor.stop_gradient:
            tensor.register_hook(keep)

    with _hooked(model, record):
        yield recorded


def no_grad() -> AbstractContextManager[None]:
    """Return a context in which no graph is recorded."""
    return paddle.no_grad()


def _state(model: nn.Layer) -> dict[str, Tensor]:
    return {paddle_to_canonical(name): tensor for name, tensor in model.state_dict().items()}


def _linear_weights(model: nn.Layer) -> set[str]:
    """Canonical names of the weights that Paddle lays out as (in, out), Torch as (out, in)."""
    return {
        f"{name}.weight" if name else "weight"
        for name, layer in model.named_sublayers(include_self=True)
        if isinstance(layer, nn.Linear)
    }


def _canonical_arrays(model: nn.Layer, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    turned = _linear_weights(model)
    arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
    return {n: np.ascontiguousarray(a.T) if n in turned else a for n, a in arrays.items()}


def _gpu_is_present() -> bool:
    return paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


@contextmanager
def _hooked(model: nn.Layer, record: Any) -> Generator[None, None, None]:
    calls: dict[str, int] = {}

    def hook_for(name: str) -> Any:
        def hook(_layer: nn.Layer, _inputs: Any, output: Any) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            key = f"{name}#{call}" if call else name
            for suffix, tensor in _parts(output):
                record(key + suffix, tensor)

        return hook

    handles = [
        layer.register_forward_post_hook(hook_for(name)) for name, layer in model.named_sublayers()
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
