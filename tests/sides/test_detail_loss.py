"""The boundary loss: recorded outputs of the public implementation, and hand numbers."""

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config_sections import LossConfig
from common.errors import ConfigError, DataError
from fake_data import rules

LABELS = ("blocky", "blocky_odd", "rectangles")


@pytest.fixture(scope="module")
def detail_loss(side: Any) -> ModuleType:
    return importlib.import_module(f"for_{side.name}.detail_loss")


def _targets(side: Any, loss: Any, label: Any) -> NDArray[Any]:
    found = side.backend.to_numpy(loss.targets(side.backend.to_tensor(np.array(label))))
    assert found.dtype == np.float32
    return found[:, 0]


def _terms(side: Any, loss: Any, logits: Any, label: Any) -> tuple[float, float, Any]:
    """Cross entropy, Dice loss, and the logits with the gradient of their sum."""
    leaf = side.backend.leaf_tensor(np.array(logits))
    bce, dice = loss(leaf, side.backend.to_tensor(np.array(label)))
    (bce + dice).backward()
    found = [float(side.backend.to_numpy(term)) for term in (bce, dice)]
    return found[0], found[1], side.backend.to_numpy(leaf.grad)


# ---- upstream ---------------------------------------------------------------------------------
def _golden_label(golden: Path, record: dict[str, Any], name: str) -> NDArray[np.int64]:
    arrays = np.load(golden / "losses/detail.npz")
    if name in record["label_rule"]:
        seed, n, h, w = record["label_rule"][name]
        return rules.labels(seed, n, h, w)
    return arrays[f"{name}/label"].astype(np.int64)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges_are_upstreams(
    side: Any, detail_loss: ModuleType, golden: Path, name: str, dtype: str
) -> None:
    record = json.loads((golden / "losses/detail.json").read_text())
    arrays = np.load(golden / "losses/detail.npz")
    label = _golden_label(golden, record, name)
    side.backend.set_default_dtype(dtype)
    loss = detail_loss.DetailAggregateLoss(ignore_index=255)
    tensor = side.backend.to_tensor(label)
    found = {f"x{s}": side.backend.to_numpy(loss.edges(tensor, stride=s))[:, 0] for s in (1, 2, 4)}
    found["target"] = _targets(side, loss, label)
    for key, edges in found.items():
        assert int(edges.sum()) == record["cases"][name]["positive_pixels"][key]
        packed = np.packbits(edges.astype(bool), axis=-1)
        np.testing.assert_array_equal(packed, arrays[f"{name}/{key}"], err_msg=key)
    # 0.1 > 0.1 does not hold in float32: what the coarsest scale alone sees is no edge
    np.testing.assert_array_equal(found["target"], np.maximum(found["x1"], found["x2"]))


@pytest.mark.parametrize("name", LABELS)
def test_loss_and_gradients_are_upstreams(
    side: Any, detail_loss: ModuleType, golden: Path, name: str
) -> None:
    record = json.loads((golden / "losses/detail.json").read_text())
    arrays = np.load(golden / "losses/detail.npz")
    label = side.backend.to_tensor(_golden_label(golden, record, name))
    loss = detail_loss.DetailAggregateLoss(ignore_index=255)
    cases = record["cases"][name]["cases"]
    assert len(cases) == 6
    for case, row in cases.items():
        size, _, dtype = case.partition("_")
        # measured: 3e-14 in float64, 8e-7 in float32
        rtol = 1e-12 if dtype == "float64" else 2e-6
        logits = np.random.default_rng(row["logit_seed"]).standard_normal(row["logit_shape"])
        for index, term in enumerate(("bce", "dice")):
            leaf = side.backend.leaf_tensor(logits.astype(dtype))
            value = loss(leaf, label)[index]
            value.backward()
            gradient = side.backend.to_numpy(leaf.grad)
            assert float(side.backend.to_numpy(value)) == pytest.approx(row[term], rel=rtol, abs=0)
            l2 = np.linalg.norm(gradient.astype(np.float64))
            assert l2 == pytest.approx(row[f"grad_{term}_l2"], rel=rtol, abs=0)
            if case == "eighth_float64":
                reference = arrays[f"{name}/grad_{term}_{size}"]
                worst = np.abs(gradient - reference).max() / np.abs(reference).max()
                assert worst <= 1e-12


