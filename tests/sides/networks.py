"""The published networks as one table: what is recorded about each, and how to build it.

Used by test_golden_models.py and test_any_network.py, and by the files of single networks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config_sections import LossConfig
from fake_data import rules

RTOL = 1e-10
"""Relative to the tensor's largest value; the recorded sums carry 14 digits. Measured: outputs
1.3e-12 at most, gradients 2e-13 on Torch and 2.5e-11 on Paddle, the largest where a BatchNorm sees
two values per channel and amplifies rounding (case a)."""
STRIDES = {"a": 11, "b": 17, "odd": 13}
"""Every n-th pixel of an output is recorded, by case."""
BOUNDARY_STRIDE = 3
BOUNDARY_FLAGS = ("use_boundary_2", "use_boundary_4", "use_boundary_8", "use_boundary_16")
BOUNDARIES = ("boundary2", "boundary4", "boundary8", "boundary16")


@dataclass(frozen=True)
class Network:
    """One published network, what is recorded about it, and what it promises."""

    model: str
    loss: LossConfig
    keys: int
    """Published tensors, counters of batches included, every one once."""
    tensors: int
    """Trainable ones."""
    numbers: int
    """Trainable numbers."""
    main_numbers: int | None
    """The same without auxiliary heads, where it is known."""
    heads: tuple[str, ...]
    """Without boundaries."""
    head_modules: tuple[str, ...]
    """With all heads; without auxiliary ones only those of ``main_modules``."""
    main_modules: tuple[str, ...]
    upstream_heads: Mapping[str, str]
    """Our prefix of a head's name -> upstream's."""
    sizes: tuple[tuple[int, int], ...]
    """(H, W) of images that do not divide by 32."""
    main_tensors: int | None = None
    recorded: str = ""
    """Stem of its files where that is not its name; "-" if nothing is recorded."""
    cases: tuple[str, ...] = ("a", "b", "odd")
    boundaries: bool = False
    """True when it has boundary heads, each with a flag of its own."""
    buffers: int | None = None
    """Recorded running statistics, where their number is known from elsewhere."""
    layers: int | None = None
    """Recorded calls of layers, likewise."""
    parts: tuple[str, ...] = ()
    """Our names of upstream's cp[0], cp[1], ... where they are not cp.0, cp.1, ..."""
    own_layers: tuple[str, ...] = ()
    """Shell patterns of our layers that are function calls upstream."""
    repeated_rows: tuple[str, ...] = ()
    """Prefixes of upstream's second names of layers."""
    by_child: bool = False
    """True when upstream runs its children in another order than ours."""
    without_gradient: tuple[str, ...] = ()
    """Prefixes of parameters that the published loss does not reach."""
    unreached: int = 0
    """How many parameters those are."""
    cancelled: frozenset[str] = frozenset()
    """Biases that a linear map and another BatchNorm follow: their gradient is rounding."""
    gradient_rtol: Mapping[str, float] = field(default_factory=dict[str, float])
    """Case -> bound of Paddle's gradients, where RTOL is less than what rounding does to them."""
    negative: bool = False
    """True when its output was recorded with negative weights of InPlaceABN, too."""

    @property
    def stem(self) -> str:
        """Stem of its recorded files."""
        return self.recorded or self.model

    @property
    def every_head(self) -> tuple[str, ...]:
        """All heads, every boundary included."""
        return (*self.heads, *(BOUNDARIES if self.boundaries else ()))

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """Heads of the published training."""
        return (*self.heads, *(("boundary8",) if self.boundaries else ()))

    @property
    def every_flag(self) -> dict[str, bool]:
        """Options that switch every head on."""
        return dict.fromkeys(BOUNDARY_FLAGS if self.boundaries else (), True)

    def upstream(self, head: str) -> str:
        """Return upstream's name of a head."""
        for ours, theirs in self.upstream_heads.items():
            if head.startswith(ours):
                return theirs + head.removeprefix(ours)
        raise AssertionError(head)

    def head_shapes(self, size: tuple[int, int], *, n: int, classes: int) -> dict[str, Any]:
        """Return the shape of every head for images of a size."""
        shapes: dict[str, Any] = {head: (n, classes, *size) for head in self.heads}
        if self.boundaries:
            halves = [tuple(math.ceil(side / 2**i) for side in size) for i in range(5)]
            # the spatial branch of BiSeSTDC is one stage shorter
            strides = (1, 2, 2 if "bise" in self.model else 3, 4)
            for name, stride in zip(BOUNDARIES, strides, strict=True):
                shapes[name] = (n, 1, *halves[stride])
        return shapes

    def spread(self, key: str, shape: tuple[int, ...]) -> tuple[float, bool]:
        """Return the standard deviation of fresh weights, and whether they are uniform."""
        fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
        if self.model.startswith("bisenetv2"):
            # every output channel counts, also in the depthwise convolutions
            return math.sqrt(2 / fan_out), False
        if len(shape) == 2:
            return 0.001, False
        if key.startswith(("cp.resnet.", "cp.backbone.featuresSP.")):
            return 1 / math.sqrt(3 * fan_in), True
        if key.startswith("cp.backbone.") and ".ffm." not in key:
            return math.sqrt(2 / fan_out), False
        return 1 / math.sqrt(fan_in), False


