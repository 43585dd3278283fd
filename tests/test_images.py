"""Reading pictures: the channels in their order, whichever way OpenCV decodes."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from common import images
from common.images import has_colours, read_image


@pytest.mark.parametrize("end", [".png", ".jpg"])
def test_both_ways_of_decoding_are_equal(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
    path = tmp_path / f"x{end}"
    assert cv2.imwrite(str(path), pixels[..., ::-1])
    actual = read_image(path)
    if end == ".png":
        np.testing.assert_array_equal(actual, pixels)
    monkeypatch.setattr(images, "_COLOR_RGB", None)
    np.testing.assert_array_equal(actual, read_image(path))


def test_colours_or_numbers(tmp_path: Path) -> None:
    for name, shape in (("grey", (2, 3)), ("colour", (2, 3, 3)), ("alpha", (2, 3, 4))):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros(shape, np.uint8))
    found = {name: has_colours(tmp_path / f"{name}.png") for name in ("grey", "colour", "alpha")}
    assert found == {"grey": False, "colour": True, "alpha": True}
