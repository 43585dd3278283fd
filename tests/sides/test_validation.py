"""The evaluation of a training: by the recipe's protocol, and what becomes of a bad picture."""

import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.config import Config
from common.read_failure import Reader, ReadFailure, ReadingError
from fake_data.scenes import generate

SIZE = (64, 128)
"""Of the pictures."""


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return generate(tmp_path / "scenes", seed=1, train=1, val=2, size_hw=SIZE)


def config(root: Path, **rule: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"name": "bisenetv1", "classes": 19},
            "data": {
                **{"dataset": "cityscapes", "root": root, "crop_hw": (32, 64), "batch_size": 1},
                **{"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "workers": 0},
            },
            "loss": {"ohem": "none"},
            "optimizer": {"base_lr": 0.01, "weight_decay": 0.0},
            "schedule": {"max_iters": 10},
            "eval": rule,
        }
    )


class Recorded:
    """A network that tells every pixel's brightness as its class, and what it was given."""

    training = False

    def __init__(self, side: Any) -> None:
        self.side = side
        self.sizes: list[tuple[int, ...]] = []

    def eval(self) -> None: ...

    def __call__(self, image: Any) -> dict[str, Any]:
        self.sizes.append(tuple(image.shape)[2:])
        brightness = self.side.backend.to_numpy(image).mean(axis=1, keepdims=True)
        steps = np.linspace(-2, 2, 19).reshape(1, 19, 1, 1)
        scores = -((brightness - steps) ** 2)
        return {"main": self.side.backend.to_tensor(scores.astype(np.float32))}


def validated(side: Any, recipe: Config) -> tuple[Any, Recorded]:
    validation = importlib.import_module(f"for_{side.name}.validation")
    side.backend.set_threads(1)
    network = Recorded(side)
    found = validation.validate(
        network, recipe, image_of=lambda batch: batch["image"], reader=one()
    )
    return found, network


def one() -> Reader:
    def on_stuck(failure: ReadFailure) -> None:
        raise AssertionError(failure)

    return Reader(60, rank=0, on_stuck=on_stuck)


def test_the_recipes_protocol_is_used(side: Any, scenes: Path) -> None:
    whole, network = validated(side, config(scenes))
    # two pictures, and the first once more to be looked at
    assert network.sizes == [SIZE] * 3
    half, network = validated(side, config(scenes, protocol="ss@0.5"))
    assert network.sizes == [(32, 64), (32, 64), SIZE]
    assert half.matrix.sum() == whole.matrix.sum() == 2 * SIZE[0] * SIZE[1]
    assert not np.array_equal(half.matrix, whole.matrix)


def test_crop_and_short_side_reach_it(side: Any, scenes: Path) -> None:
    _, network = validated(side, config(scenes, protocol="ssc", crop_hw=[32, 32]))
    assert set(network.sizes[:-1]) == {(32, 32)}
    _, network = validated(side, config(scenes, short_side=32))
    assert network.sizes[:-1] == [(32, 64), (32, 64)]


def test_a_bad_picture_is_named(side: Any, scenes: Path) -> None:
    path = sorted(scenes.glob("gtFine/val/*/*_labelIds.png"))[1]
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert label is not None
    label[3, 4] = 77
    cv2.imwrite(str(path), label)
    with pytest.raises(ReadingError, match="value 77") as caught:
        validated(side, config(scenes))
    failure = caught.value.failure
    assert (failure.event, failure.file, failure.rank) == ("data_failed", str(path), 0)
    assert path.name.split("_gtFine")[0] in failure.sample


def test_a_torn_picture_is_named(side: Any, scenes: Path) -> None:
    path = sorted(scenes.glob("leftImg8bit/val/*/*.png"))[0]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ReadingError, match="copy or download it again") as caught:
        validated(side, config(scenes))
    assert caught.value.failure.file == str(path)
