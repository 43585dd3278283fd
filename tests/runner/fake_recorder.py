"""Recorders of a few lines each, for the tests of the runner."""

import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.outcome import Outcome

ROOT = Path(__file__).resolve().parent.parent.parent


PYTHON = sys.executable


RECORDER = """\
#!{python}
# stands in for a recorder: same plan, same events, same records
import json, os, signal, subprocess, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from pathlib import Path
from pipeline.records import record_name, write_record

plan = json.loads(Path(sys.argv[-1]).read_text())
side = plan["side"]
job = plan["jobs"][0]
plan["runs"] = job["runs"]

def emit(event, **fields):
    print(json.dumps({{"event": event, "job": job["name"], **fields}}), flush=True)

def write(run, arrays, part="", **changes):
    meta = {{"side": side, "dtype": run["dtype"], "frameworks": [side], "config": "c",
            "inputs": "i", "data": "d", "weights": "w", "seed": 0, "versions": {{}},
            **changes}}
    name = record_name(run["step"], run["dtype"], side, part)
    write_record(Path(run["folder"]), name, arrays, meta)

def start(run):
    emit("start", step=run["step"], dtype=run["dtype"], fault=None)

def done(run):
    emit("done", step=run["step"], dtype=run["dtype"], fault=None, seconds=0.5)

def fail(run, message, input_error=False):
    emit("failed", step=run["step"], dtype=run["dtype"], fault=None, message=message,
         input_error=input_error)

GOOD = {{"lr/decay": np.linspace(1, 2, 9), "options/decay/momentum": np.asarray(0.9)}}
{body}
emit("end", peak_mib=7)
"""


EVERYTHING = """
for run in plan["runs"]:
    start(run)
    write(run, {key: a.astype(run["dtype"]) for key, a in GOOD.items()})
    done(run)
"""


Play = Callable[..., Outcome]


def verdicts(outcome: Outcome) -> dict[str, str]:
    return {f"{r.step.name} {r.dtype}": r.verdict.value for r in outcome.results}
