"""Files of any origin: unwrapped, recognised, renamed, fitted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.checkpoints import Checkpoint, checkpoint_from, with_aliases
from common.errors import WeightsError
from common.fitting import Structure, fit, inplace_abn_weights, plain_gamma
from common.published import UNKNOWN, recognise
from common.weight_names import is_batch_counter
from common.weights import read_checkpoint, write_weights

Array = NDArray[Any]

# published key list -> (our model or "" if its structure is not ours, words of the title)
PUBLISHED = {
    "bisenetv1": ("bisenetv1", "current"),
    "bisenetv1_2019": ("bisenetv1_2019", "2019"),
    "bisenetv1_2020": ("bisenetv1_2020", "2020, InPlaceABN"),
    "bisenetv1_diss_2020": ("bisenetv1_diss", "without spatial path, InPlaceABN"),
    "bisenetv1_fp16_2020": ("bisenetv1_fp16_2020", "fp16"),
    "bisenetv2": ("bisenetv2", "BiSeNetV2, current"),
    "bisenetv2_2020": ("bisenetv2_2020", "BiSeNetV2, 2020"),
    "bisestdc": ("bisestdc", "BiSeSTDC"),
    "bisestdc2": ("bisestdc2", "BiSeSTDC"),
    "paddleseg_bisenetv1": ("", "PaddleSeg's BiSeNetV1"),
    "paddleseg_bisenetv2": ("", "PaddleSeg's BiSeNetV2"),
    "paddleseg_stdc1": ("", "PaddleSeg's STDC1Seg"),
    "paddleseg_stdc2": ("", "PaddleSeg's STDC2Seg"),
    "stdc1": ("stdc1", "STDC1-Seg"),
    "stdc2": ("stdc2", "STDC2-Seg"),
}


def _small(names: list[str], *, counted: bool = False) -> Checkpoint:
    content = {name: np.zeros(1, dtype=np.float32) for name in names}
    return checkpoint_from(content, where="w.pth", counted=counted)


def _read_keys(folder: Path, name: str) -> tuple[dict[str, list[int]], dict[str, str]]:
    content = json.loads((folder / f"{name}.json").read_text())
    return content["keys"], content.get("aliases", {})


# ---- what the file holds ------------------------------------------------------------------------
FLAT: dict[str, Array] = {"a.weight": np.arange(3.0), "a.num_batches_tracked": np.array(5)}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (FLAT, ""),
        ({"state_dict": FLAT, "epoch": 3}, "unwrapped 'state_dict'; beside it: epoch"),
        ({"model_state": FLAT}, "unwrapped 'model_state'"),
        ({"model": {"state_dict": FLAT}}, "unwrapped 'state_dict'"),
        ({f"module.{k}": v for k, v in FLAT.items()}, "removed the prefix 'module.'"),
        ({"model": {f"module.{k}": v for k, v in FLAT.items()}}, "removed the prefix 'module.'"),
        ({f"module.model.{k}": v for k, v in FLAT.items()}, "removed the prefix 'model.'"),
        ({**FLAT, "StructuredToParameterName@@": {"a.weight": "w_0"}}, ""),
    ],
)
def test_wrappers_come_off(content: Any, note: str) -> None:
    found = checkpoint_from(content, where="w")
    assert list(found.arrays) == ["a.weight"]
    np.testing.assert_array_equal(found.arrays["a.weight"], [0, 1, 2])
    assert list(found.counters) == ["a.num_batches_tracked"]
    assert note in "; ".join(found.notes)
    assert bool(note) == bool(found.notes)


def test_state_dicts_of_children_are_joined() -> None:
    child = {"S1.weight": np.zeros(1)}
    found = checkpoint_from({"detail": child, "segment": child}, where="w")
    assert list(found.arrays) == ["detail.S1.weight", "segment.S1.weight"]
    assert found.notes == ("joined the state dicts of detail, segment",)


def test_a_prefix_of_some_names_stays() -> None:
    found = checkpoint_from({"module.a": np.zeros(1), "b": np.zeros(1)}, where="w")
    assert list(found.arrays) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds no weights"),
        ({"state_dict": {}}, "holds no weights"),
        (
            {"a": 1, "b": "x", "c": np.zeros(1)},
            r"2 of 3 entries are no arrays(.|\n)*a: int\n  b: str",
        ),
        ({"model": FLAT, "state_dict": FLAT}, "several state dicts"),
        ({"a": np.zeros(2, dtype=np.int64), "b": np.array(["x"])}, r"a: int64\n  b: <U1"),
        ({"a": np.zeros(1), "UnpackBigParamInfor@@": {}}, "protocol=4"),
    ],
)
def test_what_is_no_state_dict_is_named(content: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        checkpoint_from(content, where="w.pth")
    assert str(caught.value).startswith("w.pth: ")


def test_paddle_names_that_become_one_are_an_error() -> None:
    content = {"bn._mean": np.zeros(1), "bn.running_mean": np.zeros(1)}
    with pytest.raises(WeightsError, match=r"two entries are both bn\.running_mean"):
        checkpoint_from(content, where="w", paddle=True)


# ---- second names -------------------------------------------------------------------------------
def test_second_names_agree_or_fail() -> None:
    content = {
        "cp.backbone.features.2.conv.weight": np.ones(2),
        "cp.backbone.x8.0.2.conv.weight": np.ones(2),
        "cp.backbone.SPx4.0.1.conv.weight": np.zeros(2),
    }
    found = checkpoint_from(content, where="w")
    assert list(found.arrays) == [
        "cp.backbone.features.2.conv.weight",
        "cp.backbone.featuresSP.1.conv.weight",
    ]
    assert found.notes == ("2 second names of backbone tensors agree with the first",)
    content["cp.backbone.x8.0.2.conv.weight"] = np.array([1.0, 1.5])
    with pytest.raises(WeightsError, match=r"x8\.0\.2\.conv\.weight differs from .*features\.2"):
        checkpoint_from(content, where="w")


def test_second_names_are_put_back() -> None:
    blocks = ("2.avd_layer.0", "3.conv", "4.avd_layer.0", "5.conv", "6.avd_layer.0", "7.conv")
    arrays = {f"features.{b}.weight": np.zeros(1) for b in ("0.conv", "1.conv", *blocks)}
    found = list(with_aliases({**arrays, "head": np.zeros(1)}))
    assert found[:8] == list(arrays)
    stages = (2, 4, 8, 8, 16, 16, 32, 32)
    expected = [
        f"x{s}.0.{n.removeprefix('features.')}" for s, n in zip(stages, arrays, strict=True)
    ]
    # a backbone alone has no prefix, and takes its second names at the end
    assert found[8:] == ["head", *expected]
    assert with_aliases({"conv.weight": np.zeros(1)}).keys() == {"conv.weight"}


@pytest.mark.parametrize("name", ["stdc1", "stdc2", "bisestdc", "bisestdc2"])
def test_published_names_come_and_go(published_keys: Path, name: str) -> None:
    keys, aliases = _read_keys(published_keys, name)
    own = {key: np.zeros(1) for key in keys if key not in aliases}
    both = with_aliases(own)
    assert list(both) == list(keys)
    assert all(both[alias] is both[owner] for alias, owner in aliases.items())
    found = checkpoint_from({k: v.astype(np.float64) for k, v in both.items()}, where="w")
    assert found.arrays.keys() | found.counters.keys() == own.keys()


# ---- recognition --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_file_is_recognised(published_keys: Path, name: str) -> None:
    keys, _ = _read_keys(published_keys, name)
    model, title = PUBLISHED[name]
    paddle = name.startswith("paddleseg")
    content = {key: np.zeros(1) for key in keys}
    found = checkpoint_from(content, where="w", paddle=paddle, counted=not paddle)
    origin = recognise(found, model="")
    assert title in origin.title
    assert (model in origin.models) if model else (origin.models == () and origin.remark)
    # under canonical names alone, the model that is asked for decides
    bare = _small([key for key in keys if not is_batch_counter(key)])
    if not paddle:
        assert model in recognise(bare, model=model).models


@pytest.mark.parametrize(
    ("names", "counted", "models", "title"),
    [
        (
            ["conv1.weight", "bn1.weight", "layer4.1.conv2.weight", "fc.weight"],
            True,
            None,
            "ResNet",
        ),
        (["features.0.conv.weight", "features.2.conv_list.0.conv.weight"], True, None, "STDC1's"),
        (
            ["features.0.conv.weight", "features.13.conv_list.0.conv.weight"],
            True,
            ("stdc2",),
            "STDC2's",
        ),
        (
            ["detail.S1.0.conv.weight", "segment.S1S2.conv.conv.weight"],
            True,
            None,
            "BiSeNetV2's backbone",
        ),
        (
            [
                "cp.resnet.conv1.weight",
                "cp.resnet.bn1.num_batches_tracked",
                "sp.conv1.conv.weight",
                "ffm.conv1.weight",
                "conv_out.conv_out.bias",
            ],
            True,
            (),
            "old fusion module",
        ),
        (["something.weight"], True, (), UNKNOWN.title),
        (
            ["cp.resnet.conv1.weight", "ffm.conv1.weight", "cp.resnet.bn1.num_batches_tracked"],
            True,
            ("bisenetv1_diss_bn",),
            "face-parsing",
        ),
    ],
)
def test_other_files_are_recognised(
    names: list[str], counted: bool, models: Any, title: str
) -> None:
    origin = recognise(_small(names, counted=counted), model="")
    assert title in origin.title
    assert models is None or origin.models == models


@pytest.mark.parametrize(
    ("name", "models", "titles"),
    [
        ("bisenetv1_2020", ("bisenetv1_2020", "bisenetv1_fp16_2020"), ("InPlaceABN", "fp16")),
        (
            "bisenetv1_diss_2020",
            ("bisenetv1_diss", "bisenetv1_diss_bn"),
            ("InPlaceABN", "face-parsing"),
        ),
    ],
)
def test_twins_are_both_named_where_nothing_tells_them_apart(
    published_keys: Path, name: str, models: tuple[str, str], titles: tuple[str, str]
) -> None:
    keys, _ = _read_keys(published_keys, name)
    bare = _small([key for key in keys if not is_batch_counter(key)])
    for model in models:
        origin = recognise(bare, model=model)
        assert origin.models == (model,)
        assert all(title in origin.title for title in titles)
        # the file tells: its own name for the model, or its counters
        told = recognise(replace(bare, model=models[0]), model=model)
        assert told.models == models[:1]
        assert titles[0] in told.title
        assert titles[1] not in told.title
    counted = recognise(_small(list(keys), counted=True), model=models[1])
    assert titles[1] not in counted.title


@pytest.mark.parametrize("size", ["stdc1", "stdc2"])
@pytest.mark.parametrize("model", ["", "stdc1", "stdc2", "bisestdc"])
def test_names_of_another_structure_decide_before_the_model(
    published_keys: Path, size: str, model: str
) -> None:
    keys, _ = _read_keys(published_keys, f"paddleseg_{size}")
    found = checkpoint_from({key: np.zeros(1) for key in keys}, where="w", paddle=True)
    assert recognise(found, model=model).title == f"PaddleSeg's {size.upper()}Seg"


# ---- fitting ------------------------------------------------------------------------------------
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
    keys, _ = _read_keys(published_keys, name)
    found = _small(list(keys), counted=True)
    weights = inplace_abn_weights(found, recognise(found, model=""))
    assert weights is not None
    assert {weight.removesuffix(".weight") for weight in weights} == layers


@pytest.mark.parametrize("name", ["bisenetv1", "bisenetv1_fp16_2020", "bisenetv2"])
def test_plain_models_have_no_inplace_abn(published_keys: Path, name: str) -> None:
    keys, _ = _read_keys(published_keys, name)
    found = _small(list(keys), counted=True)
    assert inplace_abn_weights(found, recognise(found, model="")) == frozenset()
    bare = _small([key for key in keys if not is_batch_counter(key)])
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
