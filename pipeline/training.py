"""The training probe: the recipe end to end, shrunk, with everything recorded on the way."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from common import iou
from pipeline.cases import Array, Case, Part, build, build_loss, cast_batches, short_schedule
from pipeline.data_probe import small_data


def snapshot_part(done: int) -> str:
    """Return the part name of the snapshot after so many iterations."""
    return f"iteration{done:04d}"


FLOOR_PART = "floor"
"""The float64 state at the iteration where the float32 training stops: its rounding floor."""


PERTURBED_PART = "perturbed"
"""Torch's float32 losses when every start weight is moved by one unit in the last place: what
rounding alone can do to the curve (pipeline/chaos.py)."""
NUDGES: Mapping[str, float] = {"up": np.inf, "down": -np.inf}
"""Perturbed run -> where its start weights are moved to."""


SNAPSHOT_KEYS = ("state/", "momentum/")
"""What a snapshot is compared by; the rest of the record at the floor is for float32 alone."""


def floor_part(step: str) -> str:
    """Return the part of a step's float64 record that its float32 record is judged by."""
    return FLOOR_PART if step == "training" else ""


def probe_training(side: Any, case: Case) -> Iterator[Part]:
    """Train, and record loss, rates and sample order of every iteration, then the end state.

    In float64 also yields a snapshot of all weights, momentum buffers and BatchNorm buffers at
    every ``verify.check_every``-th iteration; the one that float32 is judged by holds the series
    so far, too. In float32 stops after ``verify.train_iters_float32`` iterations of the same
    schedule.
    """
    run = _Run(side, case)
    verify = case.config.verify
    wide = case.dtype == "float64"
    last = verify.train_iters if wide else verify.train_iters_float32
    # the reference alone: how far rounding carries a run is asked of Torch, never of the port
    nudges = NUDGES if not wide and side.name == "torch" else {}
    perturbed = {name: _Run(side, case, nudge=towards) for name, towards in nudges.items()}
    for done, batch in enumerate(islice(run.batches(), last), start=1):
        for one in (run, *perturbed.values()):
            one.step(batch)
        if wide and done == verify.train_iters_float32:
            yield FLOOR_PART, run.end()
        elif wide and done % verify.check_every == 0 and done < last:
            yield snapshot_part(done), run.state()
    if perturbed:
        yield PERTURBED_PART, _losses(perturbed)
    yield "", run.end() | (run.validation() if wide else {})


def nudged(state: Mapping[str, Array], *, towards: float) -> dict[str, Array]:
    """Return the arrays with every number moved to its neighbour of the same dtype."""
    return {name: np.nextafter(a, a.dtype.type(towards)) for name, a in state.items()}


def _losses(runs: Mapping[str, _Run]) -> dict[str, Array]:
    """Return the runs' loss terms: run/loss/term -> one value per iteration."""
    return {
        f"{name}/{key}": series
        for name, run in runs.items()
        for key, series in run.series().items()
        if key.startswith("loss/")
    }