V1_UPSTREAM = {"main": "conv_out", "aux": "conv_out"}
V2_UPSTREAM = {"main": "head", "aux": "aux"}
STDC_UPSTREAM = {**V1_UPSTREAM, "boundary": "conv_out_sp"}
V1_HEADS = ("main", "aux16", "aux32")
V2_HEADS = ("main", "aux2", "aux3", "aux4", "aux5_4")
V1_MODULES = ("ffm", "conv_out", "conv_out16", "conv_out32")
V2_MODULES = ("head", "aux2", "aux3", "aux4", "aux5_4")
STDC_MODULES = (
    *V1_MODULES,
    "conv_out_sp16", "conv_out_sp8", "conv_out_sp4", "conv_out_sp2",
)  # fmt: skip
BISE_MODULES = ("ffm", "conv_out", "conv_out8", *STDC_MODULES[2:])
OLD_OHEM = LossConfig(ohem="pixel_fraction")
STDC_LOSS = OLD_OHEM
BISE_LOSS = LossConfig(
    ohem="pixel_fraction", head_weights={"aux8": 0.3, "aux16": 0.3, "aux32": 0.3}
)
CLASSIFIER = 3_125_248
"""Numbers of STDC's classifier, which no segmentation network uses."""
CLASSIFIER_LAYERS = tuple(f"cp.backbone.{name}." for name in ("conv_last", "fc", "bn", "linear"))
NOT_IN_THE_LOSS = tuple(f"conv_out_sp{stage}." for stage in (16, 4, 2))
CANCELLED = frozenset(
    {f"segment.{name}.0.shortcut.1.bias" for name in ("S3", "S4", "S5_4")}
    | {"segment.S5_5.bn.bias"}
)


def _v1(model: str, keys: int, tensors: int, numbers: int, **special: Any) -> Network:
    options: dict[str, Any] = {
        "loss": OLD_OHEM,
        "main_numbers": None,
        "head_modules": V1_MODULES,
        "main_modules": ("ffm", "conv_out"),
        "sizes": ((41, 35),),
        "own_layers": ("cp.up16", "cp.up32", "cp.2"),
        **special,
    }
    return Network(
        model, keys=keys, tensors=tensors, numbers=numbers, heads=V1_HEADS,
        upstream_heads=V1_UPSTREAM, **options,
    )  # fmt: skip


def _v2(model: str, keys: int, tensors: int, numbers: int, **special: Any) -> Network:
    return Network(
        model, LossConfig(), keys, tensors, numbers, heads=V2_HEADS, upstream_heads=V2_UPSTREAM,
        sizes=((72, 104), (33, 65), (1, 1)), cancelled=CANCELLED, **special,
    )  # fmt: skip


def _stdc(
    model: str, keys: int, tensors: int, numbers: int, main_numbers: int, **special: Any
) -> Network:
    bise = "bise" in model
    return Network(
        model,
        BISE_LOSS if bise else STDC_LOSS,
        keys,
        tensors,
        numbers,
        main_numbers + CLASSIFIER,
        heads=("main", "aux8", "aux16", "aux32") if bise else V1_HEADS,
        head_modules=BISE_MODULES if bise else STDC_MODULES,
        main_modules=("ffm", "conv_out"),
        upstream_heads=STDC_UPSTREAM,
        sizes=((33, 65), (72, 104), (50, 70)),
        boundaries=True,
        repeated_rows=("cp.backbone.x", "cp.backbone.SPx"),
        by_child=True,
        without_gradient=(*CLASSIFIER_LAYERS, *NOT_IN_THE_LOSS),
        unreached=7 + 3 * 4,
        negative=True,
        **special,
    )


