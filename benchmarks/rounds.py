"""What the benchmarks share: their options, and measuring several pieces of work by turns.

CPU seconds, which other load on the machine distorts less than the clock, and the clock beside
them. The order changes from round to round, so that none always comes first.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Seconds:
    """What one call took."""

    cpu: float
    clock: float


@dataclass(frozen=True)
class Options:
    """The command line of a benchmark that measures one framework's function on maps of a size."""

    framework: str
    size_hw: tuple[int, int]
    threads: int
    rounds: int


def parse(description: str, *, size_hw: tuple[int, int], rounds: int) -> Options:
    """Read the command line, with these defaults; set the threads of the framework's kernels."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--framework", choices=("paddle", "torch"), required=True)
    parser.add_argument("--size", type=int, nargs=2, default=size_hw, metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1, help="of CPU kernels (default 1)")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"rounds measured (default {rounds})"
    )
    words = parser.parse_args()
    importlib.import_module(f"for_{words.framework}.backend").set_threads(words.threads)
    return Options(words.framework, tuple(words.size), words.threads, words.rounds)


def seconds(work: Work) -> Seconds:
    """Measure one call."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return Seconds(time.process_time() - cpu, time.perf_counter() - clock)


def by_turns(works: Mapping[str, Work], *, rounds: int) -> dict[str, list[Seconds]]:
    """Measure every piece of work once in every round; a first round, not counted, warms up."""
    names = list(works)
    found: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names if number % 2 else names[::-1]:
            measured = seconds(works[name])
            if number > 0:
                found[name].append(measured)
    return found


def cpu_text(measured: list[Seconds]) -> str:
    """Return milliseconds of the CPU and of the clock."""
    cpu, clock = ([getattr(s, kind) * 1e3 for s in measured] for kind in ("cpu", "clock"))
    return (
        f"CPU ms: median {statistics.median(cpu):.2f}, {min(cpu):.2f} to {max(cpu):.2f}; "
        f"clock: median {statistics.median(clock):.2f}, {min(clock):.2f} at best"
    )


def ratio_text(measured: list[Seconds], base: list[Seconds]) -> str:
    """Return the ratio of CPU seconds, round by round."""
    ratios = [own.cpu / other.cpu for own, other in zip(measured, base, strict=True)]
    return (
        f"median {statistics.median(ratios):.3f} of {len(ratios)} rounds, "
        f"{min(ratios):.3f} to {max(ratios):.3f}; of medians "
        f"{_median_cpu(measured) / _median_cpu(base):.3f}; of minima "
        f"{min(s.cpu for s in measured) / min(s.cpu for s in base):.3f}"
    )


def _median_cpu(measured: list[Seconds]) -> float:
    return statistics.median(s.cpu for s in measured)