# ---- hand numbers -----------------------------------------------------------------------------
def test_only_the_higher_side_of_a_border_is_an_edge(side: Any, detail_loss: ModuleType) -> None:
    label = np.zeros((1, 12, 12), dtype=np.int64)
    label[0, 4:8, 4:8] = 3
    loss = detail_loss.DetailAggregateLoss(ignore_index=255)
    edges = side.backend.to_numpy(loss.edges(side.backend.to_tensor(label), stride=1))[0, 0]
    expected = np.zeros((12, 12))
    expected[4:8, 4:8] = 1
    expected[5:7, 5:7] = 0
    np.testing.assert_array_equal(edges, expected)
    # at stride 2 the pixels (4, 4), (4, 6), (6, 4) and (6, 6) are looked at, each for four
    coarse = side.backend.to_numpy(loss.edges(side.backend.to_tensor(label), stride=2))[0, 0]
    expected[4:8, 4:8] = 1
    expected[6:8, 6:8] = 0
    np.testing.assert_array_equal(coarse, expected)


def test_what_the_coarsest_scale_alone_sees_is_no_edge(side: Any, detail_loss: ModuleType) -> None:
    label = np.zeros((1, 8, 8), dtype=np.int64)
    label[0, 4, 4] = 1
    for dtype in ("float32", "float64"):
        side.backend.set_default_dtype(dtype)
        loss = detail_loss.DetailAggregateLoss(ignore_index=255)
        tensor = side.backend.to_tensor(label)
        coarsest = side.backend.to_numpy(loss.edges(tensor, stride=4))[0, 0]
        assert coarsest[4:, 4:].all()
        assert coarsest.sum() == 16
        # 0.6 and 0.3 are above 0.1, alone too; 0.1 is not
        target = _targets(side, loss, label)[0]
        expected = np.zeros((8, 8))
        expected[4:6, 4:6] = 1
        np.testing.assert_array_equal(target, expected)


def test_frame_and_void_make_edges_unless_told_not_to(side: Any, detail_loss: ModuleType) -> None:
    label = np.full((1, 16, 16), 2, dtype=np.int64)
    label[0, 8:, 8:] = 255
    build = detail_loss.DetailAggregateLoss
    published = _targets(side, build(ignore_index=255), label)[0]
    # zeros outside; only beside the void, which is higher still, the frame is none
    assert published[0].all()
    assert published[:, 0].all()
    assert published[:7, -1].all()
    assert published[7, 15] == 0
    assert published[8, 8:].all()
    frameless = _targets(side, build(ignore_index=255, ignore_frame=True), label)[0]
    # void still has the higher number
    assert frameless[8, 8:].all()
    assert frameless[:8, :].sum() == 0
    assert frameless[:, :8].sum() == 0
    voidless = _targets(side, build(ignore_index=255, ignore_void=True), label)[0]
    assert voidless[8:, 8:].sum() == 0
    assert voidless[0, :].all()
    neither = build(ignore_index=255, ignore_void=True, ignore_frame=True)
    assert _targets(side, neither, label).sum() == 0


def test_an_edge_between_classes_survives_both_options(side: Any, detail_loss: ModuleType) -> None:
    label = np.zeros((1, 8, 8), dtype=np.int64)
    label[0, :, 4:] = 1
    loss = detail_loss.DetailAggregateLoss(ignore_index=255, ignore_void=True, ignore_frame=True)
    target = _targets(side, loss, label)[0]
    assert target[:, 4].all()
    assert not target[:, :4].any()


def test_cross_entropy_and_dice_by_hand(side: Any, detail_loss: ModuleType) -> None:
    # two images; the border runs through the first one only
    label = np.zeros((2, 4, 4), dtype=np.int64)
    label[0, :, 3] = 1
    loss = detail_loss.DetailAggregateLoss(ignore_index=255)
    target = _targets(side, loss, label)
    assert target[0].sum() == 4
    assert target[0, :, 3].all()
    assert target[1].sum() == 0
    # probability 3/4 everywhere
    bce, dice, gradient = _terms(side, loss, np.full((2, 1, 4, 4), math.log(3.0)), label)
    assert bce == pytest.approx(-(4 * math.log(0.75) + 28 * math.log(0.25)) / 32, rel=1e-12)
    # per image: 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1); sums, not sums of squares
    first, second = 1 - (6 + 1) / (12 + 4 + 1), 1 - 1 / (12 + 1)
    assert dice == pytest.approx((first + second) / 2, rel=1e-12)
    # d bce / d logit = (p - t) / 32
    inside = gradient[1, 0] - 0.5 * (1 / 13**2) * 0.1875
    np.testing.assert_allclose(inside, np.full((4, 4), 0.75 / 32), rtol=1e-12)


