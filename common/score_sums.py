"""Sums of scores on the host: softmax, mirror image and exponential added up without a large copy.

For CPU tensors. The frameworks make a map of every step, each as large as all classes of a window,
which costs more than the arithmetic; here a few rows at a time go through all steps while they are
in the processor's cache, straight into the sum. for_*/evaluate.py has the same steps in the
framework's operations, for other devices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cpu_kernels import usable_cores
from common.protocols import ScoreRule

_VALUES = 1 << 17
"""Scores gone through at a time; every thread holds two buffers of so many."""
_VALUES_OF_A_THREAD = 1 << 20
"""Scores from which on another thread is worth its start."""


def add_scores(
    total: NDArray[Any],
    logits: NDArray[Any],
    mirrored: NDArray[Any] | None,
    *,
    rule: ScoreRule,
    threads: int | None = None,
) -> None:
    """Add the scores of one picture or window to a sum, in place.

    Args:
        total: (C, H, W) floating point, for example a window's part of a larger sum.
        logits: (C, H, W) of the picture, in any layout of memory.
        mirrored: (C, H, W) of its mirror image, as the network gave it; None where there is none.
        rule: see common.protocols.ScoreRule.
        threads: that share the rows; None for as many as the framework's kernels have, fewer for
            a small map.
    """
    C, H, W = logits.shape
    if threads is None:
        threads = min(threads_of_kernels(os.environ), max(C * H * W // _VALUES_OF_A_THREAD, 1))
    if threads == 1:
        _add_rows(total, logits, mirrored, rule)
        return
    bounds = [H * part // threads for part in range(threads + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(
                _add_rows,
                total[:, rows],
                logits[:, rows],
                None if mirrored is None else mirrored[:, rows],
                rule,
            )
            for rows in parts
        ]
    for job in jobs:
        job.result()


def threads_of_kernels(environment: Mapping[str, str]) -> int:
    """Return OMP_NUM_THREADS, which the frameworks' kernels follow, or the cores there are."""
    text = environment.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else usable_cores()


def _add_rows(
    total: NDArray[Any], logits: NDArray[Any], mirrored: NDArray[Any] | None, rule: ScoreRule
) -> None:
    C, H, W = logits.shape
    rows = max(_VALUES // (C * W), 1)
    own, other = (np.empty((C, rows, W), dtype=logits.dtype) for _ in range(2))
    for top in range(0, H, rows):
        part = slice(top, min(top + rows, H))
        found = own[:, : part.stop - top]
        _scores(logits[:, part], found, rule)
        if mirrored is not None:
            mirror_image = other[:, : part.stop - top]
            _scores(mirrored[:, part], mirror_image, rule)
            found += mirror_image[:, :, ::-1]
        if rule == "exp_softmax":
            np.exp(found, out=found)
        total[:, part] += found


def _scores(logits: NDArray[Any], out: NDArray[Any], rule: ScoreRule) -> None:
    """Write the logits of some rows, or their softmax, to out."""
    np.copyto(out, logits)
    if rule == "logits":
        return
    out -= out.max(axis=0)
    np.exp(out, out=out)
    out /= out.sum(axis=0)
