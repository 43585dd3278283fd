"""``bisenet convert`` of whole networks: totality, round trips, folding, numbers of classes."""

import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conversions import COMPARE, converted, expected_arrays, job, run_strictly

from common.weights import read_checkpoint, read_weights, write_weights


@pytest.mark.parametrize("model", ["bisenetv2", "stdc1"])
def test_round_trips_are_exact(published: Path, tmp_path: Path, model: str) -> None:
    source = published / f"{model}.pth"
    steps = [source, *(tmp_path / n for n in ("a.safetensors", "b.pdparams", "c.pth"))]
    steps += [tmp_path / n for n in ("d.pdparams", "e.safetensors")]
    results = converted(*(job(a, b, model) for a, b in pairwise(steps)))
    expected = expected_arrays(published, model)
    for result in results:
        assert "error" not in result, result["error"]
        assert result["tensors"] == len(expected)
        assert not result["skipped"] + result["absent"] + result["folded"]
    for path in (steps[1], steps[2], steps[4], steps[5]):
        found = read_weights(path)
        assert found.keys() == expected.keys()
        assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())
    # names, order, dtypes and second names are the published file's again
    run_strictly(COMPARE, str(source), str(steps[3]))
    assert read_checkpoint(steps[5]).model == model


def test_every_published_model_is_read(published_keys: Path, tmp_path: Path) -> None:
    """Key lists of the originals, not of ours: nothing missing, nothing left over."""
    models = {"bisenetv1_diss_2020": "bisenetv1_diss"}
    skip = ("paddleseg",)
    names = [p.stem for p in sorted(published_keys.glob("*.json")) if not p.stem.startswith(skip)]
    make = """
import json, sys, torch
for name in sys.argv[3:]:
    content = json.load(open(f"{sys.argv[1]}/{name}.json"))
    zero = {s: torch.zeros(s) for s in {tuple(shape) for shape in content["keys"].values()}}
    state = {key: zero[tuple(shape)] for key, shape in content["keys"].items()}
    state = {"module." + key: tensor for key, tensor in state.items()}
    torch.save({"state_dict": state}, f"{sys.argv[2]}/{name}.pth")
"""
    run_strictly(make, str(published_keys), str(tmp_path), *names)
    results = converted(
        *(job(tmp_path / f"{n}.pth", tmp_path / f"{n}.pdparams", models.get(n, n)) for n in names)
    )
    for name, result in zip(names, results, strict=True):
        assert "error" not in result, f"{name}: {result['error']}"
        assert "removed the prefix 'module.'" in result["notes"]
        assert not result["folded"] + result["skipped"] + result["absent"]
    # InPlaceABN written out for the plain twin, with a word about the activation
    (fold,) = converted(
        job(tmp_path / "bisenetv1_2020.pth", tmp_path / "x.pdparams", "bisenetv1_fp16_2020")
    )
    assert len(fold["folded"]) == 35
    assert any("LeakyReLU" in note for note in fold["notes"])
    found = read_weights(tmp_path / "x.pdparams")
    assert set(found["ffm.convblk.bn.weight"].tolist()) == {float(np.float32(1e-5))}
    assert not found["ffm.convblk.bn.bias"].any()


def test_what_is_left_out_is_listed(published: Path, tmp_path: Path) -> None:
    source = published / "bisenetv1_diss.pth"
    wrong, more, backbone, plain = converted(
        job(source, tmp_path / "a.safetensors", "bisenetv1"),
        job(source, tmp_path / "b.safetensors", "bisenetv1_diss", classes=4),
        job(source, tmp_path / "c.pdparams", "bisenetv1_diss", backbone_only=True),
        job(source, tmp_path / "d.pth", "bisenetv1_diss_bn"),
    )
    assert "expected --model bisenetv1_diss, got bisenetv1" in wrong["error"]
    assert "missing: sp.conv1.conv.weight, (64, 3, 7, 7)" in wrong["error"]
    assert "left over: ffm.conv2.weight" in wrong["error"]
    assert not (tmp_path / "a.safetensors").exists()

    heads = [f"{head}.conv_out.weight" for head in ("conv_out", "conv_out16", "conv_out32")]
    assert more["absent"] == heads
    assert [line.partition(",")[0] for line in more["skipped"]] == heads
    assert all(name in more["text"] for name in heads)
    assert read_weights(tmp_path / "b.safetensors").keys().isdisjoint(heads)

    found = read_weights(tmp_path / "c.pdparams")
    expected = expected_arrays(published, "bisenetv1_diss")
    resnet = [name for name in expected if name.startswith("cp.resnet.")]
    assert list(found) == resnet
    assert len(backbone["skipped"]) == len(expected) - len(resnet) == len(backbone["absent"])

    assert len(plain["folded"]) == 31
    assert any("LeakyReLU" in note for note in plain["notes"])


