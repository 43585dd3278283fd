"""The data probe: samples after every transform, and the loader's batches in their order."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from common import sampling
from common.config import Config
from common.config_sections import DataConfig
from common.datasets import Split, load_samples
from pipeline.cases import Array, Case, Part, prefixed

TRACED_SAMPLES = 3
TRACED_EPOCHS = 2
LOADERS = ((1, 0, 0), (1, 0, 1), (1, 0, 3), (2, 0, 1), (2, 1, 1))
"""(world size, rank, workers) of the loaders whose batches are recorded."""
LOADED_ITERATIONS = 6
PADDED_CROP_HW = (512, 320)
"""A crop larger than the picture: it takes the padding branch, which the small crop never does."""


def small_data(config: Config) -> DataConfig:
    """Return the recipe's data section with the verification's crop and batch."""
    verify = config.verify
    return config.data.model_copy(
        update={"crop_hw": verify.train_crop_hw, "batch_size": verify.train_batch_size}
    )


def data_key(case: Case) -> str:
    """Return a text of all that the probe depends on, besides the side and the data's files.

    Configurations that agree in it have the same record.
    """
    config = case.config
    data = small_data(config).model_dump(mode="json", exclude={"workers"})
    return json.dumps([data, config.model.classes, config.verify.seed], sort_keys=True)


def probe_data(side: Any, case: Case) -> Iterator[Part]:
    """Record samples after every transform, and the loader's batches in their order."""
    data = small_data(case.config)
    padded = data.model_copy(update={"crop_hw": PADDED_CROP_HW})
    arrays = _traces(side, case, padded, split="train", prefix="train_padded")
    for split in ("train", "val"):
        arrays |= _traces(side, case, data, split=split, prefix=split)
    arrays |= _train_batches(side, case, data)
    arrays |= _val_batches(side, case, data)
    yield "", arrays


def _traces(
    side: Any, case: Case, data: DataConfig, *, split: Split, prefix: str
) -> dict[str, Array]:
    """Record the first samples as read, after each transform, and as the dataset returns them."""
    make = side.data.train_transform if split == "train" else side.data.val_transform
    transform = make(data)
    classes, ignore, seed = case.config.model.classes, data.ignore_index, case.config.verify.seed
    dataset = side.data.SegmentationDataset(
        load_samples(data, split)[:TRACED_SAMPLES],
        classes=classes,
        ignore_index=ignore,
        transform=transform,
        seed=seed,
    )
    arrays: dict[str, Array] = {}
    for epoch in range(TRACED_EPOCHS if split == "train" else 1):
        for index, sample in enumerate(dataset.samples):
            where = f"{prefix}/epoch{epoch}/sample{index}"
            key = sampling.SampleKey(epoch, index)
            image, label = side.data.read_sample(sample, classes=classes, ignore_index=ignore)
            rng = side.data.sample_rng(seed, key=key)
            stages = [("read", image, label), *transform.trace(image, label, rng)]
            item = dataset[key]
            stages.append(("dataset", item["image"], item["label"]))
            for position, (stage, image, label) in enumerate(stages):
                arrays[f"{where}/{position}_{stage}/image"] = image
                arrays[f"{where}/{position}_{stage}/label"] = label
    return arrays


def _train_batches(side: Any, case: Case, data: DataConfig) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for world_size, rank, workers in LOADERS:
        batch_size = data.batch_size // world_size
        loader = side.data.train_loader(
            data.model_copy(update={"batch_size": batch_size}),
            classes=case.config.model.classes,
            seed=case.config.verify.seed,
            iterations=LOADED_ITERATIONS,
            world_size=world_size,
            rank=rank,
            workers=workers,
        )
        where = f"train_loader/world{world_size}/rank{rank}/workers{workers}"
        arrays |= prefixed(where, _checksums(side, loader))
    return arrays


def _val_batches(side: Any, case: Case, data: DataConfig) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for world_size, rank, workers in LOADERS[1:]:
        loader = side.data.val_loader(
            data,
            classes=case.config.model.classes,
            world_size=world_size,
            rank=rank,
            workers=workers,
        )
        where = f"val_loader/world{world_size}/rank{rank}/workers{workers}"
        arrays |= prefixed(where, _checksums(side, loader))
    return arrays


def _checksums(side: Any, loader: Any) -> dict[str, Array]:
    """Return names, pixel checksums and shapes of a loader's batches, one row per batch."""
    names: list[list[str]] = []
    pixels: list[list[int]] = []
    for batch in loader:
        arrays = [side.backend.to_numpy(batch[key]) for key in ("image", "label")]
        names.append(list(batch["name"]))
        pixels.append(
            [zlib.crc32(np.ascontiguousarray(a).tobytes()) for a in arrays]
            + [size for a in arrays for size in a.shape]
        )
    return {
        "names": np.array(names),
        "checksums": np.array(pixels, dtype=np.int64),
        "length": np.asarray(len(loader)),
    }
