"""Why a picture or label map differs after a transform.

The transform is done anew on the reference's picture before it, with the same random numbers
(they follow from seed, epoch and sample), by common/transforms.py. Pictures are bytes: what
explains them must equal them in every pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import permutations

import numpy as np

from pipeline.explain.batch import explain_batch
from pipeline.explain.confirm import Candidate, confirmed, reproduces
from pipeline.explain.transforms import WRONG, Stage, place_of
from pipeline.failure import FailureCase, Hint

__all__ = ["explain_batch", "explain_sample"]

FEWEST_PER_VALUE = 4
"""Pixels per label value, on average, before a mapping of values is believed."""
FAR = 3
"""Pixels that a window can be off by and still be the right one, miscounted."""


def explain_sample(case: FailureCase) -> list[Hint]:
    """Return what reproduces Paddle's picture or label map (case kind "sample")."""
    picture = case.key.endswith("/image")
    candidates = list(_generic(case))
    candidates += _channels(case) if picture else _label_values(case)
    stage = Stage.of(case)
    if stage is not None and stage.name in WRONG and reproduces(case, stage.right()):
        candidates += WRONG[stage.name](stage)
    candidates += _windows(case)
    return confirmed(case, candidates)


def _generic(case: FailureCase) -> Iterator[Candidate]:
    stage = case.settings["stage"]
    reference = case.arrays["reference"]
    if "previous" in case.arrays:
        text = f"{stage} changes nothing: the transform is missing, or leaves this one out"
        previous = case.arrays["previous"]
        yield Candidate(
            "flip" if stage == "flip" else "missing-transform",
            text,
            lambda: np.asarray(previous, reference.dtype) if previous.ndim == 2 else previous,
        )
    # pictures are planes (3, H, W) once normalised, else (H, W, 3)
    across = -1 if reference.ndim == 2 or reference.dtype.kind == "f" else 1
    down = across - 1
    yield Candidate("flip", "is mirrored left to right", partial(np.flip, reference, across))
    yield Candidate("flip", "is mirrored top to bottom", partial(np.flip, reference, down))
    for axis, words in ((across, "columns"), (down, "rows")):
        for shift in (1, -1, 2, -2, 3, -3):
            text = f"is shifted by {shift} {words}, what leaves at one end enters at the other"
            yield Candidate("off-by-one-crop", text, partial(np.roll, reference, shift, axis))


def _channels(case: FailureCase) -> Iterator[Candidate]:
    reference = case.arrays["reference"]
    axis = 0 if reference.dtype.kind == "f" else 2
    names = "RGB"
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            text = f"channels are {''.join(names[c] for c in order)} instead of RGB"
            relation = "bgr" if order == (2, 1, 0) else "channel-order"
            yield Candidate(relation, text, partial(np.take, reference, order, axis))


def _label_values(case: FailureCase) -> Iterator[Candidate]:
    """Yield the mapping of label values that turns the reference into the actual, if it is one."""
    reference, actual = case.arrays["reference"], case.arrays["actual"]
    if reference.shape != actual.shape or reference.min() < 0:
        return
    values, first = np.unique(reference, return_index=True)
    if reference.size < FEWEST_PER_VALUE * len(values):
        return
    mapping = dict(zip(values.tolist(), actual.reshape(-1)[first].tolist(), strict=True))
    table = np.zeros(int(values.max()) + 1, actual.dtype)
    table[values] = list(mapping.values())
    changed = {a: b for a, b in mapping.items() if a != b}
    shown = ", ".join(f"{a} to {b}" for a, b in list(changed.items())[:8])
    shown += ", ..." if len(changed) > 8 else ""
    void = case.settings["data"]["ignore_index"]
    relation, text = "label-mapping", f"label values are mapped once more: {shown}"
    if list(changed) == [void]:
        relation, text = "void-value", f"void is {changed[void]} instead of {void}"
    shifts = {b - a for a, b in changed.items()}
    if len(shifts) == 1 and set(changed) == set(mapping) - {void}:
        text = f"label values are off by {shifts.pop()}"
    yield Candidate(relation, text, lambda: table[reference])


def _windows(case: FailureCase) -> Iterator[Candidate]:
    """Yield the window of the previous picture that the actual one is, found by matching."""
    previous, reference = case.arrays.get("previous"), case.arrays["reference"]
    actual = case.arrays["actual"]
    if previous is None or previous.ndim != reference.ndim or actual.dtype != previous.dtype:
        return
    right, found = place_of(previous, reference), place_of(previous, actual)
    if right is None or found is None or right == found:
        return
    off = (found[0] - right[0], found[1] - right[1])
    text = f"the window lies {off[0]} rows and {off[1]} columns off"
    H, W = actual.shape[:2]
    relation = "off-by-one-crop" if max(map(abs, off)) <= FAR else "crop"
    yield Candidate(
        relation, text, lambda: previous[found[0] : found[0] + H, found[1] : found[1] + W]
    )
