"""How the framework's loader is made: where Torch and Paddle are free to differ."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from paddle.io import BatchSampler, DataLoader, Dataset

Loader: TypeAlias = DataLoader
if TYPE_CHECKING:
    SampleDataset: TypeAlias = Dataset[dict[str, Any]]
else:
    # Paddle 2.6's Dataset takes no type argument
    SampleDataset = Dataset


def from_array(array: np.ndarray) -> np.ndarray:
    """Pack an array for its way to the training process, where the loader makes it a tensor.

    Labels were bytes in their files and are bytes on the way: an eighth of what int64 would cost.
    """
    return array.astype(np.uint8) if array.dtype == np.int64 else array


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """Unpack a batch that the loader has put on the current device."""
    return {**batch, "label": batch["label"].astype("int64")}


def framework_loader(
    dataset: SampleDataset,
    *,
    batch_sampler: BatchSampler,
    collate_fn: Callable[[list[dict[str, Any]]], dict[str, Any]],
    worker_init_fn: Callable[[int], None],
    workers: int,
) -> Loader:
    """Return the framework's loader, without Paddle's shared memory.

    With it, the loader processes make Paddle tensors. Paddle 3.3.1 guards its memory statistics by
    a lock, and a thread of another loader may hold that lock at the moment of the fork: then the
    new process waits for ever (3 of 48 runs of the tests, 0 of 160 without). It would also need
    more than the 64 MiB of /dev/shm that containers have. The pipe takes two to three times as
    long: 0.4 s against 0.15 s for eight 1024x1024 crops with int64 labels, in the background.
    """
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate_fn,
        num_workers=workers,
        worker_init_fn=worker_init_fn,
        use_shared_memory=False,
    )
