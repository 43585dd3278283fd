"""The golden rules, against numbers recorded from another implementation of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_data import rules


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Any:
    return json.loads((golden / "rules_check.json").read_text())


@pytest.mark.parametrize("case", ["a", "b", "odd"])
def test_images_and_labels_are_the_recorded_ones(recorded: Any, case: str) -> None:
    row = recorded["images"][case]
    image = rules.image(row["seed"], row["N"], row["H"], row["W"])
    assert image.shape == (row["N"], 3, row["H"], row["W"])
    np.testing.assert_allclose(image.ravel()[:4], row["first_values"], rtol=1e-13)
    np.testing.assert_allclose([image.sum(), (image**2).sum()], [row["sum"], row["sumsq"]], 1e-11)
    label = rules.labels(row["seed"], row["N"], row["H"], row["W"])
    expected = recorded["labels"][case]
    assert label.dtype == np.int64
    assert label.shape == (row["N"], row["H"], row["W"])
    assert label[0, 0, ::8].tolist() == expected["row0"]
    assert label.sum() == expected["sum"]
    assert (label == 255).sum() == expected["ignored"]


def test_weights_are_the_recorded_ones(recorded: Any) -> None:
    for key, row in recorded["weights"].items():
        array = rules.weight(key, tuple(row["shape"]))
        assert array.shape == tuple(row["shape"])
        np.testing.assert_allclose(array.ravel()[:4], row["first_values"], rtol=1e-13)
        sums = [array.sum(), (array**2).sum()]
        np.testing.assert_allclose(sums, [row["sum"], row["sumsq"]], rtol=1e-11, err_msg=key)


def test_weights_follow_their_name() -> None:
    conv = rules.weight("a.conv.weight", (64, 32, 3, 3))
    # std = sqrt(2 / fan_in), fan_in = 32 * 9
    assert abs(conv.std() / np.sqrt(2 / 288) - 1) < 0.02
    for key in ("a.bn.weight", "a.bn.running_var"):
        array = rules.weight(key, (5000,))
        assert 0.5 <= array.min() < 0.51
        assert 1.49 < array.max() < 1.5
    for key in ("a.bn.bias", "a.bn.running_mean"):
        array = rules.weight(key, (5000,))
        assert abs(array.std() - 0.1) < 0.005
    assert rules.weight("a.bn.num_batches_tracked", ()) == 0
    assert not np.array_equal(rules.weight("a.bias", (4,)), rules.weight("b.bias", (4,)))


def test_a_name_without_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no rule for a\.scale of shape \(3,\)"):
        rules.weight("a.scale", (3,))


def test_labels_are_squares_with_every_class_and_void() -> None:
    label = rules.labels(7, 4, 61, 83, classes=5, void=0.2)
    assert set(np.unique(label)) == {0, 1, 2, 3, 4, 255}
    assert (label[:, :8, :8] == label[:, :1, :1]).all()
    assert abs((label == 255).mean() - 0.2) < 0.06


def test_rule_state_covers_every_shape() -> None:
    state = rules.rule_state({"a.weight": (2, 3, 1, 1), "a.bias": (2,)})
    assert list(state) == ["a.weight", "a.bias"]
    np.testing.assert_array_equal(state["a.bias"], rules.weight("a.bias", (2,)))
