"""Multi-scale evaluation in windows: our engine against the plain loop, in one process.

    python -m benchmarks.mscf --side torch --model bisenetv2 --size 512 1024 --threads 1
    python -m benchmarks.mscf --side paddle --crop 256 256 --scales 0.5 1
    python -m benchmarks.mscf --side torch --memory --size 1024 2048

The plain loop is the published one: one window at a time, its mirror image in a pass of its own,
softmax, sum, exponential, added in its place. It runs first as a process runs by default. Then what
`bisenet eval` does is switched on (freed memory is kept; convolutions in NHWC where the framework
has them), and the plain loop, given the kept memory too, and our engine run by turns. All give the
same scores, which is checked. CPU seconds, which other load on the machine distorts less than the
clock; with one thread they are the time.

The protocol fixes which pixels the network computes, so the network's own part of our time is a
bound: no engine that runs these passes in this framework is faster. --memory runs ours alone, once,
and tells the process's peak.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import statistics
from dataclasses import replace
from math import ceil
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.rounds import Seconds, Work, by_turns, ratio_text, seconds
from common.allocator import keep_freed_memory
from common.protocols import PROTOCOLS, Protocol
from fake_data import rules

MODULES = ("backend", "models", "evaluate", "layers", "runtime")


class Timed:
    """A network that adds up the seconds of its passes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cpu = 0.0

    def __call__(self, image: Any) -> Any:
        """Return what the network returns."""
        found: list[Any] = []
        self.cpu += seconds(lambda: found.append(self.model(image))).cpu
        return found[0]


def main() -> None:
    """Measure and print."""
    words = _parser().parse_args()
    modules = {m: importlib.import_module(f"for_{words.side}.{m}") for m in MODULES}
    side = SimpleNamespace(name=words.side, **modules)
    side.backend.set_threads(words.threads)
    # the sums of scores follow it
    os.environ["OMP_NUM_THREADS"] = str(words.threads)
    protocol = PROTOCOLS["mscf"]
    crop_hw, scales = tuple(words.crop), tuple(words.scales or protocol.scales)
    protocol = replace(protocol, crop_hw=crop_hw, scales=scales)
    pixels = sum(h * w * times for h, w, times in protocol.passes(*words.size))
    print(
        f"{words.side} {words.model} {words.size[0]}x{words.size[1]}, {protocol.text()}, "
        f"{words.threads} thread(s): {pixels / 1e6:.2f} million input pixels, "
        f"{pixels / np.prod(words.size):.1f} of the picture's"
    )
    if words.memory:
        keep_freed_memory()
        _tell_memory(_engine(side, words, protocol, _network(side, words))[0])
    else:
        _compare(side, words, protocol)


def _compare(side: Any, words: argparse.Namespace, protocol: Protocol) -> None:
    model = _network(side, words)
    arrays = side.backend.state_arrays(model)
    image = _image(side, words)
    published = Timed(model)

    def plain() -> Any:
        return plain_loop(side, published, image, protocol)

    before = by_turns({"plain": plain}, rounds=words.rounds)["plain"]
    keep_freed_memory()
    other = _network(side, words)
    side.backend.load_arrays(other, arrays)
    ours, network = _engine(side, words, protocol, other)
    actual, expected = (side.backend.to_numpy(run()) for run in (ours, plain))
    largest = np.abs(actual - expected).max() / np.abs(expected).max()
    print(f"scores differ by at most {largest:.1e} of the largest")
    published.cpu = network.cpu = 0.0
    found = by_turns({"plain, memory kept": plain, "ours": ours}, rounds=words.rounds)
    kept, engine = found["plain, memory kept"], found["ours"]
    for name, column in (("plain", before), *found.items()):
        cpu = [s.cpu for s in column]
        print(f"{name:20} {min(cpu):.2f} s, median {statistics.median(cpu):.2f} s")
    # the round that warms up is in it
    calls = words.rounds + 1
    print(f"of these, the network: {published.cpu / calls:.2f} s of the plain loop, memory kept;")
    print(f"{'':23}{network.cpu / calls:.2f} s of ours, {_share(network.cpu, engine):.0%}")
    print(f"plain / ours: {ratio_text(before, engine)}")
    print(f"plain, memory kept / ours: {ratio_text(kept, engine)}")
    bound = statistics.median(s.cpu for s in kept) / (network.cpu / calls)
    print(f"bound of the latter, were all but the network free: {bound:.2f}")


