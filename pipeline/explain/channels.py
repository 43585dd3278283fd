"""Channels in another order: found by matching them, and what such orders are called."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.explain.target import FITTED, Candidate, Target, fixed, wide


def channel_candidates(target: Target, *, first_axis: str = "samples") -> Iterator[Candidate]:
    """Yield the permutation of channels (axis 1; of one axis, that one), found by matching."""
    axis = 1 if target.actual.ndim > 1 else 0
    order = matching_channels(target, axis=axis)
    if order is not None:
        text = f"has its channels in another order: {order_in_words(order)}"
        yield fixed("swapped-channels", text, wide(target.reference).take(order, axis=axis))
    if target.actual.ndim > 1 and target.actual.shape[0] > 1:
        samples = matching_channels(target, axis=0)
        if samples is not None:
            text = f"has its {first_axis} in another order: {order_in_words(samples)}"
            relation = f"swapped-{first_axis}"
            yield fixed(relation, text, wide(target.reference).take(samples, axis=0))


def matching_channels(target: Target, *, axis: int) -> list[int] | None:
    """Return for each channel the reference's that it equals, if that is a permutation."""
    reference, actual = (
        np.moveaxis(wide(a), axis, 0).reshape(a.shape[axis], -1)
        for a in (target.reference, target.actual)
    )
    limit = target.tolerance * target.scale
    count, size = reference.shape
    if count < 2 or (size == 1 and count < FITTED):
        return None
    # a few values of each tell most channels apart
    short = slice(None, None, max(1, size // 32) | 1)
    matches: list[list[int]] = []
    for row in actual:
        alike = np.abs(reference[:, short] - row[short]).max(axis=1) <= limit
        found = [int(i) for i in np.flatnonzero(alike)]
        matches.append([i for i in found if np.abs(reference[i] - row).max() <= limit])
        if not matches[-1]:
            return None
    order = _assigned(matches)
    return order if order != list(range(count)) else None


def _assigned(matches: list[list[int]]) -> list[int] | None:
    """Give each channel one of those it equals, each once; those in their own place stay."""
    order = [number if number in found else -1 for number, found in enumerate(matches)]
    left = set(range(len(matches))) - set(order)
    for number, found in enumerate(matches):
        if order[number] < 0:
            free = next((i for i in found if i in left), None)
            if free is None:
                return None
            order[number] = free
            left.discard(free)
    return order


def channel_orders(count: int) -> dict[str, list[int]]:
    """Return the orders of channels that wrong ports produce, by what they are called."""
    orders = {"reversed": list(range(count - 1, -1, -1))}
    if count % 2 == 0:
        half = count // 2
        orders["halves swapped"] = [*range(half, count), *range(half)]
    for groups in (2, 3, 4, 6, 8):
        if count % groups == 0 and count > groups:
            grid = np.arange(count).reshape(groups, -1)
            orders[f"shuffled in {groups} groups"] = [int(i) for i in grid.T.ravel()]
            back = np.arange(count).reshape(-1, groups)
            orders[f"shuffled back from {groups} groups"] = [int(i) for i in back.T.ravel()]
    for shift in range(1, count):
        orders[f"rolled by {shift}"] = [(i - shift) % count for i in range(count)]
    return {name: order for name, order in orders.items() if order != list(range(count))}


def order_in_words(order: list[int]) -> str:
    """Return what an order of channels is called, or the order itself."""
    for name, known in channel_orders(len(order)).items():
        if known == order:
            return name
    moved = [i for i, source in enumerate(order) if i != source]
    if len(moved) == 2:
        return f"{moved[0]} and {moved[1]} exchanged"
    listed = ", ".join(str(i) for i in order[:8])
    return f"[{listed}{', ...' if len(order) > 8 else ''}]"
