"""Why a gradient differs on agreeing activations.

A parameter's gradient, and that which a layer sends back to its input, are computed from the
layer's input and the gradient at its output, with the layer's own options first. What a composite
layer sends back is put together in backflows.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from pipeline.explain import backflows
from pipeline.explain.backflows import DETACHED
from pipeline.explain.convolutions import other_windows, output_size, turned_weights
from pipeline.explain.flows import Flow, gradient_of
from pipeline.explain.generic import array_candidates
from pipeline.explain.normalisations import eps_words
from pipeline.explain.options import Options, operands_of
from pipeline.explain.resizings import other_pools, other_resizings
from pipeline.explain.specs import readings
from pipeline.explain.target import (
    SMALLEST_SLOPE,
    Array,
    Candidate,
    Target,
    Where,
    best_factor,
    confirm,
    fixed,
    nice,
    rounded,
    shorter_than,
    solved,
    wide,
)
from pipeline.failure import FailureCase, Hint


def explain_parameter_gradient(case: FailureCase) -> list[Hint]:
    """Return what is wrong with a parameter's gradient, confirmed on it.

    Args:
        case: of kind "parameter_gradient".
    """
    return _explain(case, case.name.rpartition(".")[2], first_axis="output-channels")


def explain_layer_gradient(case: FailureCase) -> list[Hint]:
    """Return what is wrong with the gradient at a layer's output, confirmed on it.

    Args:
        case: of kind "layer_gradient".
    """
    return _explain(case, "input", first_axis="samples")


def _explain(case: FailureCase, which: str, *, first_axis: str) -> list[Hint]:
    flow = flow_of(case, which)
    reduction = 64.0 if flow is None else flow.reduction
    target = Target(case.arrays["reference"], case.arrays["actual"], reduction)
    candidates = [fixed(DETACHED, zero_words(which), np.zeros(target.actual.shape))]
    if flow is not None:
        candidates += flow_candidates(flow, target)
    if which == "input":
        candidates += backflows.candidates(case, target)
    candidates += array_candidates(target, first_axis=first_axis, zero=DETACHED)
    return confirm(target, candidates)


def zero_words(which: str) -> str:
    """Return the text of a gradient that is zero."""
    what = "the layer is" if which == "input" else "the parameter is frozen, or its layer is"
    return f"is zero: {what} detached from the loss"


def flow_of(case: FailureCase, which: str) -> Flow | None:
    """Return the backward pass that gives the reference, or None if the case is incomplete."""
    operands, gradient = operands_of(case), case.arrays.get("output_gradient")
    if operands is None or gradient is None:
        return None
    reference = case.arrays["reference"]
    spec = case.spec.get("torch", {})
    for options in readings(spec, operands, case.mode, shape=gradient.shape):
        flow = Flow(options, operands, gradient, which)
        try:
            found = gradient_of(flow)
        except (ValueError, KeyError, IndexError):
            continue
        if Target(found, reference, flow.reduction).fits(found):
            return flow
    return None


# ---- candidates -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Other:
    """A wrong backward pass."""

    relation: str
    text: str
    flow: Flow


def flow_candidates(flow: Flow, target: Target) -> Iterator[Candidate]:
    """Yield the wrong backward passes of a layer whose right one is known."""
    for other in _others(flow, target):
        yield _candidate(other.relation, other.text, other.flow)
    yield from _eps(flow, target)
    yield from _slopes(flow, target)
    yield from _turned(flow, target)
    yield from _accumulation(flow)
    yield from _shorter(flow, target)


def _candidate(relation: str, text: str, flow: Flow) -> Candidate:
    """Return a candidate, tried on a few channels before all."""
    return Candidate(
        relation,
        text,
        lambda where: gradient_of(flow.part() if where else flow),
        probe=flow.probe(),
    )


def _others(flow: Flow, target: Target) -> Iterator[Other]:
    options = flow.options
    if options.kind == "conv2d":
        for changes, relation, text in other_windows(options):
            changed = replace(options, **changes)  # pyright: ignore[reportArgumentType]
            size_hw = output_size(changed, flow.operands.x.shape)
            if size_hw == flow.output_gradient.shape[2:]:
                yield Other(relation, f"belongs to a layer that {text}", flow.having(changed))
    elif options.kind == "batch_norm":
        yield from _other_norms(flow)
    elif options.kind == "avg_pool2d":
        kept = flow.having(replace(options, kernel_constants=True))
        yield Other("dtype-float32", "divides by a constant kept as a float32 number", kept)
        other = replace(options, count_include_pad=not options.count_include_pad)
        text = f"belongs to a mean with count_include_pad={other.count_include_pad}"
        yield Other("count-include-pad", text, flow.having(other))
    if options.kind in ("avg_pool2d", "max_pool2d"):
        for relation, text, changed in other_pools(options):
            yield Other(relation, f"belongs to a pooling that {text}", flow.having(changed))
        average = options.kind == "avg_pool2d"
        kind = "max_pool2d" if average else "avg_pool2d"
        name = "max-for-average" if average else "average-for-max"
        text = f"belongs to {kind} in place of {options.kind}"
        yield Other(name, text, flow.having(replace(options, kind=kind)))
    if options.kind == "upsample":
        sized = replace(options, size_hw=flow.output_gradient.shape[2:])
        for relation, text, changed in other_resizings(sized, target.reference.shape[2:]):
            yield Other(relation, f"belongs to a resizing that {text}", flow.having(changed))


def _other_norms(flow: Flow) -> Iterator[Other]:
    options = flow.options
    if options.batch_statistics and flow.which == "input":
        text = "takes the batch's mean and variance for constants"
        yield Other("frozen-statistics", text, replace(flow, frozen=True))
    turned = replace(options, batch_statistics=not options.batch_statistics)
    name = "running-statistics" if options.batch_statistics else "batch-statistics"
    text = f"belongs to a layer that normalises by {name.replace('-', ' ')}"
    yield Other(name, text, flow.having(turned))
    form = replace(options, absolute_weight=not options.absolute_weight)
    name = "plain-weight" if options.absolute_weight else "absolute-weight"
    text = f"belongs to a layer whose scale is {'w' if options.absolute_weight else '|w| + eps'}"
    yield Other(name, text, flow.having(form))


def _eps(flow: Flow, target: Target) -> Iterator[Candidate]:
    options = flow.options
    if options.kind != "batch_norm" or not target.comparable:
        return

    # of few channels: the statistics of the others have no part in theirs
    probe = flow.probe()
    few = flow.part()
    part = Target(target.reference[probe], target.actual[probe], target.reduction)

    def computed(eps: float, _where: Where) -> Array:
        return gradient_of(few.having(replace(options, eps=eps)))

    found = solved(part, computed, starts=(options.eps, 1e-3))
    if found is not None:
        other = flow.having(replace(options, eps=found))
        yield _candidate("eps", eps_words(found, options.eps), other)


def _slopes(flow: Flow, target: Target) -> Iterator[Candidate]:
    """Yield another slope of the activation, and none."""
    options = flow.options
    own = options.kind in ("relu", "leaky_relu", "sigmoid", "tanh")
    name = options.kind if own else options.activation
    if name == "identity" or not target.comparable:
        return

    def changed(activation: str, slope: float) -> Options:
        what = {"kind": activation} if own else {"activation": activation}
        return replace(options, slope=slope, **what)  # pyright: ignore[reportArgumentType]

    identity, relu = (flow.having(changed(kind, 0.0)) for kind in ("identity", "relu"))
    text = f"flows through as if there were no {name}"
    yield _candidate("missing-activation", text, identity)
    if name != "relu":
        yield _candidate("activation-slope", "belongs to relu (slope 0)", relu)
    # a gradient is linear in the slope: between none and the whole
    none, whole = (wide(gradient_of(one)) for one in (relu, identity))
    found = best_factor(whole - none, wide(target.actual) - none)
    for slope in [] if found is None or not SMALLEST_SLOPE < found < 1.0 else nice(found):
        if target.fits(none + slope * (whole - none)):
            text = f"belongs to leaky_relu with slope {slope:.8g}"
            yield _candidate("activation-slope", text, flow.having(changed("leaky_relu", slope)))
            return


def _turned(flow: Flow, target: Target) -> Iterator[Candidate]:
    """Yield a weight's gradient that is turned, or an input's through a turned weight."""
    weight = flow.operands.parameters.get("weight")
    if flow.which == "weight" and target.reference.ndim == 4:
        for relation, text, turned in turned_weights(wide(target.reference)):
            name = relation.replace("weight", "gradient").replace("kernel", "gradient")
            yield fixed(name, text.replace("uses its weight", "is").replace("uses", "has"), turned)
    elif flow.which == "weight" and target.reference.ndim == 2:
        yield fixed("transposed-gradient", "is transposed", wide(target.reference).T)
    elif flow.which == "input" and weight is not None and weight.ndim == 4:
        for relation, text, turned in turned_weights(weight):
            other = replace(flow, operands=flow.operands.with_parameter("weight", turned))
            yield _candidate(relation, text, other)


def _accumulation(flow: Flow) -> Iterator[Candidate]:
    """Yield the gradient of a part of the batch."""
    N = flow.output_gradient.shape[0]
    if flow.which == "input" or N < 2:
        return
    parts = {f"sample {i} of {N} alone": [i] for i in range(N)}
    if N > 2:
        parts |= {
            f"all samples but {i} of {N}": [k for k in range(N) if k != i] for i in (0, N - 1)
        }
    if N > 3:
        parts |= {"the first half of the batch": list(range(N // 2))}
        parts |= {"the second half of the batch": list(range(N // 2, N))}
    for words, kept in parts.items():
        mask = np.zeros((N, *[1] * (flow.output_gradient.ndim - 1)))
        mask[kept] = 1.0
        masked = replace(flow, output_gradient=wide(flow.output_gradient) * mask)
        text = f"is the gradient of {words}: the others are not added"
        yield _candidate("missing-accumulation", text, masked)


def _shorter(flow: Flow, target: Target) -> Iterator[Candidate]:
    """Yield the gradient with what it is computed from rounded to fewer digits."""
    for dtype, (inputs, gradients) in product(
        shorter_than(target), ((True, False), (False, True), (True, True))
    ):
        x = rounded(flow.operands.x, dtype) if inputs else flow.operands.x
        arriving = flow.output_gradient
        arriving = rounded(arriving, dtype) if gradients else arriving
        what = " and ".join(["its input"] * inputs + ["the gradient at its output"] * gradients)
        operands = replace(flow.operands, x=x)
        short = replace(flow, operands=operands, output_gradient=arriving)
        yield _candidate(f"dtype-{dtype}", f"rounds {what} to {dtype}", short)
