"""Client of server.py: a process that records with Paddle, one request at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pydantic import BaseModel

from common.errors import InputError


class Request(BaseModel):
    """One run of one copy of the package."""

    package: str
    """Folder that holds the copy of for_paddle."""
    plan: dict[str, Any]
    """A pipeline.record.Plan of Paddle's side."""
    errors: str
    """File to write to when the package cannot even be imported."""
    seconds: float
    """Time limit."""
    memory_mib: int = 12_288
    """Limit of the address space."""
    executed: str | None = None
    """File to write the executed lines to."""


class Reply(BaseModel):
    """How it ended."""

    status: str
    """"recorded", "failed", "killed" (by a signal, its own fault) or "timeout"."""
    seconds: float


class Worker:
    """A server process; as a context it is stopped at the end, with its child."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def ask(self, request: Request) -> Reply:
        """Send a request and wait for its reply; starts the process if there is none.

        Raises:
            InputError: the process ended without a reply; its log says why.
        """
        process = self._process or self._start()
        stdin, stdout = _pipes(process)
        try:
            stdin.write(request.model_dump_json() + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.stop()
            raise InputError(f"the Paddle process ended without a reply; see {self.log}")
        return Reply.model_validate_json(line)

    def stop(self) -> None:
        """End the process and what it has forked."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            for stream in _pipes(self._process):
                stream.close()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.source_audit.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                # Ctrl-C is for the parent, which stops this one in order
                start_new_session=True,
            )
        ready = _pipes(self._process)[1].readline()
        if not ready:
            self.stop()
            raise InputError(f"the Paddle process could not start; see {self.log}")
        return self._process


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None  # both are pipes
    assert process.stdout is not None
    return process.stdin, process.stdout
