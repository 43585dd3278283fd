"""Failure cases of layers, buffers and gradients, cut out of a recorded and a forced pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import Config
from common.param_groups import group_table
from pipeline.blame import Blamed, Traces, actual_or_zero, call_of, cuts, layer_of
from pipeline.cases import short_schedule
from pipeline.examine import BACKWARD
from pipeline.failure import FailureCase
from pipeline.records import Array

NETWORK = "network"
"""Name of the network itself among the layers."""


@dataclass(frozen=True)
class About:
    """What a case says about the run that it is from."""

    step: str
    dtype: str
    config: Config
    inject: str | None = None
    """Deliberate faults of the Paddle side."""
    iteration: int | None = None


PHASE_OF = {
    "sample": "forward",
    "layer": "forward",
    "loss": "loss",
    "logits_gradient": "loss",
    "layer_gradient": "backward",
    "parameter_gradient": "backward",
    "buffer": "buffers",
    "update": "optimizer",
    "momentum": "optimizer",
}
"""Phase of a training iteration by kind of case."""


def case_of(blamed: Blamed, traces: Traces, about: About) -> FailureCase:
    """Return the failure case of a blamed tensor."""
    reference = traces.reference.arrays[blamed.key]
    arrays: dict[str, Array] = {
        "reference": reference,
        "actual": actual_or_zero(traces.forced.arrays, blamed.key, reference),
    }
    cut = _Cut(blamed, traces)
    makers = {
        "layer": cut.layer,
        "sample": dict,
        "layer_gradient": cut.gradient,
        "parameter_gradient": cut.gradient,
        "buffer": cut.buffer,
        "loss": cut.loss,
        "logits_gradient": cut.loss,
        "update": cut.update,
        "momentum": cut.update,
    }
    arrays |= makers[blamed.kind]()
    config, layer = about.config, layer_of(blamed.call)
    settings: dict[str, Any] = {
        "model": config.model.model_dump(
            mode="json", include={"name", "classes", "options", "pair"}
        ),
        "ignore_index": config.data.ignore_index,
        "layer": layer,
        "call": blamed.call,
        "cut": blamed.key.removeprefix(f"{blamed.context}/"),
        "arguments": traces.reference.arguments[blamed.context].get(blamed.call, {}),
        "inject": about.inject,
    }
    if blamed.kind in ("loss", "logits_gradient"):
        settings["loss"] = config.loss.model_dump(mode="json")
    if blamed.kind in ("update", "momentum"):
        settings |= _optimizer_settings(config, cut.group(), about.dtype)
    return FailureCase(
        step=about.step,
        dtype=about.dtype,
        key=record_key(blamed),
        kind=blamed.kind,
        name=blamed.layer or NETWORK,
        where=text_of(blamed),
        arrays={key: np.asarray(array) for key, array in arrays.items()},
        mode=_mode(blamed, about),
        iteration=about.iteration,
        phase=PHASE_OF[blamed.kind] if about.iteration is not None else "",
        spec={
            "torch": traces.reference.layers.get(layer, {}),
            "paddle": traces.forced.layers.get(layer, {}),
        },
        settings=settings,
    )


def _optimizer_settings(config: Config, name: str, dtype: str) -> dict[str, Any]:
    """Return how a training's update was made: optimizer, group and schedule as they were run."""
    verify = config.verify
    optimizer = config.optimizer.model_copy(update={"base_lr": verify.train_base_lr})
    schedule = short_schedule(config, verify.train_iters, warmup=verify.train_warmup_iters)
    groups = {group.name: group for group in group_table(optimizer).values()}

    def stored(value: float) -> float:
        # as Paddle's kernel keeps it, which Torch adopts in float64
        return float(np.float32(value)) if dtype == "float64" else value

    group: dict[str, Any] = {"name": name}
    if name in groups:
        group |= {
            "lr_mult": groups[name].lr_mult,
            "weight_decay": stored(groups[name].weight_decay),
            "momentum": stored(optimizer.momentum),
            "nesterov": optimizer.nesterov,
        }
    return {
        "optimizer": optimizer.model_dump(mode="json"),
        "schedule": schedule.model_dump(mode="json"),
        "group": group,
    }


def _mode(blamed: Blamed, about: About) -> str:
    return "train" if blamed.context == BACKWARD or about.step != "forward" else "eval"


def record_key(blamed: Blamed) -> str:
    """Return the key under which the step's own record has such a tensor."""
    context, _, cut = blamed.key.partition("/")
    if blamed.kind == "layer" and cut.startswith("output/"):
        name = cut.removeprefix("output/")
        return f"{context}/head/{name[1:]}" if name.startswith(".") else f"{context}/layer/{name}"
    if blamed.kind in ("layer_gradient", "logits_gradient"):
        return f"layer/{cut.removeprefix('gradient/')}"
    return blamed.key


def text_of(blamed: Blamed) -> str:
    """Return the place in words."""
    name = f"layer {blamed.layer}" if blamed.layer else "the network itself"
    cut = blamed.key.removeprefix(f"{blamed.context}/")
    kind, _, rest = cut.removeprefix("gradient/").partition("/")
    rest = rest.removeprefix(".")
    if blamed.kind == "layer":
        if kind == "input":
            return f"{name}, in what it hands to {rest.rpartition('/')[0]} ({blamed.context})"
        head = f", head {rest}" if not blamed.layer else ""
        return f"{name}{head} ({blamed.context})"
    if blamed.kind == "layer_gradient":
        lost = ": none arrives" if blamed.row.size and blamed.row.verdict.value == "MISSING" else ""
        if kind == "input":
            return f"{name}, in the gradient it sends back to its input{lost}"
        return f"{name}, in the gradient it sends back to {rest}{lost}"
    return {
        "sample": f"{blamed.layer}, in the image it hands to the network",
        "loss": f"loss term {rest or cut}",
        "logits_gradient": f"gradient of the loss at {rest}",
        "parameter_gradient": f"gradient of parameter {blamed.layer}",
        "buffer": f"buffer {blamed.layer}",
        "update": f"update of parameter {blamed.layer}",
        "momentum": f"momentum of parameter {blamed.layer}",
    }[blamed.kind]


