"""What hard example mining costs beyond plain cross entropy, forward and backward.

    python -m benchmarks.ohem --framework paddle
    python -m benchmarks.ohem --framework torch --size 512 1024 --threads 2

Plain: the framework's own cross_entropy, mean over the valid pixels. OHEM: for_*/losses.py. "hard"
logits have more hard pixels than the minimum, "easy" ones fewer, so that the hardest are looked
for. All are measured by turns; the ratio is OHEM / plain of CPU seconds. One framework per process.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.rounds import Work, by_turns, cpu_text, parse, ratio_text
from fake_data.rules import labels

CLASSES, VOID = 19, 255
RULES = ("valid_fraction", "pixel_fraction", "min_kept")
# what is added to the logit of the label: few pixels are hard, or nearly none
BOOST = {"hard": 2.0, "easy": 12.0}


def step(criterion: Callable[[Any, Any], Any], logits: Any, target: Any) -> None:
    """Go forward and backward once."""
    logits.grad = None
    criterion(logits, target).backward()


def works(framework: str, size_hw: tuple[int, int]) -> dict[str, Work]:
    """Return what is measured, by name: "hard plain", "hard valid_fraction", ..."""
    backend = importlib.import_module(f"for_{framework}.backend")
    losses = importlib.import_module(f"for_{framework}.losses")
    functional = importlib.import_module(f"{framework}.nn.functional")
    axis = {"paddle": {"axis": 1}, "torch": {}}[framework]
    label = labels(0, 2, *size_hw, classes=CLASSES, void=0.05)
    noise = np.random.default_rng(0).standard_normal((2, CLASSES, *size_hw), dtype=np.float32)
    own = np.arange(CLASSES)[None, :, None, None] == label[:, None]
    target = backend.to_tensor(label)

    def plain(logits: Any, target: Any) -> Any:
        return functional.cross_entropy(logits, target, ignore_index=VOID, **axis)

    criteria: dict[str, Any] = {"plain": plain}
    for rule in RULES:
        criteria[rule] = losses.OhemCrossEntropy(rule=rule, ignore_index=VOID)
    found: dict[str, Work] = {}
    for regime, boost in BOOST.items():
        leaf = backend.leaf_tensor(noise + np.float32(boost) * own)
        for name, criterion in criteria.items():
            found[f"{regime} {name}"] = functools.partial(step, criterion, leaf, target)
    return found


def main() -> None:
    """Run the command line."""
    chosen = parse("OHEM against plain cross entropy.", size_hw=(256, 512), rounds=9)
    measured = by_turns(works(chosen.framework, chosen.size_hw), rounds=chosen.rounds)
    h, w = chosen.size_hw
    print(f"{chosen.framework}, logits (2, {CLASSES}, {h}, {w}), {chosen.threads} thread(s)")
    for name, own in measured.items():
        regime, _, criterion = name.partition(" ")
        print(f"{name:19s} {cpu_text(own)}")
        if criterion != "plain":
            print(f"{'':19s} / plain: {ratio_text(own, measured[f'{regime} plain'])}")


if __name__ == "__main__":
    main()
