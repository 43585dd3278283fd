"""What a training starts from: a backbone, a whole network, of any file, of another class count."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config_sections import LossConfig, OptimizerConfig, ScheduleConfig
from common.errors import ConfigError, WeightsError
from common.weights import read_weights, write_weights

Arrays = dict[str, NDArray[Any]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def start(side: Any) -> Any:
    return importlib.import_module(f"for_{side.name}.start")


def drawn(arrays: Arrays, *, seed: int = 0) -> Arrays:
    """Return other numbers under the same names, close enough to an initialisation to train."""
    rng = np.random.default_rng(seed)
    return {
        name: np.abs(rng.normal(1.0, 0.1, a.shape)).astype(np.float32)
        if a.ndim == 1
        else rng.normal(0.0, 0.02, a.shape).astype(np.float32)
        for name, a in arrays.items()
    }


def one_step(side: Any, model: Any) -> Arrays:
    """Do one SGD step as a training does, and return the state after."""
    optimizer, scheduler = side.optim.build_optimizer(
        model,
        optimizer=OptimizerConfig(base_lr=0.01, weight_decay=5e-4),
        schedule=ScheduleConfig(max_iters=10),
    )
    rng = np.random.default_rng(0)
    model.train()
    terms = side.train.train_step(
        model,
        side.losses.build_loss(LossConfig(), classes=model.classes, ignore_index=255),
        optimizer,
        scheduler,
        image=side.backend.to_tensor(rng.standard_normal((2, 3, 64, 64), dtype=np.float32)),
        label=side.backend.to_tensor(rng.integers(0, model.classes, (2, 64, 64))),
    )
    assert np.isfinite(float(side.backend.to_numpy(terms["total"])))
    return side.backend.state_arrays(model)


# ---- backbones --------------------------------------------------------------------------------
BACKBONES = [
    # torchvision's and paddle.vision's file: no prefix, a classifier that we have no use for
    ("bisenetv1", "cp.resnet.", ("cp.resnet.",), ".safetensors", "ResNet18's ImageNet weights"),
    ("stdc1", "cp.backbone.", ("cp.backbone.",), ".pdparams", "STDC1's ImageNet weights"),
    ("bisenetv2", "", ("detail.", "segment.", "bga."), ".pdparams", "BiSeNetV2's backbone"),
]


@pytest.mark.parametrize(("name", "prefix", "starts", "suffix", "title"), BACKBONES)
def test_a_training_starts_from_a_backbone(
    side: Any,
    start: Any,
    tmp_path: Path,
    name: str,
    prefix: str,
    starts: tuple[str, ...],
    suffix: str,
    title: str,
) -> None:
    model = side.models.build_model(name, classes=3)
    own = side.backend.state_arrays(model)
    backbone = drawn({key: a for key, a in own.items() if key.startswith(starts)})
    file = {key.removeprefix(prefix): a for key, a in backbone.items()}
    others = {"fc.weight": np.ones((10, 512), "f4"), "fc.bias": np.ones(10, "f4")}
    path = tmp_path / f"backbone{suffix}"
    write_weights(path, file | (others if name == "bisenetv1" else {}))

    report = start.load_start_weights(model, weights=None, backbone_weights=path)

    before = side.backend.state_arrays(model)
    for key, array in before.items():
        np.testing.assert_array_equal(array, (own | backbone)[key], err_msg=key)
    assert set(report.taken) == set(backbone)
    assert set(report.initial) == set(own) - set(backbone)
    skipped = ["fc.bias", "fc.weight"] if name == "bisenetv1" else []
    assert sorted(entry.partition(",")[0] for entry in report.skipped) == skipped
    text = report.text()
    assert title in text
    assert str(path) in text
    assert f"{len(backbone)} tensors" in text
    assert all(entry in text for entry in report.skipped)

    after = one_step(side, model)
    moved = [key for key in after if not np.array_equal(after[key], before[key])]
    head = "head." if name == "bisenetv2" else "conv_out."
    assert any(key.startswith(head) for key in moved)
    assert any(key.startswith(starts) and after[key].ndim == 4 for key in moved)


def test_a_backbone_is_taken_from_a_whole_network(side: Any, start: Any, tmp_path: Path) -> None:
    """Of any number of classes, and of another of our models with the same backbone."""
    other = side.models.build_model("bisenetv1_fp16_2020", classes=7)
    arrays = drawn(side.backend.state_arrays(other))
    path = tmp_path / "whole.safetensors"
    write_weights(path, arrays, model="bisenetv1_fp16_2020")
    model = side.models.build_model("bisenetv1", classes=3)
    own = side.backend.state_arrays(model)
    report = start.load_start_weights(model, weights=None, backbone_weights=path)
    inside = {key for key in arrays if key.startswith("cp.resnet.")}
    for key, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, (arrays if key in inside else own)[key], err_msg=key)
    assert set(report.taken) == inside
    assert len(report.skipped) == len(arrays) - len(inside)
    assert "conv_out.conv_out.weight, (7, 256, 1, 1), outside the backbone" in report.skipped


def test_a_backbone_of_inplace_abn_is_written_out(side: Any, start: Any, tmp_path: Path) -> None:
    """A plain BatchNorm scales by the weight itself, InPlaceABN by |weight| + 1e-5."""
    other = side.models.build_model("bisenetv1_2020", classes=2)
    arrays = side.backend.state_arrays(other)
    arrays["cp.resnet.bn1.weight"] = np.full(64, -2.0, np.float32)
    path = tmp_path / "abn.safetensors"
    write_weights(path, arrays, model="bisenetv1_2020")
    model = side.models.build_model("bisenetv1", classes=2)
    report = start.load_start_weights(model, weights=None, backbone_weights=path)
    found = side.backend.state_arrays(model)["cp.resnet.bn1.weight"]
    np.testing.assert_array_equal(found, np.full(64, 2.00001, np.float32))
    assert "cp.resnet.bn1.weight" in report.folded
    assert f"folded |weight| + 1e-5 of InPlaceABN into BatchNorm: {len(report.folded)}" in (
        report.text()
    )


# ---- whole networks ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "suffix", "last"),
    [
        ("bisenetv1", ".pdparams", 6),
        ("bisenetv2", ".safetensors", 10),
        # the boundary heads have one channel whatever the classes
        ("stdc1", ".safetensors", 3),
    ],
)
def test_another_number_of_classes(
    side: Any, start: Any, tmp_path: Path, name: str, suffix: str, last: int
) -> None:
    arrays = drawn(side.backend.state_arrays(side.models.build_model(name, classes=5)))
    path = tmp_path / f"whole{suffix}"
    write_weights(path, arrays)
    model = side.models.build_model(name, classes=3)
    own = side.backend.state_arrays(model)
    report = start.load_start_weights(model, weights=path, backbone_weights=None)
    anew = {key for key, array in own.items() if array.shape != arrays[key].shape}
    assert len(anew) == last
    assert set(report.initial) == anew
    assert set(report.taken) == set(own) - anew
    assert set(report.skipped) == {f"{key}, {arrays[key].shape}, last layer" for key in anew}
    for key, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, (own if key in anew else arrays)[key], err_msg=key)
    after = one_step(side, model)
    moved = {key for key in anew if not np.array_equal(after[key], own[key])}
    assert moved == anew


def test_the_same_number_of_classes_takes_everything(side: Any, start: Any, tmp_path: Path) -> None:
    model = side.models.build_model("bisenetv2", classes=3)
    arrays = drawn(side.backend.state_arrays(model))
    path = tmp_path / "whole.pdparams"
    write_weights(path, arrays)
    report = start.load_start_weights(model, weights=path, backbone_weights=None)
    assert (report.skipped, report.initial) == ((), ())
    for key, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, arrays[key], err_msg=key)


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_converted_weights_without_last_layers_are_accepted(
    side: Any, start: Any, tmp_path: Path, suffix: str
) -> None:
    """What ``bisenet convert --classes`` leaves out keeps its initialisation."""
    arrays = drawn(side.backend.state_arrays(side.models.build_model("bisenetv2", classes=5)))
    write_weights(tmp_path / "whole.safetensors", arrays)
    path = tmp_path / f"seven{suffix}"
    command = ["-m", "pipeline.cli", "convert", str(tmp_path / "whole.safetensors"), str(path)]
    subprocess.run(
        [sys.executable, *command, "--model", "bisenetv2", "--classes", "7"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    model = side.models.build_model("bisenetv2", classes=7)
    own = side.backend.state_arrays(model)
    report = start.load_start_weights(model, weights=path, backbone_weights=None)
    anew = {key for key, array in own.items() if array.shape != arrays[key].shape}
    assert len(anew) == 10
    assert set(report.initial) == anew
    assert set(report.taken) == set(own) - anew
    assert report.skipped == ()
    for key, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, (own if key in anew else arrays)[key], err_msg=key)

    # one of them is there: the file is damaged, and the network is left alone
    key = next(iter(anew))
    write_weights(path, read_weights(path) | {key: own[key] + 1})
    before = side.backend.state_arrays(model)
    with pytest.raises(WeightsError, match=r"9 of \d+ names differ"):
        start.load_start_weights(model, weights=path, backbone_weights=None)
    for name, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_nothing_given_changes_nothing(side: Any, start: Any) -> None:
    model = side.models.build_model("bisenetv2", classes=3)
    own = side.backend.state_arrays(model)
    report = start.load_start_weights(model, weights=None, backbone_weights=None)
    assert (report.source, report.taken, report.initial) == (None, (), tuple(own))
    assert report.text().startswith(f"start: own initialisation, {len(own)} tensors (detail ")
    for key, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, own[key], err_msg=key)


# ---- what is refused --------------------------------------------------------------------------
def test_both_are_refused(side: Any, start: Any) -> None:
    model = side.models.build_model("bisenetv2", classes=3)
    with pytest.raises(ConfigError) as caught:
        start.load_start_weights(model, weights=Path("w.pdparams"), backbone_weights=Path("b.pth"))
    text = str(caught.value)
    assert "model.weights is w.pdparams and model.backbone_weights is b.pth" in text
    assert "expected one of them" in text


def test_a_backbone_is_no_whole_network(side: Any, start: Any, tmp_path: Path) -> None:
    model = side.models.build_model("bisenetv2", classes=3)
    own = side.backend.state_arrays(model)
    path = tmp_path / "backbone.pdparams"
    write_weights(path, {k: a for k, a in own.items() if not k.startswith(("head.", "aux"))})
    with pytest.raises(WeightsError, match=r"BiSeNetV2's backbone .* as model\.backbone_weights"):
        start.load_start_weights(model, weights=path, backbone_weights=None)


@pytest.mark.parametrize("as_backbone", [False, True])
def test_what_does_not_fit_leaves_the_network_alone(
    side: Any, start: Any, tmp_path: Path, as_backbone: bool
) -> None:
    model = side.models.build_model("bisenetv2", classes=3)
    own = side.backend.state_arrays(model)
    wrong = drawn(own)
    del wrong["detail.S1.0.bn.bias"]
    wrong["bga.conv.0.weight"] = np.zeros((128, 64, 3, 3), np.float32)
    path = tmp_path / "wrong.safetensors"
    write_weights(path, wrong)
    with pytest.raises(WeightsError) as caught:
        start.load_start_weights(
            model,
            weights=None if as_backbone else path,
            backbone_weights=path if as_backbone else None,
        )
    assert "missing: detail.S1.0.bn.bias, (64,)" in str(caught.value)
    assert "shape: bga.conv.0.weight is (128, 64, 3, 3), the model has (128, 128, 3, 3)" in (
        str(caught.value)
    )
    for key, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, own[key], err_msg=key)


def test_a_network_of_unknown_name_is_refused(side: Any, start: Any, tmp_path: Path) -> None:
    model = side.models.MODELS["bisenetv2"](3)
    path = tmp_path / "w.pdparams"
    write_weights(path, side.backend.state_arrays(model))
    with pytest.raises(ConfigError, match=r"model\.name is ''"):
        start.load_start_weights(model, weights=path, backbone_weights=None)


# ---- torch's own files ------------------------------------------------------------------------
def test_a_pth_is_read_where_torch_is(side: Any, start: Any, tmp_path: Path) -> None:
    model = side.models.build_model("bisenetv2", classes=3)
    path = tmp_path / "whole.pth"
    checkpoints = importlib.import_module(f"for_{side.name}.checkpoints")
    arrays = drawn(side.backend.state_arrays(side.models.build_model("bisenetv2", classes=5)))
    if side.name == "torch":
        counters = {
            name.replace("running_mean", "num_batches_tracked"): np.array(7)
            for name in arrays
            if name.endswith("running_mean")
        }
        checkpoints.write_own(path, arrays | counters)
        report = start.load_start_weights(model, weights=path, backbone_weights=None)
        assert len(report.initial) == len(report.skipped) == 10
        found = side.backend.state_arrays(model)["bga.conv.0.weight"]
        np.testing.assert_array_equal(found, arrays["bga.conv.0.weight"])
        report = start.load_start_weights(model, weights=None, backbone_weights=path)
        assert {name.partition(".")[0] for name in report.taken} == {"detail", "segment", "bga"}
    else:
        path.write_bytes(b"whatever torch.save writes")
        expected = r"bisenet convert whole\.pth whole\.pdparams --model NAME, with --backbone-only"
        for given in ("weights", "backbone_weights"):
            both = {"weights": None, "backbone_weights": None, given: path}
            with pytest.raises(WeightsError, match=expected):
                start.load_start_weights(model, **both)


# ---- the real checkpoint ----------------------------------------------------------------------
@pytest.fixture(scope="module")
def face(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published face-parsing weights, 19 classes, as .pdparams; converted by torch, apart."""
    path = tmp_path_factory.mktemp("face") / "face.pdparams"
    source = real_data / "face_parsing" / "79999_iter.pth"
    command = ["-m", "pipeline.cli", "convert", str(source), str(path)]
    subprocess.run(
        [sys.executable, *command, "--model", "bisenetv1_diss_bn"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return path


def test_real_weights_are_tuned_to_other_classes(side: Any, start: Any, face: Path) -> None:
    model = side.models.build_model("bisenetv1_diss_bn", classes=11)
    own = side.backend.state_arrays(model)
    report = start.load_start_weights(model, weights=face, backbone_weights=None)
    last = {f"{head}.conv_out.weight" for head in ("conv_out", "conv_out16", "conv_out32")}
    assert set(report.initial) == last
    widths = {"conv_out": 256, "conv_out16": 64, "conv_out32": 64}
    assert set(report.skipped) == {
        f"{head}.conv_out.weight, (19, {width}, 1, 1), last layer" for head, width in widths.items()
    }
    published = read_weights(face)
    loaded = side.backend.state_arrays(model)
    for key, array in loaded.items():
        np.testing.assert_array_equal(array, (own if key in last else published)[key], err_msg=key)
    after = one_step(side, model)
    assert all(not np.array_equal(after[key], own[key]) for key in last)


def test_the_backbone_of_real_weights(side: Any, start: Any, face: Path) -> None:
    model = side.models.build_model("bisenetv1", classes=11)
    own = side.backend.state_arrays(model)
    published = read_weights(face)
    backbone = {name: published[name] for name in own if name.startswith("cp.resnet.")}
    report = start.load_start_weights(model, weights=None, backbone_weights=face)
    assert set(report.taken) == set(backbone)
    for key, array in side.backend.state_arrays(model).items():
        np.testing.assert_array_equal(array, (own | backbone)[key], err_msg=key)
    one_step(side, model)
