"""``bisenet convert``: totality, round trips, and files made by the real torch.

The conversions run in processes of their own: they load torch, this one stays without.
"""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
import os, pickle, sys
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
    # read without complaint, the older format too; just not a model's weights
    for name in ("old", "bf16"):
        assert "left over: w, " in errors[name]
    assert not target.exists()


def test_usage_is_checked(tmp_path: Path) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    kinds = _convert(
        _job(tmp_path / "a.npz", target, "bisenetv1"),
        _job(source, tmp_path / "b.tar", "bisenetv1"),
        _job(source, target, "bisenetv1", classes=0),
    )
    assert "expected .safetensors, .pdparams, .pth, .pt, .tar" in kinds[0]["error"]
    assert "b.tar: type '.tar'" in kinds[1]["error"]
    assert "--classes 0: expected at least 1" in kinds[2]["error"]


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
