"""Wrong BatchNorm and InPlaceABN layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from pipeline.explain import norms
from pipeline.explain.options import (
    Operands,
    Options,
    of_layer,
    run,
    run_part,
    statistics_of,
    with_options,
    with_statistics,
)
from pipeline.explain.target import (
    Array,
    Candidate,
    Target,
    Where,
    leaky_slope,
    rounded,
    shorter_than,
    solved,
    wide,
)


def candidates(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield the normalisations that a wrong port computes."""
    # the batch's statistics are taken once
    taken = with_statistics(options, operands)
    yield from _affine(*taken)
    yield from _statistics(options, operands)
    yield from _activations(target, *taken)
    yield from _eps(target, *taken)
    yield from _short_statistics(target, options, operands)


def eps_words(eps: float, right: float) -> str:
    """Return the text of another eps."""
    if eps != right and eps == float(np.float32(right)):
        return f"keeps its eps {right:g} as a float32 number"
    return f"uses eps {eps:.10g} in place of {right:g}"


def _eps(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    def computed(eps: float, where: Where) -> Array:
        return run_part(replace(options, eps=eps), operands, where)

    found = solved(target, computed, starts=(options.eps, 1e-3, 1e-1))
    if found is not None:
        text = eps_words(found, options.eps)
        yield with_options("eps", text, options, operands, eps=found)
    yield with_options("eps", "adds no eps", options, operands, eps=0.0)
    outside = partial(_eps_outside, options, operands)
    text = "adds eps to the deviation, not to the variance"
    yield Candidate("eps-outside-root", text, outside)


def _eps_outside(options: Options, operands: Operands, where: Where) -> Array:
    mean, variance = statistics_of(options, operands)
    deviation = np.sqrt(wide(variance)) + options.eps
    return _with(options, operands, mean, deviation**2 - options.eps, where)


def _with(
    options: Options, operands: Operands, mean: Array, variance: Array, where: Where
) -> Array:
    """Return the layer with other statistics."""
    buffers = {"running_mean": mean, "running_var": variance}
    other = replace(options, batch_statistics=False)
    return run_part(other, replace(operands, buffers=buffers), where)


def _affine(options: Options, operands: Operands) -> Iterator[Candidate]:
    form = {"absolute_weight": not options.absolute_weight}
    if "weight" in operands.parameters:
        if options.absolute_weight:
            text = "scales by its weight, not by |weight| + eps: a plain BatchNorm"
            yield with_options("plain-weight", text, options, operands, **form)
        else:
            text = "scales by |weight| + eps, as InPlaceABN does"
            yield with_options("absolute-weight", text, options, operands, **form)
        unscaled = operands.with_parameter("weight", None)
        neither = unscaled.with_parameter("bias", None)
        text = "applies neither its weight nor its bias"
        yield of_layer("missing-affine", text, options, neither)
        yield of_layer("missing-affine", "does not apply its weight", options, unscaled)
    if "bias" in operands.parameters:
        unbiased = operands.with_parameter("bias", None)
        yield of_layer("missing-bias", "does not add its bias", options, unbiased)


def _statistics(options: Options, operands: Operands) -> Iterator[Candidate]:
    if options.batch_statistics:
        if "running_mean" in operands.buffers:
            text = "normalises by its running statistics, though it is training"
            yield with_options(
                "running-statistics", text, options, operands, batch_statistics=False
            )
        mean, variance = norms.batch_statistics(operands.x)
        n = norms.count_per_channel(operands.x)
        if n > 1:
            wrong = norms.unbiased(variance, n)
            text = f"normalises by the unbiased variance, n / (n - 1) with n = {n}"
            compute = partial(_with, options, operands, mean, wrong)
            yield Candidate("unbiased-variance", text, compute)
    else:
        text = "normalises by the statistics of the batch, though it is not training"
        yield with_options("batch-statistics", text, options, operands, batch_statistics=True)
    per_sample = partial(_instance, options, operands)
    text = "normalises each sample by its own statistics (InstanceNorm)"
    yield Candidate("instance-statistics", text, per_sample)


def _instance(options: Options, operands: Operands, where: Where) -> Array:
    own = replace(options, batch_statistics=True)
    number = range(operands.x.shape[0])[where[0] if where else slice(None)]
    parts = [run(own, replace(operands, x=operands.x[i : i + 1])) for i in number]
    return np.concatenate(parts)[(slice(None), *where[1:])]


def _activations(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    if options.activation != "identity":
        text = f"does not apply its activation, {options.activation}"
        yield with_options("missing-activation", text, options, operands, activation="identity")
    before = replace(options, activation="identity")
    name = "extra-activation" if options.activation == "identity" else "activation-slope"
    right = {"leaky_relu": f"{options.slope:g}", "relu": "0"}.get(options.activation, "1")
    if options.activation != "relu":
        text = f"applies relu (slope 0 in place of {right})"
        yield with_options(name, text, options, operands, activation="relu")
    slope = leaky_slope(target, run(before, operands))
    if slope is not None:
        text = f"applies leaky_relu with slope {slope:.8g} in place of {right}"
        changes = {"activation": "leaky_relu", "slope": slope}
        yield with_options(name, text, options, operands, **changes)


def _short_statistics(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield statistics that are kept in fewer digits, about the mean or as E[x^2] - E[x]^2."""
    mean, variance = statistics_of(options, operands)
    square = np.square(wide(operands.x)).mean(axis=norms.AXES)
    for dtype in shorter_than(target):
        short = rounded(mean, dtype)
        ways = {"mean and variance": rounded(variance, dtype)}
        if options.batch_statistics:
            ways["E[x] and E[x^2]"] = rounded(square, dtype) - short**2
        for what, kept in ways.items():
            compute = partial(_with, options, operands, short, kept)
            yield Candidate(f"dtype-{dtype}", f"keeps {what} in {dtype}", compute)
