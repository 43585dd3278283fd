"""Sizes and places of the published protocols, by hand and from the published code's own rules."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from common.protocols import (
    PROTOCOLS,
    Canvas,
    Protocol,
    StartSize,
    changed,
    configured,
    protocol_named,
    window_starts,
)

TWO_THIRDS, FIVE_SIXTHS = 683, 854
"""Strides in pixels of a window of 1024, rounded up."""


# starts of 1024-windows on the scaled 1024 x 2048 pictures
@pytest.mark.parametrize(
    ("length", "stride", "expected"),
    [
        (1024, TWO_THIRDS, (0,)),
        (1536, TWO_THIRDS, (0, 512)),
        (2048, TWO_THIRDS, (0, 683, 1024)),
        (1280, TWO_THIRDS, (0, 256)),
        (2560, TWO_THIRDS, (0, 683, 1366, 1536)),
        (3072, TWO_THIRDS, (0, 683, 1366, 2048)),
        (1792, TWO_THIRDS, (0, 683, 768)),
        (3584, TWO_THIRDS, (0, 683, 1366, 2049, 2560)),
        (2560, FIVE_SIXTHS, (0, 854, 1536)),
        (1792, FIVE_SIXTHS, (0, 768)),
        (3584, FIVE_SIXTHS, (0, 854, 1708, 2560)),
        (1025, TWO_THIRDS, (0, 1)),
        (1707, TWO_THIRDS, (0, 683)),
    ],
)
def test_window_starts_by_hand(length: int, stride: int, expected: tuple[int, ...]) -> None:
    assert window_starts(length, window=1024, stride=stride) == expected


@given(
    window=st.integers(1, 40),
    extra=st.integers(0, 200),
    rate=st.floats(0.05, 1.0, exclude_min=True),
)
def test_windows_see_every_pixel_and_none_twice_the_same(
    window: int, extra: int, rate: float
) -> None:
    protocol = Protocol("test", "", crop_hw=(window, 3), stride_rate=rate)
    canvas = protocol.canvas(window + extra, 3)
    assert len(set(canvas.windows)) == len(canvas.windows)
    counts = canvas.window_counts((window, 3))
    assert counts.shape == canvas.size_hw == (window + extra, 3)
    assert counts.min() >= 1
    assert counts.sum() == len(canvas.windows) * window * 3


def test_a_small_picture_lies_in_the_middle_of_zeros() -> None:
    protocol = Protocol("test", "", crop_hw=(8, 10))
    assert protocol.canvas(5, 4) == Canvas((8, 10), top=1, left=3, windows=((0, 0),))
    # one side short only; the stride of 10 is ceil(6.67)
    expected = Canvas((8, 19), top=2, left=0, windows=((0, 0), (0, 7), (0, 9)))
    assert protocol.canvas(4, 19) == expected
    assert protocol.canvas(8, 10) == Canvas((8, 10), top=0, left=0, windows=((0, 0),))


@pytest.mark.parametrize(
    ("name", "size", "scale", "expected"),
    [
        ("ss", (241, 333), 1.0, (256, 352)),
        ("ss", (256, 352), 1.0, (256, 352)),
        # int(0.75 * 333) = 249; rounded up to 256
        ("msf", (241, 333), 0.75, (192, 256)),
        ("msf", (1024, 2048), 1.75, (1792, 3584)),
        ("mscf", (241, 333), 0.75, (180, 249)),
        ("ss@0.5", (241, 333), 0.5, (120, 166)),
        ("none", (241, 333), 1.0, (241, 333)),
        # 0.75 * 333 + 0.5 = 250.25
        ("msf_paddleseg", (241, 333), 0.75, (181, 250)),
        ("ss@0.5", (1, 1), 0.5, (1, 1)),
    ],
)
def test_scaled_sizes_by_hand(
    name: str, size: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert PROTOCOLS[name].scaled_hw(*size, scale=scale) == expected


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        ({}, (256, 352), (256, 352)),
        ({"shape_hw": (128, 224)}, (256, 352), (128, 224)),
        ({"short_side": 160}, (256, 352), (160, 220)),
        ({"short_side": 160}, (352, 256), (220, 160)),
        ({"short_side": 512}, (100, 101), (512, 517)),
        ({"long_side": 200}, (256, 352), (145, 200)),
        ({"long_side": 200}, (352, 256), (200, 145)),
        ({"long_side": 400}, (256, 352), (256, 352)),
        ({"short_side": 7}, (50, 50), (7, 7)),
        ({"long_side": 10}, (1, 100), (1, 10)),
    ],
)
def test_start_sizes_by_hand(
    rule: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert StartSize(**rule).size_hw(*size) == expected


def test_passes_of_the_published_evaluations() -> None:
    # windows of 1024 on 1024 x 2048: 1, 2, 3, 2*4, 2*4, 3*5, each with its mirror image
    passes = PROTOCOLS["mscf"].passes(1024, 2048)
    assert passes == [(1024, 1024, times) for times in (2, 4, 6, 16, 16, 30)]
    assert [times for _, _, times in PROTOCOLS["mscf_2020"].passes(1024, 2048)] == [
        *(2, 4, 6, 12, 16, 16)
    ]
    assert PROTOCOLS["ssc"].passes(1024, 2048) == [(1024, 1024, 3)]
    assert PROTOCOLS["ss"].passes(1024, 2048) == [(1024, 2048, 1)]
    assert PROTOCOLS["ss@0.75"].passes(1024, 2048) == [(768, 1536, 1)]
    assert PROTOCOLS["msf"].passes(1024, 2048)[-1] == (1792, 3584, 2)
    assert PROTOCOLS["ss@720x960"].passes(360, 480) == [(720, 960, 1)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: protocol_named("mcsf"), "'mcsf'; expected one of none, ss, ssc, msf, mscf"),
        (lambda: StartSize(short_side=3, long_side=4), "short_side and long_side are given"),
        (lambda: StartSize(shape_hw=(0, 4)), "at least one pixel"),
        (lambda: Protocol("p", "", scales=()), r"scales \(\); expected one or more above 0"),
        (lambda: Protocol("p", "", scales=(1.0, 0.0)), "expected one or more above 0"),
        (lambda: Protocol("p", "", crop_hw=(0, 4)), "expected at least 1 x 1 pixels"),
        (lambda: Protocol("p", "", stride_rate=1.5), "pixels between windows are never seen"),
        (lambda: changed(PROTOCOLS["ss"], stride_rate=0.5), "has no sliding window"),
    ],
)
def test_what_cannot_be_is_told(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_changed_protocol_says_so() -> None:
    mscf = PROTOCOLS["mscf"]
    assert changed(mscf, scales=None, flip=True, crop_hw=(1024, 1024)) == mscf
    other = changed(mscf, crop_hw=(512, 1024), overlap="mean")
    assert other.name == "mscf, changed"
    assert (other.crop_hw, other.overlap, other.flip) == ((512, 1024), "mean", True)
    assert other.as_json()["crop_hw"] == (512, 1024)
    assert "windows 512x1024 at 0.6667, overlap mean" in other.text()


def test_a_recipe_gives_window_and_start_size() -> None:
    made = configured("mscf", crop_hw=(640, 640), short_side=640)
    assert (made.name, made.crop_hw, made.start) == ("mscf", (640, 640), StartSize(short_side=640))
    assert configured("ss", crop_hw=(640, 640)) == PROTOCOLS["ss"]
    assert made.text().startswith(
        "mscf (scales 0.5, 0.75, 1, 1.25, 1.5, 1.75; start short_side 640"
    )
