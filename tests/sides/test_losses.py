import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config_sections import LossConfig
from common.errors import ConfigError, DataError
from fake_data.rules import labels

VOID = 255
REGIMES = ("hard", "easy96", "heavy_ignore", "all_ignored")
# float32(-ln 0.7), the value that every implementation's threshold was measured to have
HARD_LOSS = float(np.float32(0.35667497))
# entry of golden/losses -> criterion options
CRITERIA: dict[str, dict[str, Any]] = {
    "coincheung_6b4b67a": {"rule": "valid_fraction"},
    "coincheung_a8ddd22_bisenetv2": {"rule": "valid_fraction"},
    "coincheung_a8ddd22": {"rule": "pixel_fraction"},
    "stdc_seg_59ff37f": {"rule": "pixel_fraction"},
    "coincheung_2d6d8f1": {"rule": "none"},
    "paddleseg_d7975e7_min_kept_10000_float64": {"rule": "min_kept", "min_kept": 10000},
    "paddleseg_d7975e7_min_kept_1000_float64": {"rule": "min_kept", "min_kept": 1000},
}
RULES = ("valid_fraction", "pixel_fraction", "min_kept", "none")


def evaluate(
    side: Any, criterion: Any, logits: NDArray[Any], label: NDArray[Any]
) -> tuple[float, NDArray[Any]]:
    """Return the loss and its gradient at the logits."""
    x = side.backend.leaf_tensor(logits)
    loss = criterion(x, side.backend.to_tensor(label))
    loss.backward()
    return float(side.backend.to_numpy(loss)), side.backend.to_numpy(x.grad)


