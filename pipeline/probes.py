"""The probes: what each step records, written once and run on either side (pipeline/cases.py).

The probes of data and training live in modules of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import iou
from common.config import Config
from pipeline.branches import (
    initial_weights,
    loss_branches,
    metric_branches,
    other_options,
    protocol_scores,
    without_auxiliary_heads,
)
from pipeline.cases import (
    Array,
    Case,
    Part,
    build,
    build_loss,
    build_network,
    cast_batches,
    prefixed,
    short_schedule,
)
from pipeline.differences import magnitude, spread
from pipeline.given import (
    OPTIMIZER_STEPS,
    RECORDED_STEPS,
    gradient_at,
    gradient_by_rule,
    logits_by_head,
)


def _heads(side: Any, outputs: Mapping[str, Any]) -> dict[str, Array]:
    return {name: side.backend.to_numpy(logits) for name, logits in outputs.items()}


def probe_forward(side: Any, case: Case) -> Iterator[Part]:
    """Record every layer's output and every head, in evaluation and training mode."""
    model = build(side, case)
    arrays: dict[str, Array] = {}
    for mode in ("eval", "train"):
        model.train() if mode == "train" else model.eval()
        model.aux_in_eval = True
        with side.backend.no_grad(), side.backend.capture_outputs(model) as layers:
            outputs = model(case.tensor(side, "image"))
        arrays |= prefixed(f"{mode}/layer", layers)
        arrays |= prefixed(f"{mode}/head", _heads(side, outputs))
        if mode == "eval":
            arrays |= _any_size(side, case, model)
    if case.dtype == "float64":
        arrays |= protocol_scores(side, case)
        if case.config.model.pair is None:
            # a user's pair makes no promise on its first weights: they come from a checkpoint
            arrays |= initial_weights(side, case) | without_auxiliary_heads(side, case)
    yield "", arrays


def _any_size(side: Any, case: Case, model: Any) -> dict[str, Array]:
    """Sizes that are no multiple of 32, and real frames: the heads only."""
    arrays: dict[str, Array] = {}
    with side.backend.no_grad():
        for key in case.inputs:
            if key.startswith(("odd", "frame")):
                outputs = _heads(side, model(case.tensor(side, key)))
                arrays |= prefixed(f"{key}/head", outputs)
                if case.dtype == "float64":
                    # in float32 the best of two nearly equal classes is a matter of rounding; the
                    # logits themselves are judged there
                    arrays[f"{key}/prediction"] = outputs["main"].argmax(1)
    return arrays


def probe_metric(side: Any, case: Case) -> Iterator[Part]:
    """Record counts and every published average for fixed predictions and labels."""
    classes, ignore = case.config.model.classes, case.config.data.ignore_index
    arrays: dict[str, Array] = {}
    names = sorted({key.split("/")[0] for key in case.inputs})
    for name in names:
        confusion = side.metrics.ConfusionMatrix(classes=classes, ignore_index=ignore)
        label = side.backend.to_tensor(case.inputs[f"{name}/label"])
        for _ in range(int(case.inputs[f"{name}/repeats"])):
            confusion.update(case.tensor(side, f"{name}/prediction"), label)
        arrays |= prefixed(name, _averages(confusion.matrix()))
        # CPU tensors are counted by NumPy on both sides; these are the operations of a GPU
        elsewhere = side.metrics.ConfusionMatrix(
            classes=classes, ignore_index=ignore, host_counts=False
        )
        elsewhere.update(case.tensor(side, f"{name}/prediction"), label)
        arrays[f"{name}/device_matrix"] = elsewhere.matrix()
    arrays |= metric_branches(side, case)
    if case.real_frames:
        arrays |= prefixed("frames", _averages(_frame_matrix(side, case)))
    yield "", arrays