def test_void_pixels_do_not_count_when_ignored(side: Any, detail_loss: ModuleType) -> None:
    label = np.zeros((1, 4, 8), dtype=np.int64)
    label[0, :, 4:] = 255
    loss = detail_loss.DetailAggregateLoss(ignore_index=255, ignore_void=True)
    logits = np.zeros((1, 1, 4, 8))
    logits[:, :, :, :4] = -math.log(3.0)
    logits[:, :, :, 4:] = 50.0
    bce, dice, gradient = _terms(side, loss, logits, label)
    assert bce == pytest.approx(-math.log(0.75), rel=1e-12)
    assert dice == pytest.approx(1 - 1 / (16 / 4 + 1), rel=1e-12)
    assert not gradient[:, :, :, 4:].any()
    # a batch without anything to count is 0, not NaN
    bce, dice, gradient = _terms(side, loss, logits, np.full((1, 4, 8), 255))
    assert (bce, dice) == (0.0, 0.0)
    assert not gradient.any()


def test_logits_are_enlarged_corner_to_corner(side: Any, detail_loss: ModuleType) -> None:
    label = np.zeros((1, 1, 5), dtype=np.int64)
    loss = detail_loss.DetailAggregateLoss(ignore_index=255)
    bce, _, _ = _terms(side, loss, np.array([[[[0.0, 4.0]]]]), label)
    # 0, 1, 2, 3, 4; with align_corners=False it would be 0, 0.2, 2, ...
    expected = np.log1p(np.exp(np.arange(5.0))).mean()
    assert bce == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "label"),
    [((2, 3, 4, 4), (2, 4, 4)), ((2, 1, 4, 4), (1, 4, 4)), ((2, 4, 4), (2, 4, 4))],
)
def test_shapes_that_do_not_fit_are_told(
    side: Any, detail_loss: ModuleType, logits: tuple[int, ...], label: tuple[int, ...]
) -> None:
    loss = detail_loss.DetailAggregateLoss(ignore_index=255)
    tensors = [
        side.backend.to_tensor(np.zeros(logits)),
        side.backend.to_tensor(np.zeros(label, int)),
    ]
    with pytest.raises(DataError, match=r"expected \(N, 1, h, w\) and \(N, H, W\)"):
        loss(*tensors)


def test_the_fusion_is_a_constant(side: Any, detail_loss: ModuleType) -> None:
    loss = detail_loss.DetailAggregateLoss(ignore_index=255)
    assert side.backend.trainable_parameters(loss) == {}
    fusion = side.backend.to_numpy(loss.fusion).ravel()
    np.testing.assert_array_equal(fusion, np.array([0.6, 0.3, 0.1], dtype=np.float32))
    tensor = side.backend.to_tensor(np.arange(64).reshape(1, 8, 8))
    bce, dice = loss(side.backend.leaf_tensor(np.zeros((1, 1, 8, 8))), tensor)
    (bce + dice).backward()
    np.testing.assert_array_equal(side.backend.to_numpy(loss.fusion).ravel(), fusion)


# ---- in the whole loss ------------------------------------------------------------------------
def test_options_reach_the_loss(side: Any) -> None:
    config = LossConfig(detail_ignore_void=True, detail_ignore_frame=True)
    detail = side.losses.build_loss(config, classes=3, ignore_index=9).detail
    assert (detail.ignore_index, detail.ignore_void, detail.ignore_frame) == (9, True, True)
    detail = side.losses.build_loss(LossConfig(), classes=3, ignore_index=9).detail
    assert (detail.ignore_void, detail.ignore_frame) == (False, False)


def test_a_boundary_needs_its_criterion(side: Any) -> None:
    loss = side.losses.SegmentationLoss(side.losses.CrossEntropy(ignore_index=255), head_weights={})
    outputs = {
        "main": side.backend.to_tensor(np.zeros((1, 3, 4, 4))),
        "boundary8": side.backend.to_tensor(np.zeros((1, 1, 4, 4))),
    }
    with pytest.raises(ConfigError, match="output boundary8 is a boundary"):
        loss(outputs, side.backend.to_tensor(np.zeros((1, 4, 4), dtype=np.int64)))
