"""What a training asks of the machine it runs on: free to differ."""

from __future__ import annotations

import os
import resource
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def set_deterministic(enabled: bool) -> None:
    """Take only kernels with the same result on every run, as far as Torch has them.

    Where it has none (the gradient of some bilinear resizes on a GPU) Torch warns and goes on.
    """
    if enabled:
        # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    torch.backends.cudnn.deterministic = enabled
    # trying out kernels pays for crops of one size, but may choose another one on the next run
    torch.backends.cudnn.benchmark = not enabled


def to_channels_last(model: Model) -> tuple[Model, str]:
    """Lay the weights of convolutions out as NHWC; return the model and a warning, "" for none."""
    # a documented form that the stubs lack
    return model.to(memory_format=torch.channels_last), ""  # pyright: ignore[reportCallIssue]


def prepare_image(image: Tensor, *, dtype: str, channels_last: bool) -> Tensor:
    """Return (N, 3, H, W) in the dtype ("float32", "float64") and memory layout of the network."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return image.to(getattr(torch, dtype)).contiguous(memory_format=layout)


def peak_memory_mib(device: str) -> float:
    """Return the most memory used so far, MiB: of the GPU, or of this process."""
    if device == "gpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_name(device: str) -> str:
    """Return "cpu", or the GPU's name."""
    return torch.cuda.get_device_name() if device == "gpu" else "cpu"