class _Run:
    """One training run with its recording.

    Args:
        side: the side's modules.
        case: what is trained.
        nudge: move every start weight by one unit in the last place towards this number.
    """

    def __init__(self, side: Any, case: Case, *, nudge: float | None = None) -> None:
        config, verify = case.config, case.config.verify
        self.side, self.case = side, case
        # the loop itself puts it into training mode
        self.model = build(side, case)
        if nudge is not None:
            state = side.backend.state_arrays(self.model)
            side.backend.load_arrays(self.model, nudged(state, towards=nudge))
        self.loss = build_loss(side, case)
        self.optimizer, self.scheduler = side.optim.build_optimizer(
            self.model,
            optimizer=config.optimizer.model_copy(update={"base_lr": verify.train_base_lr}),
            schedule=short_schedule(config, verify.train_iters, warmup=verify.train_warmup_iters),
        )
        if case.dtype == "float64":
            side.optim.adopt_kernel_constants(self.optimizer)
        self.start: Mapping[str, Array] = side.backend.state_arrays(self.model)
        self.history: dict[str, list[Any]] = {}
        self.done = 0

    def batches(self) -> Iterator[dict[str, Any]]:
        """Yield the loader's batches, augmented as in the recipe, in the run's dtype."""
        config = self.case.config
        loader = self.side.data.train_loader(
            small_data(config),
            classes=config.model.classes,
            seed=config.verify.seed,
            iterations=config.verify.train_iters,
            workers=0,
        )
        return cast_batches(self.side, self.case, loader)

    def step(self, batch: Mapping[str, Any]) -> None:
        """Do one iteration and append its numbers to the history."""
        for group, rate in self.side.optim.learning_rates(self.optimizer).items():
            self._append(f"lr/{group}", rate)
        for position, name in enumerate(batch["name"]):
            self._append(f"order/{position}", zlib.crc32(name.encode()))

        def keep(iteration: int, terms: Mapping[str, Any], _: Mapping[str, Any]) -> None:
            self._append("count/iteration", iteration)
            for name, value in terms.items():
                self._append(f"loss/{name}", self.side.backend.to_numpy(value))

        self.done = self.side.train.train(
            self.model,
            self.loss,
            self.optimizer,
            self.scheduler,
            [batch],
            start_iteration=self.done,
            on_iteration=keep,
        )

    def _append(self, key: str, value: Any) -> None:
        self.history.setdefault(key, []).append(value)

    def series(self) -> dict[str, Array]:
        """Return the history: one entry per iteration."""
        return {key: np.array(values) for key, values in self.history.items()}

    def state(self) -> dict[str, Array]:
        """Return all weights, BatchNorm buffers and momentum buffers."""
        state = self.side.backend.state_arrays(self.model)
        momentum = self.side.optim.momentum_buffers(self.optimizer, self.model)
        arrays = {f"state/{name}": array for name, array in state.items()}
        return arrays | {f"momentum/{name}": array for name, array in momentum.items()}

    def end(self) -> dict[str, Array]:
        """Return the history so far, the state, and how far it has moved."""
        return self.first() | self.series() | self.state() | self.moved()

    def first(self) -> dict[str, Array]:
        """Return the loss terms of the first iteration: what no rounding has been amplified in."""
        terms = [key for key in self.history if key.startswith("loss/") and key != "loss/total"]
        return {"first/loss": np.array([self.history[key][0] for key in terms])}

    def moved(self) -> dict[str, Array]:
        """Return how far each parameter and buffer has moved since the start.

        Those that the recipe never updates, or the network never runs, are left out.
        """
        ungrouped: tuple[str, ...] = getattr(self.model, "ungrouped", ())
        unused: tuple[str, ...] = getattr(self.model, "unused", ())
        still = tuple(f"{layer}." for layer in unused)
        now = self.side.backend.state_arrays(self.model)
        return {
            f"moved/{name}": np.asarray(np.abs(array - self.start[name]).max())
            for name, array in now.items()
            if name not in ungrouped and not name.startswith(still)
        }

    def validation(self) -> dict[str, Array]:
        """Return the confusion matrix and mIoU on validation samples after the training."""
        config = self.case.config
        loader = self.side.data.val_loader(config.data, classes=config.model.classes, workers=0)
        matrix = self.side.evaluate.evaluate(
            self.model,
            cast_batches(self.side, self.case, islice(loader, config.verify.batch_size)),
            classes=config.model.classes,
            ignore_index=config.data.ignore_index,
        ).matrix()
        rule = config.eval
        miou = iou.mean_iou(matrix, absent=rule.absent, count_void=rule.count_void)
        return {"val/matrix": matrix, "val/miou": np.asarray(miou)}


def training_run(side: Any, case: Case) -> Any:
    """Return the run that probe_training records, for an examination of single iterations."""
    return _Run(side, case)
