"""Why a layer's output differs on agreeing inputs.

The layer is computed with its own options first. Only if that is the reference, wrong options are
tried: what is known of the layer is then complete. Relations of the two arrays alone are always
tried, and for a composite layer the combinations of its children's outputs (composites.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from pipeline.explain import composites, convolutions, normalisations, resizings
from pipeline.explain.generic import array_candidates, sibling_candidates
from pipeline.explain.ops import ACTIVATIONS, softmax
from pipeline.explain.options import (
    Operands,
    Options,
    of_layer,
    operands_of,
    reduction_of,
    run_part,
    with_options,
)
from pipeline.explain.specs import identify, readings
from pipeline.explain.target import (
    Array,
    Candidate,
    Target,
    Where,
    confirm,
    fixed,
    leaky_slope,
    part_of,
    rounded,
    shorter_than,
)
from pipeline.failure import FailureCase, Hint


def explain_layer(case: FailureCase) -> list[Hint]:
    """Return what a layer does differently, confirmed on its output.

    Args:
        case: of kind "layer".
    """
    operands = operands_of(case)
    options = None if operands is None else identify(case, operands)
    reduction = 16.0 if operands is None or options is None else reduction_of(options, operands)
    target = Target(case.arrays["reference"], case.arrays["actual"], reduction)
    candidates: list[Candidate] = []
    if operands is not None and options is not None:
        candidates += layer_candidates(case, target, options, operands)
    candidates += sibling_candidates(case)
    candidates += composites.candidates(case, target)
    candidates += array_candidates(target)
    return confirm(target, candidates)


def layer_candidates(
    case: FailureCase, target: Target, options: Options, operands: Operands
) -> Iterator[Candidate]:
    """Yield wrong options of a layer whose right ones are known."""
    yield from _by_spec(case, target, options, operands)
    yield from _BY_KIND.get(options.kind, _activations)(target, options, operands)
    yield from _shorter_operands(target, options, operands)


# ---- what both sides say of the layer ---------------------------------------------------------
RELATIONS = {
    "stride": "stride",
    "padding": "padding",
    "dilation": "dilation",
    "pad_mode": "padding-mode",
    "kernel": "kernel-size",
    "ceil_mode": "ceil-mode",
    "count_include_pad": "count-include-pad",
    "eps": "eps",
    "slope": "activation-slope",
    "align_corners": "align-corners",
    "align_mode": "align-mode",
}
"""Field of Options -> what it is called when the two sides differ in it alone."""


def _by_spec(
    case: FailureCase, target: Target, options: Options, operands: Operands
) -> Iterator[Candidate]:
    """Yield the layer with the actual side's own options, where one differs."""
    spec = case.spec.get("paddle")
    if not spec:
        return
    shape = target.actual.shape
    for other in readings({**case.spec.get("torch", {}), **spec}, operands, case.mode, shape=shape):
        if other.kind != options.kind:
            return
        changed = [name for name in RELATIONS if getattr(other, name) != getattr(options, name)]
        if len(changed) == 1:
            name = changed[0]
            text = (
                f"has {name.replace('_', ' ')} {getattr(other, name)} in place of "
                f"{getattr(options, name)}, as its object says"
            )
            changes = {name: getattr(other, name), "size_hw": other.size_hw}
            yield with_options(RELATIONS[name], text, options, operands, **changes)


# ---- fewer digits -----------------------------------------------------------------------------
def _shorter_operands(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield the layer with input, weights and result rounded to fewer digits."""
    for dtype in shorter_than(target):
        x = replace(operands, x=rounded(operands.x, dtype))
        weights = {name: rounded(a, dtype) for name, a in operands.parameters.items()}
        relation = f"dtype-{dtype}"
        ways = [("input", x)]
        if weights:
            ways += [("parameters", replace(operands, parameters=weights))]
            ways += [("input and parameters", replace(x, parameters=weights))]
        for what, with_operands in ways:
            yield of_layer(relation, f"rounds its {what} to {dtype}", options, with_operands)
        compute = partial(_rounded_result, dtype, options, ways[-1][1])
        yield Candidate(relation, f"rounds its {ways[-1][0]} and its result to {dtype}", compute)


def _rounded_result(dtype: str, options: Options, operands: Operands, where: Where) -> Array:
    return rounded(run_part(options, operands, where), dtype)


# ---- activations ------------------------------------------------------------------------------
def _activations(target: Target, options: Options, operands: Operands) -> Iterator[Candidate]:
    """Yield the activation left out, with another slope, and other activations."""
    x = operands.x
    yield fixed("missing-activation", f"does not apply {options.kind}", x)
    if options.kind == "identity":
        return
    slope = leaky_slope(target, x)
    if slope is not None:
        text = f"is leaky_relu with slope {slope:.8g} in place of {_activation_words(options)}"
        yield with_options(
            "activation-slope", text, options, operands, kind="leaky_relu", slope=slope
        )
    for name in ACTIVATIONS:
        if name != options.kind:
            text = f"is {name} in place of {options.kind}"
            yield with_options("other-activation", text, options, operands, kind=name)
    if options.kind == "softmax":
        for axis in range(x.ndim):
            compute = partial(_softmax_along, x, axis)
            yield Candidate("softmax-axis", f"takes the softmax along axis {axis}", compute)


def _softmax_along(x: Array, axis: int, where: Where) -> Array:
    return part_of(softmax(x, axis), where)


def _activation_words(options: Options) -> str:
    return f"slope {options.slope:.8g}" if options.kind == "leaky_relu" else options.kind


_BY_KIND = {
    "conv2d": convolutions.candidates,
    "linear": convolutions.linear_candidates,
    "batch_norm": normalisations.candidates,
    "max_pool2d": resizings.pool_candidates,
    "avg_pool2d": resizings.pool_candidates,
    "adaptive_avg_pool2d": resizings.global_pool_candidates,
    "upsample": resizings.resize_candidates,
}
"""Kind of layer -> its wrong options; all others are activations."""
