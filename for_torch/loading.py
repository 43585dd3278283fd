"""How the framework's loader is made: where Torch and Paddle are free to differ."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

Loader: TypeAlias = DataLoader[dict[str, Any]]
SampleDataset: TypeAlias = Dataset[dict[str, Any]]


def from_array(array: np.ndarray) -> torch.Tensor:
    """Wrap an array in a loader process, where the default device must not be touched."""
    return torch.from_numpy(array)


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """Move a batch to the default device."""
    device = torch.empty(0).device
    image = batch["image"].to(device, non_blocking=True)
    label = batch["label"].to(device, non_blocking=True)
    return {"image": image, "label": label, "name": batch["name"]}


def framework_loader(
    dataset: SampleDataset,
    *,
    batch_sampler: BatchSampler,
    collate_fn: Callable[[list[dict[str, Any]]], dict[str, Any]],
    worker_init_fn: Callable[[int], None],
    workers: int,
) -> Loader:
    """Return the framework's loader; pinned memory only where a GPU copies from it."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate_fn,
        num_workers=workers,
        worker_init_fn=worker_init_fn,
        pin_memory=torch.empty(0).is_cuda,
    )
