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


def explain(
    terms: Mapping[str, float],
    batches: Sequence[Batch],
    *,
    finite: Sequence[bool],
    first_layer: Callable[[Batch, int], str],
    iteration: int,
    checkpoint: str | None,
) -> NotFiniteError:
    """Return the error of an iteration whose loss or gradient is not finite on some rank.

    Args:
        terms: loss terms over all ranks.
        batches: this rank's, of the iteration.
        finite: whether this rank's loss of each batch is.
        first_layer: returns the first bad layer of a batch, by its place; "" for none.
        iteration: 1-based.
        checkpoint: the last good one.
    """
    found: list[str] = []
    for part, batch in enumerate(batches):
        layer = first_layer(batch, part)
        if layer or not finite[part]:
            found.append("\n".join([layer, *batch["name"]]))
    texts = [text.split("\n") for text in gather_texts(found[0] if found else "") if text]
    return not_finite(
        terms,
        iteration=iteration,
        names=[name for text in texts for name in text[1:]],
        layer=texts[0][0] if texts else "",
        checkpoint=checkpoint,
    )


def first_bad_layer(model: nn.Layer, forward: Callable[[], object], *, image: Tensor) -> str:
    """Run a forward pass and return the first layer that returns a NaN or Inf, "" for none.

    Args:
        model: whose layers are watched.
        forward: runs it.
        image: its input, looked at first.
    """
    bad: list[str] = []

    def visit(name: str, output: Tensor) -> None:
        if not bad and not bool(paddle.isfinite(output).all()):
            bad.append(name)

    visit("none, the image itself", image)
    with no_grad(), visit_outputs(model, visit):
        forward()
    return bad[0] if bad else ""


def gather_texts(text: str) -> list[str]:
    """Return the text of every rank, by rank; at most 4000 bytes of each."""
    rows = np.zeros((world_size(), 4000), dtype=np.int64)
    content = np.frombuffer(text.encode()[:4000], dtype=np.uint8)
    rows[rank(), : len(content)] = content
    total = all_reduce_array(rows).astype(np.uint8)
    return [row[row > 0].tobytes().decode(errors="replace") for row in total]