def _share(network_cpu: float, engine: list[Seconds]) -> float:
    return network_cpu / (len(engine) + 1) / statistics.fmean(s.cpu for s in engine)


def _network(side: Any, words: argparse.Namespace) -> Any:
    model = side.models.build_model(words.model, classes=19, aux_heads=False)
    model.eval()
    return model


def _image(side: Any, words: argparse.Namespace) -> Any:
    return side.backend.to_tensor(rules.image(1, 1, *words.size).astype(np.float32))


def _engine(
    side: Any, words: argparse.Namespace, protocol: Protocol, model: Any
) -> tuple[Work, Timed]:
    """Return our engine's run, with what `bisenet eval` does to the network, and the network."""
    model, _ = side.runtime.to_channels_last(model)
    network, image = Timed(model), _image(side, words)
    scorer = side.evaluate.Scorer(network, protocol=protocol, max_pixels=words.max_pixels)
    return lambda: scorer.scores(image, size_hw=tuple(words.size)), network


def _tell_memory(ours: Work) -> None:
    start = _peak_mib()
    clock = seconds(ours).clock
    print(f"ours: {clock:.1f} s; peak {_peak_mib():.0f} MiB, {start:.0f} before the picture")


def plain_loop(side: Any, model: Any, image: Any, protocol: Protocol) -> Any:
    """Return the mscf scores of one picture as the published loop makes them."""
    framework = importlib.import_module(side.name)
    functional = importlib.import_module(f"{side.name}.nn.functional")
    resize = side.layers.resize_bilinear
    H, W = image.shape[2], image.shape[3]
    crop_h, crop_w = protocol.crop_hw or (H, W)

    def chip_scores(chip: Any) -> Any:
        scores = functional.softmax(model(chip)["main"], 1)
        mirrored = model(framework.flip(chip, [3]))["main"]
        scores = scores + functional.softmax(framework.flip(mirrored, [3]), 1)
        return framework.exp(scores)

    total = None
    with side.backend.no_grad():
        for scale in protocol.scales:
            h, w = int(H * scale), int(W * scale)
            scaled = resize(image, size_hw=(h, w), align_corners=True)
            full_h, full_w = max(h, crop_h), max(w, crop_w)
            top, left = (full_h - h) // 2, (full_w - w) // 2
            scaled = functional.pad(scaled, [left, full_w - w - left, top, full_h - h - top])
            stride_h, stride_w = ceil(crop_h * 2 / 3), ceil(crop_w * 2 / 3)
            summed = framework.zeros([1, 19, full_h, full_w])
            for i in range(ceil((full_h - crop_h) / stride_h) + 1):
                for j in range(ceil((full_w - crop_w) / stride_w) + 1):
                    y, x = min(i * stride_h, full_h - crop_h), min(j * stride_w, full_w - crop_w)
                    rows, columns = slice(y, y + crop_h), slice(x, x + crop_w)
                    summed[:, :, rows, columns] += chip_scores(scaled[:, :, rows, columns])
            part = summed[:, :, top : top + h, left : left + w]
            part = resize(part, size_hw=(H, W), align_corners=True)
            total = part if total is None else total + part
    return total


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="mscf: our engine against the plain loop.")
    add = parser.add_argument
    add("--side", choices=["torch", "paddle"], default="torch")
    add("--model", default="bisenetv2")
    add("--size", type=int, nargs=2, default=[512, 1024], metavar=("H", "W"))
    add("--crop", type=int, nargs=2, default=[1024, 1024], metavar=("H", "W"))
    add("--scales", type=float, nargs="+")
    add("--max_pixels", type=int, default=2**18, help="Input pixels of one forward pass.")
    add("--threads", type=int, default=1)
    add("--rounds", type=int, default=5)
    add("--memory", action="store_true", help="Only ours, once, and the process's peak memory.")
    return parser


if __name__ == "__main__":
    main()
