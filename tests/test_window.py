"""What is computed for the crop only equals what the whole picture gives, to the bit."""

import cv2
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.config_sections import DataConfig
from common.transforms import train_transform
from common.window import Window, resized_image_window, resized_label_window

sides = st.integers(1, 90)


def pictures(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(h * 100 + w)
    image = rng.integers(0, 256, (h, w, 3), np.uint8)
    return image, rng.integers(0, 256, (h, w), np.uint8)


@given(h=sides, w=sides, new_h=st.integers(1, 200), new_w=st.integers(1, 200), data=st.data())
@settings(deadline=None, max_examples=200)
def test_window_of_a_resized_picture(h: int, w: int, new_h: int, new_w: int, data) -> None:
    image, label = pictures(h, w)
    top, left = data.draw(st.integers(0, new_h - 1)), data.draw(st.integers(0, new_w - 1))
    height = data.draw(st.integers(1, new_h - top))
    width = data.draw(st.integers(1, new_w - left))
    window = Window(top, left, height, width)
    rows, columns = slice(top, top + height), slice(left, left + width)
    whole = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    actual = resized_image_window(image, (new_h, new_w), window)
    np.testing.assert_array_equal(actual, whole[rows, columns])
    whole = cv2.resize(label, (new_w, new_h), interpolation=cv2.INTER_NEAREST)
    actual = resized_label_window(label, (new_h, new_w), window)
    np.testing.assert_array_equal(actual, whole[rows, columns])


@given(
    h=st.integers(200, 1100), w=st.integers(200, 2100), scale=st.floats(0.25, 2.0), data=st.data()
)
@settings(deadline=None, max_examples=25)
def test_window_of_a_street_scene(h: int, w: int, scale: float, data) -> None:
    image, label = pictures(h, w)
    new_h, new_w = int(h * scale) + 1, int(w * scale) + 1
    assume((new_h, new_w) != (h, w))
    top = data.draw(st.integers(0, max(new_h - 128, 0)))
    left = data.draw(st.integers(0, max(new_w - 256, 0)))
    window = Window(top, left, 128, 256).inside((new_h, new_w))
    whole = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    actual = resized_image_window(image, (new_h, new_w), window)
    np.testing.assert_array_equal(actual, window.cut(whole))
    whole = cv2.resize(label, (new_w, new_h), interpolation=cv2.INTER_NEAREST)
    actual = resized_label_window(label, (new_h, new_w), window)
    np.testing.assert_array_equal(actual, window.cut(whole))


def test_a_part_that_would_keep_its_size_is_interpolated() -> None:
    # 59 x 62 -> 57 x 60: the 10 x 15 pixels that the window needs round to 10 x 15 again,
    # and cv2.resize copies a picture whose size it need not change
    image, _ = pictures(59, 62)
    actual = resized_image_window(image, (57, 60), Window(0, 0, 7, 12))
    whole = cv2.resize(image, (60, 57), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(actual, whole[:7, :12])
    assert not np.array_equal(actual, image[:7, :12])


ranges = st.none() | st.just((0.6, 1.4))


def check_quick_steps(size, seed, *, crop, jitter, **options) -> None:
    brightness, contrast, saturation = jitter
    data = DataConfig(
        **{"dataset": "list", "root": ".", "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.25)},
        **{"crop_hw": crop, "batch_size": 1},
        **{"brightness": brightness, "contrast": contrast, "saturation": saturation},
        **options,
    )
    transform = train_transform(data)
    assert transform.quick_steps
    image, label = pictures(*size)
    rngs = np.random.default_rng(seed), np.random.default_rng(seed)
    *_, (_, expected_image, expected_label) = transform.trace(image, label, rngs[0])
    actual_image, actual_label = transform(image, label, rngs[1])
    np.testing.assert_array_equal(actual_image, expected_image)
    np.testing.assert_array_equal(actual_label, expected_label)
    assert (actual_image.dtype, actual_label.dtype) == (np.float32, np.int64)
    # and as many random numbers were drawn
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state


@given(
    size=st.tuples(sides, sides),
    crop=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([(0.25, 2.0), (1.0, 1.0), (0.95, 1.05)]),
    choices=st.none() | st.just((0.5, 1.0, 2.0)),
    jitter=st.tuples(ranges, ranges, ranges),
    ignore_index=st.sampled_from([255, 100]),
)
@settings(deadline=None, max_examples=200)
def test_quick_steps_give_what_the_named_steps_give(
    size, crop, seed, scale, choices, jitter, ignore_index
) -> None:
    scales = {"scale_range": (1.0, 1.0) if choices else scale, "scale_choices": choices}
    check_quick_steps(size, seed, crop=crop, jitter=jitter, ignore_index=ignore_index, **scales)


@given(
    size=st.tuples(sides, sides),
    crop=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    seed=st.integers(0, 10_000),
    choices=st.none() | st.just((0.5, 0.75, 1.0, 2.0, 3.0)),
    jitter=st.tuples(ranges, ranges, ranges),
)
@settings(deadline=None, max_examples=200)
def test_quick_steps_with_pillows_arithmetic(size, crop, seed, choices, jitter) -> None:
    scales = {"scale_range": (1.0, 1.0) if choices else (0.4, 3.0), "scale_choices": choices}
    check_quick_steps(size, seed, crop=crop, jitter=jitter, augmentation="pillow", **scales)
