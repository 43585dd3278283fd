"""What a checkpoint holds besides weights, and the command line of a training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import load_config
from common.errors import CheckpointError, ConfigError
from common.train_settings import parse_settings
from common.train_state import (
    Progress,
    check_resumable,
    forward_seed,
    read_arrays,
    write_arrays,
)

CONFIG = "configs/bisenetv2_cityscapes.yml"


def progress(**changes: Any) -> Progress:
    config = load_config(Path(CONFIG))
    usual: dict[str, Any] = {
        **{"iteration": 500, "schedule_steps": 500, "epoch": 2, "samples": 8000, "seed": 0},
        **{"world_size": 2, "framework": "paddle", "precision": "float32", "scaler": {}},
        **{"stopping": {"best": 0.5}, "evaluated": 500, "commit": "0" * 12},
        **{"config_digest": config.digest(), "config": config.model_dump(mode="json")},
    }
    return Progress(**{**usual, **changes})


def test_forward_passes_have_seeds_of_their_own() -> None:
    seeds = {
        forward_seed(seed, iteration=iteration, rank=rank, part=part)
        for seed in range(2)
        for iteration in range(5)
        for rank in range(3)
        for part in range(2)
    }
    assert len(seeds) == 60
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "wide": rng.normal(size=(3, 4)),
        "turned": rng.normal(size=(3, 4)).astype(np.float32).T,
        "odd": np.array([np.nan, -0.0, np.inf], np.float32),
    }
    path = tmp_path / "momentum.safetensors"
    write_arrays(path, arrays)
    found = read_arrays(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_damaged_arrays_are_told(tmp_path: Path) -> None:
    path = tmp_path / "momentum.safetensors"
    write_arrays(path, {"a": np.zeros(10)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"momentum\.safetensors"):
        read_arrays(path)


def test_progress_survives_a_manifest() -> None:
    one = progress()
    assert Progress.from_meta(one.as_meta(), where="here") == one


def test_a_manifest_of_something_else_is_told() -> None:
    meta = progress().as_meta()
    # a checkpoint of before they were told is one
    del meta["code_digest"], meta["versions"]
    assert Progress.from_meta(meta, where="here") == progress()
    del meta["schedule_steps"]
    with pytest.raises(CheckpointError, match="schedule_steps"):
        Progress.from_meta(meta, where="here")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.base_lr=0.1", "optimizer.base_lr"),
        ("schedule.max_iters=1000000", "schedule.max_iters"),
        ("train.ema_decay=0.9", "train.ema_decay"),
        ("train.seed=1", "train.seed"),
        ("data.crop_hw=[64, 64]", "data.crop_hw"),
    ],
)
def test_another_recipe_is_not_resumed(override: str, key: str) -> None:
    config = load_config(Path(CONFIG), overrides=[override])
    with pytest.raises(CheckpointError, match=key):
        check_resumable(progress(), config, framework="paddle", world_size=2, where="here")


def test_the_other_framework_does_not_go_on() -> None:
    config = load_config(Path(CONFIG))
    with pytest.raises(CheckpointError) as caught:
        check_resumable(progress(), config, framework="torch", world_size=2, where="one")
    for part in (
        "one is of a training with paddle, this one is with torch",
        "--framework paddle",
        "--weights one/weights.safetensors",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "train.loader_timeout_s=1",
        "data.root=elsewhere",
        "data.workers=9",
        "train.save_interval=7",
        "train.patience=3",
    ],
)
def test_what_no_weight_depends_on_may_change(override: str) -> None:
    config = load_config(Path(CONFIG), overrides=[override])
    check_resumable(progress(), config, framework="paddle", world_size=2, where="here")


def test_the_global_batch_may_be_split_anew_but_not_change() -> None:
    config = load_config(Path(CONFIG))
    half = load_config(Path(CONFIG), overrides=[f"data.batch_size={config.data.batch_size // 2}"])
    check_resumable(progress(), half, framework="paddle", world_size=4, where="here")
    with pytest.raises(CheckpointError, match=r"data\.batch_size"):
        check_resumable(progress(), half, framework="paddle", world_size=2, where="here")
    with pytest.raises(CheckpointError, match=r"data\.batch_size x processes: 16 .* 32 now"):
        check_resumable(progress(), config, framework="paddle", world_size=4, where="here")


def test_options_replace_keys() -> None:
    words = "--iters 2000 --batch_size 3 --learning_rate 1e-3 --num_workers 0 --seed 5"
    more = "--save_interval 7 --keep_checkpoint_max 2 --log_iters 1 --weights a.safetensors"
    settings = parse_settings(["--config", CONFIG, *words.split(), *more.split()])
    config = settings.config
    assert (config.schedule.max_iters, config.data.batch_size) == (2000, 3)
    assert (config.optimizer.base_lr, config.data.workers) == (1e-3, 0)
    train = config.train
    assert (train.seed, train.save_interval, train.log_interval) == (5, 7, 1)
    assert (train.keep_checkpoint_max, config.model.weights) == (2, Path("a.safetensors"))
    usual = parse_settings(["--config", CONFIG])
    assert usual.config == load_config(Path(CONFIG))
    assert (usual.framework, usual.device, usual.resume) == ("paddle", "gpu", None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "float32"),
        (["--precision", "fp32"], "float32"),
        (["--precision", "fp16"], "amp_o1"),
        (["--precision", "fp16", "--amp_level", "O2"], "amp_o2"),
        (["--precision", "fp16", "--set", "train.precision=float64"], "float64"),
    ],
)
def test_precision(words: list[str], expected: str) -> None:
    assert parse_settings(["--config", CONFIG, *words]).config.train.precision == expected


def test_iterations_below_the_warm_up_are_told() -> None:
    with pytest.raises(ConfigError, match=r"--set schedule\.warmup_iters=10 "):
        parse_settings(["--config", CONFIG, "--iters", "100"])
    advised = ["--set", "schedule.warmup_iters=10"]
    parse_settings(["--config", CONFIG, "--iters", "100", *advised])


@pytest.mark.parametrize("key", ["train.patience", "train.eval_interval"])
def test_a_key_about_evaluations_needs_them(key: str) -> None:
    words = ["--config", CONFIG, "--set", f"{key}=3"]
    with pytest.raises(ConfigError, match=rf"{key} is 3, but .* --do_eval") as caught:
        parse_settings(words)
    # what it advises is taken
    parse_settings([*words, "--set", str(caught.value).split("--set ")[1]])
    assert parse_settings([*words, "--do_eval"]).do_eval


def test_the_command_is_kept() -> None:
    settings = parse_settings(["--config", CONFIG, "--set", "data.crop_hw=[32, 64]"])
    assert settings.command.endswith("--set 'data.crop_hw=[32, 64]'")
    assert replace(settings, parity="abc").parity == "abc"
