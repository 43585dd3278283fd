"""What the confusion matrix costs per 1024 x 2048 image of 19 classes.

    python -m benchmarks.metric --framework paddle
    python -m benchmarks.metric --framework torch --threads 2

ConfusionMatrix.update (for_*/metrics.py) on int64 class maps, as argmax and the loader give them,
against the operations that another device gets (host_view taken away) and against reading label
and prediction once (their sum by NumPy). All are measured in turn in every round. One framework
per process.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable

import numpy as np

from fake_data.rules import labels

CLASSES, VOID = 19, 255


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and clock seconds of one call."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def works(framework: str, size_hw: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    backend = importlib.import_module(f"for_{framework}.backend")
    metrics = importlib.import_module(f"for_{framework}.metrics")
    label = labels(0, 1, *size_hw, classes=CLASSES, void=0.05)
    rng = np.random.default_rng(0)
    wrong = rng.random(label.shape) < 0.2
    prediction = np.where(wrong | (label == VOID), rng.integers(0, CLASSES, label.shape), label)
    own, other = backend.to_tensor(prediction), backend.to_tensor(label)
    right = metrics.host_view

    def update() -> None:
        confusion.update(own, other)

    def update_as_on_a_device() -> None:
        metrics.host_view = lambda _tensor: None
        try:
            elsewhere.update(own, other)
        finally:
            metrics.host_view = right

    confusion = metrics.ConfusionMatrix(classes=CLASSES, ignore_index=VOID)
    elsewhere = metrics.ConfusionMatrix(classes=CLASSES, ignore_index=VOID)
    return {
        "sum of both maps": lambda: int(prediction.sum()) + int(label.sum()),
        "update": update,
        "update, device operations": update_as_on_a_device,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Confusion matrix per image.")
    parser.add_argument("--framework", choices=("paddle", "torch"), required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1, help="of CPU kernels (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds measured (default 15)")
    chosen = parser.parse_args()
    importlib.import_module(f"for_{chosen.framework}.backend").set_threads(chosen.threads)
    measured = works(chosen.framework, tuple(chosen.size))
    rounds = [
        {name: seconds(work) for name, work in measured.items()} for _ in range(chosen.rounds + 1)
    ]
    h, w = chosen.size
    print(f"{chosen.framework}, {h} x {w}, {CLASSES} classes, {chosen.threads} thread(s)")
    for name in measured:
        # the first round warms up
        cpu = [found[name][0] * 1e3 for found in rounds[1:]]
        clock = [found[name][1] * 1e3 for found in rounds[1:]]
        print(
            f"{name:26s} CPU ms: median {statistics.median(cpu):.2f}, {min(cpu):.2f} to "
            f"{max(cpu):.2f}; clock: median {statistics.median(clock):.2f}, "
            f"{min(clock):.2f} at best"
        )


if __name__ == "__main__":
    main()
