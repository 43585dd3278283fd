"""Augmentation: hand numbers for every formula, and what must hold for every random draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config_sections import DataConfig
from common.transforms import (
    Transform,
    normalise,
    pad_to_crop,
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
    random_saturation,
    random_scale,
    train_transform,
    val_transform,
)

VOID = 255


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def config(**changes) -> DataConfig:
    usual = {
        **{"dataset": "list", "root": ".", "mean": (0.5, 0.25, 0), "std": (0.5, 0.25, 1)},
        **{"crop_hw": (24, 40), "batch_size": 1, "scale_range": (0.5, 2.0)},
        **{"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4)},
    }
    return DataConfig(**{**usual, **changes})


def pixels(*values: tuple[int, int, int]) -> np.ndarray:
    return np.array([values], np.uint8)


def coded(h: int, w: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Label in squares of 4 pixels, and an image that shows the label: 10 * label + 5, grey."""
    cells = rng(seed).integers(0, 19, (-(-h // 4), -(-w // 4)))
    label = cells.repeat(4, 0).repeat(4, 1)[:h, :w].astype(np.uint8)
    return np.repeat((10 * label + 5)[..., None], 3, axis=2), label


# ---- geometry -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("scale", "size"), [(0.5, (4, 5)), (1.01, (8, 10)), (2.0, (14, 18))])
def test_scaled_size_is_rounded_up(scale: float, size: tuple[int, int]) -> None:
    image, label = coded(7, 9)
    image, label = random_scale(image, label, rng(), scale_range=(scale, scale))
    assert image.shape == (*size, 3)
    assert label.shape == size


def test_scaling_invents_no_label_value() -> None:
    label = np.zeros((8, 8), np.uint8)
    label[:, 4:] = VOID
    for seed in range(20):
        _, scaled = random_scale(coded(8, 8)[0], label, rng(seed), scale_range=(0.3, 3.0))
        assert set(np.unique(scaled)) == {0, VOID}


def test_scale_is_uniform_over_the_range() -> None:
    image, label = np.zeros((1000, 1, 3), np.uint8), np.zeros((1000, 1), np.uint8)
    heights = [
        random_scale(image, label, rng(s), scale_range=(0.5, 2.0))[1].shape[0] for s in range(400)
    ]
    assert 500 <= min(heights) < 520
    assert 1980 < max(heights) <= 2000
    assert abs(np.mean(heights) - 1250) < 5 * 433 / 20  # five standard errors


def test_padding_by_hand() -> None:
    image, label = np.full((3, 6, 3), 9, np.uint8), np.full((3, 6), 2, np.uint8)
    image, label = pad_to_crop(image, label, rng(), crop_hw=(6, 4), ignore_index=77)
    # (6 - 3) // 2 + 1 = 2 rows at each end; wide enough already
    assert image.shape == (7, 6, 3)
    assert label[:, 0].tolist() == [77, 77, 2, 2, 2, 77, 77]
    assert image[:, 0, 0].tolist() == [0, 0, 9, 9, 9, 0, 0]


def test_nothing_to_pad() -> None:
    image, label = coded(8, 8)
    same = pad_to_crop(image, label, rng(), crop_hw=(8, 8), ignore_index=VOID)
    assert same[0] is image
    assert same[1] is label


def test_every_crop_position_can_be_drawn() -> None:
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = np.repeat(label[..., None], 3, axis=2)
    corners = {int(random_crop(image, label, rng(s), crop_hw=(2, 2))[1][0, 0]) for s in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6}


def test_flip_twice_is_the_identity() -> None:
    image, label = coded(5, 7)
    once = random_flip(image, label, rng(), probability=1.0)
    assert not np.array_equal(once[1], label)
    assert once[1][:, 0].tolist() == label[:, -1].tolist()
    twice = random_flip(*once, rng(), probability=1.0)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], label)


def test_flip_probability() -> None:
    image, label = coded(4, 8)
    for probability, expected in ((0.0, 0), (1.0, 100)):
        flips = [random_flip(image, label, rng(s), probability=probability) for s in range(100)]
        assert sum(not np.array_equal(f[1], label) for f in flips) == expected


# ---- colour, by hand ----------------------------------------------------------------------------
def test_brightness_multiplies_clips_and_truncates() -> None:
    image, _ = random_brightness(
        pixels((0, 99, 255)), np.zeros((1, 1)), rng(), factor_range=(1.35, 1.35)
    )
    assert image.tolist() == [[[0, 133, 255]]]  # 133.65 and 344.25


def test_contrast_pivots_at_74() -> None:
    image, _ = random_contrast(
        pixels((74, 75, 0), (200, 73, 10)), np.zeros((1, 2)), rng(), factor_range=(1.5, 1.5)
    )
    # 74 + 1.5, -37, 74 + 189, 74 - 1.5, 74 - 96
    assert image.tolist() == [[[74, 75, 0], [255, 72, 0]]]


def test_saturation_blends_with_the_mean() -> None:
    image, _ = random_saturation(
        pixels((30, 60, 90), (40, 40, 40)), np.zeros((1, 2)), rng(), factor_range=(0.5, 0.5)
    )
    assert image.tolist() == [[[45, 60, 75], [40, 40, 40]]]
    image, _ = random_saturation(
        pixels((10, 60, 240)), np.zeros((1, 1)), rng(), factor_range=(1.4, 1.4)
    )
    assert image.tolist() == [[[0, 43, 255]]]  # 14 - 41.33, 84 - 41.33 = 42.67, 336 - 41.33


@given(factor=st.floats(0.0, 3.0), value=st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_grey_stays_grey_under_saturation(factor: float, value: int) -> None:
    grey = pixels((value, value, value))
    image, _ = random_saturation(grey, np.zeros((1, 1)), rng(), factor_range=(factor, factor))
    np.testing.assert_array_equal(image, grey)


def test_normalise_by_hand() -> None:
    image, label = normalise(
        pixels((0, 51, 255), (255, 255, 0)),
        np.array([[3, VOID]], np.uint8),
        rng(),
        mean=(0.5, 0.25, 0.0),
        std=(0.5, 0.25, 1.0),
    )
    assert image.dtype == np.float32
    assert image.shape == (3, 1, 2)
    expected = [[[-1, 1]], [[-0.2, 3]], [[1, 0]]]  # 51 / 255 = 0.2
    np.testing.assert_allclose(image, np.array(expected), rtol=1e-6)
    assert label.dtype == np.int64
    assert label.tolist() == [[3, VOID]]


def test_normalise_is_the_formula_for_every_byte() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    mean, std = (0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115)
    out, _ = normalise(image, np.zeros((16, 16), np.uint8), rng(), mean=mean, std=std)
    for c in range(3):
        values = (np.arange(256, dtype=np.float64) / 255 - mean[c]) / std[c]
        np.testing.assert_array_equal(out[c].ravel(), values.astype(np.float32))


# ---- the whole ----------------------------------------------------------------------------------
def test_steps_and_their_order() -> None:
    assert [name for name, _ in train_transform(config()).steps] == [
        *("scale", "pad", "crop", "flip", "brightness", "contrast", "saturation", "normalise")
    ]
    quiet = config(brightness=None, contrast=None, saturation=None)
    assert [name for name, _ in train_transform(quiet).steps] == [
        *("scale", "pad", "crop", "flip", "normalise")
    ]
    assert [name for name, _ in val_transform(config()).steps] == ["normalise"]


def test_trace_ends_with_what_the_call_returns() -> None:
    image, label = coded(30, 50)
    transform = train_transform(config())
    traced = list(transform.trace(image, label, rng(5)))
    assert len(traced) == len(transform.steps)
    called = transform(image, label, rng(5))
    np.testing.assert_array_equal(traced[-1][1], called[0])
    np.testing.assert_array_equal(traced[-1][2], called[1])
    assert {step[1].dtype for step in traced[:-1]} == {np.dtype(np.uint8)}


def test_input_is_left_as_it_was() -> None:
    image, label = coded(30, 50)
    before = image.copy(), label.copy()
    train_transform(config())(image, label, rng(1))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_val_keeps_the_whole_picture() -> None:
    image, label = coded(7, 9)
    out, out_label = val_transform(config())(image, label, rng())
    assert out.shape == (3, 7, 9)
    np.testing.assert_array_equal(out_label, label)


@given(seed=st.integers(0, 10_000), h=st.integers(5, 60), w=st.integers(5, 60))
@settings(deadline=None, max_examples=40)
def test_labels_do_not_feel_colour_jitter(seed: int, h: int, w: int) -> None:
    image, label = coded(h, w, seed)
    before = label
    for name, _, after in train_transform(config()).trace(image, label, rng(seed)):
        if name in ("brightness", "contrast", "saturation"):
            np.testing.assert_array_equal(after, before)
        before = after


@given(seed=st.integers(0, 10_000), h=st.integers(5, 60), w=st.integers(5, 60))
@settings(deadline=None, max_examples=60)
def test_image_and_label_stay_aligned(seed: int, h: int, w: int) -> None:
    image, label = coded(h, w, seed)
    quiet = config(scale_range=(1.0, 1.0), brightness=None, contrast=None, saturation=None)
    transform = Transform(train_transform(quiet).steps[:-1])
    image, label = transform(image, label, rng(seed))
    assert image.shape == (24, 40, 3)
    assert label.shape == (24, 40)
    expected = np.where(label == VOID, 0, 10 * label.astype(int) + 5)
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=2))


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_scaled_image_and_label_stay_aligned(seed: int) -> None:
    image, label = coded(40, 64, seed)
    quiet = config(brightness=None, contrast=None, saturation=None, crop_hw=(32, 32))
    transform = Transform(train_transform(quiet).steps[:-1])
    image, label = transform(image, label, rng(seed))
    expected = np.where(label == VOID, 0, 10 * label.astype(int) + 5)
    # the colours of bilinear and the labels of nearest differ at borders only; squares shifted
    # by one pixel would already leave more than half of the pixels wrong at the smallest scale
    assert np.mean(np.abs(image[..., 0] - expected) <= 20) > 0.5


@given(seed=st.integers(0, 10_000), h=st.integers(1, 90), w=st.integers(1, 90))
@settings(deadline=None, max_examples=60)
def test_training_samples_have_exactly_the_crop_size(seed: int, h: int, w: int) -> None:
    image, label = coded(h, w, seed)
    out, out_label = train_transform(config())(image, label, rng(seed))
    assert out.shape == (3, 24, 40)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    assert out_label.shape == (24, 40)
    assert out_label.dtype == np.int64
    assert set(np.unique(out_label)) <= {*np.unique(label).tolist(), VOID}
