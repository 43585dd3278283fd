"""What hard example mining costs beyond plain cross entropy, forward and backward.

    python -m benchmarks.ohem --framework paddle
    python -m benchmarks.ohem --framework torch --size 512 1024 --threads 2

Plain: the framework's own cross_entropy, mean over the valid pixels. OHEM: for_*/losses.py. "hard"
logits have more hard pixels than the minimum, "easy" ones fewer, so that the hardest are looked
for. All are measured in turn in every round; the ratio is OHEM / plain of CPU seconds, which other
load on the machine distorts less than the clock. One framework per process.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fake_data.rules import labels

CLASSES, VOID = 19, 255
RULES = ("valid_fraction", "pixel_fraction", "min_kept")
# what is added to the logit of the label: few pixels are hard, or nearly none
BOOST = {"hard": 2.0, "easy": 12.0}


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and clock seconds of one call."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def step(criterion: Callable[[Any, Any], Any], logits: Any, target: Any) -> None:
    """Go forward and backward once."""
    logits.grad = None
    criterion(logits, target).backward()


def works(framework: str, size_hw: tuple[int, int]) -> dict[str, Callable[[], object]]:
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
    found: dict[str, Callable[[], object]] = {}
    for regime, boost in BOOST.items():
        leaf = backend.leaf_tensor(noise + np.float32(boost) * own)
        for name, criterion in criteria.items():
            found[f"{regime} {name}"] = functools.partial(step, criterion, leaf, target)
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="OHEM against plain cross entropy.")
    parser.add_argument("--framework", choices=("paddle", "torch"), required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1, help="of CPU kernels (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds measured (default 9)")
    chosen = parser.parse_args()
    importlib.import_module(f"for_{chosen.framework}.backend").set_threads(chosen.threads)
    measured = works(chosen.framework, tuple(chosen.size))
    names = list(measured)
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(chosen.rounds + 1):
        order = names if number % 2 else names[::-1]
        rounds.append({name: seconds(measured[name]) for name in order})
    # the first round warms up
    del rounds[0]
    h, w = chosen.size
    print(f"{chosen.framework}, logits (2, {CLASSES}, {h}, {w}), {chosen.threads} thread(s)")
    for name in names:
        regime, _, criterion = name.partition(" ")
        milliseconds = statistics.median(found[name][0] for found in rounds) * 1e3
        clock = min(found[name][1] for found in rounds) * 1e3
        line = f"{regime} {criterion:15s} {milliseconds:7.2f} ms of CPU, clock {clock:.2f} at best"
        if criterion != "plain":
            ratios = [found[name][0] / found[f"{regime} plain"][0] for found in rounds]
            line += f"; / plain: median {statistics.median(ratios):.3f}, "
            line += f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(line)


if __name__ == "__main__":
    main()
