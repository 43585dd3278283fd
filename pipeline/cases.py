"""What a probe works on, and what several probes do: the network, the loss, the schedule.

A probe sees one side (the modules of for_torch or for_paddle, which share one interface) and a
case (configuration, dtype, saved inputs), and yields named arrays. It never sees the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.config import Config
from common.config_sections import ModelConfig
from common.weights import read_weights
from fake_data import rules
from pipeline.given import with_negative_scales

Array = NDArray[Any]
Part = tuple[str, dict[str, Array]]
"""(name of the part, its arrays); the part "" is the step's record, others are snapshots."""


@dataclass(frozen=True)
class Case:
    """What a probe works on."""

    config: Config
    dtype: str
    inputs: Mapping[str, Array]
    """The step's saved inputs; float64, cast by ``tensor`` to the run's dtype."""
    weights: Path | None = None
    """Weights file; None takes weights by rule from each parameter's name and shape."""
    real_frames: bool = False
    """True when the data root holds real frames instead of generated ones."""

    def cast(self, array: Array) -> Array:
        """Return a floating array in the run's dtype, any other unchanged."""
        return array.astype(self.dtype) if array.dtype.kind == "f" else array

    def tensor(self, side: Any, key: str) -> Any:
        """Return a saved input as a tensor of the side."""
        return side.backend.to_tensor(self.cast(self.inputs[key]))


def build_network(side: Any, model: ModelConfig) -> Any:
    """Build the network of a configuration, with the side's own initialisation."""
    return side.models.build_model(
        model.name, classes=model.classes, options=model.options, pair=model.pair
    )


def build(side: Any, case: Case) -> Any:
    """Build the side's network in the run's dtype and give it the case's weights."""
    side.backend.set_default_dtype(case.dtype)
    side.backend.seed_everything(case.config.verify.seed)
    model = build_network(side, case.config.model)
    if case.weights is None:
        own = side.backend.state_arrays(model)
        arrays = _rule_state(tuple((name, array.shape) for name, array in own.items()))
        arrays = with_negative_scales(arrays, side.backend.layers_of(model, side.norm.InPlaceABN))
    else:
        arrays = read_weights(case.weights)
    side.backend.load_arrays(model, arrays)
    side.backend.disable_dropout(model)
    return model


@lru_cache(maxsize=1)
def _rule_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, Array]:
    """Return weights by rule; every build of the same network needs the same 13 million draws."""
    return rules.rule_state(dict(shapes))


def build_loss(side: Any, case: Case) -> Any:
    """Build the recipe's loss."""
    config = case.config
    return side.losses.build_loss(
        config.loss, classes=config.model.classes, ignore_index=config.data.ignore_index
    )


def prefixed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays under prefix/name."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def cast_batches(side: Any, case: Case, loader: Any) -> Iterator[dict[str, Any]]:
    """Yield a loader's batches with the images in the run's dtype."""
    for batch in loader:
        image = case.cast(side.backend.to_numpy(batch["image"]))
        yield {**batch, "image": side.backend.to_tensor(image)}


def short_schedule(config: Config, iterations: int, *, warmup: int = 2) -> Any:
    """Return the recipe's schedule squeezed into a few iterations, warm-up and decay included."""
    return config.schedule.model_copy(update={"max_iters": iterations, "warmup_iters": warmup})


Probe = Callable[[Any, Case], Iterator[Part]]
