"""When a training stops before its last iteration: on request, without progress, or broken."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from common.errors import CheckpointError, TrainingError

STOPPED = 75
"""Exit code of a run that was asked to stop, saved and can be resumed (EX_TEMPFAIL, sysexits.h)."""
NOT_FINITE = 77
"""Exit code of a run whose loss became NaN or infinite."""
GRAD_NORM = "grad_norm"
"""Name of the norm of the gradients beside the loss terms."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAX_SKIPPED = 100
"""Steps in a row that a gradient scaler may skip. It begins at 2**16 at most and doubles every 2000
steps: 2**40 after 48000. It halves after one skipped step, Paddle 2.6's after two, so within 100 it
is 2**-10 or less from there: what still overflows is not for the scale."""


class NotFiniteError(TrainingError):
    """The loss is NaN or infinite; the message tells where and on which samples."""


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag, to be looked at between two iterations.

    A second signal ends the process at once, by that signal. Processes forked inside, such as the
    workers of a loader, leave SIGINT alone: a terminal sends it to all processes, and the training
    process needs their batches to reach its next iteration. SIGTERM ends them as usual, for that
    is how a loader closes them.

    Only the main thread of a process can use it (Python hands signals to no other). With several
    processes each has its own flag; they must agree on it before they act, or some would wait in
    a collective operation for those that left.

    Args:
        repeat_s: seconds after the first signal in which more of them are the same request:
            Paddle's launcher sends SIGTERM three times within 0.6 s.
    """

    def __init__(self, *, repeat_s: float = 0.0) -> None:
        self.repeat_s = repeat_s
        self.signal: signal.Signals | None = None
        """The signal that asked for the stop, or None."""
        self._since = 0.0
        self._owner = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a signal has come."""
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        self._owner = os.getpid()
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                _end_by(number)
            return
        if self.signal is None:
            self._since = time.monotonic()
            self.signal = signal.Signals(number)
        elif time.monotonic() - self._since >= self.repeat_s:
            _end_by(number)


def _end_by(number: int) -> None:
    """End this process by a signal, so that whoever waits for it sees which."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class EarlyStopping:
    """Remembers the best mIoU, and how many evaluations in a row did not better it.

    Args:
        patience: evaluations without a better mIoU after which to stop; None: never.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best: float | None = None
        """Best mIoU so far, in 0..1; None before the first finite one."""
        self.best_iteration: int | None = None
        self.waited = 0
        """Evaluations since the best one."""

    def update(self, miou: float, *, iteration: int) -> bool:
        """Take in the mIoU of one evaluation; return whether it is better than all before.

        A NaN (no class could be averaged) is never better.
        """
        better = not math.isnan(miou) and (self.best is None or miou > self.best)
        if better:
            self.best, self.best_iteration, self.waited = float(miou), iteration, 0
        else:
            self.waited += 1
        return better

    @property
    def should_stop(self) -> bool:
        """True when ``patience`` evaluations in a row were not better."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, as JSON can; ``patience`` is the configuration's."""
        return {
            "best": self.best,
            "best_iteration": self.best_iteration,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state_dict.

        Raises:
            CheckpointError: it has other keys.
        """
        expected = set(self.state_dict())
        if set(state) != expected:
            raise CheckpointError(
                f"the state of early stopping has the keys {sorted(state)}; expected "
                f"{sorted(expected)}: resume with the version that wrote the checkpoint"
            )
        self.best = state["best"]
        self.best_iteration = state["best_iteration"]
        self.waited = int(state["waited"])


class SkippedSteps:
    """Counts the steps in a row that a gradient scaler has skipped.

    Not part of a checkpoint: a resumed run counts anew, and ends a little later at the worst.

    Args:
        limit: steps in a row that may be skipped.
    """

    def __init__(self, limit: int = MAX_SKIPPED) -> None:
        self.limit = limit
        self.count = 0

    def exceeded(self, grad_norm: float, *, scaled: bool) -> bool:
        """Take in the gradients' norm of one step; return whether the training must end for it.

        Args:
            grad_norm: before the step; not finite where the step is skipped.
            scaled: a scaler watches over the gradients; without one a single step is too much.
        """
        self.count = 0 if math.isfinite(grad_norm) else self.count + 1
        return self.count > (self.limit if scaled else 0)


def check_finite(terms: Mapping[str, float], *, iteration: int, names: Sequence[str]) -> None:
    """Require that every loss term is a finite number.

    Args:
        terms: loss terms of one iteration, as numbers.
        iteration: 1-based number of the iteration, as in the log.
        names: the samples of its batch.

    Raises:
        NotFiniteError: naming the iteration, the terms and the samples.
    """
    if all(math.isfinite(value) for value in terms.values()):
        return
    raise not_finite(terms, iteration=iteration, names=names)


def not_finite(
    terms: Mapping[str, float],
    *,
    iteration: int,
    names: Sequence[str],
    layer: str | None = None,
    checkpoint: str | None = None,
    steps: int = 1,
) -> NotFiniteError:
    """Return the error for a loss, or a gradient, that is not finite; the caller raises it.

    Args:
        terms: loss terms of the iteration, as numbers, and GRAD_NORM where it is known.
        iteration: 1-based number of the iteration, as in the log.
        names: the samples of its batch.
        layer: the first layer whose output is not finite, if it was looked for; an empty text
            when every layer's was finite, so that the loss itself made it.
        checkpoint: the last good checkpoint, if there is one.
        steps: in how many steps in a row it was not finite, whatever the gradient scaler did.
    """
    shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
    loss = [value for name, value in terms.items() if name != GRAD_NORM]
    what = "gradient" if loss and all(map(math.isfinite, loss)) else "loss"
    lines = [f"the {what} of iteration {iteration} is not finite ({shown})"]
    if steps > 1:
        lines.append(f"  nor was it in the {steps - 1} steps before, though the scale was lowered")
    if layer is not None:
        lines.append(f"  first layer with a NaN or Inf: {layer or 'none, the loss itself'}")
    lines.append(f"  samples of the batch: {', '.join(names)}")
    lines.append(
        f"  last good checkpoint: {checkpoint}" if checkpoint else "  there is no checkpoint yet"
    )
    lines.append("try a lower optimizer.base_lr, train.clip_norm, or look at these samples")
    return NotFiniteError("\n".join(lines))
