"""What the recorders do in an investigation: a pass cut at its layers, recorded or forced.

Torch records a pass (``reference`` is None), Paddle is teacher-forced with that record. Of float32,
both sides also run in float64 from the float32 numbers: what each layer's rounding is there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.cases import Array, Case, Part, build, build_loss, prefixed
from pipeline.records import has_record, read_record, record_name
from pipeline.traces import TraceRecord, pack, unpack

BACKWARD = "train"
"""The context of a pass with gradients: training mode."""


class Exam(BaseModel):
    """What a recorder is to do in place of a step's probe."""

    contexts: list[str] = []
    """Passes to trace: "eval", "train", or a key of the forward step's inputs (odd33x65)."""
    reference: Path | None = None
    """Folder of Torch's record of the same exam, by which this one is forced."""
    dtype: str = "float64"
    """That of the reference: its numbers, weights and inputs are taken, whatever this run's is."""
    window: tuple[int, int] | None = None
    """Training: first and last iteration to record, counted from 1."""
    iteration: int | None = None
    """Training: the iteration to trace."""


def await_record(folder: Path, name: str) -> Mapping[str, Array]:
    """Return the other side's record as soon as it is complete.

    Raises:
        RuntimeError: the other side has reported an error in its place.
    """
    while not has_record(folder, name):
        if (folder / f"{name}.error.txt").is_file():
            raise RuntimeError(f"no reference to force by: {name} failed")
        time.sleep(0.1)
    return read_record(folder, name).arrays


def reference_of(exam: Exam, step: str) -> TraceRecord | None:
    """Return Torch's record of this exam, waiting for it; None in Torch's own recording."""
    if exam.reference is None:
        return None
    return unpack(await_record(exam.reference, record_name(step, exam.dtype, "torch")))


def examine_step(side: Any, case: Case, exam: Exam, *, step: str) -> Iterator[Part]:
    """Trace the passes of the forward or backward step."""
    reference = reference_of(exam, step)
    model = build_rounded(side, case, exam.dtype)
    tracer = Tracer(side, model, reference)
    if reference is None:
        tracer.add_state()
    inputs = replace(case, inputs=rounded(case.inputs, exam.dtype))
    if step == "backward":
        tracer.backward(inputs)
    else:
        for context in exam.contexts:
            tracer.forward(inputs, context)
    yield "", tracer.record()


def rounded(arrays: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """Return floating arrays rounded to a dtype, the others as they are."""
    return {k: a.astype(dtype) if a.dtype.kind == "f" else a for k, a in arrays.items()}


def build_rounded(side: Any, case: Case, dtype: str) -> Any:
    """Build the case's network with the weights that it has in another dtype."""
    model = build(side, case)
    if dtype != case.dtype:
        side.backend.load_arrays(model, rounded(side.backend.state_arrays(model), dtype))
    return model


class Tracer:
    """Passes through one network, recorded or forced, and what they leave behind."""

    def __init__(self, side: Any, model: Any, reference: TraceRecord | None) -> None:
        self.side, self.model, self.reference = side, model, reference
        self.arrays: dict[str, Array] = {}
        self.callers: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}

    def given(self, context: str) -> dict[str, Array] | None:
        """Return what a pass is forced by."""
        if self.reference is None:
            return None
        head = f"{context}/"
        arrays = self.reference.arrays
        return {k.removeprefix(head): a for k, a in arrays.items() if k.startswith(head)}

    def add_state(self) -> None:
        """Record all weights and buffers as they are before the passes."""
        self.arrays |= prefixed("state", self.side.backend.state_arrays(self.model))

    def add_buffers(self) -> None:
        """Record the BatchNorm buffers as they are after a pass."""
        state = self.side.backend.state_arrays(self.model)
        self.arrays |= prefixed("buffer", {k: v for k, v in state.items() if "running_" in k})

    def forward(self, case: Case, context: str) -> None:
        """Trace one pass of the forward step, as probe_forward runs it."""
        self.model.train() if context == "train" else self.model.eval()
        self.model.aux_in_eval = True
        key = context if context in case.inputs else "image"
        with ExitStack() as stack:
            stack.enter_context(self.side.backend.no_grad())
            trace = stack.enter_context(
                self.side.forcing.traced(self.model, reference=self.given(context), graph=False)
            )
            self.model(case.tensor(self.side, key))
        self.keep(context, trace)

    def backward(self, case: Case) -> None:
        """Trace the pass of the backward step, as probe_backward runs it, and its gradients."""
        self.model.train()
        loss = build_loss(self.side, case)
        with self.side.forcing.traced(
            self.model, reference=self.given(BACKWARD), graph=True
        ) as trace:
            terms = loss(
                self.model(case.tensor(self.side, "image")), case.tensor(self.side, "label")
            )
            forced = self.reference is not None
            total = trace.with_reference_gradients(terms["total"]) if forced else terms["total"]
            total.backward()
        self.keep(BACKWARD, trace)
        self.add_losses(terms, case.inputs["label"])
        self.arrays |= prefixed("grad", self.side.backend.gradients(self.model))
        self.add_buffers()

    def add_losses(self, terms: Mapping[str, Any], label: Array) -> None:
        """Record the loss terms and the label map they are of."""
        self.arrays["label"] = label
        self.arrays |= prefixed(
            "loss", {name: self.side.backend.to_numpy(v) for name, v in terms.items()}
        )

    def keep(self, context: str, trace: Any) -> None:
        """Take over what a pass has handed over, and its gradients."""
        self.arrays |= prefixed(context, trace.values)
        self.arrays |= prefixed(context, trace.gradients())
        self.callers[context] = trace.callers
        self.arguments[context] = {
            call: kept
            for call, values in trace.arguments.items()
            if (kept := {i: v for i, v in values.items() if plain(v)})
        }

    def record(self) -> dict[str, Array]:
        """Return the record of all passes."""
        layers = self.side.forcing.named_layers(self.model)
        about = {
            "callers": self.callers,
            "arguments": self.arguments,
            "layers": {name: self._described(layer) for name, layer in layers.items()},
        }
        reference = None if self.reference is None else self.reference.arrays
        return pack(self.arrays, about, reference=reference)

    def _described(self, layer: Any) -> dict[str, Any]:
        """Return kind and options, and the mode where it is known: after a single pass."""
        spec: dict[str, Any] = self.side.describe.describe(layer)
        return {**spec, "training": bool(layer.training)} if len(self.callers) == 1 else spec


def plain(value: Any) -> bool:
    """Tell whether JSON can hold a layer's argument: numbers, texts, and lists of them."""
    if isinstance(value, (list, tuple)):
        items: Sequence[Any] = value
        return all(plain(item) for item in items)
    return value is None or isinstance(value, (bool, int, float, str))
