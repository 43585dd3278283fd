"""The steps of the verification, as one table: what is recorded, from what, judged by which bound.

Every bound looser than ROUNDING carries the measurement that asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.verdicts import Allowance, Bound

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
DRAWN_FIRST = (
    Bound(
        "init/many/*",
        0.05,
        "two draws of 10,000 numbers or more: each spread is known to 0.7 percent, each mean to "
        "one, so five and three times the error of their difference; measured over the family and "
        "three seeds up to 2.6 and 3.3 percent",
        by_chance=True,
    ),
    Bound(
        "init/some/*",
        0.25,
        "the same of 400 numbers or more, known to 3.5 and 5 percent; measured up to 8 and 13",
        by_chance=True,
    ),
)
IDENTICAL = Bound("*", 0.0, "no arithmetic differs between the sides: equality")


# Paddle's own float32 rounding over Torch's, median over the elements of a tensor.
SMOOTH = Bound(
    "*",
    4.0,
    "two orders of the same sums; measured over the family up to 2.0 in forward (2.6 on real "
    "frames), 1.4 for gradients at the logits, 1.0 in optimizer. A BatchNorm eps of 1.2e-5 for "
    "1e-5 is at 6, a half-precision detour at 100 and more",
)
FEW = Bound(
    "*",
    10.0,
    "the same of single numbers or few channels, where Torch can be exact by luck: measured up to "
    "5.0 in loss and 3.3 in the buffers. A log-softmax in float16 is at 34, a biased running "
    "variance at 59",
)
DRAWN = Bound(
    "rounding/*",
    10.0,
    "Paddle's own rounding over Torch's in the same draw, the second smallest of six; measured "
    "over the family, in seven different sixes, up to 2.1. A half-precision detour is beyond 100",
)
FLIPPED = Bound(
    "*",
    float("inf"),
    "one draw: a ReLU or hard pixel that flips by rounding on one side only changes every gradient "
    "before it, measured up to 5606 times Torch's. The rounding/* rows judge several draws",
)


TRAINED = Bound(
    "*",
    float("inf"),
    "what iterations have made of such flips: measured up to 19,732 times Torch's. The first "
    "iteration's loss, and the steps that a training consists of, are judged by their rounding",
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
# context embedding, and in the global pooling of bisenetv1_2019: fnmatch patterns of their names
_CANCELLED = (
    "segment.S?.0.shortcut.1.bias",
    "segment.S5_?.0.shortcut.1.bias",
    "segment.S5_5.bn.bias",
    "cp.conv_avg.bias",
)


_BY_GRADIENT: dict[str, tuple[str, ...]] = {
    "backward": ("grad",),
    "training": ("momentum", "iteration*/momentum", "moved"),
}
"""What such a bias's gradient decides: step -> first part of the keys."""


def _cancelled(step: str, names: Iterable[str] = _CANCELLED) -> tuple[Allowance, ...]:
    reason = "a later BatchNorm subtracts this bias again: its gradient is zero by algebra"
    kinds = _BY_GRADIENT.get(step, ())
    return tuple(Allowance(f"{kind}/{name}", reason) for kind in kinds for name in names)


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
        "every layer's output and every head's logits, eval and train mode; first weights; scores",
        BOTH,
        (
            Bound("train/*", 1e-11, POOLED.format("5.6e-14", "1.1e-12")),
            *DRAWN_FIRST,
            ROUNDING,
        ),
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
        constants=(Allowance("*all_void/*", "without a valid pixel the gradient is exactly zero"),),
        labels=("*/label",),
        rounding=(replace(FEW, pattern="*/loss/*"), SMOOTH),
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
        rounding=(
            replace(FLIPPED, pattern="layer/*"),
            replace(FLIPPED, pattern="grad/*"),
            DRAWN,
            FEW,
        ),
        zeros=_cancelled("backward"),
        nonzero=(Allowance("grad/*", "a parameter without gradient is cut off from the loss"),),
        official=1e-6,
    ),
    Step(
        "lr_schedule",
        "rate of every group at every iteration; group, decay and momentum of every parameter; "
        "dropout",
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
        zeros=_cancelled("training"),
        rounding=(CHANCE, replace(FEW, pattern="first/*"), TRAINED),
        nonzero=(Allowance("moved/*", "a parameter that did not move was not trained"),),
        official=1.5e-3,
    ),
)
STEP_NAMES = tuple(step.name for step in STEPS)


DEAD_LAYER = Allowance(
    "*/layer/*",
    "weights of a real training can hold a dead layer: the fusion's attention in the face-parsing "
    "checkpoint is 0.5 for every picture. Weights by rule have none: there a constant is a failure",
)


def with_given_weights(step: Step) -> Step:
    """Return the step as it is judged when the weights are a user's."""
    return replace(step, constants=(*step.constants, DEAD_LAYER))


def with_cancelled(step: Step, names: Iterable[str]) -> Step:
    """Return the step as it is judged when a network of the user's has such biases, too.

    Args:
        step: of the table.
        names: shell patterns of parameters, ``model.pair.cancelled``.
    """
    return replace(step, zeros=(*step.zeros, *_cancelled(step.name, names)))


def with_decayed_biases(step: Step) -> Step:
    """Return the step as it is judged when the recipe decays biases.

    What a later BatchNorm cancels is the gradient only: the decay moves such a bias, and it is
    compared like any other tensor.
    """
    return replace(step, zeros=()) if step.name == "training" else step


def step_named(name: str) -> Step:
    """Return the step of that name; LookupError lists the names."""
    for step in STEPS:
        if step.name == name:
            return step
    raise LookupError(f"no step {name!r}; steps: {', '.join(STEP_NAMES)}")
