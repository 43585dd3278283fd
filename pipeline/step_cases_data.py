"""Failure cases of the data step: a sample after its first wrong transform, a loader's batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common.datasets import Split, load_samples
from common.errors import InputError
from pipeline.case_maker import CaseMaker
from pipeline.data_probe import PADDED_CROP_HW, small_data
from pipeline.failure import FailureCase
from pipeline.records import Array
from pipeline.verdicts import Row

_SAMPLE = re.compile(
    r"(?P<traced>\w+)/epoch(?P<epoch>\d+)/sample(?P<index>\d+)/(?P<position>\d+)_(?P<stage>\w+)/"
    r"(?P<what>image|label)"
)
_LOADER = re.compile(
    r"(?P<split>train|val)_loader/world(?P<world_size>\d+)/rank(?P<rank>\d+)/workers\d+/"
    r"(?P<what>names|checksums)"
)
LISTED_NAMES = 5000
"""Samples of a data set whose names a case holds at most."""


def data_cases(maker: CaseMaker, rows: Sequence[Row]) -> Iterator[FailureCase]:
    """Yield a case per kind of stage that is the first wrong one of its sample, then batches."""
    samples = [(row, found) for row in rows if (found := _SAMPLE.fullmatch(row.key))]
    first: dict[tuple[str, ...], int] = {}
    for _, found in samples:
        visit = found.group("traced", "epoch", "index")
        position = int(found["position"])
        first[visit] = min(first.get(visit, position), position)
    seen: set[tuple[str, ...]] = set()
    for row, found in samples:
        is_first = int(found["position"]) == first[found.group("traced", "epoch", "index")]
        kind = found.group("stage", "what")
        if is_first and kind not in seen:
            seen.add(kind)
            yield _sample_case(maker, row, found)
    loaders = [(row, found) for row in rows if (found := _LOADER.fullmatch(row.key))]
    orders = [(row, found) for row, found in loaders if found["what"] == "names"]
    for row, found in orders or ([] if samples else loaders):
        kind = found.group("split", "world_size", "what")
        if kind not in seen:
            seen.add(kind)
            yield _batch_case(maker, row, found)


def _sample_case(maker: CaseMaker, row: Row, found: re.Match[str]) -> FailureCase:
    folder, position = row.key.rsplit("/", 2)[0], int(found["position"])
    what, stage = found["what"], found["stage"]
    arrays: dict[str, Array] = {}
    before = f"{folder}/{position - 1}_"
    for key, array in maker.reference.items():
        if key.startswith(before) and key.endswith(f"/{what}"):
            arrays["previous"] = array
    data = maker.config.model_copy(update={"data": small_data(maker.config)})
    sections = CaseMaker(maker.result, maker.reference, maker.actual, maker.inputs, data).sections(
        "data"
    )
    if found["traced"] == "train_padded":
        sections["data"]["crop_hw"] = list(PADDED_CROP_HW)
    settings = sections | {
        "train": found["traced"].startswith("train"),
        "stage": stage,
        "epoch": int(found["epoch"]),
        "index": int(found["index"]),
        "seed": maker.config.verify.seed,
        "read_hw": list(maker.reference[f"{folder}/0_read/label"].shape),
    }
    where = (
        f"{what} of sample {found['index']} ({found['traced']}, epoch {found['epoch']}) "
        f"after {stage}"
    )
    name = f"{found['traced']} sample {found['index']}"
    return maker.case(row.key, "sample", name, where, arrays, settings)


def _batch_case(maker: CaseMaker, row: Row, found: re.Match[str]) -> FailureCase:
    split, world, rank = found["split"], int(found["world_size"]), int(found["rank"])
    arrays: dict[str, Array] = {}
    for key in maker.reference:
        other = _LOADER.fullmatch(key)
        same = other and other.group("split", "world_size", "what") == (split, *found.group(2, 4))
        if other and same and other["rank"] != found["rank"]:
            arrays[f"other/rank {other['rank']}"] = maker.reference[key]
    names = _names(maker, "train" if split == "train" else "val")
    if names is not None:
        arrays["names"] = names
    settings: dict[str, Any] = {
        "train": split == "train",
        "world_size": world,
        "rank": rank,
        "seed": maker.config.verify.seed,
    }
    where = f"{found['what']} of the {split} batches of rank {rank} of {world}"
    if row.first:
        where += f", from batch {row.first[0]} on"
    return maker.case(row.key, "batch", f"{split} loader", where, arrays, settings)


def _names(maker: CaseMaker, split: Split) -> Array | None:
    """Return the names of the split's samples in their order, or None if they cannot be had."""
    try:
        samples = load_samples(maker.config.data, split)
    except InputError:
        return None
    if len(samples) > LISTED_NAMES:
        return None
    return np.array([sample.name for sample in samples])
