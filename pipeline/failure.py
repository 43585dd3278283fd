"""A failing tensor as a case of its own: everything that is needed to explain it and to replay it.

    logs/<configuration>/failures/<number>_<step>_<dtype>/case.json, arrays.npz

A case is small enough to be looked at, holds no framework's objects, and is read without one. What
kinds there are and which arrays each of them holds:

==================  ===============================================================================
layer               one layer's output on agreeing inputs. ``input/<i>``, ``parameter/<name>``,
                    ``buffer/<name>`` (before the call), ``child/<name>`` (outputs of the direct
                    sub-layers, which are given), ``sibling/<head>`` (the other heads' logits)
buffer              a BatchNorm buffer after one call in training mode. ``before``, ``input/0``,
                    ``count`` (values per channel)
parameter_gradient  a parameter's gradient on agreeing activations and an agreeing gradient at the
                    layer's output. ``input/<i>``, ``output_gradient``, ``parameter/<name>``
layer_gradient      the gradient at a layer's output, seen from the loss
loss                a term. ``logits/<head>``, ``label``, ``term/<name>/reference`` and
                    ``term/<name>/actual``
logits_gradient     the gradient of the loss at a head's logits. The arrays of ``loss``, and
                    ``gradient/<head>/reference`` and ``.../actual``
update              a parameter after optimizer steps from given gradients. ``before``,
                    ``gradient/<step>``, ``rate/<step>`` (1, 2, ...)
momentum            a momentum buffer, with the arrays of ``update``
series              a learning rate per iteration. ``other/<group>``: the reference of all groups
option              an optimizer option of a group, or the group of a parameter
sample              a picture or label map after a transform. ``previous``: the reference before it
batch               what the loader yields: order, names, sizes
metric              counts or an average. ``prediction``, ``label``
==================  ===============================================================================

``reference`` (Torch) and ``actual`` (Paddle) are always there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_text
from pipeline.records import Array, read_arrays, write_arrays

KINDS = (
    "layer",
    "buffer",
    "parameter_gradient",
    "layer_gradient",
    "loss",
    "logits_gradient",
    "update",
    "momentum",
    "series",
    "option",
    "sample",
    "batch",
    "metric",
)


@dataclass(frozen=True)
class Hint:
    """A relation that explains a difference, confirmed by computing the tensor with it."""

    relation: str
    """Its name: lower case, hyphens, the same wherever it occurs (``align-corners``)."""
    text: str
    """What the actual side seems to do, in one sentence."""
    before: float
    """Largest difference to the reference, relative to the tensor's largest value."""
    residual: float
    """What is left of it when the reference is computed with the relation."""


@dataclass(frozen=True)
class FailureCase:
    """One failing tensor."""

    step: str
    dtype: str
    key: str
    """Record key of the tensor."""
    kind: str
    """One of KINDS."""
    name: str
    """Layer, parameter, group, term, sample: what the tensor belongs to."""
    where: str
    """The place in words, as the log says it."""
    arrays: Mapping[str, Array]
    mode: str = ""
    """"eval" or "train" where it matters."""
    iteration: int | None = None
    """Of a training run, counted from 1."""
    phase: str = ""
    """Of that iteration: data, forward, loss, backward, optimizer, buffers, schedule."""
    spec: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """side -> kind and options of the layer, as the framework's own object holds them."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the step was run with: loss, optimizer, schedule or data options."""
    hints: Sequence[Hint] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} of {self.key}; expected one of {KINDS}")
        for name in ("reference", "actual"):
            if name not in self.arrays:
                raise ValueError(f"case {self.key} has no array {name!r}; both sides are needed")


def write_case(folder: Path, case: FailureCase) -> None:
    """Write a case, the description last: a folder without one is not there yet."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_arrays(folder / "arrays.npz", case.arrays)
    fields = {**asdict(case), "arrays": list(case.arrays)}
    write_text(folder / "case.json", json.dumps(fields, indent=1) + "\n")


def read_case(folder: Path) -> FailureCase:
    """Read a case written by write_case.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        fields: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        fields["arrays"] = read_arrays(folder / "arrays.npz")
        fields["hints"] = [Hint(**hint) for hint in fields["hints"]]
        return FailureCase(**fields)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no failure case ({error.filename} is missing); cases are the folders "
            "failures/* of a verification's logs"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise InputError(f"{folder}: damaged failure case ({error}); verify again") from error
