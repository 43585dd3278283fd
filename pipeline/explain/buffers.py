"""Why a running statistic differs after one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.explain import norms
from pipeline.explain.generic import array_candidates
from pipeline.explain.target import (
    FITTED,
    Array,
    Candidate,
    Target,
    best_factor,
    confirm,
    fixed,
    nice,
    target_of,
    wide,
)
from pipeline.failure import FailureCase, Hint

MOST_VALUES = 10**7
"""Per channel; n / (n - 1) of more is 1."""
REDUCTION = 16.0
"""A mean over many values, summed up in blocks by both frameworks."""


@dataclass(frozen=True)
class Update:
    """One update of a running statistic, right as the reference has it."""

    before: Array
    statistic: Array
    """Of the batch, as it goes into the buffer."""
    momentum: float
    """Weight of the batch."""
    count: int | None
    """Values per channel; None if not known."""
    variance: bool
    """True for a running variance, whose statistic is unbiased."""
    x: Array | None
    """The batch, if the case holds it."""

    def after(self, *, momentum: float | None = None, statistic: Array | None = None) -> Array:
        """Return the buffer after the batch."""
        weight = self.momentum if momentum is None else momentum
        batch = self.statistic if statistic is None else statistic
        return norms.updated(self.before, batch, weight)


def explain_buffer(case: FailureCase) -> list[Hint]:
    """Return what the actual side does differently when it updates a BatchNorm buffer.

    Args:
        case: of kind "buffer".
    """
    target = target_of(case, reduction=REDUCTION)
    update = update_of(case)
    candidates: list[Candidate] = []
    if "before" in case.arrays:
        text = "is not updated: it is what it was before the batch"
        candidates.append(fixed("stale-running-statistics", text, case.arrays["before"]))
    if update is not None and Target(update.after(), target.reference, REDUCTION).fits(
        update.after()
    ):
        candidates += update_candidates(update, target)
    candidates += array_candidates(target)
    return confirm(target, candidates)


def update_of(case: FailureCase) -> Update | None:
    """Return the update that leads to the reference; None if the case lacks something.

    The momentum is the spec's, or else what fits the reference. Without the batch its statistic is
    read off the reference, for which the momentum must be given.
    """
    before, x = case.arrays.get("before"), case.arrays.get("input/0")
    if before is None or before.shape != case.arrays["reference"].shape:
        return None
    variance = "var" in case.name.rpartition(".")[2]
    count = _count(case, x)
    momentum = _momentum(case)
    reference = wide(case.arrays["reference"])
    if x is None:
        if momentum is None:
            return None
        statistic = (reference - (1.0 - momentum) * wide(before)) / momentum
    else:
        mean, biased = norms.batch_statistics(x)
        unbiased = norms.unbiased(biased, count) if count and count > 1 else biased
        statistic = unbiased if variance else mean
    if momentum is None:
        found = best_factor(statistic - before, reference - before)
        momentum = 0.1 if found is None else found
    return Update(wide(before), statistic, momentum, count, variance, x)


def _count(case: FailureCase, x: Array | None) -> int | None:
    if "count" in case.arrays:
        return int(np.ravel(case.arrays["count"])[0])
    return None if x is None else norms.count_per_channel(x)


def _momentum(case: FailureCase) -> float | None:
    given = case.spec.get("torch", {}).get("momentum")
    return None if given is None else float(given)


# ---- candidates -------------------------------------------------------------------------------
def update_candidates(update: Update, target: Target) -> Iterator[Candidate]:
    """Yield the wrong updates of a buffer."""
    own = update.momentum
    statistics = dict(_statistics(update))
    for words, weight in _other_convention(own):
        yield fixed("momentum-convention", words, update.after(momentum=weight))
    for (relation, text), statistic in statistics.items():
        yield fixed(relation, text, update.after(statistic=statistic))
        for words, weight in _other_convention(own):
            both = update.after(statistic=statistic, momentum=weight)
            yield fixed(f"{relation} and momentum-convention", f"{text}, and {words}", both)
    kept = update.after(momentum=1.0 - float(np.float32(1.0 - own)))
    text = f"keeps its momentum, {1.0 - own:g}, as a float32 number"
    yield fixed("dtype-float32", text, kept)
    twice = norms.updated(update.after(), update.statistic, own)
    yield fixed("updated-twice", "is updated twice with the same batch", twice)
    thrice = norms.updated(twice, update.statistic, own)
    yield fixed("updated-twice", "is updated three times with the same batch", thrice)
    text = "is the statistic of the batch alone: nothing is kept of the old value"
    yield fixed("no-averaging", text, update.after(momentum=1.0))
    summed = update.before + own * update.statistic
    yield fixed("no-decay", "adds the batch without shrinking the old value", summed)
    yield from _solved_momentum(update, target, statistics)
    yield from _solved_count(update, target)
    yield from _part_of_batch(update)


def _other_convention(own: float) -> list[tuple[str, float]]:
    """Return (text, weight of the batch) of the other convention, exact and as kernels keep it."""
    text = f"keeps {own:g} of the old value, not {1.0 - own:g}: the other convention of momentum"
    return [(text, 1.0 - own), (f"{text} (a float32 number)", 1.0 - float(np.float32(own)))]


def _statistics(update: Update) -> Iterator[tuple[tuple[str, str], Array]]:
    """Yield ((relation, text), statistic) of the batch's other statistics."""
    n = update.count
    if update.variance and n is not None and n > 1:
        text = f"takes the biased variance of the batch, (n - 1) / n of the right one, n = {n}"
        yield ("biased-variance", text), update.statistic * ((n - 1) / n)
        text = f"multiplies the variance by n / (n - 1) twice, n = {n}"
        yield ("unbiased-twice", text), norms.unbiased(update.statistic, n)
    if update.variance:
        text = "takes the standard deviation in place of the variance"
        yield ("deviation-for-variance", text), np.sqrt(np.maximum(update.statistic, 0.0))
    if update.x is not None:
        mean, biased = norms.batch_statistics(update.x)
        if update.variance:
            text = "takes E[x^2], the mean not subtracted"
            yield ("second-moment", text), biased + mean * mean
            yield ("mean-for-variance", "takes the mean of the batch"), mean
        else:
            yield ("variance-for-mean", "takes the variance of the batch"), biased
        relu = norms.batch_statistics(np.maximum(update.x, 0.0))
        text = "takes the statistic after a relu"
        yield ("extra-activation", text), relu[1 if update.variance else 0]