def _averages(matrix: NDArray[np.int64]) -> dict[str, Array]:
    arrays: dict[str, Array] = {"matrix": matrix}
    # NaN marks an absent class; as a record it would be a failure, so it is written as -1
    arrays["iou"] = np.nan_to_num(iou.iou_per_class(matrix), nan=-1.0)
    for absent in ("skip", "zero", "one", "plus_one"):
        for count_void in (False, True):
            value = iou.mean_iou(matrix, absent=absent, count_void=count_void)
            arrays[f"miou_{absent}{'_void' if count_void else ''}"] = np.asarray(value)
    arrays["accuracy"] = np.asarray(iou.pixel_accuracy(matrix))
    return arrays


def _frame_matrix(side: Any, case: Case) -> NDArray[np.int64]:
    """Count the network's predictions on the first real validation frames."""
    config = case.config
    model = build(side, case)
    loader = side.data.val_loader(config.data, classes=config.model.classes, workers=0)
    batches = cast_batches(side, case, islice(loader, config.verify.batch_size))
    return side.evaluate.evaluate(
        model, batches, classes=config.model.classes, ignore_index=config.data.ignore_index
    ).matrix()


def probe_loss(side: Any, case: Case) -> Iterator[Part]:
    """Record every term and the gradient at the logits, for labels of several characters."""
    model = build_network(side, case.config.model)
    loss = build_loss(side, case)
    arrays: dict[str, Array] = {}
    for name in sorted({key.split("/")[0] for key in case.inputs}):
        label = side.backend.to_tensor(case.inputs[f"{name}/label"])
        outputs = {
            head: side.backend.leaf_tensor(case.cast(logits))
            for head, logits in logits_by_head(case.inputs[f"{name}/logits"], model.heads).items()
        }
        terms = loss(outputs, label)
        terms["total"].backward()
        arrays[f"{name}/label"] = case.inputs[f"{name}/label"]
        for term, value in terms.items():
            arrays[f"{name}/loss/{term}"] = side.backend.to_numpy(value)
        for head, logits in outputs.items():
            arrays[f"{name}/grad/{head}"] = side.backend.to_numpy(logits.grad)
    if case.dtype == "float64":
        # of so many single numbers in float32, Torch is exact by luck in one or the other: a Dice
        # loss was measured at 10.2 times Torch's rounding
        arrays |= loss_branches(side, case)
    yield "", arrays


def probe_backward(side: Any, case: Case) -> Iterator[Part]:
    """Record the gradients of layers and parameters, and the BatchNorm buffers after."""
    model = build(side, case)
    model.train()
    loss = build_loss(side, case)
    with side.backend.capture_gradients(model) as layers:
        terms = loss(model(case.tensor(side, "image")), case.tensor(side, "label"))
        terms["total"].backward()
    arrays: dict[str, Array] = {"label": case.inputs["label"]}
    arrays |= prefixed("loss", {name: side.backend.to_numpy(v) for name, v in terms.items()})
    arrays |= prefixed("layer", layers)
    arrays |= prefixed("grad", side.backend.gradients(model))
    state = side.backend.state_arrays(model)
    arrays |= prefixed("buffer", {k: v for k, v in state.items() if "running_" in k})
    if case.dtype == "float32":
        arrays |= prefixed("rounding", _gradient_rounding(side, case, model))
    yield "", arrays


def _gradient_rounding(side: Any, case: Case, model: Any) -> dict[str, Array]:
    """Return per parameter of a float32 model the rounding of its gradient in every draw.

    A single draw says little: one ReLU or hard pixel that flips by rounding, on one side only,
    changes every gradient before it a thousandfold. That all draws do so on one side is no chance.
    """
    narrow = _draw_gradients(side, case, model)
    case = replace(case, dtype="float64")
    wide = _draw_gradients(side, case, build(side, case))
    rounding: dict[str, list[float]] = {}
    for exact, rounded in zip(wide, narrow, strict=True):
        for name, (gradient, largest) in exact.items():
            apart = np.abs(rounded[name][0] - gradient)
            relative = np.median(apart) / max(largest, np.finfo(np.float64).tiny)
            rounding.setdefault(name, []).append(float(relative))
    return {name: np.array(values) for name, values in rounding.items()}


