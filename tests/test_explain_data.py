"""Every wrong sample and batch that is known by name is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from explained import Array, assert_named, assert_silent, case_of, relations, with_actual

from common import pillow_arithmetic as pillow
from common.config_sections import DataConfig
from common.sampling import SampleKey, sample_order, sample_rng, train_batches
from common.transforms import train_transform
from pipeline.explain.batch import explain_batch
from pipeline.explain.data import explain_sample
from pipeline.failure import FailureCase

MEAN, STD = (0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115)
DATA: dict[str, Any] = {
    "dataset": "cityscapes",
    "root": ".",
    "mean": MEAN,
    "std": STD,
    "crop_hw": [24, 32],
    "scale_range": [0.5, 1.5],
    "flip_probability": 1.0,
    "brightness": [0.6, 1.4],
    "contrast": [0.6, 1.4],
    "saturation": [0.6, 1.4],
    "batch_size": 4,
}
SEED, EPOCH, INDEX = 3, 1, 2
READ_HW = (48, 64)


def read() -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    image = rng.integers(20, 200, (*READ_HW, 3)).astype(np.uint8)
    label = rng.integers(0, 19, READ_HW).astype(np.uint8)
    label[rng.random(READ_HW) < 0.1] = 255
    return image, label


def stages(data: dict[str, Any]) -> dict[str, dict[str, tuple[Array, Array]]]:
    """Return (before, after) by stage and by "image" or "label"."""
    rng = sample_rng(SEED, key=SampleKey(EPOCH, INDEX))
    before = read()
    found: dict[str, dict[str, tuple[Array, Array]]] = {}
    for name, *after in train_transform(DataConfig(**data)).trace(*before, rng):
        found[name] = {
            what: (a, b) for what, a, b in zip(("image", "label"), before, after, strict=True)
        }
        before = (after[0], after[1])
    return found


BIG = {**DATA, "crop_hw": [96, 96], "scale_range": [0.8, 0.8]}
STAGES, PADDED = stages(DATA), stages(BIG)


def sample_case(stage: str, actual: Any, *, what: str = "image", data: Any = DATA) -> FailureCase:
    arrays: dict[str, Any] = {"actual": actual}
    if stage == "read":
        arrays["reference"] = read()[0 if what == "image" else 1]
    else:
        found = (STAGES if data is DATA else PADDED)[stage][what]
        arrays |= {"previous": found[0], "reference": found[1]}
    settings = {
        "data": {"ignore_index": 255, **data},
        "train": True,
        "stage": stage,
        "epoch": EPOCH,
        "index": INDEX,
        "seed": SEED,
        "read_hw": list(READ_HW),
    }
    key = f"train/epoch1/sample2/4_{stage}/{what}"
    return case_of("sample", "s", arrays, settings, step="data", key=key, dtype="float32")


def before(stage: str, what: str = "image") -> Array:
    return STAGES[stage][what][0]


def after(stage: str, what: str = "image") -> Array:
    return STAGES[stage][what][1]


def drawn(stage: str) -> float:
    """Return the factor of a jitter, drawn as the transforms before it leave the generator."""
    rng = sample_rng(SEED, key=SampleKey(EPOCH, INDEX))
    rng.uniform(*DATA["scale_range"])
    source = STAGES["crop"]["label"][0].shape
    rng.integers(source[0] - 24 + 1)
    rng.integers(source[1] - 32 + 1)
    rng.random()
    order = ("brightness", "contrast", "saturation")
    return [rng.uniform(0.6, 1.4) for _ in order][order.index(stage)]


def resized(way: int, size_wh: tuple[int, int] | None = None) -> Array:
    H, W = after("scale").shape[:2]
    return np.asarray(cv2.resize(before("scale"), size_wh or (W, H), interpolation=way))


def normalised(mean: Any, std: Any, scale: float = 255.0) -> Array:
    values = before("normalise").transpose(2, 0, 1).astype(np.float64) / scale
    column = [np.reshape(np.asarray(x, np.float64), (3, 1, 1)) for x in (mean, std)]
    return ((values - column[0]) / column[1]).astype(np.float32)


def window(rows: int, columns: int) -> Array:
    picture, cut = before("crop"), after("crop")
    H, W = (a - b + 1 for a, b in zip(picture.shape, (24, 32), strict=False))
    for top in range(H):
        for left in range(W):
            if np.array_equal(picture[top : top + 24, left : left + 32], cut):
                return picture[top + rows :, left + columns :][:24, :32]
    raise AssertionError("the crop is no window")


def table(function: Callable[[Array], Array], stage: str) -> Array:
    return np.asarray(function(before(stage).astype(np.float64)))


IMAGES: list[tuple[str, str, Callable[[], Array]]] = [
    ("read", "bgr", lambda: read()[0][..., ::-1]),
    ("read", "channel-order", lambda: read()[0][..., [1, 0, 2]]),
    ("read", "flip", lambda: read()[0][::-1]),
    ("flip", "flip", lambda: before("flip")),
    ("crop", "flip", lambda: after("crop")[:, ::-1]),
    ("scale", "missing-transform", lambda: before("scale")),
    ("scale", "interpolation", lambda: resized(cv2.INTER_NEAREST)),
    ("scale", "interpolation", lambda: resized(cv2.INTER_CUBIC)),
    ("scale", "interpolation", lambda: resized(cv2.INTER_AREA)),
    (
        "scale",
        "interpolation",
        lambda: pillow.resize_image(before("scale"), size_hw=after("scale").shape[:2]),
    ),
    (
        "saturation",
        "jitter",
        lambda: pillow.enhance_colour(before("saturation"), factor=drawn("saturation")),
    ),
    (
        "scale",
        "resize-rounding",
        lambda: resized(cv2.INTER_LINEAR, (after("scale").shape[1] - 1, after("scale").shape[0])),
    ),
    ("crop", "off-by-one-crop", lambda: window(0, -1)),
    ("crop", "off-by-one-crop", lambda: window(-2, 1)),
    ("crop", "off-by-one-crop", lambda: np.roll(after("crop"), 1, axis=1)),
    ("crop", "crop", lambda: before("crop")[:24, :32]),
    (
        "brightness",
        "jitter",
        lambda: (
            table(lambda v: np.rint(v * drawn("brightness")), "brightness")
            .clip(0, 255)
            .astype(np.uint8)
        ),
    ),
    (
        "brightness",
        "jitter-factor",
        lambda: table(lambda v: v * 0.777, "brightness").clip(0, 255).astype(np.uint8),
    ),
    (
        "contrast",
        "jitter",
        lambda: (
            table(lambda v: 128 + (v - 128) * drawn("contrast"), "contrast")
            .clip(0, 255)
            .astype(np.uint8)
        ),
    ),
    (
        "contrast",
        "jitter-factor",
        lambda: table(lambda v: 74 + (v - 74) * 0.7, "contrast").clip(0, 255).astype(np.uint8),
    ),
    ("saturation", "missing-transform", lambda: before("saturation")),
    (
        "saturation",
        "jitter",
        lambda: (
            np.floor(
                drawn("saturation") * before("saturation").astype(float)
                + (1 - drawn("saturation")) * before("saturation").mean(2, keepdims=True)
            )
            .clip(0, 255)
            .astype(np.uint8)
        ),
    ),
    ("normalise", "mean-std", lambda: normalised(STD, MEAN)),
    ("normalise", "mean-std", lambda: normalised(MEAN[::-1], STD[::-1])),
    ("normalise", "mean-std", lambda: normalised((0.31, 0.42, 0.53), (0.2, 0.25, 0.3))),
    ("normalise", "scale-255", lambda: normalised(MEAN, STD, 1.0)),
    ("normalise", "scale-255", lambda: normalised(MEAN, STD, 256.0)),
    ("normalise", "bgr", lambda: after("normalise")[::-1]),
]


@pytest.mark.parametrize(("stage", "relation", "wrong"), IMAGES)
def test_a_wrong_picture_is_named(stage: str, relation: str, wrong: Callable[[], Array]) -> None:
    case = sample_case(stage, wrong())
    hints = explain_sample(case)
    assert relations(hints)[:1] == [relation], [(h.relation, h.text) for h in hints]
    if relation != "scale-255" and stage != "normalise":
        assert hints[0].residual == 0.0
    wrong_pixel = case.arrays["actual"].copy()
    wrong_pixel[tuple(size // 2 for size in wrong_pixel.shape)] += 9
    assert_silent(explain_sample, with_actual(case, wrong_pixel))


def test_the_order_of_the_jitter_is_told() -> None:
    wrong = table(lambda v: 74 + (v - 74) * drawn("brightness"), "brightness").clip(0, 255)
    hints = explain_sample(sample_case("brightness", wrong.astype(np.uint8)))
    assert "jitter-order" in relations(hints)


LABELS: list[tuple[str, str, Callable[[], Array]]] = [
    ("flip", "flip", lambda: before("flip", "label")),
    ("read", "void-value", lambda: np.where(read()[1] == 255, 19, read()[1]).astype(np.uint8)),
    (
        "read",
        "label-mapping",
        lambda: np.where(read()[1] == 255, 255, read()[1].astype(int) + 1).astype(np.uint8),
    ),
    ("read", "label-mapping", lambda: np.where(read()[1] > 7, 255, read()[1]).astype(np.uint8)),
    ("crop", "off-by-one-crop", lambda: np.roll(after("crop", "label"), -1, axis=0)),
]


@pytest.mark.parametrize(("stage", "relation", "wrong"), LABELS)
def test_a_wrong_label_is_named(stage: str, relation: str, wrong: Callable[[], Array]) -> None:
    case = sample_case(stage, wrong(), what="label")
    assert_named(explain_sample, case, relation)
    other = case.arrays["actual"].copy()
    other[3, 3] = (int(other[3, 3]) + 5) % 19
    assert_silent(explain_sample, with_actual(case, other))


@pytest.mark.parametrize(("what", "fill"), [("image", 128), ("label", 0)])
def test_a_wrong_padding_is_named(what: str, fill: int) -> None:
    previous, reference = PADDED["pad"][what]
    value = 255 if what == "label" else 0
    around = reference.shape[0] - previous.shape[0]
    assert around > 1
    edge = np.ones(reference.shape[:2], np.bool_)
    top, left = ((a - b) // 2 for a, b in zip(reference.shape[:2], previous.shape[:2], strict=True))
    edge[top : top + previous.shape[0], left : left + previous.shape[1]] = False
    assert (reference[edge] == value).all()
    wrong = reference.copy()
    wrong[edge] = fill
    assert_named(explain_sample, sample_case("pad", wrong, what=what, data=BIG), "padding")


def test_noise_on_a_picture_has_no_hint() -> None:
    rng = np.random.default_rng(1)
    for stage in ("read", "scale", "crop", "brightness", "contrast", "saturation"):
        reference = sample_case(stage, 0).arrays["reference"]
        noise = rng.integers(0, 256, reference.shape).astype(np.uint8)
        assert_silent(explain_sample, sample_case(stage, noise))
    planes = after("normalise")
    noise = (planes + rng.standard_normal(planes.shape)).astype(np.float32)
    assert_silent(explain_sample, sample_case("normalise", noise))


# --- batches -------------------------------------------------------------------------------------

NAMES = np.array([f"street/{i:03d}" for i in range(11)])
SIZE, ITERATIONS = 4, 6


def indices(**changes: Any) -> list[list[int]]:
    options = {
        "batch_size": SIZE,
        "world_size": 2,
        "rank": 0,
        "seed": SEED,
        "start_iteration": 0,
        "iterations": ITERATIONS,
    }
    return [[k.index for k in batch] for batch in train_batches(len(NAMES), **(options | changes))]


def batch_case(actual: Any) -> FailureCase:
    arrays = {
        "reference": NAMES[np.array(indices())],
        "actual": NAMES[np.array(actual)],
        "names": NAMES,
    }
    settings = {"train": True, "world_size": 2, "rank": 0, "seed": SEED}
    return case_of("batch", "train loader", arrays, settings, key="x/names", dtype="float32")


def epochs(order: Callable[[int], Array], kept: int = len(NAMES)) -> Array:
    """Return the batches of rank 0 of epochs that follow each other."""
    whole = np.concatenate([order(e)[:kept] for e in range(10)])
    return whole[: ITERATIONS * 2 * SIZE].reshape(ITERATIONS, 2, SIZE)[:, 0]


def shuffled(epoch: int, seed: int = SEED) -> Array:
    return sample_order(len(NAMES), seed=seed, epoch=epoch, shuffle=True)


BATCHES: list[tuple[str, Callable[[], Any]]] = [
    ("batch-reversed", lambda: [batch[::-1] for batch in indices()]),
    ("order-reversed", lambda: indices()[::-1]),
    ("order-shifted", lambda: np.roll(np.array(indices()).ravel(), 1).reshape(ITERATIONS, SIZE)),
    ("order-shifted", lambda: indices()[1:] + indices()[:1]),
    ("swapped-ranks", lambda: indices(rank=1)),
    ("rank-split", lambda: [b[::2] for b in indices(world_size=1, batch_size=2 * SIZE)]),
    ("rank-split", lambda: indices(world_size=1)),
    ("sample-shifted", lambda: (np.array(indices()) + 1) % len(NAMES)),
    ("not-shuffled", lambda: epochs(lambda _: np.arange(len(NAMES)))),
    ("drop-last", lambda: epochs(shuffled, kept=8)),
    ("other-epoch", lambda: epochs(lambda e: shuffled(e + 1))),
    ("other-epoch", lambda: epochs(lambda _: shuffled(0))),
    ("other-seed", lambda: indices(seed=SEED + 1)),
    ("other-seed", lambda: indices(seed=42)),
]


@pytest.mark.parametrize(("relation", "wrong"), BATCHES)
def test_a_wrong_order_is_named(relation: str, wrong: Callable[[], Any]) -> None:
    case = batch_case(wrong())
    assert_named(explain_batch, case, relation)
    other = case.arrays["actual"].copy()
    other[0, 0], other[2, 1] = other[2, 1], other[0, 0]
    if not np.array_equal(other, case.arrays["actual"]):
        assert_silent(explain_batch, with_actual(case, other))


def test_a_random_order_has_no_hint() -> None:
    rng = np.random.default_rng(0)
    assert_silent(explain_batch, batch_case(rng.integers(0, 11, (ITERATIONS, SIZE))))


def pass_case(actual: Array) -> FailureCase:
    arrays = {"reference": NAMES[1::2, None], "actual": actual, "names": NAMES}
    settings = {"train": False, "world_size": 2, "rank": 1, "seed": SEED}
    return case_of("batch", "val loader", arrays, settings, key="x/names", dtype="float32")


@pytest.mark.parametrize(
    ("relation", "names"),
    [
        ("swapped-ranks", NAMES[0::2]),
        ("rank-split", NAMES[6:]),
        ("rank-split", NAMES),
        # 11 samples: the second rank has one less, so the first sample comes again
        ("repeated-samples", np.append(NAMES[1::2], NAMES[0])),
        ("shuffled", NAMES[shuffled(0)][1::2]),
        ("order-reversed", NAMES[1::2][::-1]),
    ],
)
def test_a_wrong_pass_over_the_validation_set_is_named(relation: str, names: Array) -> None:
    assert_named(explain_batch, pass_case(names[:, None]), relation)
