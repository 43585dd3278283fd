"""The sections of a configuration: frozen models that forbid unknown keys.

What a field means stands below it; common/config.py puts the sections together and reads files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from common.config_fields import (
    RGB,
    STRICT,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    SizeHW,
)
from common.config_pair import PairConfig
from common.protocols import protocol_named


class Section(BaseModel):
    """What all sections have in common."""

    model_config = STRICT


Option = bool | int | float | str


class ModelConfig(Section):
    """Which network."""

    name: str
    """A key of MODELS, the same on both sides; with ``pair`` a name of your own."""
    classes: PositiveInt
    """Number of classes; labels are 0..classes-1 and data.ignore_index."""
    pair: PairConfig | None = None
    """A network of your own in both frameworks (docs/add_a_model.md)."""
    options: dict[str, Option] = {}
    """Switches of the network, on or off; one that is left out is as published. bisenetv1_2019 has
    use_arm and use_global_pooling (the paper's refinement and pooling, which its published forward
    pass leaves out); the STDC networks have use_boundary_2, _4, _8 and _16, the boundary heads that
    the detail loss trains (8 as published). No switch changes the names or shapes of weights. With
    ``pair``: arguments of its constructor, which may be numbers and texts, too."""
    weights: Path | None = None
    """A whole network's weights that a training starts from; last layers of another number of
    classes start anew. Not with backbone_weights. Like data.root, no part of the digest: a
    verification does not read it (its weights are by rule, or --weights with their own digest)."""
    backbone_weights: Path | None = None
    """Pretrained backbone (.safetensors or .pdparams; on the Torch side also .pth) that a training
    starts from; Paddle takes a .pth through `bisenet convert --backbone-only`. No part of the
    digest. Neither this nor weights: the model's own initialisation."""

    @model_validator(mode="after")
    def _options_are_switches(self) -> ModelConfig:
        others = [name for name, value in self.options.items() if not isinstance(value, bool)]
        if others and self.pair is None:
            raise ValueError(
                f"options.{others[0]} is {self.options[others[0]]!r}; expected true or false: the "
                "networks of the family have switches only"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return, as JSON has it, what says which network this is: not where files of it lie."""
        content = self.model_dump(mode="json", exclude={"pair", "weights", "backbone_weights"})
        if self.pair is not None:
            content["pair"] = self.pair.without_place().model_dump(mode="json")
        return content


Augmentation = Literal["opencv", "pillow"]


class DataConfig(Section):
    """Dataset, its preparation and the augmentation of training samples."""

    dataset: Literal["cityscapes", "camvid", "coco_stuff", "ade20k", "list"]
    root: Path
    """Folder that the paths in the lists start from."""
    train_list: Path | None = None
    """`image,label` per line, relative to root. None: the dataset's own layout is searched."""
    val_list: Path | None = None
    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    """Label value of void pixels. Never negative: Paddle's mean divides by the wrong count then."""
    mean: RGB
    """Per-channel mean, RGB, after division by 255."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    crop_hw: SizeHW
    """Training crop (H, W) in pixels."""
    scale_range: Range = (1.0, 1.0)
    """Random scale, uniform over [min, max], before the crop."""
    scale_choices: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    """Random scale, one of these with equal chances, in place of scale_range."""
    augmentation: Augmentation = "opencv"
    """opencv: scale, pad, crop, flip, jitter, with OpenCV's arithmetic (CoinCheung since 2020's
    BiSeNetV2); pillow: jitter, flip, scale, crop, with Pillow's arithmetic, where a scaled picture
    smaller than the crop is enlarged back instead of padded (CoinCheung 2019 and 2020, STDC)."""
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    brightness: Range | None = None
    """Factor range of the colour jitter; None switches this jitter off."""
    contrast: Range | None = None
    saturation: Range | None = None
    batch_size: PositiveInt
    """Images per process (per GPU)."""
    workers: NonNegativeInt = 2
    """Loader processes per training process; 0 loads in the training process."""

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> DataConfig:
        for key in ("scale_range", "brightness", "contrast", "saturation"):
            value: Range | None = getattr(self, key)
            if value is not None and value[0] > value[1]:
                raise ValueError(f"{key} has min {value[0]} > max {value[1]}; expected min <= max")
        return self

    @model_validator(mode="after")
    def _scale_is_given_once(self) -> DataConfig:
        if self.scale_choices is not None and self.scale_range != (1.0, 1.0):
            raise ValueError(
                f"scale_range {self.scale_range} and scale_choices {self.scale_choices} are both "
                f"given; expected one of them, the other left out"
            )
        return self


OhemRule = Literal["valid_fraction", "pixel_fraction", "min_kept", "none"]


class LossConfig(Section):
    """Per-head criterion and the weights of the heads."""

    ohem: OhemRule = "valid_fraction"
    """valid_fraction: n_min = valid pixels // divisor (current upstream rule);
    pixel_fraction: n_min = all pixels // divisor (2020 rule); min_kept: PaddleSeg's rule;
    none: plain cross entropy, mean over valid pixels."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """A pixel is hard when the probability of its label is below this."""
    divisor: PositiveInt = 16
    min_kept: PositiveInt = 10000
    """Pixels kept at least, for the min_kept rule only."""
    head_weights: dict[str, NonNegativeFloat] = {}
    """Weight of each auxiliary head's loss; a head not named has weight 1. A boundary head's
    weight counts for both of its terms; 0 switches the head off."""
    detail_ignore_void: bool = False
    """Boundary heads (STDC) only: True takes away edges next to void, and void pixels."""
    detail_ignore_frame: bool = False
    """Boundary heads only: True takes away the edges that the image's own frame makes."""


