"""``bisenet convert``: totality, round trips, and files made by the real torch.

The conversions run in processes of their own: they load torch, this one stays without.
"""

import json
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import WeightsError
from common.weights import read_checkpoint, read_weights, write_weights
from pipeline.convert import ConversionReport

ROOT = Path(__file__).resolve().parent.parent

CONVERT = """
import json, sys
from pathlib import Path
from common.errors import InputError
from pipeline.convert import convert
out = []
for job in json.loads(sys.argv[1]):
    source, target = Path(job.pop("source")), Path(job.pop("target"))
    try:
        report = convert(source, target, **job)
    except InputError as error:
        out.append({"error": str(error)})
    else:
        out.append({
            "text": report.text(), "title": report.origin.title, "classes": report.classes,
            "tensors": report.tensors, "folded": report.folded, "skipped": report.skipped,
            "absent": report.absent, "notes": report.notes, "counters": report.counters,
        })
print(json.dumps([out, "paddle" in sys.modules]))
"""

# a published-like checkpoint of every model asked for: the model's own names, random numbers,
# counters, negative weights of InPlaceABN, second names of STDC; and its canonical arrays
PUBLISH = """
import sys
import numpy as np
import torch
from common.checkpoints import with_aliases
from common.weights import write_weights
from for_torch.checkpoints import write_own
from for_torch.models import build_model
from pathlib import Path
folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    rng = np.random.default_rng(0)
    state = {}
    for key, tensor in build_model(name, classes=19).state_dict().items():
        counter = key.endswith("num_batches_tracked")
        drawn = rng.standard_normal(tuple(tensor.shape), dtype=np.float32)
        state[key] = np.array(7, dtype=np.int64) if counter else drawn
    write_own(folder / f"{name}.pth", with_aliases(state))
    np.savez(folder / f"{name}.npz", **state)
"""

COMPARE = """
import sys
import torch
one, other = (
    torch.load(path, map_location="cpu", weights_only=True) for path in sys.argv[1:]
)
assert list(one) == list(other), set(one) ^ set(other)
for name, tensor in one.items():
    assert tensor.dtype == other[name].dtype, name
    if not name.endswith("num_batches_tracked"):
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name
print(len(one))
"""

