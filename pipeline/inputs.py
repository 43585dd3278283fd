"""The steps' saved inputs: made once, before either side starts, and given to both.

A step never works on its side's own earlier output, so a difference stays in the step it arose in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.config import Config
from common.datasets import load_samples, read_sample
from common.files import file_digest
from common.sampling import SampleKey, sample_rng
from common.transforms import val_transform
from fake_data import tensors
from pipeline.records import Array, write_arrays

ODD_SIZES_HW = ((72, 104), (33, 65), (64, 33))
"""Sizes that are no multiple of 32: the reference fails on the first and changes the second; the
third is one in the width alone, which a padding must not take for a size that fits. A user's own
network may say that it takes multiples only."""
REAL_FRAMES = 2
"""Frames that are predicted when the data are real."""


def prepare_inputs(
    folder: Path, config: Config, *, steps: Sequence[str], real_frames: bool
) -> None:
    """Write ``folder/<step>.npz`` for every step that works on saved tensors.

    Args:
        folder: where the files go.
        config: sizes and seed (verify section), classes, data root for real frames.
        steps: names of the steps that will run.
        real_frames: the forward step gets whole frames of the validation set; else a generated one
            of half its size.
    """
    makers = {"forward": _forward, "backward": _backward, "loss": _loss, "metric": _metric}
    for step in steps:
        if step in makers:
            arrays = makers[step](config)
            # a run has always a data set (resolve_data); a probe by itself needs none
            if step == "forward" and config.data.root.is_dir():
                arrays |= _frames(config, real=real_frames)
            write_arrays(folder / f"{step}.npz", arrays)


DATA_STEPS = ("data", "training", "metric", "forward")
"""Steps that read samples of the data set."""
HASHED_BYTES = 1 << 30
"""Up to this size of a data set every byte is hashed, beyond it names and sizes."""


def data_digest(config: Config) -> str:
    """Return the sha256 over all samples of both splits: names, sizes, and contents if small."""
    samples = [sample for split in ("train", "val") for sample in load_samples(config.data, split)]
    files = [path for sample in samples for path in (sample.image, sample.label)]
    whole = sum(path.stat().st_size for path in files) <= HASHED_BYTES
    digest = hashlib.sha256()
    for sample in samples:
        for path in (sample.image, sample.label):
            content = file_digest(path) if whole else str(path.stat().st_size)
            digest.update(f"{sample.name} {path.name} {content}\n".encode())
    return digest.hexdigest()


def _batch(config: Config) -> dict[str, Array]:
    verify = config.verify
    H, W = verify.image_hw
    image, label = tensors.fixed_batch(
        verify.seed, n=verify.batch_size, h=H, w=W, classes=config.model.classes
    )
    return {"image": image, "label": _with_void(label, config)}


ROUNDING_DRAWS = 6
ROUNDING_HW = (32, 32)
"""Batches, and (H, W) of their images, on which a side measures its own float32 rounding."""


def _backward(config: Config) -> dict[str, Array]:
    arrays = _batch(config)
    verify = config.verify
    H, W = ROUNDING_HW
    for draw in range(ROUNDING_DRAWS):
        image, label = tensors.fixed_batch(
            verify.seed + 1 + draw, n=verify.batch_size, h=H, w=W, classes=config.model.classes
        )
        arrays |= {f"draw{draw}/image": image, f"draw{draw}/label": _with_void(label, config)}
    return arrays


def _forward(config: Config) -> dict[str, Array]:
    arrays: dict[str, Array] = {"image": _batch(config)["image"]}
    rng = np.random.default_rng([config.verify.seed, 1])
    pair = config.model.pair
    multiple = 1 if pair is None else pair.size_multiple
    for size in ODD_SIZES_HW:
        H, W = (-(-length // multiple) * multiple for length in size)
        arrays[f"odd{H}x{W}"] = rng.standard_normal((1, 3, H, W))
    return arrays


def _frames(config: Config, *, real: bool) -> dict[str, Array]:
    """Return validation frames; of a generated scene, whose pixels are smooth, every other one."""
    transform = val_transform(config.data)
    count, stride = (REAL_FRAMES, 1) if real else (1, 2)
    arrays: dict[str, Array] = {}
    for index, sample in enumerate(load_samples(config.data, "val")[:count]):
        image, label = read_sample(
            sample, classes=config.model.classes, ignore_index=config.data.ignore_index
        )
        rng = sample_rng(config.verify.seed, key=SampleKey(0, index))
        frame = transform(image, label, rng)[0][None, :, ::stride, ::stride]
        arrays[f"frame{index}"] = frame.astype(np.float64)
    return arrays


def _loss(config: Config) -> dict[str, Array]:
    verify = config.verify
    H, W = verify.image_hw
    arrays: dict[str, Array] = {}
    cases = tensors.loss_cases(
        verify.seed, n=verify.batch_size, classes=config.model.classes, h=H, w=W
    )
    for name, (logits, label) in cases.items():
        arrays |= {f"{name}/logits": logits, f"{name}/label": _with_void(label, config)}
    return arrays


def _metric(config: Config) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    cases = tensors.metric_cases(config.verify.seed, classes=config.model.classes)
    for name, (prediction, label) in cases.items():
        # one picture that stands for many is counted as often, not stored as often
        repeated = label.strides[0] == 0
        kept = slice(0, 1 if repeated else None)
        arrays |= {
            f"{name}/prediction": prediction[kept],
            f"{name}/label": _with_void(label[kept], config),
            f"{name}/repeats": np.asarray(len(label) if repeated else 1),
        }
    return arrays


def _with_void(label: Array, config: Config) -> Array:
    """Write void as the configuration's own value."""
    return np.where(label == tensors.VOID, config.data.ignore_index, label).astype(label.dtype)