class _Cut:
    """The arrays around one call of a layer, as Torch has them."""

    def __init__(self, blamed: Blamed, traces: Traces) -> None:
        self.blamed = blamed
        self.trace = traces.reference
        self.arrays = traces.reference.arrays
        self.actual = traces.forced.arrays
        self.layer_name = layer_of(blamed.call)

    def layer(self) -> dict[str, Array]:
        """Return what the call was given, its parameters, and what its sub-layers returned."""
        found = self._inputs() | self._own("parameter") | self._own("buffer") | self._children("")
        if self.blamed.layer == "":
            cut = self.blamed.key.removeprefix(f"{self.blamed.context}/")
            heads = self._prefixed(f"{self.blamed.context}/output/.")
            found |= {f"sibling/{k}": a for k, a in heads.items() if f"output/.{k}" != cut}
        return found

    def gradient(self) -> dict[str, Array]:
        """Return the call's arrays with the gradients at its output and at its sub-layers'."""
        context, found = self.blamed.context, self.layer()
        for cut in cuts(self.trace, context):
            key = f"{context}/gradient/{cut}"
            call, part = call_of(self.trace, context, cut)
            if cut.startswith("output/") and call == self.blamed.call and key in self.arrays:
                found[f"output_gradient{'/' * bool(part)}{part}"] = self.arrays[key]
        if (previous := f"previous/{self.blamed.layer}") in self.arrays:
            # of the iteration before: what is left when gradients are not cleared
            found["previous_gradient"] = self.arrays[previous]
        return found | self._children("gradient/")

    def buffer(self) -> dict[str, Array]:
        """Return the buffer before the call, the input, and the values per channel."""
        x = self._inputs()
        N, _, *sizes = x["input/0"].shape
        return {
            "before": self.arrays[f"state/{self.blamed.layer}"],
            **x,
            **self._own("buffer"),
            "count": np.asarray(N * int(np.prod(sizes))),
        }

    def loss(self) -> dict[str, Array]:
        """Return the logits, the label, and the terms of both sides."""
        heads = self._prefixed(f"{BACKWARD}/output/.")
        found = {f"logits/{head}": array for head, array in heads.items()}
        found["label"] = (
            self.arrays["label"] if "label" in self.arrays else self.arrays["data/label"]
        )
        for name, array in self._prefixed("loss/").items():
            found[f"term/{name}/reference"] = array
            found[f"term/{name}/actual"] = actual_or_zero(self.actual, f"loss/{name}", array)
        for head in heads:
            key = f"{BACKWARD}/gradient/output/.{head}"
            if key in self.arrays:
                found[f"gradient/{head}/reference"] = self.arrays[key]
                found[f"gradient/{head}/actual"] = actual_or_zero(
                    self.actual, key, self.arrays[key]
                )
        return found

    def update(self) -> dict[str, Array]:
        """Return a parameter's value, velocity, gradient and rate before its update."""
        name, group = self.blamed.layer, self.group()
        found = {"before": self.arrays[f"state/{name}"]}
        if f"grad/{name}" in self.arrays:
            found["gradient/1"] = self.arrays[f"grad/{name}"]
        if f"rate/{group}" in self.arrays:
            found["rate/1"] = self.arrays[f"rate/{group}"]
        if f"velocity/{name}" in self.arrays:
            found["velocity"] = self.arrays[f"velocity/{name}"]
        return found

    def group(self) -> str:
        """Return the parameter's group in the optimizer, empty if it is in none."""
        return str(self.arrays.get(f"group/{self.blamed.layer}", ""))

    def _prefixed(self, prefix: str) -> Mapping[str, Array]:
        arrays = self.arrays
        return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}

    def _inputs(self) -> dict[str, Array]:
        found = self._prefixed(f"{self.blamed.context}/input/{self.blamed.call}/")
        return {f"input/{i}": array for i, array in found.items() if "/" not in i}

    def _own(self, kind: str) -> dict[str, Array]:
        """Return the layer's own parameters or buffers, without its sub-layers'."""
        prefix = f"state/{self.layer_name}." if self.layer_name else "state/"
        return {
            f"{kind}/{name}": array
            for name, array in self._prefixed(prefix).items()
            if "." not in name and name.startswith("running_") == (kind == "buffer")
        }

    def _children(self, what: str) -> dict[str, Array]:
        """Return what the direct sub-layers were given and returned, or (gradient/) its gradients.

        ``child/<name>`` and ``handed/<name>/<i>``; with "gradient/" in front of the latter two.
        """
        context, calls = self.blamed.context, self.trace.callers[self.blamed.context]
        head = f"{self.layer_name}." if self.layer_name else ""
        found: dict[str, Array] = {}
        for cut in cuts(self.trace, context):
            call, part = call_of(self.trace, context, cut)
            key = f"{context}/{what}{cut}"
            if call == "" or calls[call] != self.blamed.call or key not in self.arrays:
                continue
            name = call.removeprefix(head)
            if cut.startswith("input/"):
                found[f"{what}handed/{name}/{part}"] = self.arrays[key]
            else:
                found[f"{what}child/{name}{'.' if part else ''}{part}"] = self.arrays[key]
        return found