CRAFTED = """
import os, pickle, sys, warnings
import torch
folder = sys.argv[1] + "/"

class Runs:
    def __reduce__(self):
        return os.system, ("touch " + folder + "witness",)

torch.save({"w": torch.zeros(1), "x": Runs()}, folder + "evil.pth")
torch.save(torch.nn.Linear(1, 1), folder + "module.pth")
torch.save({"w": torch.zeros(1)}, folder + "old.pth", _use_new_zipfile_serialization=False)
torch.save({"state_dict": {"module.w": torch.zeros(2, dtype=torch.bfloat16)}}, folder + "bf16.pth")
torch.save([1, 2], folder + "list.pth")
whole = open(folder + "old.pth", "rb").read()
open(folder + "old_cut.pth", "wb").write(whole[: len(whole) // 2])
torch.save({"w": torch.zeros(100)}, folder + "new.pth")
whole = open(folder + "new.pth", "rb").read()
open(folder + "new_cut.pth", "wb").write(whole[: len(whole) // 2])
torch.save({"net": {"w": torch.zeros(2).to(torch.float8_e4m3fn)}}, folder + "float8.pth")
torch.save({"w": torch.zeros(1).expand(10**12, 1)}, folder + "huge.pth")
torch.save({"w": torch.zeros(1, dtype=torch.bfloat16).expand(10**12)}, folder + "huge_bf16.pth")
ring = {}
ring["model"] = ring
torch.save(ring, folder + "ring.pth")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.jit.script(torch.nn.Linear(1, 1)).save(folder + "script.pth")
open(folder + "empty.pth", "wb").close()
open(folder + "text.pth", "w").write("<html>not found</html>")
"""


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _convert(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert in one fresh process; Paddle is never loaded."""
    results, paddle_loaded = json.loads(_run(CONVERT, json.dumps(jobs, default=str)))
    assert not paddle_loaded
    return results


def _job(source: Path, target: Path, model: str, **options: Any) -> dict[str, Any]:
    return {"source": source, "target": target, "model": model, **options}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    _run(PUBLISH, str(folder), "bisenetv1_diss", "stdc1", "bisenetv2")
    return folder


def _expected(published: Path, model: str) -> dict[str, Any]:
    with np.load(published / f"{model}.npz") as file:
        return {k: file[k] for k in file if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("model", ["bisenetv2", "stdc1"])
def test_round_trips_are_exact(published: Path, tmp_path: Path, model: str) -> None:
    source = published / f"{model}.pth"
    steps = [source, *(tmp_path / n for n in ("a.safetensors", "b.pdparams", "c.pth"))]
    steps += [tmp_path / n for n in ("d.pdparams", "e.safetensors")]
    results = _convert(*(_job(a, b, model) for a, b in pairwise(steps)))
    expected = _expected(published, model)
    for result in results:
        assert "error" not in result, result["error"]
        assert result["tensors"] == len(expected)
        assert not result["skipped"] + result["absent"] + result["folded"]
    for path in (steps[1], steps[2], steps[4], steps[5]):
        found = read_weights(path)
        assert found.keys() == expected.keys()
        assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())
    # names, order, dtypes and second names are the published file's again
    _run(COMPARE, str(source), str(steps[3]))
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
    _run(make, str(published_keys), str(tmp_path), *names)
    results = _convert(
        *(_job(tmp_path / f"{n}.pth", tmp_path / f"{n}.pdparams", models.get(n, n)) for n in names)
    )
    for name, result in zip(names, results, strict=True):
        assert "error" not in result, f"{name}: {result['error']}"
        assert "removed the prefix 'module.'" in result["notes"]
        assert not result["folded"] + result["skipped"] + result["absent"]
    # InPlaceABN written out for the plain twin, with a word about the activation
    (fold,) = _convert(
        _job(tmp_path / "bisenetv1_2020.pth", tmp_path / "x.pdparams", "bisenetv1_fp16_2020")
    )
    assert len(fold["folded"]) == 35
    assert any("LeakyReLU" in note for note in fold["notes"])
    found = read_weights(tmp_path / "x.pdparams")
    assert set(found["ffm.convblk.bn.weight"].tolist()) == {float(np.float32(1e-5))}
    assert not found["ffm.convblk.bn.bias"].any()


def test_what_is_left_out_is_listed(published: Path, tmp_path: Path) -> None:
    source = published / "bisenetv1_diss.pth"
    wrong, more, backbone, plain = _convert(
        _job(source, tmp_path / "a.safetensors", "bisenetv1"),
        _job(source, tmp_path / "b.safetensors", "bisenetv1_diss", classes=4),
        _job(source, tmp_path / "c.pdparams", "bisenetv1_diss", backbone_only=True),
        _job(source, tmp_path / "d.pth", "bisenetv1_diss_bn"),
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
    expected = _expected(published, "bisenetv1_diss")
    resnet = [name for name in expected if name.startswith("cp.resnet.")]
    assert list(found) == resnet
    assert len(backbone["skipped"]) == len(expected) - len(resnet) == len(backbone["absent"])

    assert len(plain["folded"]) == 31
    assert any("LeakyReLU" in note for note in plain["notes"])


@pytest.mark.parametrize("model", ["bisenetv1_diss", "stdc1", "bisenetv2"])
def test_what_has_no_last_layers_is_read_again(published: Path, tmp_path: Path, model: str) -> None:
    a, b, c = (tmp_path / n for n in ("a.safetensors", "b.pdparams", "c.pth"))
    d = tmp_path / "d.safetensors"
    first, *results = _convert(
        _job(published / f"{model}.pth", a, model, classes=7),
        *(_job(x, y, model, classes=7) for x, y in pairwise([a, b, c, d])),
    )
    expected = _expected(published, model)
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
    partly, total = _convert(
        _job(d, tmp_path / "e.pdparams", model, classes=7), _job(a, tmp_path / "f.pth", model)
    )
    assert f"missing: {first['absent'][-1]}, " in partly["error"]
    assert partly["error"].count("missing: ") == 1
    assert all(f"missing: {name}, " in total["error"] for name in first["absent"])
    assert not {"e.pdparams", "f.pth"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_the_fold_is_the_same_in_two_steps(published: Path, tmp_path: Path, suffix: str) -> None:
    source = published / "bisenetv1_diss.pth"
    own = tmp_path / f"own{suffix}"
    at_once, _, later, twice, back = _convert(
        _job(source, tmp_path / "a.pth", "bisenetv1_diss_bn"),
        _job(source, own, "bisenetv1_diss"),
        _job(own, tmp_path / "b.pth", "bisenetv1_diss_bn"),
        _job(tmp_path / "b.pth", tmp_path / f"c{suffix}", "bisenetv1_diss_bn"),
        _job(tmp_path / f"c{suffix}", tmp_path / "d.pth", "bisenetv1_diss_bn"),
    )
    assert later["folded"] == at_once["folded"]
    assert len(later["folded"]) == 31
    assert "InPlaceABN" in later["title"]
    assert "plain BatchNorm" not in later["title"]
    # what is folded is not folded again
    assert twice["folded"] == back["folded"] == []
    for name in ("b.pth", "d.pth"):
        _run(COMPARE, str(tmp_path / "a.pth"), str(tmp_path / name))


def test_a_file_that_does_not_tell_is_claimed_for_neither(published: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pdparams"
    write_weights(foreign, _expected(published, "bisenetv1_diss"))
    (result,) = _convert(_job(foreign, tmp_path / "x.pth", "bisenetv1_diss_bn"))
    recognised = result["text"].splitlines()[1]
    assert "plain BatchNorm" in recognised
    assert "InPlaceABN" in recognised
    assert any("does not tell" in note for note in result["notes"])


def test_weights_of_paddleseg_say_how_they_differ(published_keys: Path, tmp_path: Path) -> None:
    keys = json.loads((published_keys / "paddleseg_stdc1.json").read_text())["keys"]
    source = tmp_path / "model.pdparams"
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in keys.items()}
    source.write_bytes(pickle.dumps(arrays, protocol=4))
    whole, backbone = _convert(
        _job(source, tmp_path / "a.pdparams", "stdc1"),
        _job(source, tmp_path / "b.pdparams", "stdc1", backbone_only=True),
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
    arrays = _expected(published, "bisenetv2")
    last = {name: array[:7] for name, array in arrays.items() if array.shape[0] == 19}
    assert len(last) == 10
    arrays |= last
    write_weights(path, arrays)
    (result,) = _convert(_job(path, tmp_path / "v2.pth", "bisenetv2"))
    assert result["classes"] == 7
    assert result["tensors"] == len(arrays)


@pytest.mark.parametrize("classes", [0, 10**12])
def test_an_impossible_number_of_classes_is_refused(
    published: Path, tmp_path: Path, classes: int
) -> None:
    """Claims of a file: arrays without a number, of any shape with a zero in it."""
    arrays = _expected(published, "bisenetv2")
    for name, array in arrays.items():
        if array.shape[0] == 19:
            shape = (classes, *(0 for _ in array.shape[1:])) if array.ndim > 1 else (0,)
            arrays[name] = np.zeros(shape, dtype=np.float32)
    if classes:
        arrays = {name: a for name, a in arrays.items() if a.size or a.ndim > 1}
    source = tmp_path / "w.safetensors"
    write_weights(source, arrays)
    results = _convert(
        _job(source, tmp_path / "out.pth", "bisenetv2"),
        _job(source, tmp_path / "out.pth", "bisenetv2", classes=4),
    )
    for result in results:
        assert f"its last layers are for {classes} classes; expected 1 to 65536" in result["error"]
    assert not (tmp_path / "out.pth").exists()


def test_batch_counters_are_accounted_for(published: Path, tmp_path: Path) -> None:
    make = """
import sys, torch
state = torch.load(sys.argv[1], weights_only=True)
own = next(name for name in state if name.endswith("num_batches_tracked"))
torch.save({**state, "bogus.num_batches_tracked": torch.tensor(1)}, sys.argv[2] + "/bogus.pth")
torch.save({**state, own: torch.zeros(1, dtype=torch.int64)}, sys.argv[2] + "/shape.pth")
print(own)
"""
    source = published / "bisenetv2.pth"
    own = _run(make, str(source), str(tmp_path)).strip()
    target = tmp_path / "out.pth"
    bogus, shape, first, back = _convert(
        _job(tmp_path / "bogus.pth", target, "bisenetv2"),
        _job(tmp_path / "shape.pth", target, "bisenetv2", backbone_only=True),
        _job(source, tmp_path / "w.safetensors", "bisenetv2"),
        _job(tmp_path / "w.safetensors", tmp_path / "back.pth", "bisenetv2"),
    )
    assert "left over: bogus.num_batches_tracked, ()" in bogus["error"]
    assert f"shape: {own} is (1,), the model has ()" in shape["error"]
    assert not target.exists()
    assert f"{first['counters']} batch counters are written as 0" in "".join(back["notes"])
    assert first["counters"] > 0


def test_what_cannot_be_written_is_named(published: Path, tmp_path: Path) -> None:
    """Files too large for a limit of the process, in place of a full disk."""
    limit = """
import resource, sys
from pathlib import Path
from common.errors import InputError
from pipeline.convert import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name in sys.argv[2:]:
    try:
        convert(Path(sys.argv[1]), Path(name), model="bisenetv2")
    except InputError as error:
        print(error)
"""
    targets = [tmp_path / f"out{suffix}" for suffix in (".pth", ".safetensors", ".pdparams")]
    for target in targets:
        target.write_text("old")
    lines = _run(limit, str(published / "bisenetv2.pth"), *map(str, targets)).splitlines()
    for target, line in zip(targets, lines, strict=True):
        assert line.startswith(f"cannot write {target}: File too large; no file was changed")
        assert target.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == sorted(targets)


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    make = """
import sys, torch
from safetensors.torch import save_file
folder = sys.argv[1] + "/"
bits = torch.arange(2**16, dtype=torch.int32)
w = (bits << 16).view(torch.float32).to(torch.bfloat16)
w = torch.where(w.isnan(), torch.zeros_like(w), w)
save_file({"w": w}, folder + "w.safetensors")
torch.save({"w": w}, folder + "w.pth")
save_file({"w": w.to(torch.float8_e4m3fn)}, folder + "f8.safetensors")
w.float().numpy().tofile(folder + "expected")
from for_torch.checkpoints import read_any
for suffix in (".safetensors", ".pth"):
    found = read_any(__import__("pathlib").Path(folder + "w" + suffix))
    assert found.arrays["w"].tobytes() == w.float().numpy().tobytes()
    print(found.notes)
"""
    notes = _run(make, str(tmp_path)).splitlines()
    assert len(notes) == 2
    assert all("1 bfloat16 tensors are float32 now" in line for line in notes)
    found = read_checkpoint(tmp_path / "w.safetensors").arrays["w"]
    np.testing.assert_array_equal(found, np.fromfile(tmp_path / "expected", dtype=np.float32))
    with pytest.raises(WeightsError, match=r"not read here; expected F16.*\n  w: F8_E4M3"):
        read_checkpoint(tmp_path / "f8.safetensors")


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
    _run(check)


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
    _run(make, str(published / "stdc1.pth"), str(source))
    stdc, bise, whole, v1 = _convert(
        _job(source, tmp_path / "a.pdparams", "stdc1", backbone_only=True),
        _job(source, tmp_path / "b.safetensors", "bisestdc", backbone_only=True),
        _job(source, tmp_path / "c.safetensors", "stdc1"),
        _job(source, tmp_path / "d.safetensors", "bisenetv1", backbone_only=True),
    )
    assert "STDC1's ImageNet weights" in stdc["title"]
    assert not stdc["skipped"]
    assert all(not name.startswith("cp.backbone.") for name in stdc["absent"])
    found = read_weights(tmp_path / "a.pdparams")
    expected = _expected(published, "stdc1")
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


def test_files_of_torch_that_are_no_weights(tmp_path: Path) -> None:
    _run(CRAFTED, str(tmp_path))
    names = ["evil", "module", "old_cut", "new_cut", "empty", "text", "list", "none", "old", "bf16"]
    names += ["float8", "huge", "huge_bf16", "ring", "script"]
    target = tmp_path / "out.safetensors"
    results = _convert(*(_job(tmp_path / f"{n}.pth", target, "bisenetv1") for n in names))
    errors = dict(zip(names, (result["error"] for result in results), strict=True))
    assert not (tmp_path / "witness").exists()
    for name in ("evil", "module"):
        assert "refused, it holds more than weights" in errors[name]
    assert "system" in errors["evil"]
    # half a name in a cut file is a name that is not allowed
    assert "or is damaged" in errors["old_cut"]
    for name in ("new_cut", "text"):
        assert "truncated or damaged" in errors[name], errors[name]
        assert "weights_only" not in errors[name]
    assert "is empty" in errors["empty"]
    assert "no such weights file" in errors["none"]
    assert "holds a list" in errors["list"]
    assert "net.w is torch.float8_e4m3fn on cpu, which is not read" in errors["float8"]
    assert "w has shape (1000000000000, 1), but only 1 numbers" in errors["huge"]
    assert "w has shape (1000000000000,), but only 1 numbers" in errors["huge_bf16"]
    assert "nests deeper" in errors["ring"]
    assert "a TorchScript archive" in errors["script"]
    assert "expected a state dict" in errors["script"]
    # read without complaint, the older format too; just not a model's weights
    for name in ("old", "bf16"):
        assert "left over: w, " in errors[name]
    assert not target.exists()


def test_usage_is_checked(tmp_path: Path) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    (tmp_path / "folder.pth").mkdir()
    kinds = _convert(
        _job(tmp_path / "a.npz", target, "bisenetv1"),
        _job(source, tmp_path / "b.tar", "bisenetv1"),
        _job(source, target, "bisenetv1", classes=0),
        _job(source, target, "bisenetv1", classes=10**12),
        _job(source, tmp_path / "folder.pth", "bisenetv1"),
    )
    assert "expected .safetensors, .pdparams, .pth, .pt, .tar" in kinds[0]["error"]
    assert "b.tar: type '.tar'" in kinds[1]["error"]
    assert "--classes 0: expected 1 to 65536" in kinds[2]["error"]
    assert "--classes 1000000000000: expected 1 to 65536" in kinds[3]["error"]
    assert "folder.pth: is a folder" in kinds[4]["error"]


def test_the_public_face_parsing_checkpoint(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "face_parsing" / "79999_iter.pth"
    paths = [tmp_path / n for n in ("a.safetensors", "b.pdparams", "c.pth")]
    results = _convert(*(_job(a, b, "bisenetv1_diss_bn") for a, b in pairwise([source, *paths])))
    for result in results:
        assert "error" not in result, result["error"]
        assert result["tensors"] == 160
    assert "face-parsing" in results[0]["title"]
    assert results[0]["counters"] == 31
    assert _run(COMPARE, str(source), str(paths[2])).strip() == "191"


def test_the_report_tells_everything() -> None:
    from common.published import UNKNOWN

    text = ConversionReport(
        source=Path("a.pth"),
        target=Path("b.pdparams"),
        model="stdc1",
        classes=19,
        origin=UNKNOWN,
        tensors=2,
        numbers=12345,
        counters=3,
        folded=("f.weight",),
        skipped=("s.weight, (1,), why",),
        absent=("m.weight",),
        notes=("a note",),
    ).text()
    for part in (
        "a.pth -> b.pdparams",
        UNKNOWN.title,
        "stdc1, 19 classes",
        "2 tensors, 12,345 numbers",
        "a note",
        "3 batch counters",
        "f.weight",
        "s.weight, (1,), why",
        "m.weight",
    ):
        assert part in text
