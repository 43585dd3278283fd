"""Where a failure starts: the first diverging tensor in the order in which the step computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.failure import Hint
from pipeline.verdicts import Row


@dataclass(frozen=True)
class Divergence:
    """The place where a step's difference starts."""

    key: str
    """Record key of the first diverging tensor."""
    text: str
    """The same in words: the layer, parameter, iteration or sample."""


@dataclass(frozen=True)
class Blame:
    """What is itself wrong, as opposed to where a difference is seen first."""

    key: str
    """Record key of its tensor."""
    kind: str
    """Kind of failure case (pipeline/failure.py)."""
    name: str
    """Layer, parameter, group, term, sample."""
    where: str
    """The place in words."""
    folder: str
    """Of the failure case, below that of the logs."""
    hints: tuple[Hint, ...] = ()
    """What explains it, confirmed."""
    iteration: int | None = None
    """Of a training, counted from 1."""
    phase: str = ""
    note: str = ""
    """Why there are no hints, if the explanation failed."""

    @property
    def text(self) -> str:
        """The place in words, in a training with iteration and phase."""
        if self.iteration is None:
            return self.where
        return f"iteration {self.iteration}, {self.phase}: {self.where}"


def _in_groups(rows: Sequence[Row], prefixes: Sequence[str]) -> Row | None:
    """Return the first failing row of the first prefix that has one."""
    failing = [row for row in rows if not row.verdict.passed]
    for prefix in prefixes:
        for row in failing:
            if row.key.startswith(prefix):
                return row
    return failing[0] if failing else None


def _forward(rows: Sequence[Row]) -> Divergence | None:
    # layers are recorded in the order in which they return, so the first to fail is the culprit
    order = ("eval/layer/", "eval/head/", "train/layer/", "train/head/")
    row = _in_groups(rows, order)
    if row is None:
        return None
    mode, _, name = row.key.partition("/")
    kind, _, layer = name.partition("/")
    return Divergence(row.key, f"{kind} {layer} ({mode})")


def _backward(rows: Sequence[Row]) -> Divergence | None:
    # gradients of layers are recorded from the loss back; parameters in model order
    row = _in_groups(rows, ("loss/", "layer/"))
    if row is None:
        return None
    if row.key.startswith(("loss/", "layer/")):
        return Divergence(row.key, f"gradient at {row.key.partition('/')[2]}, seen from the loss")
    for kind, text in (("grad/", "gradient"), ("rounding/", "rounding of the gradient")):
        failing = [r for r in rows if not r.verdict.passed and r.key.startswith(kind)]
        if failing:
            row = failing[-1]
            return Divergence(row.key, f"{text} of parameter {row.key.removeprefix(kind)}")
    return Divergence(row.key, row.key.replace("/", " ", 1))


def _series(rows: Sequence[Row]) -> Divergence | None:
    row = _in_groups(rows, ("group/", "options/", "lr/"))
    if row is None:
        return None
    kind, _, name = row.key.partition("/")
    if kind == "lr" and row.first:
        return Divergence(row.key, f"rate of group {name} from iteration {row.first[0]} on")
    return Divergence(row.key, f"{kind} of {name}")


def _training(rows: Sequence[Row]) -> Divergence | None:
    series = [r for r in rows if not r.verdict.passed and r.first and len(r.first) == 1]
    series = [r for r in series if r.key.startswith(("order/", "lr/", "loss/"))]
    if series:
        row = min(series, key=lambda r: r.first[0])
        return Divergence(row.key, f"{row.key} from iteration {row.first[0]} on")
    row = _in_groups(rows, ("first/", "iteration", "state/", "momentum/"))
    return Divergence(row.key, row.key.replace("/", " ", 1)) if row else None


def _loss(rows: Sequence[Row]) -> Divergence | None:
    # the total is the sum of the terms: it is to blame only when every term agrees
    failing = [row for row in rows if not row.verdict.passed]
    terms = [row for row in failing if "/loss/" in row.key and not row.key.endswith("/total")]
    return _plain(terms or failing)


def _optimizer(rows: Sequence[Row]) -> Divergence | None:
    row = _in_groups(rows, ("step1/param/", "step1/momentum/", "step5/"))
    return _plain([row]) if row else None


def _plain(rows: Sequence[Row]) -> Divergence | None:
    row = _in_groups(rows, ())
    return Divergence(row.key, row.key.replace("/", ", ")) if row else None


_BY_STEP: dict[str, Callable[[Sequence[Row]], Divergence | None]] = {
    "forward": _forward,
    "backward": _backward,
    "lr_schedule": _series,
    "loss": _loss,
    "optimizer": _optimizer,
    "training": _training,
}


def first_divergence(step: str, rows: Sequence[Row]) -> Divergence | None:
    """Return where the step starts to differ, or None when every row passed."""
    return _BY_STEP.get(step, _plain)(rows)