@pytest.fixture(params=["host", "device"])
def place(side: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: with NumPy's help, and with the operations that another device needs."""
    if request.param == "device":
        monkeypatch.setattr(side.losses, "host_view", lambda _tensor: None)
    return request.param


def ohem(side: Any, **options: Any) -> Any:
    return side.losses.OhemCrossEntropy(ignore_index=VOID, **options)


def one_pixel_losses(losses: list[float]) -> NDArray[np.float64]:
    """Return logits (1, 2, 1, W) whose cross entropy with label 0 is exactly as given."""
    other = [math.log(math.expm1(loss)) for loss in losses]
    return np.array([[[[0.0] * len(losses)], [other]]])


def golden_case(spec: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logits and labels of a regime, by the rule of golden/README.md."""
    N, C, H, W = 2, 19, 64, 96
    seed = spec["seed"]
    label = labels(seed, N, H, W, classes=C, void=spec["ign"])
    logits = spec["scale"] * np.random.default_rng(seed).standard_normal((N, C, H, W))
    easy = (np.random.default_rng(seed + 3).random((N, H, W)) < spec["easy"]) & (label != VOID)
    n, h, w = np.nonzero(easy)
    logits[n, label[n, h, w], h, w] += spec["boost"]
    return logits, label


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("version", CRITERIA)
def test_equals_the_original_implementations(
    side: Any, golden: Path, regime: str, version: str
) -> None:
    spec = json.loads((golden / "losses/ohem.json").read_text())["regimes"][regime]
    expected = spec["losses"][version]
    logits, label = golden_case(spec)
    assert int((label != VOID).sum()) == spec["valid_pixels"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value, gradient = evaluate(side, ohem(side, **CRITERIA[version]), logits, label)
    assert bool(caught) == (regime == "all_ignored")
    # where the original gives NaN for a batch without valid pixels, ours is 0
    wanted = 0.0 if expected["value"] == "nan" else expected["value"]
    # 14 digits in the file
    assert value == pytest.approx(wanted, rel=1e-13, abs=0)
    assert np.linalg.norm(gradient) == pytest.approx(expected["grad_l2"], rel=1e-13, abs=0)
    assert np.abs(gradient).sum() == pytest.approx(expected["grad_sum_abs"], rel=1e-13, abs=0)
    assert int(np.abs(gradient).max(axis=1).astype(bool).sum()) == expected["pixels_with_gradient"]
    with np.load(golden / "losses/ohem.npz") as arrays:
        reference = arrays[f"{regime}/{version}/grad"]
    np.testing.assert_allclose(
        gradient[:, ::3, ::9, ::9], reference, rtol=0, atol=1e-13 * np.abs(gradient).max()
    )


def test_float32_runs_agree_with_paddleseg(side: Any, golden: Path) -> None:
    spec = json.loads((golden / "losses/ohem.json").read_text())["regimes"]["easy96"]
    expected = spec["losses"]["paddleseg_d7975e7_min_kept_1000_float32"]
    logits, label = golden_case(spec)
    criterion = ohem(side, rule="min_kept", min_kept=1000)
    value, _ = evaluate(side, criterion, logits.astype(np.float32), label)
    # rounding of a float32 sum over 12288 pixels
    assert value == pytest.approx(expected["value"], rel=1e-6, abs=0)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 2 hard of 8 valid: 8 // 4 = 2 are enough
        ({"rule": "valid_fraction", "divisor": 4}, (3.0 + 2.0) / 2),
        # 8 // 2 = 4 are not there: the 4 largest
        ({"rule": "valid_fraction", "divisor": 2}, (3.0 + 2.0 + 0.3 + 0.25) / 4),
        # 9 // 4 = 2 of all pixels, void included; 9 // 9 = 1, and the one after it is hard too
        ({"rule": "pixel_fraction", "divisor": 4}, (3.0 + 2.0) / 2),
        ({"rule": "pixel_fraction", "divisor": 9}, (3.0 + 2.0) / 2),
        ({"rule": "pixel_fraction", "divisor": 3}, (3.0 + 2.0 + 0.3) / 3),
        # the void pixel counts as 0
        ({"rule": "pixel_fraction", "divisor": 1}, 6.15 / 9),
        # the limit is the 4th largest loss, compared strictly: 3 of the 9 pixels are kept
        ({"rule": "min_kept", "min_kept": 4}, (3.0 + 2.0 + 0.3) / 9 / (3 / 9 + 1e-5)),
        ({"rule": "min_kept", "min_kept": 2}, (3.0 + 2.0) / 9 / (2 / 9 + 1e-5)),
        # no more valid pixels than that: all are kept
        ({"rule": "min_kept", "min_kept": 8}, 6.15 / 9 / (8 / 9 + 1e-5)),
        ({"rule": "none"}, 6.15 / 8),
    ],
)
def test_rules_by_hand(side: Any, options: dict[str, Any], expected: float) -> None:
    losses = [0.3, 3.0, 0.1, 0.2, 2.0, 0.05, 0.25, 0.25 - 1e-9, 9.0]
    label = np.array([[[0, 0, 0, 0, 0, 0, 0, 0, VOID]]])
    value, gradient = evaluate(side, ohem(side, **options), one_pixel_losses(losses), label)
    # min_kept divides by a fraction that PaddleSeg, and so ours, rounds to float32
    assert value == pytest.approx(expected, rel=2e-7 if options["rule"] == "min_kept" else 1e-8)
    assert not gradient[..., 8].any()


@pytest.mark.usefixtures("place")
def test_the_comparison_with_the_threshold_is_strict(side: Any) -> None:
    assert side.losses.hard_loss_of(0.7) == HARD_LOSS
    # both classes equally likely: the loss is exactly ln 2 and the pixel is not hard
    logits = np.zeros((1, 2, 1, 4))
    logits[0, 1, 0, 1] = 1.0
    label = np.zeros((1, 1, 4), dtype=np.int64)
    hard, other = math.log(1 + math.e), math.log(2)
    for divisor, expected in ((4, hard), (2, (hard + other) / 2)):
        criterion = ohem(side, rule="valid_fraction", divisor=divisor)
        criterion.hard_loss = other
        value, _ = evaluate(side, criterion, logits, label)
        assert value == pytest.approx(expected, rel=1e-15)


def test_of_equal_losses_exactly_so_many_are_kept(side: Any, place: str) -> None:
    # the three hardest of 0.3, four times 0.2, 0.1: 0.3 and two of the four
    losses = [0.2, 0.1, 0.2, 0.3, 0.2, 0.2]
    label = np.zeros((1, 1, 6), dtype=np.int64)
    criterion = ohem(side, rule="valid_fraction", divisor=2)
    value, gradient = evaluate(side, criterion, one_pixel_losses(losses), label)
    assert value == pytest.approx((0.3 + 2 * 0.2) / 3, rel=1e-12)
    kept = gradient[0, 0, 0] != 0
    assert kept.tolist()[1:4:2] == [False, True]
    assert kept.sum() == 3
    if place == "host":
        assert np.flatnonzero(kept).tolist() == [0, 2, 3]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("divisor", [1, 2, 6])
def test_a_loss_that_is_nan_is_not_hidden(side: Any, rule: Any, divisor: int) -> None:
    logits = one_pixel_losses([0.1, 2.0, 0.2, 3.0, 0.1, 0.1])
    logits[0, 0, 0, 2] = np.nan
    label = np.zeros((1, 1, 6), dtype=np.int64)
    value, _ = evaluate(side, ohem(side, rule=rule, divisor=divisor, min_kept=3), logits, label)
    assert math.isnan(value)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_batch_of_void_gives_zero_and_a_warning(side: Any, rule: Any, dtype: Any) -> None:
    logits = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(dtype)
    label = np.full((2, 4, 5), VOID)
    with pytest.warns(UserWarning, match="no labelled pixel"):
        value, gradient = evaluate(side, ohem(side, rule=rule), logits, label)
    assert value == 0.0
    assert gradient.dtype == dtype
    assert not gradient.any()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("rule", RULES)
def test_few_easy_pixels_do_not_give_nan(side: Any, rule: Any) -> None:
    label = np.array([[[0, VOID, VOID]]])
    value, gradient = evaluate(side, ohem(side, rule=rule), one_pixel_losses([0.1, 5, 5]), label)
    wanted = 0.1 / 3 / (1 / 3 + 1e-5) if rule == "min_kept" else 0.1
    assert value == pytest.approx(wanted, rel=2e-7)
    assert gradient[..., 0].any()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_that_of_finite_differences(side: Any, rule: Any) -> None:
    rng = np.random.default_rng(3)
    logits = 2 * rng.standard_normal((2, 3, 4, 4))
    label = rng.integers(0, 3, (2, 4, 4))
    label[rng.random(label.shape) < 0.2] = VOID
    criterion = ohem(side, rule=rule, divisor=2, min_kept=9)
    _, gradient = evaluate(side, criterion, logits, label)
    direction = rng.standard_normal(logits.shape)
    step = 1e-6
    above, _ = evaluate(side, criterion, logits + step * direction, label)
    below, _ = evaluate(side, criterion, logits - step * direction, label)
    assert (gradient * direction).sum() == pytest.approx((above - below) / (2 * step), rel=1e-6)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("wrong", "shown"), [(200, "200"), (-1, "-1"), (3, "3")])
@pytest.mark.parametrize("rule", RULES)
def test_wrong_labels_are_named(side: Any, rule: Any, wrong: int, shown: str) -> None:
    label = np.zeros((5, 2, 2), dtype=np.int64)
    label[3, 1, 0] = wrong
    message = rf"sample 3 of the batch has label value {shown}; expected 0\.\.2 or 255"
    with pytest.raises(DataError, match=message):
        evaluate(side, ohem(side, rule=rule), np.zeros((5, 3, 2, 2)), label)


def test_shapes_that_do_not_fit_are_named(side: Any) -> None:
    label = np.zeros((1, 1, 2, 2), dtype=np.int64)
    with pytest.raises(DataError, match=r"labels \(1, 1, 2, 2\); expected"):
        evaluate(side, ohem(side, rule="none"), np.zeros((1, 3, 2, 2)), label)


def test_heads_are_summed_with_their_weights(side: Any) -> None:
    losses = {"main": [0.5, 1.5], "aux16": [2.0, 4.0], "aux32": [1.0, 1.0]}
    to_tensor = side.backend.to_tensor
    outputs = {head: to_tensor(one_pixel_losses(values)) for head, values in losses.items()}
    label = to_tensor(np.zeros((1, 1, 2), dtype=np.int64))
    criterion = side.losses.CrossEntropy(ignore_index=VOID)
    loss = side.losses.SegmentationLoss(criterion, head_weights={"aux16": 0.5, "aux32": 0.0})
    terms = {name: float(value) for name, value in loss(outputs, label).items()}
    assert list(terms) == ["total", "main", "aux16", "aux32"]
    assert terms == pytest.approx({"total": 2.5, "main": 1.0, "aux16": 3.0, "aux32": 1.0})


def test_a_weight_for_an_unknown_head_is_refused(side: Any) -> None:
    criterion = side.losses.CrossEntropy(ignore_index=VOID)
    loss = side.losses.SegmentationLoss(criterion, head_weights={"aux8": 1.0})
    outputs = {"main": side.backend.to_tensor(np.zeros((1, 2, 1, 1)))}
    label = side.backend.to_tensor(np.zeros((1, 1, 1), dtype=np.int64))
    with pytest.raises(ConfigError, match=r"head_weights names aux8; the model's outputs are main"):
        loss(outputs, label)


def test_build_loss_follows_the_configuration(side: Any) -> None:
    config = LossConfig(ohem="min_kept", threshold=0.5, min_kept=7, head_weights={"aux16": 0.4})
    loss = side.losses.build_loss(config, classes=19, ignore_index=VOID)
    assert loss.head_weights == {"aux16": 0.4}
    assert (loss.criterion.rule, loss.criterion.min_kept) == ("min_kept", 7)
    assert loss.criterion.hard_loss == pytest.approx(math.log(2), rel=1e-7)
    plain = side.losses.build_loss(LossConfig(ohem="none"), classes=19, ignore_index=VOID)
    assert type(plain.criterion).__name__ == "CrossEntropy"
    with pytest.raises(ConfigError, match="ignore_index is 3"):
        side.losses.build_loss(config, classes=19, ignore_index=3)


def test_an_unknown_rule_is_refused(side: Any) -> None:
    with pytest.raises(ConfigError, match="'hardest'; expected one of valid_fraction"):
        ohem(side, rule="hardest")
