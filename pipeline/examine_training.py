"""What the recorders do to find the place in a training: a window of iterations, then one of them.

In the window each side runs as it does, and every phase of every iteration leaves a sample of its
numbers. In the one iteration Torch's pass is recorded whole, and Paddle's, after its own run up to
there (what a run carries along must still show), is teacher-forced with it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from pipeline.cases import Array, Case, Part, prefixed
from pipeline.examine import BACKWARD, Exam, Tracer, build_rounded, examine_step, reference_of
from pipeline.traces import TraceRecord
from pipeline.training import training_run

PHASES = ("data", "schedule", "forward", "loss", "backward", "optimizer", "buffers")
"""The phases of an iteration, in their order."""
SAMPLED = 4096
"""Elements of a tensor that the window keeps: a wrong training is not wrong in one weight."""


def examine(side: Any, case: Case, exam: Exam, *, step: str) -> Iterator[Part]:
    """Answer an investigation's question about a step."""
    if step != "training":
        yield from examine_step(side, case, exam, step=step)
    elif exam.window is not None:
        yield "", dict(_window(side, case, exam.window))
    else:
        yield "", _iteration(side, case, exam)


def phase_key(iteration: int, phase: str, name: str) -> str:
    """Return the record key of a tensor of the window."""
    return f"iteration{iteration:04d}/{phase}/{name}"


def sampled(array: Array) -> Array:
    """Return evenly spread elements of an array, or all if there are few."""
    return array.reshape(-1)[:: max(1, array.size // SAMPLED) | 1].copy()


def _window(side: Any, case: Case, window: tuple[int, int]) -> Iterator[tuple[str, Array]]:
    run = training_run(side, case)
    first, last = window
    for done, batch in enumerate(islice(run.batches(), last), start=1):
        if done < first:
            run.step(batch)
            continue
        phases = _recorded_step(side, run, batch)
        for phase in PHASES:
            for name, array in phases[phase].items():
                yield phase_key(done, phase, name), array


def _recorded_step(side: Any, run: Any, batch: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
    """Do one iteration and return what each of its phases left."""
    backend = side.backend
    rates = side.optim.learning_rates(run.optimizer)
    outputs: dict[str, Array] = {}

    def visit(key: str, tensor: Any) -> None:
        outputs[key] = sampled(backend.to_numpy(tensor))

    with backend.visit_outputs(run.model, visit):
        run.step(batch)
    state = backend.state_arrays(run.model)
    momentum = side.optim.momentum_buffers(run.optimizer, run.model)
    updated = {k: v for k, v in state.items() if "running_" not in k}
    updated |= {f"momentum of {name}": array for name, array in momentum.items()}
    return {
        "data": _batch_arrays(side, batch),
        "schedule": {name: np.asarray(rate) for name, rate in rates.items()},
        "forward": outputs,
        "loss": last_losses(run),
        "backward": {name: sampled(g) for name, g in backend.gradients(run.model).items()},
        "optimizer": {name: sampled(array) for name, array in updated.items()},
        "buffers": {name: array for name, array in state.items() if "running_" in name},
    }


def _batch_arrays(side: Any, batch: Mapping[str, Any]) -> dict[str, Array]:
    names = [zlib.crc32(name.encode()) for name in batch["name"]]
    arrays = {key: side.backend.to_numpy(batch[key]) for key in ("image", "label")}
    return {"order": np.array(names), **arrays}


def last_losses(run: Any) -> dict[str, Array]:
    """Return the loss terms of the iteration that the run has just done."""
    return {
        key.removeprefix("loss/"): np.asarray(values[-1])
        for key, values in run.history.items()
        if key.startswith("loss/")
    }


def _iteration(side: Any, case: Case, exam: Exam) -> dict[str, Array]:
    """Trace one iteration."""
    assert exam.iteration is not None
    reference = reference_of(exam, "training")
    if reference is not None and exam.dtype != case.dtype:
        return _in_other_dtype(side, case, exam, reference)
    run = training_run(side, case)
    batches = run.batches()
    for batch in islice(batches, exam.iteration - 1):
        run.step(batch)
    if reference is not None:
        # equal but for rounding, or an earlier iteration would be looked at: what a run carries
        # along besides its weights stays its own
        side.backend.load_arrays(run.model, state_of(reference))
    tracer = Tracer(side, run.model, reference)
    tracer.add_state()
    momentum = side.optim.momentum_buffers(run.optimizer, run.model)
    tracer.arrays |= prefixed("velocity", momentum)
    tracer.arrays |= prefixed("previous", side.backend.gradients(run.model))
    batch = next(batches)
    tracer.arrays |= prefixed("data", _batch_arrays(side, batch))
    rates = side.optim.learning_rates(run.optimizer)
    tracer.arrays |= {f"rate/{name}": np.asarray(rate) for name, rate in rates.items()}
    groups = side.optim.parameter_groups(run.optimizer, run.model)
    tracer.arrays |= {f"group/{name}": np.asarray(group) for name, group in groups.items()}
    _traced_step(tracer, run, batch)
    return tracer.record()


def state_of(trace: TraceRecord) -> dict[str, Array]:
    """Return the weights and buffers that a trace starts from."""
    arrays = trace.arrays
    return {k.removeprefix("state/"): a for k, a in arrays.items() if k.startswith("state/")}


def _traced_step(tracer: Tracer, run: Any, batch: Mapping[str, Any]) -> None:
    side, loss = tracer.side, run.loss
    with ExitStack() as stack:
        trace = stack.enter_context(
            side.forcing.traced(run.model, reference=tracer.given(BACKWARD), graph=True)
        )
        if tracer.reference is not None:
            # the loop under examination calls the loss, and backward on its total
            def forced(outputs: Any, label: Any) -> dict[str, Any]:
                terms = dict(loss(outputs, label))
                return {**terms, "total": trace.with_reference_gradients(terms["total"])}

            run.loss = forced
        run.step(batch)
    tracer.keep(BACKWARD, trace)
    tracer.arrays |= prefixed("loss", last_losses(run))
    tracer.arrays |= prefixed("grad", side.backend.gradients(run.model))
    tracer.add_buffers()
    state = side.backend.state_arrays(run.model)
    tracer.arrays |= prefixed("after", {k: v for k, v in state.items() if "running_" not in k})
    momentum = side.optim.momentum_buffers(run.optimizer, run.model)
    tracer.arrays |= prefixed("velocity_after", momentum)


def _in_other_dtype(side: Any, case: Case, exam: Exam, reference: TraceRecord) -> dict[str, Array]:
    """Trace the pass of an iteration in float64, from the float32 run's state and batch.

    No run leads there: it is only asked what the layers make of those numbers.
    """
    arrays = reference.arrays
    model = build_rounded(side, case, exam.dtype)
    side.backend.load_arrays(model, state_of(reference))
    tracer = Tracer(side, model, reference)
    inputs = {"image": arrays["data/image"], "label": arrays["data/label"]}
    tracer.backward(replace(case, inputs=inputs))
    return tracer.record()
