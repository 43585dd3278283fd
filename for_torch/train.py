"""Training engine: one step, and the loop over a loader's batches.

Order of upstream's loop (CoinCheung/BiSeNet tools/train_amp.py): forward, loss, backward, optimizer
step, then scheduler step, so iteration i uses the rate lr(i).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

IterationCallback = Callable[[int, Mapping[str, Tensor], Mapping[str, Any]], None]


def train_step(
    model: nn.Module,
    loss: nn.Module,
    optimizer: Any,
    scheduler: Any,
    *,
    image: Tensor,
    label: Tensor,
) -> dict[str, Tensor]:
    """Do one optimizer step and return the loss terms before it.

    Args:
        model: in training mode; returns a dict of logits.
        loss: SegmentationLoss; returns a dict of scalars with "total".
        optimizer: from build_optimizer.
        scheduler: from build_optimizer; stepped after the optimizer.
        image: (N, 3, H, W) floating, normalised.
        label: (N, H, W) int64, train ids and the ignore value.
    """
    terms = loss(model(image), label)
    optimizer.zero_grad()
    terms["total"].backward()
    optimizer.step()
    scheduler.step()
    return {name: value.detach() for name, value in terms.items()}


def train(
    model: nn.Module,
    loss: nn.Module,
    optimizer: Any,
    scheduler: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    start_iteration: int = 0,
    on_iteration: IterationCallback | None = None,
) -> int:
    """Train over all batches and return the number of the next iteration.

    Args:
        model: switched to training mode here.
        loss: SegmentationLoss.
        optimizer: from build_optimizer.
        scheduler: from build_optimizer.
        batches: dicts with "image" (N, 3, H, W), "label" (N, H, W) int64 and "name".
        start_iteration: 0-based number of the first batch.
        on_iteration: called after each step with (iteration, loss terms, batch).
    """
    model.train()
    iteration = start_iteration
    for batch in batches:
        terms = train_step(
            model, loss, optimizer, scheduler, image=batch["image"], label=batch["label"]
        )
        if on_iteration is not None:
            on_iteration(iteration, terms, batch)
        iteration += 1
    return iteration
