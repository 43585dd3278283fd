"""Conversions in a process of their own: they load torch, the tests' process stays without."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from programs import ROOT

CONVERT = """
import json, sys
from pathlib import Path
from common.errors import InputError
from pipeline.convert import convert
out = []
for job in json.loads(sys.argv[1]):
    source, target = Path(job.pop("source")), Path(job.pop("target"))
    try:
        report = convert(source, target, **job)
    except InputError as error:
        out.append({"error": str(error)})
    else:
        out.append({
            "text": report.text(), "title": report.origin.title, "classes": report.classes,
            "tensors": report.tensors, "folded": report.folded, "skipped": report.skipped,
            "absent": report.absent, "notes": report.notes, "counters": report.counters,
        })
print(json.dumps([out, "paddle" in sys.modules]))
"""

COMPARE = """
import sys
import torch
one, other = (
    torch.load(path, map_location="cpu", weights_only=True) for path in sys.argv[1:]
)
assert list(one) == list(other), set(one) ^ set(other)
for name, tensor in one.items():
    assert tensor.dtype == other[name].dtype, name
    if not name.endswith("num_batches_tracked"):
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name
print(len(one))
"""


# Loads torch once, which takes longer than most conversions, and runs each program in a forked
# child, as clean as a fresh process. A line of JSON comes in for each, its exit code goes out.
SERVER = """
import json, os, sys, traceback
import safetensors.torch
import for_torch.checkpoints, for_torch.models, pipeline.convert

def run(program, arguments, printed):
    sys.argv[1:] = arguments
    file = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})

for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            run(**json.loads(line))
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class TorchServer:
    """A process that has loaded torch, and runs programs; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._printed = folder / "printed"
        # one thread: a process with several may not be forked
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVER],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "TorchServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, program: str, *arguments: str) -> str:
        """Return what a program prints; it must succeed, and its warnings are errors."""
        self._printed.unlink(missing_ok=True)
        job = {"program": program, "arguments": arguments, "printed": str(self._printed)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline()
        printed = self._printed.read_text() if self._printed.exists() else ""
        assert code == "0\n", printed
        return printed


_server: list[TorchServer] = []


@contextmanager
def served(folder: Path) -> Iterator[None]:
    """Have run_strictly and converted use a server of their own."""
    with TorchServer(folder) as server:
        _server.append(server)
        yield
        _server.clear()


def run_strictly(program: str, *arguments: str) -> str:
    """Return what a program prints whose warnings are errors, as the tests' own are."""
    return _server[0].run(program, *arguments)


def converted(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert in one process; Paddle is never loaded."""
    results, paddle_loaded = json.loads(run_strictly(CONVERT, json.dumps(jobs, default=str)))
    assert not paddle_loaded
    return results


def job(source: Path, target: Path, model: str, **options: Any) -> dict[str, Any]:
    return {"source": source, "target": target, "model": model, **options}


def expected_arrays(published: Path, model: str) -> dict[str, Any]:
    with np.load(published / f"{model}.npz") as file:
        return {k: file[k] for k in file if not k.endswith("num_batches_tracked")}
