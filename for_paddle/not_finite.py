"""What a NaN or Inf in a training comes from: which samples, which layer.

Every rank takes part, also those whose own loss is finite: with synchronised BatchNorm a forward
pass needs all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from common.stopping import NotFiniteError, not_finite
from for_paddle.backend import no_grad, visit_outputs
from for_paddle.distributed import all_reduce_array, rank, world_size

Batch = Mapping[str, Any]

GRADIENT = "none, only the gradient"
"""Told for a layer where loss and layers are finite."""


def explain(
    terms: Mapping[str, float],
    batches: Sequence[Batch],
    *,
    finite: Sequence[bool],
    first_layer: Callable[[Batch, int], tuple[int, str]],
    iteration: int,
    checkpoint: str | None,
    steps: int,
) -> NotFiniteError:
    """Return the error of an iteration whose loss or gradient is not finite on some rank.

    Where the norms are synchronised, one rank's NaN is in all ranks' statistics a layer later, so
    the rank whose first bad layer is the earliest is the cause, and the only one that is told.

    Args:
        terms: loss terms over all ranks.
        batches: this rank's, of the iteration.
        finite: whether this rank's loss of each batch is.
        first_layer: returns the first bad layer of a batch; see first_bad_layer.
        iteration: 1-based.
        checkpoint: the last good one.
        steps: in how many steps in a row it was so.
    """
    found: list[str] = []
    for part, batch in enumerate(batches):
        place, layer = first_layer(batch, part)
        if layer or not finite[part]:
            found.append("\n".join([f"{part:06d} {place:06d}", layer, *batch["name"]]))
    names = [name for batch in batches for name in batch["name"]]
    # every forward pass is finite where the gradient alone is not: any sample may be the cause
    own = found[0] if found else "\n".join(["none", GRADIENT, *names])
    texts = [text.split("\n") for text in gather_texts(own)]
    # digits are before letters: a rank that has found something goes first
    first = min(text[0] for text in texts)
    causes = [text for text in texts if text[0] == first]
    return not_finite(
        terms,
        iteration=iteration,
        names=[name for cause in causes for name in cause[2:]],
        layer=causes[0][1],
        checkpoint=checkpoint,
        steps=steps,
    )


def first_bad_layer(
    model: nn.Layer, forward: Callable[[], object], *, image: Tensor
) -> tuple[int, str]:
    """Run a forward pass; return the place in its order, and the name, of the first bad layer.

    Bad is one that returns a NaN or Inf; without any, the place past the last one and "".

    Args:
        model: whose layers are watched.
        forward: runs it.
        image: its input, looked at first.
    """
    finite: list[str] = []
    bad: list[str] = []

    def visit(name: str, output: Tensor) -> None:
        if not bad:
            found = finite if bool(paddle.isfinite(output).all()) else bad
            found.append(name)

    visit("none, the image itself", image)
    with no_grad(), visit_outputs(model, visit):
        forward()
    return len(finite), bad[0] if bad else ""


def gather_texts(text: str) -> list[str]:
    """Return the text of every rank, by rank; at most 4000 bytes of each."""
    rows = np.zeros((world_size(), 4000), dtype=np.int64)
    content = np.frombuffer(text.encode()[:4000], dtype=np.uint8)
    rows[rank(), : len(content)] = content
    total = all_reduce_array(rows).astype(np.uint8)
    return [row[row > 0].tobytes().decode(errors="replace") for row in total]
