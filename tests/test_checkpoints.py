"""Files of any origin: unwrapped, recognised, renamed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from published_names import read_keys, small_checkpoint

from common.checkpoints import checkpoint_from, with_aliases
from common.errors import WeightsError
from common.published import UNKNOWN, recognise
from common.weight_names import is_batch_counter

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
    keys, aliases = read_keys(published_keys, name)
    own = {key: np.zeros(1) for key in keys if key not in aliases}
    both = with_aliases(own)
    assert list(both) == list(keys)
    assert all(both[alias] is both[owner] for alias, owner in aliases.items())
    found = checkpoint_from({k: v.astype(np.float64) for k, v in both.items()}, where="w")
    assert found.arrays.keys() | found.counters.keys() == own.keys()


# ---- recognition --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_file_is_recognised(published_keys: Path, name: str) -> None:
    keys, _ = read_keys(published_keys, name)
    model, title = PUBLISHED[name]
    paddle = name.startswith("paddleseg")
    content = {key: np.zeros(1) for key in keys}
    found = checkpoint_from(content, where="w", paddle=paddle, counted=not paddle)
    origin = recognise(found, model="")
    assert title in origin.title
    assert (model in origin.models) if model else (origin.models == () and origin.remark)
    # under canonical names alone, the model that is asked for decides
    bare = small_checkpoint([key for key in keys if not is_batch_counter(key)])
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
    origin = recognise(small_checkpoint(names, counted=counted), model="")
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
    keys, _ = read_keys(published_keys, name)
    bare = small_checkpoint([key for key in keys if not is_batch_counter(key)])
    for model in models:
        origin = recognise(bare, model=model)
        assert origin.models == (model,)
        assert all(title in origin.title for title in titles)
        # the file tells: its own name for the model, or its counters
        told = recognise(replace(bare, model=models[0]), model=model)
        assert told.models == models[:1]
        assert titles[0] in told.title
        assert titles[1] not in told.title
    counted = recognise(small_checkpoint(list(keys), counted=True), model=models[1])
    assert titles[1] not in counted.title


@pytest.mark.parametrize("size", ["stdc1", "stdc2"])
@pytest.mark.parametrize("model", ["", "stdc1", "stdc2", "bisestdc"])
def test_names_of_another_structure_decide_before_the_model(
    published_keys: Path, size: str, model: str
) -> None:
    keys, _ = read_keys(published_keys, f"paddleseg_{size}")
    found = checkpoint_from({key: np.zeros(1) for key in keys}, where="w", paddle=True)
    assert recognise(found, model=model).title == f"PaddleSeg's {size.upper()}Seg"
