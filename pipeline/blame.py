"""Which layer is itself wrong: a recorded and a forced pass, judged cut by cut.

In a forced pass (for_*/forcing.py) every piece starts from the reference's numbers. What a layer
returns belongs to the layer; what it is given, to the layer that called it; a gradient that a
layer sends back to its input, to the layer, and one that arrives at a layer's output, to its
caller, which used that output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.compare import compare_tensor, compare_zero
from pipeline.differences import magnitude
from pipeline.examine import BACKWARD
from pipeline.judge import ZERO_FLOAT32, ZERO_FLOAT64, zero_rule
from pipeline.records import Array
from pipeline.rounding import compare_tensor_float32
from pipeline.steps import Step, step_named, with_cancelled
from pipeline.traces import TraceRecord
from pipeline.verdicts import Row, Verdict

VALUE, GRADIENT = 1e-12, 1e-11
"""Largest relative difference, in float64, of what one piece computes from the same numbers."""
LOOP = "training loop"
"""What is blamed for the image that the network is given."""
FINER = (1.0, 1e-1, 1e-2)
"""Shares of these limits that are tried one after the other: what a layer does wrong by less may
still grow beyond a step's bound in the layers behind it."""
SELF_LIMIT, SELF_LIMIT_FEW, FEW = 4.0, 10.0, 1000
"""float32: how many times Torch's own rounding Paddle's may be in one piece, of fewer elements than
FEW, and what few are; measured up to 2.0 over the cuts of BiSeNetV1, forwards and backwards."""


@dataclass(frozen=True)
class Blamed:
    """A layer that is wrong on agreeing inputs."""

    key: str
    """Key of its first wrong tensor in the trace, context first; an update's in the record."""
    kind: str
    """Kind of failure case (pipeline/failure.py)."""
    layer: str
    """Layer or parameter; "" is the network itself."""
    call: str
    context: str
    row: Row
    others: int = 0
    """Further tensors that are wrong in the same way."""


@dataclass(frozen=True)
class Traces:
    """Torch's record of a pass and Paddle's forced one.

    ``wide`` has both in float64 from the same float32 numbers, when float32 is judged.
    """

    reference: TraceRecord
    forced: TraceRecord
    wide: tuple[TraceRecord, TraceRecord] | None = None
    cancelled: tuple[str, ...] = ()
    """Parameters of a user's network whose gradient is zero by algebra (model.pair.cancelled)."""

    @property
    def _step(self) -> Step:
        return with_cancelled(step_named("backward"), self.cancelled)

    def row(self, key: str, limit: float) -> Row | None:
        """Return how a tensor compares, or None when it is the reference's to the bit."""
        reference, actual = self.reference.arrays[key], self.forced.arrays.get(key)
        if actual is None:
            detail = "Paddle computes no such tensor"
            return Row(key, Verdict.MISSING, detail, relative=1.0, size=reference.size)
        if actual is reference:
            return None
        if (rule := zero_rule(self._step, key)) is not None:
            family = [a for k, a in self.reference.arrays.items() if k.startswith("grad/")]
            narrow = reference.dtype == np.float32
            return compare_zero(
                key,
                reference,
                actual,
                largest=max(map(magnitude, family)),
                limit=ZERO_FLOAT32 if narrow else ZERO_FLOAT64,
                reason=rule.reason,
            )
        if self.wide is None:
            limit += self._carried(key)
            return compare_tensor(key, reference, actual, limit=limit, may_be_constant=True)
        if any(key not in trace.arrays for trace in self.wide):
            # an update: no run leads there in float64
            return None
        wide = (self.wide[0].arrays[key], self.wide[1].arrays[key])
        few = SELF_LIMIT_FEW if reference.size < FEW else SELF_LIMIT
        return compare_tensor_float32(
            key, (reference, actual), wide, may_be_constant=True, self_limit=few
        )

    def _carried(self, key: str) -> float:
        """Return what an update may differ by because the momentum before it does."""
        kind, _, name = key.partition("/")
        before = self.reference.arrays.get(f"velocity/{name}")
        own = self.forced.arrays.get(f"velocity/{name}")
        if kind not in ("after", "velocity_after") or before is None or own is None:
            return 0.0
        largest = magnitude(self.reference.arrays[key])
        return 2 * float(np.abs(own - before).max()) / largest if largest else 0.0

    def wrong(self, key: str, limit: float) -> Row | None:
        """Return the row of a tensor that differs, or None."""
        row = self.row(key, limit)
        return None if row is None or row.verdict.passed else row


def blame(traces: Traces) -> list[Blamed]:
    """Return the layers that are wrong by themselves, in the order in which a pass meets them.

    Forward pass first, then the loss, the gradients from the loss back, the parameters' gradients,
    buffers, updates. Of a layer that is wrong forwards, its gradients are not told: they follow.
    """
    for share in FINER:
        if found := _blamed_at(traces, share):
            return found
        if traces.wide is not None:
            break
    return []


