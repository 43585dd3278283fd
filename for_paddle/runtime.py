"""What a training asks of the machine it runs on: free to differ."""

from __future__ import annotations

import resource
from typing import TypeVar

import paddle
from paddle import Tensor, nn

Model = TypeVar("Model", bound=nn.Layer)


def set_deterministic(enabled: bool) -> None:
    """Take only kernels with the same result on every run, as far as Paddle has them."""
    if paddle.device.is_compiled_with_cuda():
        paddle.set_flags(
            {
                "FLAGS_cudnn_deterministic": enabled,
                # trying out kernels may choose another one on the next run
                "FLAGS_cudnn_exhaustive_search": not enabled,
            }
        )


def to_channels_last(model: Model) -> tuple[Model, str]:
    """Return the model as it is, and why: Paddle fixes the layout where a layer is built."""
    return model, "train.channels_last has no effect: Paddle's layers are built for NCHW"


def prepare_image(image: Tensor, *, dtype: str, channels_last: bool) -> Tensor:
    """Return (N, 3, H, W) in the dtype ("float32", "float64"); the layout stays."""
    del channels_last
    return image.astype(dtype)


def peak_memory_mib(device: str) -> float:
    """Return the most memory used so far, MiB: of the GPU, or of this process."""
    if device == "gpu":
        return paddle.device.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_name(device: str) -> str:
    """Return "cpu", or the GPU's name."""
    return paddle.device.cuda.get_device_name() if device == "gpu" else "cpu"
