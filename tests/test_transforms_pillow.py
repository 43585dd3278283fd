"""The augmentation of the older recipes: order, sizes, discrete scales; the oracle is Pillow."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from pydantic import ValidationError

from common.config_sections import DataConfig
from common.transforms import (
    Transform,
    enlarge_to_crop,
    random_scale,
    random_scale_pillow,
    train_transform,
)

TWELVE = tuple(i / 8 for i in range(1, 13))


def config(**changes: Any) -> DataConfig:
    usual = {
        **{"dataset": "list", "root": ".", "mean": (0.5, 0.25, 0), "std": (0.5, 0.25, 1)},
        **{"crop_hw": (24, 48), "batch_size": 1, "augmentation": "pillow"},
        **{"scale_choices": TWELVE, "brightness": (0.5, 1.5)},
        **{"contrast": (0.5, 1.5), "saturation": (0.5, 1.5)},
    }
    return DataConfig(**{**usual, **changes})


def picture(h: int, w: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 19, (h, w), np.uint8)


class Draws(np.random.Generator):
    """A generator that gives the listed numbers to uniform and the listed choice to integers."""

    def __init__(self, *values: float, choice: int = 0) -> None:
        super().__init__(np.random.PCG64(0))
        self.values = list(values)
        self.choice = choice

    def uniform(self, *_: Any, **__: Any) -> Any:
        return self.values.pop(0)

    def integers(self, low: Any, *_: Any, **__: Any) -> Any:
        return min(self.choice, low - 1)


def test_steps_and_their_order() -> None:
    names = [name for name, _ in train_transform(config()).steps]
    jitter = ["brightness", "contrast", "saturation"]
    assert names == [*jitter, "flip", "scale", "enlarge", "crop", "normalise"]
    quiet = config(brightness=None, contrast=None, saturation=None)
    names = [name for name, _ in train_transform(quiet).steps]
    assert names == ["flip", "scale", "enlarge", "crop", "normalise"]


def test_the_jitter_is_pillows() -> None:
    image, label = picture(20, 30)
    steps = train_transform(config()).steps[:3]
    ours, same = Transform(steps)(image, label, Draws(0.7, 1.3, 0.55))
    theirs = Image.fromarray(image)
    theirs = ImageEnhance.Brightness(theirs).enhance(0.7)
    theirs = ImageEnhance.Contrast(theirs).enhance(1.3)
    theirs = ImageEnhance.Color(theirs).enhance(0.55)
    np.testing.assert_array_equal(ours, theirs)
    assert same is label


@pytest.mark.parametrize(("choice", "size_hw"), [(0, (3, 5)), (5, (21, 33)), (11, (43, 67))])
def test_scaled_as_pillow_to_truncated_sizes(choice: int, size_hw: tuple[int, int]) -> None:
    # 29 x 45: 0.125 gives 3.6 x 5.6, 0.75 gives 21.75 x 33.75, 1.5 gives 43.5 x 67.5
    image, label = picture(29, 45)
    ours, our_label = random_scale_pillow(
        image, label, Draws(choice=choice), scale_range=(1, 1), choices=TWELVE
    )
    size_wh = size_hw[::-1]
    theirs = Image.fromarray(image).resize(size_wh, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(ours, theirs)
    theirs = Image.fromarray(label).resize(size_wh, Image.Resampling.NEAREST)
    np.testing.assert_array_equal(our_label, theirs)


@pytest.mark.parametrize(
    ("size_hw", "crop_hw", "expected_hw"),
    [
        ((128, 256), (512, 1024), (513, 1025)),  # the published example
        ((96, 192), (128, 128), (129, 257)),
        ((60, 40), (64, 64), (97, 65)),  # the narrower side decides
        ((30, 100), (24, 110), (34, 111)),
        ((24, 48), (24, 48), (24, 48)),
        ((50, 60), (24, 48), (50, 60)),
    ],
)
def test_enlarged_back(
    size_hw: tuple[int, int], crop_hw: tuple[int, int], expected_hw: tuple[int, int]
) -> None:
    image, label = picture(*size_hw)
    out, out_label = enlarge_to_crop(image, label, np.random.default_rng(0), crop_hw=crop_hw)
    assert out.shape == (*expected_hw, 3)
    assert out_label.shape == expected_hw
    assert set(np.unique(out_label)) <= set(np.unique(label))
    if expected_hw == size_hw:
        assert out is image


@pytest.mark.parametrize("augmentation", ["opencv", "pillow"])
def test_every_choice_is_drawn_equally_often(augmentation: str) -> None:
    image, label = np.zeros((16, 8, 3), np.uint8), np.zeros((16, 8), np.uint8)
    scale = random_scale if augmentation == "opencv" else random_scale_pillow
    sizes = Counter(
        scale(image, label, np.random.default_rng(s), scale_range=(1, 1), choices=(0.5, 1, 2, 4))[
            1
        ].shape
        for s in range(400)
    )
    assert set(sizes) == {(8, 4), (16, 8), (32, 16), (64, 32)}
    assert min(sizes.values()) > 100 - 5 * 8.7  # five standard deviations of a quarter of 400


def test_scale_is_given_once() -> None:
    with pytest.raises(
        ValidationError, match=r"scale_range .* and scale_choices .* are both given"
    ):
        config(scale_range=(0.5, 2.0))
    with pytest.raises(ValidationError, match="at least 1 item"):
        config(scale_choices=())
    assert config(scale_choices=None, scale_range=(0.5, 2.0)).scale_range == (0.5, 2.0)


def test_what_is_not_given_stays_as_it_was() -> None:
    usual = {"mean": (0, 0, 0), "std": (1, 1, 1), "crop_hw": (4, 4), "batch_size": 1}
    data = DataConfig(**{"dataset": "list", "root": "."}, **usual)
    assert (data.augmentation, data.scale_choices) == ("opencv", None)


@given(seed=st.integers(0, 10_000), h=st.integers(1, 70), w=st.integers(1, 90))
@settings(deadline=None, max_examples=60)
def test_samples_have_the_crop_size_and_no_void_of_their_own(seed: int, h: int, w: int) -> None:
    image, label = picture(h, w, seed)
    before = image.copy(), label.copy()
    out, out_label = train_transform(config())(image, label, np.random.default_rng(seed))
    assert out.shape == (3, 24, 48)
    assert out.dtype == np.float32
    assert out_label.shape == (24, 48)
    # enlarged, never padded
    assert set(np.unique(out_label)) <= set(np.unique(label))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_image_and_label_stay_aligned(seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, 19, (10, 16))
    label = cells.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    image = np.repeat((10 * label + 5)[..., None], 3, axis=2)
    quiet = config(brightness=None, contrast=None, saturation=None, scale_choices=(0.5, 1.5))
    transform = Transform(train_transform(quiet).steps[:-1])
    image, label = transform(image, label, np.random.default_rng(seed))
    assert np.mean(np.abs(image[..., 0] - (10 * label.astype(int) + 5)) <= 20) > 0.5
