"""The probes: what each step records, written once and run on either side.

A probe sees one side (the modules of for_torch or for_paddle, which share one interface) and a
case (configuration, dtype, saved inputs), and yields named arrays. It never sees the other side.
The probes of data and training live in modules of their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import iou
from common.config import Config, ModelConfig
from common.weights import read_weights
from fake_data import rules
from pipeline.compare import magnitude

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
    return side.models.build_model(model.name, classes=model.classes, options=model.options)


def build(side: Any, case: Case) -> Any:
    """Build the side's network in the run's dtype and give it the case's weights."""
    side.backend.set_default_dtype(case.dtype)
    side.backend.seed_everything(case.config.verify.seed)
    model = build_network(side, case.config.model)
    if case.weights is None:
        own = side.backend.state_arrays(model)
        arrays = _rule_state(tuple((name, array.shape) for name, array in own.items()))
        arrays = _with_negative_scales(arrays, side.backend.layers_of(model, side.norm.InPlaceABN))
    else:
        arrays = read_weights(case.weights)
    side.backend.load_arrays(model, arrays)
    side.backend.disable_dropout(model)
    return model


@lru_cache(maxsize=1)
def _rule_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, Array]:
    """Return weights by rule; every build of the same network needs the same 13 million draws."""
    return rules.rule_state(dict(shapes))


def _with_negative_scales(
    arrays: Mapping[str, Array], layers: Sequence[str]
) -> Mapping[str, Array]:
    """Make every other scale of these layers negative: InPlaceABN takes its absolute value."""
    changed = dict(arrays)
    for layer in layers:
        scale = arrays[f"{layer}.weight"].copy()
        scale[1::2] *= -1
        changed[f"{layer}.weight"] = scale
    return changed


def build_loss(side: Any, case: Case) -> Any:
    """Build the recipe's loss."""
    config = case.config
    return side.losses.build_loss(
        config.loss, classes=config.model.classes, ignore_index=config.data.ignore_index
    )


def prefixed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays under prefix/name."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


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


def cast_batches(side: Any, case: Case, loader: Any) -> Iterator[dict[str, Any]]:
    """Yield a loader's batches with the images in the run's dtype."""
    for batch in loader:
        image = case.cast(side.backend.to_numpy(batch["image"]))
        yield {**batch, "image": side.backend.to_tensor(image)}


def probe_loss(side: Any, case: Case) -> Iterator[Part]:
    """Record every term and the gradient at the logits, for labels of several characters."""
    model = build_network(side, case.config.model)
    loss = build_loss(side, case)
    arrays: dict[str, Array] = {}
    for name in sorted({key.split("/")[0] for key in case.inputs}):
        label = side.backend.to_tensor(case.inputs[f"{name}/label"])
        outputs: dict[str, Any] = {}
        for position, head in enumerate(model.heads):
            # each head gets logits of its own: a loss that mixes heads up must show
            logits = np.roll(case.inputs[f"{name}/logits"], position, axis=1) / (position + 1)
            if head.startswith("boundary"):
                # one channel, at a resolution of its own
                logits = logits[:, :1, ::4, ::4]
            outputs[head] = side.backend.leaf_tensor(case.cast(np.ascontiguousarray(logits)))
        terms = loss(outputs, label)
        terms["total"].backward()
        arrays[f"{name}/label"] = case.inputs[f"{name}/label"]
        for term, value in terms.items():
            arrays[f"{name}/loss/{term}"] = side.backend.to_numpy(value)
        for head, logits in outputs.items():
            arrays[f"{name}/grad/{head}"] = side.backend.to_numpy(logits.grad)
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
        sampled.append({name: (_spread(g), magnitude(g)) for name, g in gradients.items()})
    return sampled


SAMPLE = 1 << 15


def _spread(array: Array) -> Array:
    """Return some thirty thousand elements, evenly spread, or all if there are fewer."""
    # an odd stride, or a kernel's width could leave out every other column
    return array.reshape(-1)[:: max(1, array.size // SAMPLE) | 1].copy()


def probe_lr_schedule(side: Any, case: Case) -> Iterator[Part]:
    """Record the groups, and the rate of each at every iteration of the whole schedule."""
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
    for name in side.backend.trainable_parameters(model):
        arrays[f"group/{name}"] = np.asarray(members.get(name, "(no group)"))
    yield "", arrays


def _steps_at(iteration: int, config: Config) -> bool:
    """Tell whether the optimizer steps too: through the warm-up, at the end, and now and then.

    A step without gradients changes nothing but the optimizer's own counters. At each of a
    published schedule's 160,000 iterations it would take Paddle half a minute.
    """
    schedule = config.schedule
    near_start = iteration < schedule.warmup_iters + 100
    return near_start or iteration >= schedule.max_iters - 100 or iteration % 50 == 0


OPTIMIZER_STEPS = 5


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
    drawn = {name: _gradient(name, before[name]) for name in parameters}
    for step in range(1, OPTIMIZER_STEPS + 1):
        # another gradient at every step, without drawing millions of numbers again
        gradients = {name: np.roll(g, 7 * step, axis=0) / step for name, g in drawn.items()}
        side.backend.set_gradients(model, {name: case.cast(g) for name, g in gradients.items()})
        optimizer.step()
        scheduler.step()
        if step in (1, OPTIMIZER_STEPS):
            after = side.backend.state_arrays(model)
            for name in parameters:
                arrays[f"step{step}/param/{name}"] = after[name]
                if name not in ungrouped:
                    arrays[f"moved/step{step}/{name}"] = np.abs(after[name] - before[name]).max()
            momentum = side.optim.momentum_buffers(optimizer, model)
            arrays |= prefixed(f"step{step}/momentum", momentum)
    yield "", {name: np.asarray(array) for name, array in arrays.items()}


def _gradient(name: str, like: Array) -> Array:
    """Return a gradient by rule, as large as the parameter is."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = float(np.abs(like).mean()) or 1.0
    return rng.uniform(-scale, scale, like.shape)


def short_schedule(config: Config, iterations: int, *, warmup: int = 2) -> Any:
    """Return the recipe's schedule squeezed into a few iterations, warm-up and decay included."""
    return config.schedule.model_copy(update={"max_iters": iterations, "warmup_iters": warmup})


Probe = Callable[[Any, Case], Iterator[Part]]
