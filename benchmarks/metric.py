"""What the confusion matrix costs per 1024 x 2048 image of 19 classes.

    python -m benchmarks.metric --framework paddle
    python -m benchmarks.metric --framework torch --threads 2

ConfusionMatrix.update (for_*/metrics.py) on int64 class maps, as argmax and the loader give them,
against the operations that another device gets and against reading label and prediction once (their
sum by NumPy). All are measured by turns. One framework per process.
"""

from __future__ import annotations

import importlib

import numpy as np

from benchmarks.rounds import Work, by_turns, cpu_text, parse
from fake_data.rules import labels

CLASSES, VOID = 19, 255


def works(framework: str, size_hw: tuple[int, int]) -> dict[str, Work]:
    """Return what is measured, by name."""
    backend = importlib.import_module(f"for_{framework}.backend")
    metrics = importlib.import_module(f"for_{framework}.metrics")
    label = labels(0, 1, *size_hw, classes=CLASSES, void=0.05)
    rng = np.random.default_rng(0)
    wrong = rng.random(label.shape) < 0.2
    prediction = np.where(wrong | (label == VOID), rng.integers(0, CLASSES, label.shape), label)
    own, other = backend.to_tensor(prediction), backend.to_tensor(label)
    confusion = metrics.ConfusionMatrix(classes=CLASSES, ignore_index=VOID)
    elsewhere = metrics.ConfusionMatrix(classes=CLASSES, ignore_index=VOID, host_counts=False)
    return {
        "sum of both maps": lambda: int(prediction.sum()) + int(label.sum()),
        "update": lambda: confusion.update(own, other),
        "update, device operations": lambda: elsewhere.update(own, other),
    }


def main() -> None:
    """Run the command line."""
    chosen = parse("Confusion matrix per image.", size_hw=(1024, 2048), rounds=15)
    measured = by_turns(works(chosen.framework, chosen.size_hw), rounds=chosen.rounds)
    h, w = chosen.size_hw
    print(f"{chosen.framework}, {h} x {w}, {CLASSES} classes, {chosen.threads} thread(s)")
    for name, own in measured.items():
        print(f"{name:26s} {cpu_text(own)}")


if __name__ == "__main__":
    main()
