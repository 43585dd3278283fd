"""Paddle's process: imports Paddle once and forks for every run. Started by workers.py.

    python -m pipeline.source_audit.server

Reads one JSON object a line from standard input (a request), writes one a line to standard output
(its reply). Paddle is imported, but nothing of it is executed and for_paddle is not imported before
the fork: a child starts with one thread, and imports the package from the folder it is given.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from common.cpu_kernels import choose_mkl_kernels, read_cpuinfo
from common.files import write_text
from pipeline.record import Plan, Recorder
from pipeline.source_audit.workers import Reply, Request

RECORDED, FAILED, NOT_IMPORTED = 0, 3, 4
"""How a child ends."""


def main() -> int:
    """Answer requests until standard input ends."""
    choose_mkl_kernels(os.environ, read_cpuinfo())
    __import__("paddle")
    _reply({"status": "ready", "seconds": 0.0})
    for line in sys.stdin:
        request = Request.model_validate_json(line)
        _reply(_forked(request).model_dump())
    return 0


def _reply(fields: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _forked(request: Request) -> Reply:
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _be_the_child(request)
    # the parent of a killed server must not leave its child behind
    signal.signal(signal.SIGTERM, lambda *_: _end(child))
    status = _wait(child, request.seconds)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return Reply(status=status, seconds=round(time.perf_counter() - started, 2))


def _end(child: int) -> None:
    _kill_group(child)
    os._exit(1)


def _kill_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)


def _wait(child: int, seconds: float) -> str:
    """Wait for the child; return "recorded", "failed", "killed" or "timeout"."""
    deadline = time.perf_counter() + seconds
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            ended = os.waitstatus_to_exitcode(code)
            if ended < 0:
                return "killed"
            return "recorded" if ended == RECORDED else "failed"
        if time.perf_counter() > deadline:
            _kill_group(child)
            os.waitpid(child, 0)
            return "timeout"
        time.sleep(0.01)


def _be_the_child(request: Request) -> None:
    """Record and leave, whatever happens: the server's loop must not run twice."""
    code = NOT_IMPORTED
    try:
        os.setpgid(0, 0)
        # a mutant that grows without bound must not take the machine with it
        limit = request.memory_mib << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        # what a recorder tells its runner is nobody's business here
        quiet = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        sys.path.insert(0, request.package)
        sys.dont_write_bytecode = True
        code = _record(request)
    except BaseException:
        text = traceback.format_exc()
        write_text(Path(request.errors), f"{text.strip().splitlines()[-1]}\n\n{text}")
    finally:
        os._exit(code)


def _record(request: Request) -> int:
    plan = Plan.model_validate(request.plan)
    tracing = None
    if request.executed is not None:
        scratch = Path(f"{request.executed}.forked")
        tracing = Tracing(Path(request.package) / "for_paddle", scratch)
        tracing.start()
    recorder = Recorder(plan)
    if tracing is not None:
        tracing.imported()
    recorded = all([recorder.execute(job) for job in plan.jobs])
    if tracing is not None and request.executed is not None:
        write_text(Path(request.executed), json.dumps(tracing.stop()))
    return RECORDED if recorded else FAILED


class Tracing:
    """Which lines of a package are executed when it is imported, and after; forks included.

    Args:
        package: folder of the package.
        scratch: file that forked processes (a loader's) append to; they end as they like.
    """

    def __init__(self, package: Path, scratch: Path) -> None:
        self.prefix = f"{package}{os.sep}"
        self.scratch = scratch
        self.seen: set[tuple[str, int]] = set()
        self.at_import: set[tuple[str, int]] = set()
        self._forked = False

    def start(self) -> None:
        """Begin; threads that are started from now on count, too."""
        os.register_at_fork(after_in_child=self._note_fork)
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _note_fork(self) -> None:
        self._forked = True
        self.seen = set()

    def imported(self) -> None:
        """Count what comes from now on apart."""
        self.at_import, self.seen = self.seen, set()

    def stop(self) -> dict[str, dict[str, list[int]]]:
        """End, and return the lines: "import" and "run" -> file -> line numbers."""
        sys.settrace(None)
        if self.scratch.is_file():
            for line in self.scratch.read_text(encoding="utf-8").splitlines():
                number, _, file = line.partition(" ")
                self.seen.add((file, int(number)))
            self.scratch.unlink()
        return {"import": self._by_file(self.at_import), "run": self._by_file(self.seen)}

    def _by_file(self, seen: set[tuple[str, int]]) -> dict[str, list[int]]:
        lines: dict[str, list[int]] = {}
        for file, number in sorted(seen):
            lines.setdefault(file.removeprefix(self.prefix), []).append(number)
        return lines

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG002
        return self._line if frame.f_code.co_filename.startswith(self.prefix) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG002
        line = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and line not in self.seen:
            self.seen.add(line)
            if self._forked:
                with self.scratch.open("a", encoding="utf-8") as stream:
                    stream.write(f"{line[1]} {line[0]}\n")
        return self._line


if __name__ == "__main__":
    sys.exit(main())
