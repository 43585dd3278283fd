"""Progress of an evaluation: pictures done, images/s, time left."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pipeline.display import errors

LINE_EVERY_S = 20.0
"""Seconds between two lines where there is no terminal to draw a bar in."""


class EvalDisplay:
    """Shows the progress on standard error; a context manager.

    Args:
        total: pictures of all processes.
        enabled: False in all processes but the first.
    """

    def __init__(self, total: int, *, enabled: bool) -> None:
        self.total, self.enabled = total, enabled
        self.done = 0
        self._bar = Progress(
            TextColumn("evaluating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=errors,
            disable=not (enabled and errors.is_terminal),
        )
        self._task = self._bar.add_task("evaluating", total=total, speed="")
        self._started = self._told = time.monotonic()

    def __enter__(self) -> EvalDisplay:
        self._bar.start()
        self._started = self._told = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, pictures: int, *, at_most: int) -> None:
        """Count pictures as done: of all processes, which are about equally far."""
        self.done = min(self.done + pictures, at_most)
        now = time.monotonic()
        text = speed_text(self.done, self.total, now - self._started)
        self._bar.update(self._task, completed=self.done, speed=text)
        quiet = self.enabled and not errors.is_terminal
        if quiet and now - self._told >= LINE_EVERY_S:
            self._told = now
            errors.print(f"evaluated {self.done}/{self.total} pictures, {text}", highlight=False)


def speed_text(done: int, total: int, seconds: float) -> str:
    """Return "2.50 images/s, ETA 0:01:20"; of fewer than one per second "4.00 s/image, ..."."""
    if done == 0 or seconds <= 0:
        return ""
    rate = done / seconds
    speed = f"{rate:.2f} images/s" if rate >= 1 else f"{1 / rate:.2f} s/image"
    return f"{speed}, ETA {timedelta(seconds=round((total - done) / rate))}"
