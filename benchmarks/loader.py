"""How much a training sample costs beyond the bare decoding of its two files.

    python -m benchmarks.loader --config configs/bisenetv2_cityscapes.yml
    python -m benchmarks.loader --config configs/bisenetv2_camvid.yml --data CAMVID --crop 360 480

Bare decode: cv2.imread of the picture and of the label. Loader: the same files read, checked and
mapped (common/datasets.py) and augmented to a training sample (common/transforms.py), as a loader
process does it, one OpenCV thread. Both are measured in turn on every file, several times; the
ratio is bare decode / loader (1: the augmentation is free) of CPU seconds, which other load on the
machine distorts less than the clock. Without --data, synthetic scenes of 1024 x 2048 are made.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2

from common.allocator import keep_freed_memory
from common.config import load_config
from common.config_sections import DataConfig
from common.datasets import Sample, load_samples, read_sample
from common.sampling import SampleKey, sample_rng
from common.transforms import train_transform
from fake_data.scenes import generate

SYNTHETIC_HW = (1024, 2048)


@dataclass
class Seconds:
    """CPU and clock seconds of one sample."""

    cpu: float
    clock: float


def measured(work: Callable[[], object]) -> Seconds:
    """Return what one call costs."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return Seconds(time.process_time() - cpu, time.perf_counter() - clock)


def decode(sample: Sample) -> None:
    """Decode both files with OpenCV, nothing else."""
    if cv2.imread(str(sample.image), cv2.IMREAD_COLOR) is None:
        raise SystemExit(f"{sample.image}: cannot be decoded")
    if cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED) is None:
        raise SystemExit(f"{sample.label}: cannot be decoded")


def rounds(
    samples: list[Sample], data: DataConfig, *, classes: int, count: int
) -> list[tuple[Seconds, Seconds]]:
    """Return (bare decode, loader) per image of every round, measured in turn on each sample."""
    transform = train_transform(data)

    def load(index: int, epoch: int) -> None:
        image, label = read_sample(samples[index], classes=classes, ignore_index=data.ignore_index)
        transform(image, label, sample_rng(0, key=SampleKey(epoch, index)))

    results: list[tuple[Seconds, Seconds]] = []
    for epoch in range(count + 1):
        bare, loader = Seconds(0, 0), Seconds(0, 0)
        for index, sample in enumerate(samples):
            works = [
                (bare, lambda sample=sample: decode(sample)),
                (loader, lambda index=index, epoch=epoch: load(index, epoch)),
            ]
            # neither always finds the file in the processor's cache
            for total, work in works if (index + epoch) % 2 else reversed(works):
                took = measured(work)
                total.cpu += took.cpu / len(samples)
                total.clock += took.clock / len(samples)
        # the first round warms up
        if epoch:
            results.append((bare, loader))
    return results


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Loader against bare decode.")
    parser.add_argument("--config", type=Path, required=True, help="configuration (YAML)")
    parser.add_argument("--data", type=Path, help="data root; default: synthetic scenes")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="crop in pixels")
    parser.add_argument("--samples", type=int, default=16, help="files used (default 16)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds measured (default 7)")
    chosen = parser.parse_args()
    # as start_worker in for_*/data.py
    cv2.setNumThreads(0)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        root = chosen.data or generate(
            Path(folder) / "scenes", train=chosen.samples, val=0, size_hw=SYNTHETIC_HW
        )
        config = load_config(chosen.config)
        changes: dict[str, object] = {"root": root}
        if chosen.crop:
            changes["crop_hw"] = tuple(chosen.crop)
        data = config.data.model_copy(update=changes)
        samples = load_samples(data, "train")
        samples = samples[:: max(len(samples) // chosen.samples, 1)][: chosen.samples]
        results = rounds(samples, data, classes=config.model.classes, count=chosen.rounds)
    ratios = [bare.cpu / loader.cpu for bare, loader in results]
    bare_ms = statistics.median(bare.cpu for bare, _ in results) * 1e3
    loader_ms = statistics.median(loader.cpu for _, loader in results) * 1e3
    fastest = min(loader.clock for _, loader in results)
    print(f"{chosen.config.stem}, crop {data.crop_hw[0]} x {data.crop_hw[1]}, {len(samples)} files")
    print(f"bare decode {bare_ms:.2f} ms, loader {loader_ms:.2f} ms of CPU per image")
    print(f"{1e3 / loader_ms:.1f} images per CPU second; by the clock {1 / fastest:.1f} at best")
    print(
        f"bare decode / loader: median {statistics.median(ratios):.3f}, "
        f"{min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} rounds"
    )


if __name__ == "__main__":
    main()
