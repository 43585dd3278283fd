"""The BiSeNetV1 networks: parameter groups, a real checkpoint, and what only some of them have.

What they share with the other networks is in test_golden_models.py and test_any_network.py.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from networks import BY_MODEL, Network, logits_of, noise, rule_model
from numpy.typing import NDArray

from common.config_sections import OptimizerConfig
from common.param_groups import assign_groups, group_table

VARIANTS = [
    BY_MODEL[name]
    for name in ("bisenetv1_2020", "bisenetv1_fp16_2020", "bisenetv1_diss", "bisenetv1_2019")
]


@pytest.mark.parametrize("network", VARIANTS, ids=lambda n: n.model)
def test_parameter_groups_are_the_recipes(side: Any, golden: Path, network: Network) -> None:
    record = json.loads((golden / "param_groups.json").read_text())[network.stem]
    first = network.model == "bisenetv1_2019"
    config = OptimizerConfig(
        base_lr=record["base_lr"],
        weight_decay=1e-4 if first else 5e-4,
        decay_norm_and_bias=first,
    )
    model = side.models.build_model(network.model, classes=19)
    ranks = {n: len(p.shape) for n, p in side.backend.trainable_parameters(model).items()}
    groups = assign_groups(ranks, head_modules=model.head_modules)
    table = group_table(config)
    found = {
        name: {"lr_mult": table[group].lr_mult, "weight_decay": table[group].weight_decay}
        for name, group in groups.items()
    }
    assert found == record["params"]
    assert record["in_no_group_hence_never_updated"] == []


FACE_HEADS = {"logits_s8": "main", "logits16_s8": "aux16", "logits32_s8": "aux32"}
READ_CHECKPOINT = (
    "import sys, numpy, torch; state = torch.load(sys.argv[1], weights_only=True, "
    "map_location='cpu'); numpy.savez(sys.argv[2], **{n: t.numpy() for n, t in state.items()})"
)


FACE_HEADS = {"logits_s8": "main", "logits16_s8": "aux16", "logits32_s8": "aux32"}
READ_CHECKPOINT = (
    "import sys, numpy, torch; state = torch.load(sys.argv[1], weights_only=True, "
    "map_location='cpu'); numpy.savez(sys.argv[2], **{n: t.numpy() for n, t in state.items()})"
)


def test_a_real_checkpoint_gives_its_own_outputs(
    side: Any, real_data: Path, tmp_path: Path
) -> None:
    """The face-parsing network, trained by others: 'diss' with plain BatchNorm."""
    faces = real_data / "face_parsing"
    arrays_file = tmp_path / "weights.npz"
    command = [sys.executable, "-c", READ_CHECKPOINT, faces / "79999_iter.pth", arrays_file]
    subprocess.run([str(part) for part in command], check=True)
    arrays = dict(np.load(arrays_file))
    assert len(arrays) == 191
    model = side.models.build_model("bisenetv1_diss_bn", classes=19)
    side.backend.load_arrays(model, arrays)
    if side.name == "torch":
        assert list(model.state_dict()) == list(arrays)
    model.eval()
    model.aux_in_eval = True
    expected = dict(np.load(faces / "expected.npz"))
    frames = {name.partition(".")[0] for name in expected}
    assert len(frames) == 2
    for frame in frames:
        (path,) = (real_data / "camvid/images").rglob(f"{frame}.*")
        pixels = cv2.imread(str(path))[4:356, :, ::-1].astype(np.float32) / 255
        image = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        image = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32))
        with side.backend.no_grad():
            outputs = model(side.backend.to_tensor(image))
        logits = {name: side.backend.to_numpy(value)[0] for name, value in outputs.items()}
        for key, head in FACE_HEADS.items():
            found, reference = logits[head][:, ::8, ::8], expected[f"{frame}.{key}"]
            # float32, logits up to 8: measured 3e-6 on Torch, 1.3e-5 on Paddle
            assert np.abs(found - reference).max() <= 5e-5, (frame, head)
        labels = expected[f"{frame}.labels"]
        # a pixel whose two best classes are that close may go either way
        best = np.sort(logits["main"], axis=0)
        clear = best[-1] - best[-2] > 1e-4
        assert clear.mean() > 0.999
        np.testing.assert_array_equal(logits["main"].argmax(0)[clear], labels[clear])


NAMES = (*(variant.model for variant in VARIANTS), "bisenetv1_diss_bn")


def test_the_spatial_path_can_be_the_backbones_feature(side: Any) -> None:
    """'diss' is the 2020 network with the feature at 1/8 in the place of the spatial path."""
    model = rule_model(side, "bisenetv1_diss_bn")
    twin = rule_model(side, "bisenetv1_fp16_2020")
    names = set(side.backend.state_arrays(twin)) - set(side.backend.state_arrays(model))
    assert {name.partition(".")[0] for name in names} == {"sp"}
    model.eval()
    image = noise(1, 3, 40, 50, dtype="float64")
    with side.backend.capture_outputs(model) as layers:
        logits_of(side, model, image)
    feature, context = layers["cp.resnet.layer2"], layers["cp.0"]
    weight = side.backend.state_arrays(model)["ffm.convblk.conv.weight"][:, :, 0, 0]
    mixed = np.einsum("oc,nchw->nohw", weight, np.concatenate([feature, context], 1))
    np.testing.assert_allclose(layers["ffm.convblk.conv"], mixed, rtol=0, atol=1e-10)


# ---- the switches of 2019 ---------------------------------------------------------------------
def _layers_2019(side: Any, **options: bool) -> dict[str, NDArray[Any]]:
    model = rule_model(side, "bisenetv1_2019", classes=3, **options)
    model.eval()
    model.aux_in_eval = True
    with side.backend.capture_outputs(model) as layers:
        outputs = logits_of(side, model, noise(1, 3, 40, 50, dtype="float64"))
    return layers | outputs


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-x))


def test_switches_change_no_names(side: Any) -> None:
    plain = side.models.build_model("bisenetv1_2019", classes=3)
    every = side.models.MODELS["bisenetv1_2019"](classes=3, use_arm=True, use_global_pooling=True)
    assert list(side.backend.state_arrays(every)) == list(side.backend.state_arrays(plain))


def test_arm_weighs_both_deep_features(side: Any) -> None:
    plain, arm = _layers_2019(side), _layers_2019(side, use_arm=True)
    assert not any(name.startswith("cp.arm") for name in plain)
    for index, name in ((1, "cp.arm16"), (2, "cp.arm32")):
        feature = arm[f"cp.resnet.{index}"]
        np.testing.assert_array_equal(feature, plain[f"cp.resnet.{index}"])
        expected = feature * (1 + _sigmoid(arm[f"{name}.bn"]))
        np.testing.assert_allclose(arm[name], expected, rtol=1e-13, atol=1e-12)
    assert np.abs(arm["main"] - plain["main"]).max() > 1
    # the auxiliary heads see the features from before
    for head in ("aux16", "aux32"):
        np.testing.assert_array_equal(arm[head], plain[head])


def test_global_pooling_is_added_to_the_deepest_feature(side: Any) -> None:
    plain, pooled = _layers_2019(side), _layers_2019(side, use_global_pooling=True)
    assert "cp.conv_avg" not in plain
    assert pooled["cp.bn_avg"].shape == (1, 512, 1, 1)
    mean = pooled["cp.resnet.2"].mean(axis=(2, 3))
    state = side.backend.state_arrays(rule_model(side, "bisenetv1_2019", classes=3))
    expected = mean @ state["cp.conv_avg.weight"][:, :, 0, 0].T + state["cp.conv_avg.bias"]
    np.testing.assert_allclose(pooled["cp.conv_avg"][:, :, 0, 0], expected, atol=1e-10)
    # conv_cat is linear: what is added there is the convolution of the constant map
    added = pooled["cp.conv_cat.conv"] - plain["cp.conv_cat.conv"]
    kernel = state["cp.conv_cat.conv.weight"][:, :512]
    inner = np.einsum("ocij,c->o", kernel, pooled["cp.bn_avg"][0, :, 0, 0])
    np.testing.assert_allclose(added[0, :, 1, 1], inner, atol=1e-9)
    # with the refinement too, it is still the backbone's feature that is pooled
    both = _layers_2019(side, use_arm=True, use_global_pooling=True)
    np.testing.assert_array_equal(both["cp.conv_avg"], pooled["cp.conv_avg"])
    assert np.abs(both["main"] - pooled["main"]).max() > 1
    for head in ("aux16", "aux32"):
        np.testing.assert_array_equal(pooled[head], plain[head])


def test_switched_on_modules_are_trained(side: Any) -> None:
    model = rule_model(
        side, "bisenetv1_2019", dtype="float32", classes=3, use_arm=True, use_global_pooling=True
    )
    model.train()
    outputs = model(side.backend.to_tensor(noise(3, 3, 40, 50)))
    sum((value**2).mean() for value in outputs.values()).backward()
    assert set(side.backend.gradients(model)) == set(side.backend.trainable_parameters(model))


def test_dropout_is_the_recipes_and_acts_in_training_only(side: Any) -> None:
    side.backend.seed_everything(0)
    model = side.models.build_model("bisenetv1_2019", classes=3)
    model.train()
    with side.backend.capture_outputs(model) as layers:
        logits_of(side, model, noise(2, 3, 64, 64))
    before, after = layers["conv_out.conv"], layers["conv_out.dropout"]
    alive = before > 0
    dropped = after[alive] == 0
    # 16,000 values or so: the sampling error of the share is 0.0024
    assert dropped.mean() == pytest.approx(0.1, abs=0.015)
    np.testing.assert_allclose(after[alive][~dropped], before[alive][~dropped] / 0.9, rtol=1e-6)
    model.eval()
    with side.backend.capture_outputs(model) as layers:
        logits_of(side, model, noise(2, 3, 64, 64))
    np.testing.assert_array_equal(layers["conv_out.dropout"], layers["conv_out.conv"])
