"""The arithmetic of the older recipes against the installed Pillow, byte by byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from common.pillow_arithmetic import (
    enhance_brightness,
    enhance_colour,
    enhance_contrast,
    luminance,
    resize_image,
    resize_label,
)


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


@given(
    h=st.integers(1, 50),
    w=st.integers(1, 50),
    new_h=st.integers(1, 120),
    new_w=st.integers(1, 120),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_resize_is_pillows(h: int, w: int, new_h: int, new_w: int, seed: int) -> None:
    image = noise(h, w, seed)
    # in two calls, because newer versions of Pillow choose the order of the passes by the sizes
    pillow = Image.fromarray(image).resize((new_w, h), Image.Resampling.BILINEAR)
    pillow = pillow.resize((new_w, new_h), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_image(image, size_hw=(new_h, new_w)), pillow)
    label = image[..., 0].copy()
    pillow = Image.fromarray(label).resize((new_w, new_h), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_label(label, size_hw=(new_h, new_w)), pillow)


@pytest.mark.parametrize("scale", [0.125, 0.375, 0.75, 1.0, 1.125, 1.75])
def test_resize_of_a_published_scale(scale: float) -> None:
    # the nearest neighbour of a long row depends on how the step is added up
    image = noise(64, 2048)
    size_hw = (int(64 * scale), int(2048 * scale))
    pillow = Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_image(image, size_hw=size_hw), pillow)
    label = image[..., 1].copy()
    pillow = Image.fromarray(label).resize(size_hw[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_label(label, size_hw=size_hw), pillow)


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (enhance_brightness, ImageEnhance.Brightness),
        (enhance_contrast, ImageEnhance.Contrast),
        (enhance_colour, ImageEnhance.Color),
    ],
)
@given(factor=st.floats(0.0, 2.0), seed=st.integers(0, 1000), top=st.integers(1, 255))
@settings(deadline=None, max_examples=80)
def test_enhancers_are_pillows(ours, pillows, factor: float, seed: int, top: int) -> None:
    image = np.minimum(noise(24, 24, seed), np.uint8(top))
    expected = np.asarray(pillows(Image.fromarray(image)).enhance(factor))
    np.testing.assert_array_equal(ours(image, factor=factor), expected)


def test_luminance_is_pillows_for_many_colours() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(52, -1, 3)
    np.testing.assert_array_equal(luminance(image), Image.fromarray(image).convert("L"))


def test_enhancers_by_hand() -> None:
    image = np.array([[[10, 200, 99]]], np.uint8)
    # a blend with black: 0.5 c, truncated; 1.5 c, clipped
    assert enhance_brightness(image, factor=0.5).tolist() == [[[5, 100, 49]]]
    assert enhance_brightness(image, factor=1.5).tolist() == [[[15, 255, 148]]]
    # luma 0.299 * 10 + 0.587 * 200 + 0.114 * 99 = 131.7; factor 0 leaves it alone
    assert enhance_colour(image, factor=0.0).tolist() == [[[132, 132, 132]]]
    assert enhance_contrast(image, factor=0.0).tolist() == [[[132, 132, 132]]]
    assert enhance_contrast(image, factor=1.0).tolist() == image.tolist()


def test_shrinking_averages_and_keeps_the_picture() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 1::2] = 100
    before = image.copy()
    # triangle of half-width 2 around the middle of two columns: weights 3 3 1 of 7 at the border
    shrunk = resize_image(image, size_hw=(2, 2))
    assert shrunk[0, :, 0].tolist() == [43, 57]
    np.testing.assert_array_equal(image, before)
