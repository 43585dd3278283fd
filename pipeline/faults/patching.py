"""How a fault patches the Paddle side: the network after it is built, a layer, an attribute.

No framework is imported here; a patch reaches Paddle through the modules of the side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from unittest import mock

from pipeline.steps import Dtype

Patch = Callable[[Any], AbstractContextManager[Any]]
Make = Callable[[Any, Any], Any]
"""(layer or function, side) -> what takes its place."""


@dataclass(frozen=True)
class Fault:
    """One wrong port."""

    name: str
    step: str
    where: str
    """Shell pattern of the record key where the difference must start."""
    title: str
    patch: Patch
    model: str = "bisenetv1"
    """Network that can have this fault."""
    dtype: Dtype | None = None
    """Where it shows: "float32" if there alone, float64 being right; None is the dtype that decides
    the step."""
    why: str | None = None
    """The relation (Hint.relation) that explains it: the first hint of its first failure case."""


class FaultOfModel(Protocol):
    """Writes down a fault of one network."""

    def __call__(
        self,
        name: str,
        step: str,
        where: str,
        title: str,
        patch: Patch,
        *,
        why: str | None = None,
    ) -> Fault:
        """Return the fault; the arguments are Fault's."""
        ...


def faults_of(model: str, *, prefix: str = "") -> FaultOfModel:
    """Return how to write down a fault of one network."""

    def fault(
        name: str, step: str, where: str, title: str, patch: Patch, *, why: str | None = None
    ) -> Fault:
        return Fault(f"{prefix}{name}", step, where, title, patch, model=model, why=why)

    return fault


def in_model(change: Callable[[Any, Any], None]) -> Patch:
    """Return a patch that changes every whole network when it is built: ``change(model, side)``."""

    @contextmanager
    def patch(side: Any) -> Generator[None]:
        build = side.models.build_model

        def build_wrong(*args: Any, **options: Any) -> Any:
            model = build(*args, **options)
            # without its auxiliary heads a network may lack the very layer
            if options.get("aux_heads", True):
                change(model, side)
            return model

        with mock.patch.object(side.models, "build_model", build_wrong):
            yield

    return patch


def replaced(place: Callable[[Any], Any], name: str, make: Callable[[Any, Any], Any]) -> Patch:
    """Return a patch of one attribute: ``make(original, side)`` takes its place."""

    def patch(side: Any) -> AbstractContextManager[Any]:
        owner = place(side)
        return mock.patch.object(owner, name, make(getattr(owner, name), side))

    return patch


def at(model: Any, path: str) -> Any:
    """Return the sub-layer at a dotted path; digits index a Sequential."""
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def forward_of(path: str, make: Callable[[Any, Any], Any]) -> Patch:
    """Return a patch of one layer's forward: ``make(layer, side)`` returns the new function."""

    def change(model: Any, side: Any) -> None:
        layer = at(model, path)
        layer.forward = make(layer, side)

    return in_model(change)


def swapped_heads(one: str, other: str) -> Patch:
    """Return a patch that gives two auxiliary heads' outputs each other's name, where they are."""

    def change(model: Any, side: Any) -> None:
        right = model.forward

        def forward(image: Any) -> Any:
            logits = dict(right(image))
            if one in logits:
                logits[one], logits[other] = logits[other], logits[one]
            return logits

        model.forward = forward

    return in_model(change)


def functional(side: Any) -> Any:
    """Return the side's framework functions (conv2d, interpolate, ...)."""
    return side.layers.F


def module_named(name: str) -> Callable[[Any], Any]:
    """Return how to find a module of the side's package by its dotted name."""
    return lambda side: sys.modules[f"{side.losses.__name__.partition('.')[0]}.{name}"]


def identity(layer: Any, side: Any) -> Any:
    """Leave the layer out."""
    return lambda x: x


def then_relu(layer: Any, side: Any) -> Any:
    """Put a ReLU behind the layer."""
    right = layer.forward
    return lambda x: functional(side).relu(right(x))


def swapped_arguments(layer: Any, side: Any) -> Any:
    """Hand a fusion its two maps in the other order."""
    right = layer.forward
    return lambda spatial, context: right(context, spatial)


def resized_to(**options: Any) -> Make:
    """Return a layer that resizes to a size given with the map."""

    def make(layer: Any, side: Any) -> Any:
        F = functional(side)
        return lambda x, size_hw: F.interpolate(x, size=list(size_hw), **options)

    return make


def optimizer_options(**update: Any) -> Patch:
    """Return a patch that builds the optimizer from changed options."""

    def make(right: Any, side: Any) -> Any:
        def build(model: Any, *, optimizer: Any, schedule: Any) -> Any:
            return right(model, optimizer=optimizer.model_copy(update=update), schedule=schedule)

        return build

    return replaced(lambda side: side.optim, "build_optimizer", make)
