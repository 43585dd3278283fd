"""The log of a training: JSON lines for machines, progress for people, both at once.

``train_log.jsonl`` holds one object per line; ``kind`` tells which:

    header      provenance of a start or resumption
    train       loss terms, rates and speed over the iterations since the last such line
    eval        result of an evaluation
    checkpoint, warning, stopped, ...   events

``iteration`` is in every line and counts the iterations done, so 1 is the first one. A resumed run
drops the lines past the iteration it goes on from: the log holds each iteration once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from common.curves import draw_curves
from common.log_lines import LineWriter, cut_lines, set_aside
from common.sinks import Sink

__all__ = ["LOG_NAME", "RunLog", "draw_curves"]

LOG_NAME = "train_log.jsonl"
ETA_OVER = 100
"""Iterations whose mean time the remaining time is told from."""


class RunLog:
    """Writes the log of one training and shows its progress; a context manager.

    Entering drops the lines past ``start_iteration`` (of 0: sets an older log aside as
    ``train_log.1.jsonl``) and opens the file; nothing is touched before.

    Args:
        folder: output folder; the log lies in it.
        enabled: False in all processes but the first: then nothing is written or shown.
        total_iterations: of the whole run.
        start_iteration: iterations done by the checkpoint it is resumed from, else 0.
        evaluates_again: the resumed run starts with the evaluation of start_iteration, which its
            checkpoint does not know of; a line of it in the log is dropped.
        console: where progress goes; None: standard error.
        sinks: shown every number too; closed with the log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        enabled: bool,
        total_iterations: int,
        start_iteration: int,
        evaluates_again: bool = False,
        console: Console | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.path = folder / LOG_NAME
        self.enabled = enabled
        self.total_iterations, self.start_iteration = total_iterations, start_iteration
        self.sinks = list(sinks) if enabled else []
        self._repeated = "eval" if evaluates_again else None
        self._show = _Display(
            console or Console(stderr=True), total=total_iterations, done=start_iteration
        )
        self._writer: LineWriter | None = None
        self._recent: deque[float] = deque(maxlen=ETA_OVER)
        self._window = _Window()

    def __enter__(self) -> RunLog:
        """Open the log.

        Raises:
            InputError: the folder cannot be written.
        """
        if not self.enabled:
            return self
        if self.start_iteration == 0:
            set_aside(self.path)
        elif self.path.exists():
            cut_lines(self.path, past=self.start_iteration, repeated=self._repeated)
        self._writer = LineWriter(self.path)
        self._show.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.enabled:
            return
        self._show.stop()
        if self._writer is not None:
            self._writer.close()
        for sink in self.sinks:
            sink.close()

    def header(
        self,
        *,
        command: str,
        config_digest: str,
        code_digest: str,
        commit: str,
        versions: Mapping[str, str],
        parity: str | None,
        world_size: int,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the provenance; the first line of the log, and of each resumption.

        Args:
            command: the command line.
            config_digest: Config.digest().
            code_digest: provenance.code_digest().
            commit: provenance.git_commit().
            versions: package -> version.
            parity: ParityProof.digest; None: the check was skipped.
            world_size: number of processes.
            facts: anything else that JSON can hold: device, precision, seed, start weights.
        """
        told = {
            "command": command,
            "config_digest": config_digest,
            "code_digest": code_digest,
            "commit": commit,
            "versions": dict(versions),
            "parity": parity,
            "world_size": world_size,
            "total_iterations": self.total_iterations,
        }
        self._write("header", self.start_iteration, {**told, **(facts or {})})
        if not self.enabled:
            return
        self._show.line(f"{command}\ncommit {commit}, {world_size} process(es), log {self.path}")
        if parity is None:
            self._show.line("parity evidence: not checked", style="yellow")

    def step(self, *, images: int, data_s: float, step_s: float) -> None:
        """Count one iteration; call it after each.

        Args:
            images: images of all processes together.
            data_s: seconds waited for the batch.
            step_s: seconds of forward, backward and optimizer.
        """
        self._window.add(images=images, data_s=data_s, step_s=step_s)
        self._recent.append(data_s + step_s)
        if self.enabled:
            self._show.advance()

    def train(
        self,
        iteration: int,
        *,
        epoch: int,
        terms: Mapping[str, float],
        lr: Mapping[str, float],
        memory_mib: float | None = None,
    ) -> dict[str, Any]:
        """Write the line of a log interval and return it; times are means per iteration.

        Args:
            iteration: iterations done.
            epoch: 0-based epoch of its samples.
            terms: loss terms with "total"; of this iteration or averaged, as the caller likes.
            lr: parameter group -> rate that the iteration was done with.
            memory_mib: peak memory, MiB.
        """
        window, self._window = self._window, _Window()
        left = max(0, self.total_iterations - iteration)
        mean_s = sum(self._recent) / len(self._recent) if self._recent else None
        facts: dict[str, Any] = {
            "epoch": epoch,
            "loss": dict(terms),
            "lr": dict(lr),
            **window.facts(),
            "eta_s": None if mean_s is None else left * mean_s,
            "memory_mib": memory_mib,
        }
        line = self._write("train", iteration, facts)
        scalars = {f"loss/{name}": value for name, value in terms.items()}
        scalars |= {f"lr/{name}": value for name, value in lr.items()}
        if facts["ips"] is not None:
            scalars["speed/ips"] = facts["ips"]
        self._sink(iteration, scalars)
        if self.enabled:
            self._show.training(iteration, facts)
        return line

    def evaluation(self, iteration: int, *, miou: float, facts: Mapping[str, Any]) -> None:
        """Write the result of an evaluation.

        Args:
            iteration: iterations done.
            miou: mean intersection over union, 0..1, by the rule that ``facts`` tells.
            facts: anything else that JSON can hold.
        """
        self._write("eval", iteration, {"miou": miou, **facts})
        self._sink(iteration, {"eval/miou": miou})
        self._show_event("evaluation", iteration, {"mIoU": miou, **facts})

    def event(self, kind: str, iteration: int, facts: Mapping[str, Any]) -> None:
        """Write and show anything else: "checkpoint", "warning", "stopped", ..."""
        self._write(kind, iteration, facts)
        self._show_event(kind, iteration, facts)

    def _write(self, kind: str, iteration: int, facts: Mapping[str, Any]) -> dict[str, Any]:
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = {"kind": kind, "iteration": iteration, "time": time, **facts}
        if self._writer is not None:
            self._writer.write(line)
        return line

    def _sink(self, iteration: int, scalars: Mapping[str, float]) -> None:
        for sink in self.sinks:
            for name, value in scalars.items():
                sink.scalar(name, value, iteration)

    def _show_event(self, kind: str, iteration: int, facts: Mapping[str, Any]) -> None:
        if not self.enabled:
            return
        shown = [
            f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in facts.items()
            if isinstance(value, str | int | float)
        ]
        style = "yellow" if kind in _LOUD else "bold"
        self._show.line(f"{kind} at iteration {iteration}: {', '.join(shown)}", style=style)


_LOUD = ("warning", "stopped", "not_finite", "data_failed", "loader_failed")
"""Events that must not be overlooked."""


class _Window:
    """Sums over the iterations since the last line."""

    def __init__(self) -> None:
        self.steps = self.images = 0
        self.data_s = self.step_s = 0.0

    def add(self, *, images: int, data_s: float, step_s: float) -> None:
        self.steps += 1
        self.images += images
        self.data_s += data_s
        self.step_s += step_s

    def facts(self) -> dict[str, float | None]:
        """Images per second and mean seconds per iteration; None where nothing was counted."""
        seconds = self.data_s + self.step_s
        if not self.steps or seconds <= 0:
            return {"ips": None, "data_s": None, "step_s": None}
        return {
            "ips": self.images / seconds,
            "data_s": self.data_s / self.steps,
            "step_s": self.step_s / self.steps,
        }


class _Display:
    """A progress bar with the newest numbers on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, *, total: int, done: int) -> None:
        self.console = console
        self._total = total
        self._numbers = Text()
        self._bar = Progress(
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
        )
        self._task = self._bar.add_task("train", total=total, completed=done, eta="")
        self._live: Live | None = None

    def start(self) -> None:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._rendered, console=self.console)
            self._live.start()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self) -> None:
        self._bar.advance(self._task)

    def line(self, text: str, *, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)

    def training(self, iteration: int, facts: Mapping[str, Any]) -> None:
        parts = _training_parts(facts)
        eta = "" if facts["eta_s"] is None else f"{timedelta(seconds=round(facts['eta_s']))} left"
        if self._live is not None:
            self._bar.update(self._task, completed=iteration, eta=eta)
            self._numbers = Text("\n".join(parts))
        else:
            self.line("  ".join([f"{iteration}/{self._total}", *parts, eta]).rstrip())

    def _rendered(self) -> Group:
        return Group(self._numbers, self._bar)


def _training_parts(facts: Mapping[str, Any]) -> list[str]:
    loss = " ".join(f"{name} {value:.4f}" for name, value in facts["loss"].items())
    rates = " ".join(f"{name} {value:.2e}" for name, value in facts["lr"].items())
    parts = [f"epoch {facts['epoch']}  loss {loss}", f"lr {rates}"]
    speed: list[str] = []
    if facts["ips"] is not None:
        speed.append(f"{facts['ips']:.1f} images/s")
        speed.append(f"data {facts['data_s']:.3f} s, step {facts['step_s']:.3f} s")
    if facts["memory_mib"] is not None:
        speed.append(f"{facts['memory_mib']:.0f} MiB")
    return [*parts, "  ".join(speed)] if speed else parts