def _solved_momentum(
    update: Update, target: Target, statistics: dict[tuple[str, str], Array]
) -> Iterator[Candidate]:
    """Yield the weight of the batch that fits, with the right and with the biased variance."""
    if update.before.size < FITTED:
        return
    ways: list[tuple[str, str, Array]] = [("momentum", "", update.statistic)]
    ways += [
        (f"momentum and {relation}", f", and {text}", statistic)
        for (relation, text), statistic in statistics.items()
        if relation == "biased-variance"
    ]
    for relation, more, statistic in ways:
        found = best_factor(statistic - update.before, wide(target.actual) - update.before)
        # these weights have names of their own
        named = (0.0, update.momentum, 1.0 - update.momentum, 1.0)
        if found is None or min(abs(found - known) for known in named) < 1e-9:
            continue
        for value in nice(found):
            text = (
                f"gives the batch the weight {value:.10g} in place of {update.momentum:g}"
                f"{_convention_words(value)}{more}"
            )
            array = update.after(momentum=value, statistic=statistic)
            if target.fits(array):
                yield fixed(relation, text, array)
                break


def _convention_words(value: float) -> str:
    as_float32 = value != round(value, 6) and abs(value - round(value, 6)) < 1e-7
    return f" ({round(value, 6):g} as a float32 number)" if as_float32 else ""


def _solved_count(update: Update, target: Target) -> Iterator[Candidate]:
    """Yield n / (n - 1) with another n: of one process of several, of one sample."""
    n = update.count
    if not update.variance or n is None or n < 2 or not update.momentum:
        return
    statistic = (wide(target.actual) - (1 - update.momentum) * update.before) / update.momentum
    ratio = best_factor(update.statistic * ((n - 1) / n), statistic)
    if ratio is None or ratio <= 1.0:
        return
    other = round(ratio / (ratio - 1.0))
    if 1 < other <= MOST_VALUES and other != n and target.actual.size >= FITTED:
        wrong = norms.unbiased(update.statistic * ((n - 1) / n), other)
        text = f"multiplies the variance by n / (n - 1) with n = {other} in place of {n}"
        yield fixed("variance-count", text, update.after(statistic=wrong))


def _part_of_batch(update: Update) -> Iterator[Candidate]:
    """Yield the statistic of a part of the batch: a process that did not ask the others."""
    x = update.x
    if x is None or x.shape[0] < 2:
        return
    N = x.shape[0]
    parts = {f"sample {i} alone": slice(i, i + 1) for i in range(N)}
    if N >= 4:
        half = N // 2
        parts |= {"the first half of the batch": slice(0, half)}
        parts |= {"the second half of the batch": slice(half, N)}
    for words, part in parts.items():
        text = f"takes the statistic of {words}"
        yield fixed("part-of-batch", text, _of_part(update, x[part]))


def _of_part(update: Update, x: Array) -> Array:
    mean, biased = norms.batch_statistics(x)
    n = norms.count_per_channel(x)
    statistic = norms.unbiased(biased, n) if update.variance and n > 1 else biased
    return update.after(statistic=statistic if update.variance else mean)
