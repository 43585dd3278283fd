"""Samples, batches and loaders: what the loop trains and validates on.

Which samples come in which order, and every random number of their augmentation, is decided in
common/; the framework's loader only spreads the work over processes and makes tensors.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from paddle.io import BatchSampler

from common.allocator import keep_freed_memory
from common.config_sections import DataConfig
from common.datasets import Sample, load_samples, read_sample
from common.errors import DataError, InputError, SampleError
from common.sampling import SampleKey, sample_rng, train_batches, val_batches
from common.transforms import Transform, train_transform, val_transform
from common.worker_signals import forking_workers, shield_worker
from for_paddle.loading import Loader, SampleDataset, framework_loader, from_array, on_device


class SegmentationDataset(SampleDataset):
    """Samples by (epoch, index): read, checked, transformed.

    The same key gives the same sample to the bit, whichever process asks.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        classes: int,
        ignore_index: int,
        transform: Transform,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self.classes = classes
        self.ignore_index = ignore_index
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Return image (3, H, W) float32, label (H, W) int64 and name.

        Raises:
            DataError: a file of the sample is missing or wrong, naming it.
        """
        sample = self.samples[key.index]
        image, label = read_sample(sample, classes=self.classes, ignore_index=self.ignore_index)
        image, label = self.transform(image, label, sample_rng(self.seed, key=key))
        return {"image": image, "label": label, "name": sample.name}


class ErrorsAsItems(SampleDataset):
    """A dataset whose errors travel to the training process like samples.

    An exception in Paddle's loader thread leaves the loop waiting for ever, or reaches it without
    its text; Torch's arrives wrapped in the worker's traceback. `Batches` raises the original.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Return the dataset's item, or {"error": text, "is_input_error": flag}.

        An error that is the user's also tells the sample's name and which file of it is wrong.
        """
        try:
            return self.dataset[key]
        except InputError as error:
            sample, text = self.dataset.samples[key.index], str(error)
            # the message begins with the file that is wrong
            files = [str(path) for path in (sample.label, sample.image)]
            file = next((path for path in files if text.startswith(path)), "")
            return {"error": text, "is_input_error": True, "sample": sample.name, "file": file}
        except Exception:
            return {"error": traceback.format_exc(), "is_input_error": False}


class KeyBatchSampler(BatchSampler):
    """Batches of sample keys, made anew for each pass of the loader."""

    def __init__(self, batches: Callable[[], Iterator[list[SampleKey]]], *, length: int) -> None:
        self.batches = batches
        self.length = length

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.batches()

    def __len__(self) -> int:
        return self.length


class Batches:
    """Iterates a loader; raises the error of a sample where the sample would have come."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield image (N, 3, H, W) float32 and label (N, H, W) int64 tensors, name list[str].

        Raises:
            DataError: a sample cannot be read (SampleError, which names it), or pictures differ in
                size.
            RuntimeError: any other error in a loader process, with its traceback.
        """
        with forking_workers():
            batches = iter(self.loader)
        for batch in batches:
            if "error" in batch:
                raise _error_of(batch)
            yield on_device(batch)


def _error_of(batch: dict[str, Any]) -> Exception:
    if not batch["is_input_error"]:
        return RuntimeError(batch["error"])
    if "sample" in batch:
        return SampleError(batch["error"], sample=batch["sample"], file=batch["file"])
    return DataError(batch["error"])


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the samples of a batch; the first error among them takes the place of the batch."""
    for item in items:
        if "error" in item:
            return {**item, "image": from_array(np.zeros(1, np.float32))}
    sizes = {item["label"].shape for item in items}
    if len(sizes) > 1:
        names = ", ".join(f"{item['name']} {item['label'].shape}" for item in items)
        error = f"pictures of different sizes in one batch ({names}); use batch size 1"
        return {
            "error": error,
            "is_input_error": True,
            "image": from_array(np.zeros(1, np.float32)),
        }
    return {
        "image": from_array(np.stack([item["image"] for item in items])),
        "label": from_array(np.stack([item["label"] for item in items])),
        "name": [item["name"] for item in items],
    }


def start_worker(worker_id: int) -> None:  # noqa: ARG001 - the signature both loaders call
    """Keep OpenCV to one thread per loader process, and the memory it frees.

    The processes are the parallelism; every sample needs the same large arrays again.
    """
    cv2.setNumThreads(0)
    shield_worker()
    keep_freed_memory()


def train_loader(
    data: DataConfig,
    *,
    classes: int,
    seed: int,
    iterations: int,
    start_iteration: int = 0,
    world_size: int = 1,
    rank: int = 0,
    workers: int | None = None,
) -> Batches:
    """Return this rank's training batches of iterations start_iteration .. iterations - 1.

    Args:
        data: data set, augmentation, batch size per rank.
        classes: number of classes; labels beyond are an error.
        seed: of order and augmentation.
        iterations: of the whole run.
        start_iteration: where a resumed run goes on.
        world_size: number of ranks.
        rank: this process.
        workers: loader processes; None takes data.workers.

    Raises:
        DataError: the data set is not as described.
    """
    dataset = SegmentationDataset(
        load_samples(data, "train"),
        classes=classes,
        ignore_index=data.ignore_index,
        transform=train_transform(data),
        seed=seed,
    )
    batches = partial(
        train_batches,
        len(dataset),
        batch_size=data.batch_size,
        world_size=world_size,
        rank=rank,
        seed=seed,
        start_iteration=start_iteration,
        iterations=iterations,
    )
    sampler = KeyBatchSampler(batches, length=iterations - start_iteration)
    return _batches(dataset, sampler, workers=data.workers if workers is None else workers)


def val_loader(
    data: DataConfig,
    *,
    classes: int,
    batch_size: int = 1,
    world_size: int = 1,
    rank: int = 0,
    workers: int | None = None,
) -> Batches:
    """Return this rank's part of the validation set, in order, each sample on exactly one rank.

    Args:
        data: data set and normalisation.
        classes: number of classes; labels beyond are an error.
        batch_size: pictures per batch; more than one needs pictures of one size.
        world_size: number of ranks.
        rank: this process.
        workers: loader processes; None takes data.workers.

    Raises:
        DataError: the data set is not as described.
    """
    dataset = SegmentationDataset(
        load_samples(data, "val"),
        classes=classes,
        ignore_index=data.ignore_index,
        transform=val_transform(data),
    )
    batches = partial(
        val_batches, len(dataset), batch_size=batch_size, world_size=world_size, rank=rank
    )
    sampler = KeyBatchSampler(batches, length=sum(1 for _ in batches()))
    return _batches(dataset, sampler, workers=data.workers if workers is None else workers)


def _batches(dataset: SegmentationDataset, sampler: KeyBatchSampler, *, workers: int) -> Batches:
    loader = framework_loader(
        ErrorsAsItems(dataset),
        batch_sampler=sampler,
        collate_fn=collate,
        worker_init_fn=start_worker,
        workers=workers,
    )
    return Batches(loader)