NETWORKS = (
    _v1(
        "bisenetv1", 222, 114, 13_425_721,
        loss=LossConfig(), main_numbers=13_275_539, main_tensors=104,
        cases=("a", "b"), buffers=72, layers=151,
        sizes=((72, 104), (90, 160), (33, 65), (1, 1)),
        own_layers=("cp.2", "*sigmoid*"),
    ),
    _v1("bisenetv1_2020", 180, 110, 13_392_384, negative=True),
    _v1("bisenetv1_fp16_2020", 215, 110, 13_392_384),
    _v1(
        "bisenetv1_diss", 160, 98, 13_300_416,
        recorded="bisenetv1_diss_2020", parts=("cp.2", "cp.0", "cp.1"), negative=True,
        own_layers=("cp.up16", "cp.up32"),
    ),
    _v1("bisenetv1_diss_bn", 191, 98, 13_300_416, recorded="-", cases=()),
    _v1(
        "bisenetv1_2019", 192, 99, 31_619_552,
        loss=LossConfig(ohem="none"), head_modules=(), main_modules=(), own_layers=("*.relu",),
        without_gradient=("cp.arm16", "cp.arm32", "cp.conv_avg", "cp.bn_avg"), unreached=10,
    ),
    _v2(
        "bisenetv2", 383, 197, 5_231_487,
        main_numbers=3_358_627, cases=("a", "b"), buffers=124, head_modules=V2_MODULES,
        main_modules=("head",), own_layers=("bga.sigmoid1", "bga.sigmoid2"),
    ),
    _v2(
        "bisenetv2_2020", 359, 185, 3_645_935,
        main_numbers=None, buffers=116, head_modules=(), main_modules=(),
        own_layers=("bga.sigmoid1", "bga.sigmoid2", "bga.up1", "bga.up2", "head.up", "aux*.up"),
    ),
    _stdc("stdc1", 271, 148, 12_048_928, 8_275_104),
    # one unit in the last place of the picture moves Torch's own gradients by 3e-11 to 8e-11 here,
    # and Paddle's are off by 8e-11, 10e-11 and 11e-11 with MKL's SSE, AVX2 and AVX-512 kernels
    _stdc("stdc2", 415, 220, 16_079_392, 12_305_568, gradient_rtol={"odd": 1e-9}),
    _stdc("bisestdc", 341, 187, 12_904_768, 8_980_800),
    _stdc("bisestdc2", 341, 187, 13_357_280, 9_433_312),
)  # fmt: skip
BY_MODEL = {network.model: network for network in NETWORKS}
RECORDED = tuple(network for network in NETWORKS if network.recorded != "-")


def rule_model(
    side: Any, name: str, *, dtype: str = "float64", classes: int = 19, **options: bool
) -> Any:
    """Build a network with weights by rule and without dropout."""
    side.backend.set_default_dtype(dtype)
    model = side.models.MODELS[name](classes=classes, **options)
    own = side.backend.state_arrays(model)
    side.backend.load_arrays(model, _rule_state(tuple((k, a.shape) for k, a in own.items())))
    side.backend.disable_dropout(model)
    return model


@lru_cache(maxsize=1)
def _rule_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, NDArray[Any]]:
    """The same network is built again and again; its millions of draws are made once."""
    return rules.rule_state(dict(shapes))


def noise(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    """Return normal noise, the same at every call."""
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def logits_of(side: Any, model: Any, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the network's outputs as arrays."""
    with side.backend.no_grad():
        outputs = model(side.backend.to_tensor(image))
    return {name: side.backend.to_numpy(value) for name, value in outputs.items()}


def assert_close(actual: NDArray[Any], reference: NDArray[Any], name: str) -> None:
    """Compare at RTOL of the largest value."""
    assert actual.shape == reference.shape, name
    worst = np.abs(actual - reference).max() / np.abs(reference).max()
    assert worst <= RTOL, f"{name}: {worst:.3e} of the largest value"


def assert_sums(
    values: NDArray[Any], row: Mapping[str, float], name: str, *, rtol: float = RTOL
) -> None:
    """Sum and sum of squares; a sum cancels, so its scale is the bound of the sum of |values|."""
    scale = math.sqrt(values.size * row["sumsq"])
    assert abs(values.sum() - row["sum"]) <= rtol * scale, name
    assert abs((values**2).sum() / row["sumsq"] - 1) <= rtol, name
