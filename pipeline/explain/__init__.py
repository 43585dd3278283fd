"""Why two tensors differ: the relation that turns the reference into the actual one.

A relation is shown only if the tensor, computed again with it, is the actual one to rounding
(target.py). What is tried depends on the kind of the case (pipeline/failure.py); every kind has a
module with a function ``explain_<kind>(case)``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import numpy as np

from pipeline.failure import FailureCase, Hint

MODULES = {
    "layer": "layers",
    "buffer": "buffers",
    "parameter_gradient": "gradients",
    "layer_gradient": "gradients",
    "loss": "loss",
    "logits_gradient": "loss",
    "update": "optimizer",
    "momentum": "optimizer",
    "series": "schedule",
    "option": "schedule",
    "sample": "data",
    "batch": "batch",
    "metric": "metric",
}
"""Which module of this package explains a kind of case."""


def explain(case: FailureCase) -> list[Hint]:
    """Return the confirmed relations of a failing tensor, the best first, at most five.

    Args:
        case: the tensor and what it was computed from; incomplete ones get fewer candidates.

    Returns:
        Nothing if no relation reproduces the actual tensor.
    """
    module = f"{__name__}.{MODULES[case.kind]}"
    if importlib.util.find_spec(module) is None:
        return []
    search: Callable[[FailureCase], list[Hint]] = getattr(
        importlib.import_module(module), f"explain_{case.kind}"
    )
    # a wrong candidate may divide by zero or overflow: it is not confirmed then
    with np.errstate(all="ignore"):
        return search(case)
