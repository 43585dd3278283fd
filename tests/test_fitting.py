"""Checkpoints fitted to a network: all that differs is told; gammas folded; backbones alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from published_names import read_keys, small_checkpoint

from common.checkpoints import Checkpoint
from common.errors import WeightsError
from common.fitting import Structure, fit, inplace_abn_weights, plain_gamma
from common.published import recognise
from common.weight_names import is_batch_counter
from common.weights import read_checkpoint, write_weights

Array = NDArray[Any]


def _structure(*, abn: bool = False, classes: int = 3) -> Structure:
    shapes = {
        "cp.resnet.conv1.weight": (2, 3),
        "ffm.bn.weight": (2,),
        "ffm.bn.running_mean": (2,),
        "conv_out.conv_out.weight": (classes, 2, 1, 1),
        "conv_out.conv_out.bias": (classes,),
    }
    return Structure(
        model="bisenetv1",
        classes=classes,
        shapes=shapes,
        names=tuple(shapes),
        inplace_abn=frozenset({"ffm.bn.weight"} if abn else ()),
        class_dependent=frozenset({"conv_out.conv_out.weight", "conv_out.conv_out.bias"}),
    )


def _checkpoint(classes: int = 3, **others: Array) -> Checkpoint:
    arrays: dict[str, Array] = {
        "conv_out.conv_out.bias": np.zeros(classes, dtype=np.float32),
        "conv_out.conv_out.weight": np.zeros((classes, 2, 1, 1), dtype=np.float32),
        "ffm.bn.running_mean": np.zeros(2, dtype=np.float32),
        "ffm.bn.weight": np.array([0.5, -2.0], dtype=np.float32),
        "cp.resnet.conv1.weight": np.ones((2, 3), dtype=np.float32),
        **others,
    }
    return Checkpoint("w.pth", arrays, {})


def test_a_fit_is_in_model_order_and_untouched() -> None:
    given = _checkpoint()
    found = fit(given, _structure(), source_abn=frozenset())
    assert list(found.arrays) == list(_structure().shapes)
    assert all(found.arrays[name] is array for name, array in given.arrays.items())
    assert (found.folded, found.skipped, found.absent, found.notes) == ((), (), (), ())


def test_everything_that_differs_is_listed() -> None:
    given = _checkpoint(extra=np.zeros(4))
    del given.arrays["ffm.bn.weight"]
    given.arrays["cp.resnet.conv1.weight"] = np.zeros((3, 2))
    with pytest.raises(WeightsError) as caught:
        fit(given, _structure(), source_abn=None)
    text = str(caught.value)
    assert "missing: ffm.bn.weight, (2,)" in text
    assert "left over: extra, (4,)" in text
    assert "shape: cp.resnet.conv1.weight is (3, 2), the model has (2, 3)" in text
    assert len(text.splitlines()) == 4


def test_the_number_of_names_is_that_of_both_sides() -> None:
    given = _checkpoint(**{f"extra{n}": np.zeros(4) for n in range(7)})
    given.counters["ffm.bn.num_batches_tracked"] = np.array(3)
    given.counters["bogus.num_batches_tracked"] = np.array(3)
    # 5 of the model, 7 + 1 of the file alone, and a counter that fits
    with pytest.raises(WeightsError, match="8 of 14 names differ"):
        fit(given, _structure(), source_abn=None)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("bisenetv1_2020", "expected --model bisenetv1_fp16_2020, its plain twin"),
        ("stdc1", "no model here has plain BatchNorm in its place"),
    ],
)
def test_a_plain_twin_is_named_where_there_is_one(model: str, what: str) -> None:
    structure = replace(_structure(abn=True), model=model)
    with pytest.raises(WeightsError, match=what):
        fit(_checkpoint(), structure, source_abn=frozenset())


def test_another_number_of_classes_only_when_asked() -> None:
    with pytest.raises(WeightsError, match=r"conv_out\.conv_out\.bias is \(5,\)"):
        fit(_checkpoint(5), _structure(), source_abn=None)
    found = fit(_checkpoint(5), _structure(), source_abn=None, new_classes=True)
    assert found.skipped == (
        "conv_out.conv_out.weight, (5, 2, 1, 1), last layer",
        "conv_out.conv_out.bias, (5,), last layer",
    )
    assert found.absent == ("conv_out.conv_out.weight", "conv_out.conv_out.bias")
    # equal numbers: nothing is left out
    assert not fit(_checkpoint(3), _structure(), source_abn=None, new_classes=True).skipped
    # another width is no other number of classes
    wide = _checkpoint(5, **{"conv_out.conv_out.weight": np.zeros((5, 4, 1, 1))})
    with pytest.raises(WeightsError, match="shape"):
        fit(wide, _structure(), source_abn=None, new_classes=True)


def test_last_layers_may_all_be_absent_but_not_in_part() -> None:
    last = ("conv_out.conv_out.weight", "conv_out.conv_out.bias")
    given = _checkpoint()
    for name in last:
        del given.arrays[name]
    found = fit(given, _structure(), source_abn=None, new_classes=True)
    assert (found.absent, found.skipped) == (last, ())
    with pytest.raises(WeightsError, match=r"missing: conv_out\.conv_out\.weight"):
        fit(given, _structure(), source_abn=None)
    for classes in (3, 5):
        partly = _checkpoint(classes)
        del partly.arrays[last[1]]
        with pytest.raises(WeightsError, match=r"missing: conv_out\.conv_out\.bias, \(3,\)"):
            fit(partly, _structure(), source_abn=None, new_classes=True)
    del given.arrays["ffm.bn.weight"]
    with pytest.raises(WeightsError, match=r"missing: ffm\.bn\.weight"):
        fit(given, _structure(), source_abn=None, new_classes=True)


def test_gammas_are_folded_for_a_plain_model_only() -> None:
    abn = frozenset({"ffm.bn.weight"})
    found = fit(_checkpoint(), _structure(), source_abn=abn)
    assert found.folded == ("ffm.bn.weight",)
    gamma = found.arrays["ffm.bn.weight"]
    assert gamma.dtype == np.float32
    np.testing.assert_array_equal(gamma, np.array([0.50001, 2.00001], dtype=np.float32))
    raw = fit(_checkpoint(), _structure(abn=True), source_abn=abn)
    assert raw.folded == ()
    np.testing.assert_array_equal(raw.arrays["ffm.bn.weight"], np.float32([0.5, -2.0]))
    with pytest.raises(WeightsError, match=r"plain BatchNorm where bisenetv1 has InPlaceABN"):
        fit(_checkpoint(), _structure(abn=True), source_abn=frozenset())
    unknown = fit(_checkpoint(), _structure(abn=True), source_abn=None)
    assert "taken for InPlaceABN's" in unknown.notes[0]
    np.testing.assert_array_equal(unknown.arrays["ffm.bn.weight"], np.float32([0.5, -2.0]))


def test_folding_follows_the_original_layer(golden: Path) -> None:
    with np.load(golden / "inplace_abn_layer.npz") as file:
        layer = {key: file[key] for key in file}
    assert (layer["weight"] < 0).any()
    x, mean, var, weight, bias = (
        a if a.ndim == 4 else a[:, None, None]
        for a in (layer[k] for k in ("x", "running_mean", "running_var", "weight", "bias"))
    )
    y = (x - mean) / np.sqrt(var + 1e-5) * plain_gamma(weight) + bias
    # the original kernel holds eps as float32: 1.5e-12 off the formula in double precision
    np.testing.assert_allclose(y, layer["none/eval/y"], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "name", ["bisenetv1_2020", "bisenetv1_diss_2020", "stdc1", "stdc2", "bisestdc", "bisestdc2"]
)
def test_layers_of_inplace_abn_are_told_by_their_missing_counters(
    golden: Path, published_keys: Path, name: str
) -> None:
    with np.load(golden / "negative_gamma.npz") as file:
        layers = set(file[f"{name}/layers"].tolist())
    keys, _ = read_keys(published_keys, name)
    found = small_checkpoint(list(keys), counted=True)
    weights = inplace_abn_weights(found, recognise(found, model=""))
    assert weights is not None
    assert {weight.removesuffix(".weight") for weight in weights} == layers


@pytest.mark.parametrize("name", ["bisenetv1", "bisenetv1_fp16_2020", "bisenetv2"])
def test_plain_models_have_no_inplace_abn(published_keys: Path, name: str) -> None:
    keys, _ = read_keys(published_keys, name)
    found = small_checkpoint(list(keys), counted=True)
    assert inplace_abn_weights(found, recognise(found, model="")) == frozenset()
    bare = small_checkpoint([key for key in keys if not is_batch_counter(key)])
    assert inplace_abn_weights(bare, recognise(bare, model=name)) is None


# ---- backbones ----------------------------------------------------------------------------------
RESNET: dict[str, Array] = {
    "conv1.weight": np.ones((2, 3), dtype=np.float32),
    "bn1.weight": np.ones(2, dtype=np.float32),
    "bn1.running_mean": np.zeros(2, dtype=np.float32),
    "layer4.1.conv2.weight": np.zeros((2, 2, 1, 1), dtype=np.float32),
    "fc.weight": np.zeros((10, 2), dtype=np.float32),
    "fc.bias": np.zeros(10, dtype=np.float32),
}
V1_SHAPES = {
    "cp.resnet.conv1.weight": (2, 3),
    "cp.resnet.bn1.weight": (2,),
    "cp.resnet.bn1.running_mean": (2,),
    "cp.resnet.layer4.1.conv2.weight": (2, 2, 1, 1),
    "ffm.conv.weight": (2, 2, 1, 1),
}


def read_backbone(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    structure = Structure(
        model="bisenetv1",
        classes=2,
        shapes=shapes,
        names=tuple(shapes),
        inplace_abn=frozenset(),
        class_dependent=frozenset(),
    )
    return fit(read_checkpoint(path), structure, source_abn=None, backbone_only=True).arrays


@pytest.mark.parametrize("suffix", [".safetensors", ".pdparams"])
def test_an_imagenet_backbone_gets_its_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"resnet18{suffix}"
    write_weights(path, RESNET)
    found = read_backbone(path, V1_SHAPES)
    assert list(found) == [name for name in V1_SHAPES if name.startswith("cp.resnet.")]
    np.testing.assert_array_equal(found["cp.resnet.conv1.weight"], RESNET["conv1.weight"])


def test_a_backbone_is_taken_from_a_whole_network(tmp_path: Path) -> None:
    path = tmp_path / "v1.safetensors"
    whole = {name: np.full(shape, 2.0) for name, shape in V1_SHAPES.items()}
    write_weights(path, whole)
    assert list(read_backbone(path, V1_SHAPES)) == list(V1_SHAPES)[:4]


def test_a_backbone_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.safetensors"
    short = {name: array for name, array in RESNET.items() if name != "bn1.running_mean"}
    write_weights(path, {**short, "layer5.weight": np.zeros(1)})
    with pytest.raises(WeightsError) as caught:
        read_backbone(path, V1_SHAPES)
    text = str(caught.value)
    assert "missing: cp.resnet.bn1.running_mean" in text
    assert "left over: cp.resnet.layer5.weight" in text
    assert "ResNet18's ImageNet weights" in text


def test_the_unused_classifier_may_be_absent_but_not_in_part(tmp_path: Path) -> None:
    shapes = {
        "cp.backbone.features.0.conv.weight": (2, 3, 1, 1),
        "cp.backbone.conv_last.conv.weight": (2, 2, 1, 1),
        "cp.backbone.fc.weight": (4, 2),
        "cp.backbone.featuresSP.0.conv.weight": (1, 1, 1, 1),
        "cp.backbone.featuresSP.0.bn.weight": (1,),
        "ffm.convblk.conv.weight": (2, 2, 1, 1),
    }
    path = tmp_path / "w.pdparams"
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    write_weights(path, {n: a for n, a in arrays.items() if ".features." in n or ".fc." in n})
    assert list(read_backbone(path, shapes)) == [
        "cp.backbone.features.0.conv.weight",
        "cp.backbone.fc.weight",
    ]
    write_weights(path, {n: a for n, a in arrays.items() if "SP.0.bn" not in n})
    with pytest.raises(WeightsError, match=r"missing: cp\.backbone\.featuresSP\.0\.bn\.weight"):
        read_backbone(path, shapes)
