"""Multi-scale evaluation in windows: our engine against the plain loop, in one process.

    python -m benchmarks.mscf --side torch --model bisenetv2 --size 512 1024 --threads 1
    python -m benchmarks.mscf --side paddle --crop 256 256 --scales 0.5 1
    python -m benchmarks.mscf --side torch --memory --size 1024 2048

The plain loop is the published one: one window at a time, its mirror image in a pass of its own,
softmax, sum, exponential, added in its place. It runs first as a process runs by default. Then what
`bisenet eval` does is switched on (freed memory is kept; convolutions in NHWC where the framework
has them), and the plain loop, given the kept memory too, and our engine run by turns. All give the
same scores, which is checked. CPU seconds, which other load on the machine distorts less than the
clock; with one thread they are the time. --memory runs ours alone, once, and tells the process's
peak.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.allocator import keep_freed_memory
from common.protocols import PROTOCOLS, Protocol
from fake_data import rules

MODULES = ("backend", "models", "evaluate", "layers", "runtime")


def main() -> None:
    """Measure and print."""
    words = _parser().parse_args()
    modules = {m: importlib.import_module(f"for_{words.side}.{m}") for m in MODULES}
    side = SimpleNamespace(name=words.side, **modules)
    side.backend.set_threads(words.threads)
    protocol = PROTOCOLS["mscf"]
    crop_hw, scales = tuple(words.crop), tuple(words.scales or protocol.scales)
    protocol = replace(protocol, crop_hw=crop_hw, scales=scales)
    model = side.models.build_model(words.model, classes=19, aux_heads=False)
    model.eval()
    arrays = side.backend.state_arrays(model)
    x = side.backend.to_tensor(rules.image(1, 1, *words.size).astype(np.float32))
    pixels = sum(h * w * times for h, w, times in protocol.passes(*words.size))
    print(
        f"{words.side} {words.model} {words.size[0]}x{words.size[1]}, {protocol.text()}, "
        f"{words.threads} thread(s): {pixels / 1e6:.2f} million input pixels, "
        f"{pixels / np.prod(words.size):.1f} of the picture's"
    )
    before = [] if words.memory else _seconds(lambda: plain_loop(side, model, x, protocol), words)
    keep_freed_memory()
    other = side.models.build_model(words.model, classes=19, aux_heads=False)
    side.backend.load_arrays(other, arrays)
    other.eval()
    other, _ = side.runtime.to_channels_last(other)

    def ours() -> Any:
        return side.evaluate.scores(
            other, x, protocol=protocol, size_hw=tuple(words.size), max_pixels=words.max_pixels
        )

    if words.memory:
        start, clock = _peak_mib(), time.perf_counter()
        ours()
        seconds = time.perf_counter() - clock
        print(f"ours: {seconds:.1f} s; peak {_peak_mib():.0f} MiB, {start:.0f} before the picture")
        return
    plain = lambda: plain_loop(side, model, x, protocol)  # noqa: E731
    actual, expected = (side.backend.to_numpy(run()) for run in (ours, plain))
    largest = np.abs(actual - expected).max() / np.abs(expected).max()
    print(f"scores differ by at most {largest:.1e} of the largest")
    pairs = [(_second(plain), _second(ours)) for _ in range(words.rounds)]
    kept, engine = ([pair[i] for pair in pairs] for i in range(2))
    for name, column in (("plain", before), ("plain, memory kept", kept), ("ours", engine)):
        print(f"{name:20} {min(column):.2f} s, median {np.median(column):.2f} s")
    print(f"plain / ours: {np.median(before) / np.median(engine):.2f} of medians")
    ratios = [loop / own for loop, own in pairs]
    print(
        f"plain, memory kept / ours: median {np.median(ratios):.2f} of {len(ratios)} rounds "
        f"({min(ratios):.2f}..{max(ratios):.2f})"
    )


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


def _second(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _seconds(run: Callable[[], Any], words: argparse.Namespace) -> list[float]:
    """Return the seconds of several runs after a first one that is not counted."""
    run()
    return [_second(run) for _ in range(words.rounds)]


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
