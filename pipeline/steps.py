"""The steps of the verification, as one table: what is recorded, from what, judged by which bound.

Every bound looser than ROUNDING carries the measurement that asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.compare import Allowance, Bound

Dtype = Literal["float64", "float32"]
Side = Literal["torch", "paddle"]
SIDES: tuple[Side, Side] = ("torch", "paddle")

ROUNDING = Bound(
    "*",
    1e-12,
    "float64 keeps 16 digits; 4 are left for the different order of the sums in the two "
    "frameworks' convolutions and reductions",
)
POOLED = (
    "BatchNorm after a global pooling divides by the spread of N values per channel, which "
    "amplifies rounding; measured with N = 8 up to {} in BiSeNetV1 and {} in STDC2, the worst of "
    "the family"
)
MOVED = Bound(
    "moved/*",
    1e-10,
    "weight after minus weight before: rounding of the weight, relative to a change that is a "
    "thousandth of it; measured up to 3.8e-13. The weights themselves are compared at 1e-12",
)
IDENTICAL = Bound("*", 0.0, "no arithmetic differs between the sides: equality")


# Paddle's own float32 rounding over Torch's, median over the elements of a tensor.
SMOOTH = Bound(
    "*",
    10.0,
    "two orders of the same sums; measured up to 1.8 in forward and 6.6 in optimizer. A BatchNorm "
    "eps of 1.2e-5 for 1e-5 is at 36, a biased running variance at 59",
)
FLIPS = Bound(
    "*",
    1000.0,
    "behind a loss, one ReLU or hard pixel that flips by rounding changes every gradient before "
    "it, on one side only; measured up to 336. A half-precision detour is at 8000",
)


CHANCE = Bound(
    "moved/*",
    float("inf"),
    "one number per tensor, whose error can be zero on one side by chance: measured over 1000. The "
    "weights themselves are judged",
)


@dataclass(frozen=True)
class Step:
    """One row of the table."""

    name: str
    title: str
    """What is recorded on each side, in a few words."""
    dtypes: tuple[Dtype, ...]
    """In the order in which they run; float64 decides, so it comes first."""
    bounds: tuple[Bound, ...]
    constants: tuple[Allowance, ...] = ()
    """Keys whose reference may be constant without being vacuous."""
    nonzero: tuple[Allowance, ...] = ()
    """Keys that must not be all zero on either side: what should have moved has moved."""
    zeros: tuple[Allowance, ...] = ()
    """Keys whose exact value is zero: rounding only, judged beside the largest of their kind."""
    rounding: tuple[Bound, ...] = (SMOOTH,)
    """float32: how many times Torch's own rounding Paddle's may be, by key; the last is for "*"."""
    labels: tuple[str, ...] = ()
    """Keys of label maps: more than one class must occur in them."""
    official: float | None = None
    """Threshold of the reproduction guide on the mean absolute difference (float32), reported."""


# biases that a later BatchNorm subtracts again, in BiSeNetV2's gather-and-expansion layers and its
# context embedding: fnmatch patterns of their names
_CANCELLED = (
    "segment.S?.0.shortcut.1.bias",
    "segment.S5_?.0.shortcut.1.bias",
    "segment.S5_5.bn.bias",
)


def _cancelled(*kinds: str) -> tuple[Allowance, ...]:
    reason = "a later BatchNorm subtracts this bias again: its gradient is zero by algebra"
    return tuple(Allowance(f"{kind}/{name}", reason) for kind in kinds for name in _CANCELLED)


BOTH: tuple[Dtype, ...] = ("float64", "float32")

STEPS: tuple[Step, ...] = (
    Step(
        "data",
        "samples after every transform; batches of the loader by workers and ranks",
        ("float32",),
        (IDENTICAL,),
        constants=(
            Allowance("*/label", "a crop can show a single class"),
            Allowance("*/image", "a crop can lie in the padding"),
        ),
        official=1e-6,
    ),
    Step(
        "forward",
        "every layer's output and every head's logits, eval and train mode",
        BOTH,
        (Bound("train/*", 1e-11, POOLED.format("5.6e-14", "1.1e-12")), ROUNDING),
        constants=(Allowance("*/prediction", "weights by rule can prefer one class everywhere"),),
        official=1e-5,
    ),
    Step(
        "metric",
        "confusion matrix, IoU by every convention, accuracy",
        ("float64",),
        (IDENTICAL,),
        constants=(Allowance("*/iou", "classes may agree in IoU when few pixels are counted"),),
        official=1e-6,
    ),
    Step(
        "loss",
        "every loss term and the gradient at the logits",
        BOTH,
        (ROUNDING,),
        constants=(Allowance("all_void/*", "without a valid pixel the gradient is exactly zero"),),
        labels=("*/label",),
        official=1e-6,
    ),
    Step(
        "backward",
        "gradient of every parameter and layer in train mode; BatchNorm buffers after",
        BOTH,
        (
            Bound("grad/*", 1e-11, POOLED.format("5e-14", "2.2e-12")),
            Bound("layer/*", 1e-11, POOLED.format("6.5e-14", "2.2e-12")),
            ROUNDING,
        ),
        labels=("label",),
        rounding=(replace(SMOOTH, pattern="buffer/*"), replace(SMOOTH, pattern="loss/*"), FLIPS),
        zeros=_cancelled("grad"),
        nonzero=(Allowance("grad/*", "a parameter without gradient is cut off from the loss"),),
        official=1e-6,
    ),
    Step(
        "lr_schedule",
        "rate of every group at every iteration; group, decay and momentum of every parameter",
        ("float64",),
        (
            Bound(
                "*", 1e-14, "one pow() of two math libraries: at most a few units in the last place"
            ),
        ),
        constants=(Allowance("options/*", "settings, not series"),),
        official=1e-6,
    ),
    Step(
        "optimizer",
        "every parameter and momentum buffer after 1 and 5 steps from given gradients",
        BOTH,
        (MOVED, ROUNDING),
        rounding=(CHANCE, SMOOTH),
        nonzero=(Allowance("moved/*", "a parameter that did not move was not optimised"),),
        official=1e-6,
    ),
    Step(
        "training",
        "end to end: loss, rates, all weights, momentum and buffers; mIoU on val after",
        BOTH,
        (
            MOVED,
            Bound("*momentum/*", 1e-11, POOLED.format("8.7e-14", "7.3e-13")),
            ROUNDING,
        ),
        zeros=_cancelled("momentum", "iteration*/momentum", "moved"),
        rounding=(CHANCE, FLIPS),
        nonzero=(Allowance("moved/*", "a parameter that did not move was not trained"),),
        official=1.5e-3,
    ),
)
STEP_NAMES = tuple(step.name for step in STEPS)


def step_named(name: str) -> Step:
    """Return the step of that name; LookupError lists the names."""
    for step in STEPS:
        if step.name == name:
            return step
    raise LookupError(f"no step {name!r}; steps: {', '.join(STEP_NAMES)}")
