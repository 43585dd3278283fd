"""Digests of a configuration: what they tell apart, and that writing it loses nothing."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from configurations import MINIMAL, with_value, write
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config, load_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "small.yml", MINIMAL)


def test_the_digest_tells_values_and_not_layout(path: Path, tmp_path: Path) -> None:
    digest = load_config(path).digest()
    turned = {key: MINIMAL[key] for key in reversed(MINIMAL)}
    assert load_config(write(tmp_path / "turned.yml", turned)).digest() == digest
    spelt_out = with_value("loss.threshold", 0.7)
    assert load_config(write(tmp_path / "spelt.yml", spelt_out)).digest() == digest
    assert load_config(path, overrides=["verify.seed=1"]).digest() != digest
    assert len(digest) == 64


@pytest.mark.parametrize(
    "override",
    [
        "data.root=elsewhere",
        "description=other",
        "source=a paper",
        "gpus=7",
        "model.weights=v1.safetensors",
        "model.backbone_weights=resnet18.pdparams",
        "published=[{miou: 9.5, protocol: ss}]",
        "train.log_interval=3",
        "train.precision=amp_o1",
    ],
)
def test_the_digest_leaves_out_places_and_remarks(path: Path, override: str) -> None:
    assert load_config(path, overrides=[override]).digest() == load_config(path).digest()


@pytest.mark.parametrize(
    "override",
    [
        "data.mean=[0.5,0.5,0.4]",
        "data.train_list=train.txt",
        "data.batch_size=3",
        "model.classes=20",
        "model.options.use_arm=true",
        "model.options={use_arm: false}",
        "verify.train_iters=90",
    ],
)
def test_the_digest_holds_what_a_run_depends_on(path: Path, override: str) -> None:
    assert load_config(path, overrides=[override]).digest() != load_config(path).digest()


@pytest.mark.parametrize(
    "override",
    [
        "gpus=7",
        "train.seed=3",
        "verify.train_iters=90",
        "data.root=elsewhere",
        "data.train_list=train.txt",
        "data.val_list=val.txt",
        "data.batch_size=3",
        "data.workers=7",
        "model.backbone_weights=resnet18.safetensors",
        "model.weights=v1.safetensors",
    ],
)
def test_the_recipe_is_the_same_for_a_verification_and_a_training(
    path: Path, override: str
) -> None:
    changed = load_config(path, overrides=[override])
    assert changed.recipe_digest() == load_config(path).recipe_digest()


@pytest.mark.parametrize(
    "override",
    [
        "model.name=bisenetv2",
        "model.options.use_arm=true",
        "data.mean=[0.5,0.5,0.4]",
        "data.crop_hw=[64,64]",
        "loss.threshold=0.6",
        "optimizer.base_lr=0.5",
        "schedule.max_iters=77",
        "eval.count_void=true",
    ],
)
def test_the_recipe_digest_holds_the_recipe(path: Path, override: str) -> None:
    changed = load_config(path, overrides=[override])
    assert changed.recipe_digest() != load_config(path).recipe_digest()


@settings(deadline=None, max_examples=40)
@given(
    order=st.randoms(use_true_random=False),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    size=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    weights=st.dictionaries(
        st.text("abcdefgh:#'0123", min_size=1, max_size=8), st.floats(min_value=0, max_value=1e9)
    ),
    description=st.text(max_size=30),
)
def test_what_is_dumped_loads_as_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    order: random.Random,
    lr: float,
    size: tuple[int, int],
    weights: Mapping[str, float],
    description: str,
) -> None:
    content = with_value("optimizer.base_lr", lr) | {"description": description}
    content["data"]["crop_hw"] = list(size)
    content["loss"] = {"head_weights": dict(weights)}
    config = Config.model_validate(content)
    path = tmp_path_factory.mktemp("dump") / "c.yml"
    path.write_text(config.dump_yaml(), encoding="utf-8")
    assert load_config(path) == config
    keys = list(content)
    order.shuffle(keys)
    assert Config.model_validate({key: content[key] for key in keys}).digest() == config.digest()
