"""The two recorder processes of a run: started, listened to, and ended whatever happens."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from common.errors import InputError
from common.files import write_text
from pipeline.record import Job, Plan
from pipeline.steps import SIDES, Side

LAST_WORDS_S = 2.0
"""How long the output of an ended recorder is read at most."""

Progress = Callable[[Mapping[str, Any]], None]
"""Called with the recorders' events and with {"event": "judged", ...} for every result."""


class Recording:
    """The two recorder processes of a run and their events.

    Args:
        jobs: what each side records.
        work: folder for the plans.
        logs: folder for the recorders' error output.
        device: "cpu" or "gpu", for both sides.
        progress: told about every event.
    """

    def __init__(
        self,
        jobs: Mapping[Side, Sequence[Job]],
        *,
        work: Path,
        logs: Path,
        device: str,
        progress: Progress,
    ) -> None:
        self.jobs, self.work, self.logs, self.device = jobs, work, logs, device
        self.progress = progress
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.failed: dict[tuple[Side, str, str, str], dict[str, Any]] = {}
        """By (side, job, step, dtype)."""
        self.seconds: dict[tuple[str, str, str], dict[str, float]] = {}
        """Recording time by side, by (job, step, dtype)."""
        self.peak_mib: dict[str, int] = {}
        self.ended: dict[Side, int] = {}
        self.processes: dict[Side, subprocess.Popen[str]] = {}

    def __enter__(self) -> Recording:
        try:
            for side in self.jobs:
                self._start(side)
        except BaseException:
            # interrupted between the two: the first must not stay behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            # the whole group, even when the recorder itself has gone: its loader processes
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()

    def _start(self, side: Side) -> None:
        plan = Plan(
            side=side, jobs=list(self.jobs[side]), device=self.device, threads=recorder_threads()
        )
        path = self.work / f"plan_{side}.json"
        write_text(path, plan.model_dump_json())
        with (self.logs / f"recorder_{side}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.record", str(path)],
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                errors="replace",
                env=recorder_environment(),
                # a group of its own: Ctrl-C reaches this process only, which then ends the group
                # with all its loader processes
                start_new_session=True,
            )
        self.processes[side] = process
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(side, process.stdout), daemon=True)
        reader.start()
        threading.Thread(target=self._wait, args=(side, reader), daemon=True).start()

    def _wait(self, side: Side, reader: threading.Thread) -> None:
        code = self.processes[side].wait()
        # a killed recorder's loader processes hold its output open: do not wait for its end
        reader.join(timeout=LAST_WORDS_S)
        self.events.put({"event": "exit", "side": side, "code": code})

    def _read(self, side: Side, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    # a library that prints: not ours to judge
                    continue
                if isinstance(event, dict) and "event" in event:
                    self.events.put({**event, "side": side})

    def pump(self, seconds: float) -> None:
        """Take in one event, waiting at most that long."""
        try:
            event = self.events.get(timeout=seconds)
        except queue.Empty:
            return
        side: Side = event["side"]
        if event["event"] == "failed":
            self.failed[(side, event["job"], event["step"], event["dtype"])] = event
        elif event["event"] == "done":
            key = (event["job"], event["step"], event["dtype"])
            times = self.seconds.setdefault(key, {})
            times[side] = event["seconds"]
        elif event["event"] == "end":
            self.peak_mib[side] = event["peak_mib"]
        elif event["event"] == "exit":
            self.ended[side] = event["code"]
        self.progress(event)

    def problem(self, job: str, step: str, dtype: str) -> str:
        """Return why a step's records will never come, or an empty text.

        Raises:
            InputError: neither side could use what the user handed in. An objection of one side
                alone is a difference of the two, and told as its failure.
        """
        key = (job, step, dtype)
        failures = {
            side: self.failed[(side, *key)] for side in SIDES if (side, *key) in self.failed
        }
        texts = {side: f"{side} recorder: {f['message']}" for side, f in failures.items()}
        for side, failure in failures.items():
            if not failure["input_error"]:
                return texts[side]
        if len(failures) == len(SIDES):
            raise InputError(texts[SIDES[0]])
        done = self.seconds.get(key, {})
        for side in SIDES:
            if side in done and texts:
                (text,) = texts.values()
                return f"{text} (the {side} side had no objection: look at the port)"
            if side in self.ended and side not in done and side not in failures:
                code = self.ended[side]
                how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"{side} recorder {how}; see {self.logs}/recorder_{side}.log"
        return ""


def recorder_threads() -> int:
    """Return the threads of one recorder: both run at the same time."""
    return max(1, (os.cpu_count() or 2) // len(SIDES))


def recorder_environment() -> dict[str, str]:
    """Return the children's environment: thread counts, and an allocator that keeps its memory.

    Giving large blocks back after each operation costs both frameworks a third of their time in
    page faults; spinning threads cost as much when the two recorders share two cores.
    """
    threads = str(recorder_threads())
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "20000000000",
        "PYTHONUNBUFFERED": "1",
    }
