"""``bisenet convert``: files made by the real torch, some of them no weights; usage, report."""

from pathlib import Path

import numpy as np
import pytest
from conversions import converted, job, run_strictly

from common.errors import WeightsError
from common.weights import read_checkpoint
from pipeline.convert import ConversionReport

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
    own = run_strictly(make, str(source), str(tmp_path)).strip()
    target = tmp_path / "out.pth"
    bogus, shape, first, back = converted(
        job(tmp_path / "bogus.pth", target, "bisenetv2"),
        job(tmp_path / "shape.pth", target, "bisenetv2", backbone_only=True),
        job(source, tmp_path / "w.safetensors", "bisenetv2"),
        job(tmp_path / "w.safetensors", tmp_path / "back.pth", "bisenetv2"),
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
    lines = run_strictly(limit, str(published / "bisenetv2.pth"), *map(str, targets)).splitlines()
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
    notes = run_strictly(make, str(tmp_path)).splitlines()
    assert len(notes) == 2
    assert all("1 bfloat16 tensors are float32 now" in line for line in notes)
    found = read_checkpoint(tmp_path / "w.safetensors").arrays["w"]
    np.testing.assert_array_equal(found, np.fromfile(tmp_path / "expected", dtype=np.float32))
    with pytest.raises(WeightsError, match=r"not read here; expected F16.*\n  w: F8_E4M3"):
        read_checkpoint(tmp_path / "f8.safetensors")


def test_files_of_torch_that_are_no_weights(tmp_path: Path) -> None:
    run_strictly(CRAFTED, str(tmp_path))
    names = ["evil", "module", "old_cut", "new_cut", "empty", "text", "list", "none", "old", "bf16"]
    names += ["float8", "huge", "huge_bf16", "ring", "script"]
    target = tmp_path / "out.safetensors"
    results = converted(*(job(tmp_path / f"{n}.pth", target, "bisenetv1") for n in names))
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
    kinds = converted(
        job(tmp_path / "a.npz", target, "bisenetv1"),
        job(source, tmp_path / "b.tar", "bisenetv1"),
        job(source, target, "bisenetv1", classes=0),
        job(source, target, "bisenetv1", classes=10**12),
        job(source, tmp_path / "folder.pth", "bisenetv1"),
    )
    assert "expected .safetensors, .pdparams, .pth, .pt, .tar" in kinds[0]["error"]
    assert "b.tar: type '.tar'" in kinds[1]["error"]
    assert "--classes 0: expected 1 to 65536" in kinds[2]["error"]
    assert "--classes 1000000000000: expected 1 to 65536" in kinds[3]["error"]
    assert "folder.pth: is a folder" in kinds[4]["error"]


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