def _draw_gradients(side: Any, case: Case, model: Any) -> list[dict[str, tuple[Array, float]]]:
    """Return per draw and parameter some of the gradient's elements, and its largest value."""
    model.train()
    loss = build_loss(side, case)
    sampled: list[dict[str, tuple[Array, float]]] = []
    for draw in sorted({key.split("/")[0] for key in case.inputs if key.startswith("draw")}):
        side.backend.clear_gradients(model)
        image = case.tensor(side, f"{draw}/image")
        loss(model(image), case.tensor(side, f"{draw}/label"))["total"].backward()
        gradients = side.backend.gradients(model)
        sampled.append({name: (spread(g).copy(), magnitude(g)) for name, g in gradients.items()})
    return sampled


def probe_lr_schedule(side: Any, case: Case) -> Iterator[Part]:
    """Record the groups and their rates at every iteration of the schedule; dropout's options."""
    config = case.config
    model = build_network(side, config.model)
    optimizer, scheduler = side.optim.build_optimizer(
        model, optimizer=config.optimizer, schedule=config.schedule
    )
    series: dict[str, list[float]] = {name: [] for name in side.optim.learning_rates(optimizer)}
    for iteration in range(config.schedule.max_iters):
        for name, rate in side.optim.learning_rates(optimizer).items():
            series[name].append(rate)
        if _steps_at(iteration, config):
            optimizer.step()
        scheduler.step()
    arrays: dict[str, Array] = {f"lr/{name}": np.array(rates) for name, rates in series.items()}
    members = side.optim.parameter_groups(optimizer, model)
    options = side.optim.group_options(optimizer)
    for group, values in options.items():
        for option, value in values.items():
            arrays[f"options/{group}/{option}"] = np.asarray(float(value))
    # every other step is run without dropout: its settings are all that can be compared
    for layer, values in side.backend.dropout_options(model).items():
        for option, value in values.items():
            arrays[f"options/dropout/{layer}/{option}"] = np.asarray(value)
    for name in side.backend.trainable_parameters(model):
        arrays[f"group/{name}"] = np.asarray(members.get(name, "(no group)"))
    yield "", arrays | other_options(side, case)


def _steps_at(iteration: int, config: Config) -> bool:
    """Tell whether the optimizer steps too: through the warm-up, at the end, and now and then.

    A step without gradients changes nothing but the optimizer's own counters. At each of a
    published schedule's 160,000 iterations it would take Paddle half a minute.
    """
    schedule = config.schedule
    near_start = iteration < schedule.warmup_iters + 100
    return near_start or iteration >= schedule.max_iters - 100 or iteration % 50 == 0


def probe_optimizer(side: Any, case: Case) -> Iterator[Part]:
    """Record parameters and momentum after 1 and 5 steps from gradients given by rule."""
    config = case.config
    model = build(side, case)
    before = side.backend.state_arrays(model)
    optimizer, scheduler = side.optim.build_optimizer(
        model, optimizer=config.optimizer, schedule=short_schedule(config, OPTIMIZER_STEPS + 1)
    )
    if case.dtype == "float64":
        side.optim.adopt_kernel_constants(optimizer)
    arrays: dict[str, Array] = {}
    parameters = side.backend.trainable_parameters(model)
    ungrouped: tuple[str, ...] = getattr(model, "ungrouped", ())
    drawn = {name: gradient_by_rule(name, before[name]) for name in parameters}
    for step in range(1, OPTIMIZER_STEPS + 1):
        gradients = {name: case.cast(gradient_at(g, step)) for name, g in drawn.items()}
        side.backend.set_gradients(model, gradients)
        optimizer.step()
        scheduler.step()
        if step in RECORDED_STEPS:
            after = side.backend.state_arrays(model)
            for name in parameters:
                arrays[f"step{step}/param/{name}"] = after[name]
                if name not in ungrouped:
                    arrays[f"moved/step{step}/{name}"] = np.abs(after[name] - before[name]).max()
            momentum = side.optim.momentum_buffers(optimizer, model)
            arrays |= prefixed(f"step{step}/momentum", momentum)
    yield "", {name: np.asarray(array) for name, array in arrays.items()}