@pytest.mark.parametrize("model", ["bisenetv1_diss", "stdc1", "bisenetv2"])
def test_what_has_no_last_layers_is_read_again(published: Path, tmp_path: Path, model: str) -> None:
    a, b, c = (tmp_path / n for n in ("a.safetensors", "b.pdparams", "c.pth"))
    d = tmp_path / "d.safetensors"
    first, *results = converted(
        job(published / f"{model}.pth", a, model, classes=7),
        *(job(x, y, model, classes=7) for x, y in pairwise([a, b, c, d])),
    )
    expected = expected_arrays(published, model)
    assert (
        len(first["absent"])
        == len(first["skipped"])
        == sum(array.shape[0] == 19 for array in expected.values())
    )
    for result in results:
        assert "error" not in result, result["error"]
        assert (result["absent"], result["skipped"]) == (first["absent"], [])
        assert result["tensors"] == len(expected) - len(first["absent"])
    for path in (a, b, d):
        found = read_weights(path)
        assert found.keys() == expected.keys() - set(first["absent"])
        assert all(array.tobytes() == expected[name].tobytes() for name, array in found.items())
    # some of them only, and the whole model asked for
    some = first["absent"][:-1]
    write_weights(d, read_weights(a) | {name: expected[name][:7] for name in some}, model=model)
    partly, total = converted(
        job(d, tmp_path / "e.pdparams", model, classes=7), job(a, tmp_path / "f.pth", model)
    )
    assert f"missing: {first['absent'][-1]}, " in partly["error"]
    assert partly["error"].count("missing: ") == 1
    assert all(f"missing: {name}, " in total["error"] for name in first["absent"])
    assert not {"e.pdparams", "f.pth"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_the_fold_is_the_same_in_two_steps(published: Path, tmp_path: Path, suffix: str) -> None:
    source = published / "bisenetv1_diss.pth"
    own = tmp_path / f"own{suffix}"
    at_once, _, later, twice, back = converted(
        job(source, tmp_path / "a.pth", "bisenetv1_diss_bn"),
        job(source, own, "bisenetv1_diss"),
        job(own, tmp_path / "b.pth", "bisenetv1_diss_bn"),
        job(tmp_path / "b.pth", tmp_path / f"c{suffix}", "bisenetv1_diss_bn"),
        job(tmp_path / f"c{suffix}", tmp_path / "d.pth", "bisenetv1_diss_bn"),
    )
    assert later["folded"] == at_once["folded"]
    assert len(later["folded"]) == 31
    assert "InPlaceABN" in later["title"]
    assert "plain BatchNorm" not in later["title"]
    # what is folded is not folded again
    assert twice["folded"] == back["folded"] == []
    for name in ("b.pth", "d.pth"):
        run_strictly(COMPARE, str(tmp_path / "a.pth"), str(tmp_path / name))


def test_a_file_that_does_not_tell_is_claimed_for_neither(published: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pdparams"
    write_weights(foreign, expected_arrays(published, "bisenetv1_diss"))
    (result,) = converted(job(foreign, tmp_path / "x.pth", "bisenetv1_diss_bn"))
    recognised = result["text"].splitlines()[1]
    assert "plain BatchNorm" in recognised
    assert "InPlaceABN" in recognised
    assert any("does not tell" in note for note in result["notes"])


def test_weights_of_paddleseg_say_how_they_differ(published_keys: Path, tmp_path: Path) -> None:
    keys = json.loads((published_keys / "paddleseg_stdc1.json").read_text())["keys"]
    source = tmp_path / "model.pdparams"
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in keys.items()}
    source.write_bytes(pickle.dumps(arrays, protocol=4))
    whole, backbone = converted(
        job(source, tmp_path / "a.pdparams", "stdc1"),
        job(source, tmp_path / "b.pdparams", "stdc1", backbone_only=True),
    )
    assert "PaddleSeg's STDC1Seg" in whole["error"]
    assert "average pooling that leaves out the border" in whole["error"]
    assert "MichaelFan01" not in whole["error"]
    assert "error" not in backbone, backbone["error"]
    assert "PaddleSeg's STDC1Seg" in backbone["title"]
    (note,) = [n for n in backbone["notes"] if "average pooling" in n]
    assert f"note:       {note}" in backbone["text"]
    found = read_weights(tmp_path / "b.pdparams")
    assert found
    assert all(name.startswith("cp.backbone.") for name in found)


def test_the_number_of_classes_is_the_files(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "v2.safetensors"
    arrays = expected_arrays(published, "bisenetv2")
    last = {name: array[:7] for name, array in arrays.items() if array.shape[0] == 19}
    assert len(last) == 10
    arrays |= last
    write_weights(path, arrays)
    (result,) = converted(job(path, tmp_path / "v2.pth", "bisenetv2"))
    assert result["classes"] == 7
    assert result["tensors"] == len(arrays)


@pytest.mark.parametrize("classes", [0, 10**12])
def test_an_impossible_number_of_classes_is_refused(
    published: Path, tmp_path: Path, classes: int
) -> None:
    """Claims of a file: arrays without a number, of any shape with a zero in it."""
    arrays = expected_arrays(published, "bisenetv2")
    for name, array in arrays.items():
        if array.shape[0] == 19:
            shape = (classes, *(0 for _ in array.shape[1:])) if array.ndim > 1 else (0,)
            arrays[name] = np.zeros(shape, dtype=np.float32)
    if classes:
        arrays = {name: a for name, a in arrays.items() if a.size or a.ndim > 1}
    source = tmp_path / "w.safetensors"
    write_weights(source, arrays)
    results = converted(
        job(source, tmp_path / "out.pth", "bisenetv2"),
        job(source, tmp_path / "out.pth", "bisenetv2", classes=4),
    )
    for result in results:
        assert f"its last layers are for {classes} classes; expected 1 to 65536" in result["error"]
    assert not (tmp_path / "out.pth").exists()


def test_plain_twins_differ_in_their_norms_alone() -> None:
    check = """
from common.fitting import PLAIN_TWINS
from for_torch.checkpoints import model_structure
from for_torch.models import MODELS
own = {name: model_structure(name, classes=3) for name in MODELS}
for name, one in own.items():
    twins = [o.model for o in own.values() if o.shapes == one.shapes and not o.inplace_abn]
    assert PLAIN_TWINS.get(name) == (twins[0] if one.inplace_abn and twins else None), name
"""
    run_strictly(check)


def test_stdc_imagenet_weights_become_a_backbone(published: Path, tmp_path: Path) -> None:
    """A .tar with 'state_dict', second names and no prefix, for a model with more to it."""
    make = """
import sys, torch
whole = torch.load(sys.argv[1], weights_only=True)
start = "cp.backbone."
state = {k.removeprefix(start): v for k, v in whole.items() if k.startswith(start)}
torch.save({"state_dict": state, "epoch": 1}, sys.argv[2])
"""
    source = tmp_path / "STDCNet813M.tar"
    run_strictly(make, str(published / "stdc1.pth"), str(source))
    stdc, bise, whole, v1 = converted(
        job(source, tmp_path / "a.pdparams", "stdc1", backbone_only=True),
        job(source, tmp_path / "b.safetensors", "bisestdc", backbone_only=True),
        job(source, tmp_path / "c.safetensors", "stdc1"),
        job(source, tmp_path / "d.safetensors", "bisenetv1", backbone_only=True),
    )
    assert "STDC1's ImageNet weights" in stdc["title"]
    assert not stdc["skipped"]
    assert all(not name.startswith("cp.backbone.") for name in stdc["absent"])
    found = read_weights(tmp_path / "a.pdparams")
    expected = expected_arrays(published, "stdc1")
    assert list(found) == [name for name in expected if name.startswith("cp.backbone.")]
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    missing = [n for n in bise["absent"] if n.startswith("cp.backbone.")]
    assert {".".join(n.split(".")[:3]) for n in missing} == {
        "cp.backbone.featuresSP",
        "cp.backbone.ffm",
    }
    assert "pass --backbone-only" in whole["error"]
    assert "expected --model stdc1" in v1["error"]


def test_the_public_face_parsing_checkpoint(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "face_parsing" / "79999_iter.pth"
    paths = [tmp_path / n for n in ("a.safetensors", "b.pdparams", "c.pth")]
    results = converted(*(job(a, b, "bisenetv1_diss_bn") for a, b in pairwise([source, *paths])))
    for result in results:
        assert "error" not in result, result["error"]
        assert result["tensors"] == 160
    assert "face-parsing" in results[0]["title"]
    assert results[0]["counters"] == 31
    assert run_strictly(COMPARE, str(source), str(paths[2])).strip() == "191"
