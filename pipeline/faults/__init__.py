"""Deliberate wrong ports: each a few lines that patch the Paddle side from outside.

A fault names the step that must catch it and the key at which the difference must start. The
verifier is worth what this table can prove: ``bisenet audit`` runs it and fails if one survives.

No framework is imported here; a patch reaches Paddle through the modules of the side.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.faults.backward import BACKWARD
from pipeline.faults.bisenetv2 import BISENETV2
from pipeline.faults.bisenetv2_aggregation import AGGREGATION
from pipeline.faults.bisestdc import BISESTDC
from pipeline.faults.data import DATA
from pipeline.faults.float32 import FLOAT32
from pipeline.faults.forward import FORWARD
from pipeline.faults.loss import LOSS
from pipeline.faults.metric import METRIC
from pipeline.faults.optimizer import OPTIMIZER
from pipeline.faults.patching import Fault
from pipeline.faults.schedule import SCHEDULE
from pipeline.faults.stdc import STDC
from pipeline.faults.stdc_loss import STDC_LOSS
from pipeline.faults.training import TRAINING

FAULTS: tuple[Fault, ...] = (
    *DATA, *FORWARD, *METRIC, *LOSS, *BACKWARD, *SCHEDULE, *OPTIMIZER, *TRAINING,
    *FLOAT32,
    *BISENETV2, *AGGREGATION, *STDC, *STDC_LOSS, *BISESTDC,
)  # fmt: skip


def fault_named(name: str) -> Fault:
    """Return the fault of that name; LookupError lists the names."""
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise LookupError(f"no fault {name!r}; faults: {', '.join(f.name for f in FAULTS)}")


@contextmanager
def inject(names: str, side: Any) -> Generator[None]:
    """Give the side the faults of these comma-separated names for a while."""
    with ExitStack() as stack:
        for name in names.split(","):
            stack.enter_context(fault_named(name).patch(side))
        yield