def _blamed_at(traces: Traces, share: float) -> list[Blamed]:
    found = _merged(_forward(traces, share * VALUE))
    wrong = {one.layer for one in found}
    found += _merged(_losses(traces, share * VALUE))
    later: tuple[Callable[[Traces, float], Iterator[Blamed]], ...] = (
        _gradients,
        _parameters,
        _buffers,
        _updates,
    )
    for kind in later:
        limit = share * (VALUE if kind in (_buffers, _updates) else GRADIENT)
        told = {one.layer for one in found}
        found += [
            one
            for one in _merged(kind(traces, limit))
            if owner(one) not in wrong and (kind is _gradients or one.layer not in told)
        ]
    return found


def owner(blamed: Blamed) -> str:
    """Return the layer that a blamed tensor belongs to, of a parameter's too."""
    if blamed.kind in ("layer", "layer_gradient", "loss", "logits_gradient"):
        return blamed.layer
    return blamed.layer.rpartition(".")[0]


def _merged(found: Iterator[Blamed]) -> list[Blamed]:
    """Keep the first tensor of every layer, and count the others."""
    first: dict[str, Blamed] = {}
    for one in found:
        known = first.get(one.layer)
        first[one.layer] = one if known is None else replace(known, others=known.others + 1)
    return list(first.values())


def call_of(trace: TraceRecord, context: str, key: str) -> tuple[str, str]:
    """Return the call that "input/<call>/<i>" or "output/<call><part>" is of, and the rest."""
    kind, _, name = key.partition("/")
    if kind == "input":
        call, _, position = name.rpartition("/")
        return call, position
    if name in trace.callers[context]:
        return name, ""
    call, _, part = name.rpartition(".")
    return call, part


def _forward(traces: Traces, limit: float) -> Iterator[Blamed]:
    for context, calls in traces.reference.callers.items():
        for key in cuts(traces.reference, context):
            row = traces.wrong(f"{context}/{key}", limit)
            if row is None:
                continue
            call, _ = call_of(traces.reference, context, key)
            if key.startswith("input/"):
                if call == "":
                    # what calls the network: in a training, its loop
                    yield Blamed(f"{context}/{key}", "sample", LOOP, "", context, row)
                    continue
                call = calls[call]
            yield Blamed(f"{context}/{key}", "layer", layer_of(call), call, context, row)


def layer_of(call: str) -> str:
    """Return the layer's name without the number of the call."""
    return call.partition("#")[0]


def cuts(trace: TraceRecord, context: str) -> list[str]:
    """Return the keys of what was handed over in a pass, in its order, without the context."""
    heads = (f"{context}/input/", f"{context}/output/")
    return [key.removeprefix(f"{context}/") for key in trace.arrays if key.startswith(heads)]


def _losses(traces: Traces, limit: float) -> Iterator[Blamed]:
    terms = [key for key in traces.reference.arrays if key.startswith("loss/")]
    # the total is to blame only when every term agrees
    for key in sorted(terms, key=lambda key: key == "loss/total"):
        if row := traces.wrong(key, limit):
            yield Blamed(key, "loss", "loss", "", BACKWARD, row)


def _gradients(traces: Traces, limit: float) -> Iterator[Blamed]:
    calls = traces.reference.callers.get(BACKWARD, {})
    for cut in reversed(cuts(traces.reference, BACKWARD)) if calls else ():
        key = f"{BACKWARD}/gradient/{cut}"
        if key not in traces.reference.arrays:
            continue
        row = traces.wrong(key, limit)
        if row is None:
            continue
        call, _ = call_of(traces.reference, BACKWARD, cut)
        if call == "" and cut.startswith("output/"):
            yield Blamed(key, "logits_gradient", "loss", "", BACKWARD, row)
            continue
        if cut.startswith("output/"):
            call = calls[call]
        yield Blamed(key, "layer_gradient", layer_of(call), call, BACKWARD, row)


def _parameters(traces: Traces, limit: float) -> Iterator[Blamed]:
    yield from _plain(traces, "grad/", "parameter_gradient", limit)


def _buffers(traces: Traces, limit: float) -> Iterator[Blamed]:
    yield from _plain(traces, "buffer/", "buffer", limit)


def _updates(traces: Traces, limit: float) -> Iterator[Blamed]:
    yield from _plain(traces, "after/", "update", limit)
    yield from _plain(traces, "velocity_after/", "momentum", limit)


def _plain(traces: Traces, prefix: str, kind: str, limit: float) -> Iterator[Blamed]:
    for key in traces.reference.arrays:
        if key.startswith(prefix) and (row := traces.wrong(key, limit)):
            name = key.removeprefix(prefix)
            yield Blamed(key, kind, name, name.rpartition(".")[0], BACKWARD, row)


def actual_or_zero(arrays: Mapping[str, Array], key: str, like: Array) -> Array:
    """Return Paddle's array; zeros in the place of a gradient that never came."""
    return arrays[key] if key in arrays else np.zeros_like(like)