class OptimizerConfig(Section):
    """SGD with momentum and the parameter groups."""

    base_lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat
    head_lr_mult: PositiveFloat = 10.0
    """Learning-rate multiplier of the model's head modules."""
    decay_norm_and_bias: bool = False
    """True decays BatchNorm and bias parameters too (the 2019 recipe)."""


Warmup = Literal["exp", "linear", "constant"]


class ScheduleConfig(Section):
    """Warm-up, then polynomial decay."""

    max_iters: PositiveInt
    warmup_iters: NonNegativeInt = 0
    warmup: Warmup = "exp"
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate of iteration 0 as a fraction of the base rate."""
    power: PositiveFloat = 0.9

    @model_validator(mode="after")
    def _warmup_ends(self) -> ScheduleConfig:
        if self.warmup_iters >= self.max_iters:
            raise ValueError(
                f"warmup_iters is {self.warmup_iters}; expected less than max_iters "
                f"({self.max_iters}): the decay would never start; a shorter training takes "
                f"--set schedule.warmup_iters={self.max_iters // 10}"
            )
        return self


AbsentClass = Literal["skip", "zero", "one", "plus_one"]


class EvalConfig(Section):
    """How mIoU is averaged."""

    absent: AbsentClass = "skip"
    """Class in neither labels nor predictions: left out of the mean, counted 0, counted 1, or
    plus_one (union + 1 in every denominator, the current upstream rule)."""
    count_void: bool = False
    """True counts predictions on void pixels as false positives."""
    protocol: str = "none"
    """How a picture's scores are made, a key of common.protocols.PROTOCOLS; none: one pass over
    the picture at its own size. This and what follows is no part of the digests: no step of a
    verification reads it, and the result names it."""
    crop_hw: SizeHW | None = None
    """Sliding window (H, W) in pixels, for protocols that have one; None: 1024 x 1024."""
    short_side: PositiveInt | None = None
    """Length to which the shorter side is brought first; None: the picture as it is."""

    @field_validator("protocol")
    @classmethod
    def _protocol_is_known(cls, name: str) -> str:
        return protocol_named(name).name


class VerifyConfig(Section):
    """Size of the parity run: small enough for a laptop, large enough to exercise every branch."""

    batch_size: PositiveInt = 8
    """Images in the fixed batch of forward, loss, backward, optimizer. A BatchNorm after a global
    pooling sees this many values per channel: with four it amplifies rounding tenfold."""
    image_hw: SizeHW = (64, 128)
    """(H, W) of the fixed batch, a multiple of 32 in both."""
    train_iters: PositiveInt = 100
    """Iterations of the end-to-end training in float64, which decides."""
    train_iters_float32: PositiveInt = 30
    """Iterations in float32; a multiple of check_every, below train_iters."""
    train_warmup_iters: NonNegativeInt = 20
    train_batch_size: PositiveInt = 12
    """BatchNorm after a global pooling sees this many values per channel: few make the training
    amplify rounding (docs/parity.md)."""
    train_crop_hw: SizeHW = (32, 32)
    train_base_lr: PositiveFloat = 2e-4
    """Base rate of the short training. The recipe's own, at this batch and crop, makes the training
    amplify one rounding error to 1e-10 within 100 iterations (docs/parity.md)."""
    check_every: PositiveInt = 10
    """All weights and buffers are compared at every n-th iteration."""
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _sizes_divide(self) -> VerifyConfig:
        for key in ("image_hw", "train_crop_hw"):
            if any(size % 32 for size in getattr(self, key)):
                raise ValueError(f"{key} is {getattr(self, key)}; expected multiples of 32")
        return self

    @model_validator(mode="after")
    def _float32_meets_a_snapshot(self) -> VerifyConfig:
        short, step = self.train_iters_float32, self.check_every
        if short % step or short >= self.train_iters:
            raise ValueError(
                f"train_iters_float32 is {short}; expected a multiple of check_every ({step}) "
                f"below train_iters ({self.train_iters}), where float64 leaves a snapshot"
            )
        return self


Precision = Literal["float32", "float64", "amp_o1", "amp_o2"]
AmpDtype = Literal["float16", "bfloat16"]
Decay = Annotated[float, Field(gt=0, lt=1)]
SyncBN = bool | Literal["own"]


class TrainConfig(Section):
    """How the full training is run: precision, averaging, and when it logs, saves and evaluates."""

    precision: Precision = "float32"
    """float32, float64, or mixed: amp_o1 keeps float32 weights and runs listed operations in
    amp_dtype; amp_o2 runs all but the normalisation in it."""
    amp_dtype: AmpDtype = "float16"
    """Short type of a mixed precision; float16 is scaled. A CPU takes bfloat16 whatever is set."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged into one optimizer step; one iteration is one step."""
    clip_norm: PositiveFloat | None = None
    """Largest global L2 norm of the gradients before the step; None: not clipped."""
    ema_decay: Decay | None = None
    """Decay per iteration of the moving average of the weights, which is what is evaluated then;
    None: no average is kept."""
    sync_bn: SyncBN = True
    """BatchNorm over the batches of all processes; nothing changes with one process. On a GPU it is
    the framework's own layer where that has one, with `own` ours (docs/distributed.md)."""
    channels_last: bool = False
    """Memory layout NHWC inside the network, where the framework and the device have it."""
    deterministic: bool = False
    """Only kernels with the same result on every run; slower on a GPU."""
    seed: NonNegativeInt = 0
    """Of the initial weights and of the order and augmentation of the samples."""
    log_interval: PositiveInt = 10
    """Iterations between two lines of the log."""
    save_interval: PositiveInt = 500
    """Iterations between two checkpoints."""
    eval_interval: PositiveInt | None = None
    """Iterations between two evaluations; None: at each checkpoint, where evaluation is asked."""
    keep_checkpoint_max: PositiveInt = 5
    """Checkpoints kept, the newest; the best by mIoU is kept apart from them."""
    patience: PositiveInt | None = None
    """Evaluations in a row without a better mIoU after which the training stops; None: never."""
    loader_timeout_s: NonNegativeFloat = 300.0
    """Seconds that a batch may take to come before the training ends for it; 0: no limit. Below the
    600 seconds after which the other processes of a job take this one for lost."""


Protocol = Literal[
    "ss", "flip", "ssc", "msf", "mscf", "ss@0.5", "ss@0.75", "per image", "ss@720x960"
]


class Published(Section):
    """One published figure of a recipe, to hold a training's result against."""

    miou: Annotated[float, Field(gt=0, le=100)]
    """Mean intersection over union, percent."""
    protocol: Protocol
    """ss: whole picture, one scale; flip: with its mirror image; ssc: the same in crops; msf:
    several scales with mirror images; mscf: the same in crops; ss@0.5, ss@0.75: whole picture at
    that scale; ss@720x960: CamVid's pictures at that size; per image: mean over the pictures of
    each picture's own mIoU, not comparable with the others."""
    note: str = ""
    """Where it stands, and what must be known to compare with it."""
