"""Deliberate wrong ports: each a few lines that patch the Paddle side from outside.

A fault names the step that must catch it and the key at which the difference must start. The
verifier is worth what this table can prove: ``bisenet audit`` runs it and fails if one survives.

No framework is imported here; a patch reaches Paddle through the modules of the side.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from pipeline.faults.backward import BACKWARD
from pipeline.faults.bisenetv2 import BISENETV2
from pipeline.faults.data import DATA
from pipeline.faults.forward import FORWARD
from pipeline.faults.loss import LOSS
from pipeline.faults.metric import METRIC
from pipeline.faults.optimizer import OPTIMIZER
from pipeline.faults.patching import Fault
from pipeline.faults.schedule import SCHEDULE
from pipeline.faults.stdc import STDC
from pipeline.faults.training import TRAINING

FAULTS: tuple[Fault, ...] = (
    *DATA, *FORWARD, *METRIC, *LOSS, *BACKWARD, *SCHEDULE, *OPTIMIZER, *TRAINING,
    *BISENETV2, *STDC,
)  # fmt: skip


def fault_named(name: str) -> Fault:
    """Return the fault of that name; LookupError lists the names."""
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise LookupError(f"no fault {name!r}; faults: {', '.join(f.name for f in FAULTS)}")


def inject(name: str, side: Any) -> AbstractContextManager[Any]:
    """Return the context in which the side has the fault."""
    return fault_named(name).patch(side)
