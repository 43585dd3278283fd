"""What is run for a mutant: configurations, steps, sizes, and in which order.

All sizes are small: a wrong line is wrong at 32 x 64 too, and hundreds of mutants are to be run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import Config, load_config
from pipeline.catalogue import FAMILY
from pipeline.inputs import DATA_STEPS
from pipeline.outcome import Options
from pipeline.runner import resolve_data
from pipeline.steps import Dtype

SMALL = (
    "verify.image_hw=[32, 64]",
    "verify.batch_size=8",
    "verify.train_iters=6",
    "verify.train_iters_float32=4",
    "verify.train_warmup_iters=2",
    "verify.check_every=2",
    "schedule.max_iters=400",
    "schedule.warmup_iters=50",
)


@dataclass(frozen=True, order=True)
class Run:
    """One step of one experiment in one dtype."""

    experiment: str
    step: str
    dtype: Dtype

    @property
    def name(self) -> str:
        """A text of the three, as in the log."""
        return f"{self.experiment} {self.step} {self.dtype}"


@dataclass(frozen=True)
class Experiment:
    """A configuration and what of its verification is run."""

    name: str
    config: Path
    steps: tuple[str, ...]
    narrow: tuple[str, ...] = ()
    """Steps that are run in float32 too."""
    overrides: tuple[str, ...] = ()

    def load(self, scratch: Path) -> Config:
        """Return the configuration at the small size, with data if a step needs them."""
        config = load_config(self.config, overrides=[*SMALL, *self.overrides])
        if set(self.steps) & (set(DATA_STEPS) - {"forward", "metric"}):
            config = resolve_data(config, Options(out=scratch, steps=()))
        return config

    def runs(self) -> list[Run]:
        """Return its runs; the data step has no other dtype than float32."""
        wide = [Run(self.name, s, "float32" if s == "data" else "float64") for s in self.steps]
        return wide + [Run(self.name, step, "float32") for step in self.narrow]


def _network(model: str, *more: str, narrow: Sequence[str] = ()) -> Experiment:
    return Experiment(model, FAMILY[model], ("forward", "backward", *more), tuple(narrow))


EXPERIMENTS: tuple[Experiment, ...] = (
    _network(
        "bisenetv1", "data", "metric", "loss", "lr_schedule",
        narrow=("loss", "forward", "backward"),
    ),
    _network("bisenetv1_2020", "loss", "lr_schedule", narrow=("forward",)),
    _network("bisenetv1_fp16_2020"),
    _network("bisenetv1_diss"),
    _network("bisenetv1_diss_bn"),
    _network("bisenetv1_2019", "loss", "lr_schedule", "optimizer"),
    _network(
        "bisenetv2", "loss", "lr_schedule", "optimizer", "training",
        narrow=("forward", "backward", "optimizer", "training"),
    ),
    _network("bisenetv2_2020", "lr_schedule", narrow=("forward",)),
    _network("stdc1", "data", "loss", "lr_schedule", "optimizer", narrow=("loss", "forward")),
    _network("stdc2"),
    _network("bisestdc", "loss", "lr_schedule"),
    _network("bisestdc2", "lr_schedule"),
    Experiment(
        "bisenetv1_2019_options",
        FAMILY["bisenetv1_2019"],
        ("forward", "backward"),
        overrides=("model.options={use_arm: true, use_global_pooling: true}",),
    ),
    Experiment(
        "stdc1_boundaries",
        FAMILY["stdc1"],
        ("forward", "backward", "loss"),
        overrides=(
            "model.options={use_boundary_2: true, use_boundary_4: true, use_boundary_16: true}",
            "loss.detail_ignore_void=true",
            "loss.detail_ignore_frame=true",
        ),
    ),
)  # fmt: skip


FIRST: Mapping[str, tuple[str, ...]] = {
    "losses.py": ("loss",),
    "detail_loss.py": ("loss",),
    "metrics.py": ("metric",),
    "optim.py": ("lr_schedule", "optimizer"),
    "data.py": ("data",),
    "train.py": ("training",),
}
"""Steps that a file is for; they come before cheaper ones. Of other files the forward pass."""

MOST: Mapping[tuple[str, str], int] = {
    ("forward", "float64"): 5,
    ("backward", "float64"): 3,
    ("loss", "float64"): 6,
    ("lr_schedule", "float64"): 4,
    ("optimizer", "float64"): 2,
}
"""Experiments in which a step is run for one mutant; one where nothing stands here. Of a network's
own file, in all that execute the place."""


def ordered(file: str, runs: Sequence[Run], seconds: Mapping[Run, float]) -> list[Run]:
    """Return the runs to make for a mutant, the most likely to see it and the cheapest first.

    Args:
        file: which file the mutant is in.
        runs: those that execute its place.
        seconds: what each took without a change.
    """
    first = FIRST.get(file, ("forward",))
    own = file.startswith("models/")

    def rank(run: Run) -> tuple[bool, bool, float]:
        narrow = run.dtype == "float32" and run.step != "data"
        return narrow, run.step not in first, seconds[run]

    left = dict(MOST)
    chosen: list[Run] = []
    for run in sorted(_mixed(runs, seconds), key=rank) if own else _mixed(runs, seconds):
        kind = (run.step, run.dtype)
        left[kind] = left.get(kind, 1) - 1
        if left[kind] >= 0 or (own and run.step == "forward" and run.dtype == "float64"):
            chosen.append(run)
    return sorted(chosen, key=rank)


def _mixed(runs: Sequence[Run], seconds: Mapping[Run, float]) -> list[Run]:
    """Return the runs so that the first few are of unlike networks: one of each family first."""
    seen: Counter[tuple[str, str, str]] = Counter()
    turns: dict[Run, int] = {}
    for run in sorted(runs, key=lambda run: seconds[run]):
        kind = (run.step, run.dtype, run.experiment[:FAMILY_LETTERS])
        turns[run] = seen[kind]
        seen[kind] += 1
    return sorted(runs, key=lambda run: (turns[run], seconds[run]))


FAMILY_LETTERS = len("bisenetv1")
"""Of a network's name: bisenetv1_2020 and bisenetv1_diss are one family."""
