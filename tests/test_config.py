"""Configuration: inheritance, overrides, and every mistake a user can make in it."""

from pathlib import Path
from typing import Any

import pytest
from configurations import MINIMAL, message, with_value, write

from common.config import load_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "small.yml", MINIMAL)


def test_a_minimal_file_takes_the_defaults(path: Path) -> None:
    config = load_config(path)
    assert (config.model.classes, config.data.crop_hw) == (19, (64, 128))
    assert (config.loss.ohem, config.loss.threshold, config.loss.divisor) == (
        "valid_fraction",
        0.7,
        16,
    )
    assert (config.optimizer.momentum, config.optimizer.head_lr_mult) == (0.9, 10.0)
    assert (config.data.ignore_index, config.schedule.power) == (255, 0.9)


@pytest.mark.parametrize("text", ["5e-4", "'5e-4'", "5.0e-4", "0.0005"])
def test_every_spelling_of_a_float_is_a_number(path: Path, text: str) -> None:
    # PyYAML reads 5e-4, which has no dot, as a string
    content = path.read_text().replace("weight_decay: 0.0005", f"weight_decay: {text}")
    assert f"weight_decay: {text}" in content
    path.write_text(content)
    assert load_config(path).optimizer.weight_decay == 0.0005
    found = load_config(path, overrides=[f"optimizer.base_lr={text}"]).optimizer.base_lr
    assert isinstance(found, float)
    assert found == 0.0005


def test_a_frozen_configuration_cannot_be_changed(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(path).optimizer.base_lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("dotted", "nearest"),
    [
        ("optimizer.base_lrr", "base_lr"),
        ("optimiser", "optimizer"),
        ("loss.tresholds", "threshold"),
        ("verify.train_iter", "train_iters"),
        ("data.crop_wh", "crop_hw"),
    ],
)
def test_a_misspelt_key_names_file_path_and_the_nearest_key(
    tmp_path: Path, dotted: str, nearest: str
) -> None:
    path = write(tmp_path / "typo.yml", with_value(dotted, 1))
    text = message(path)
    assert str(path) in text
    assert f"  {dotted}: unknown key; did you mean {nearest}?" in text


def test_a_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    text = message(write(tmp_path / "c.yml", with_value("schedule.zzz", 1)))
    assert "schedule.zzz: unknown key; known keys: max_iters, warmup_iters, warmup," in text


@pytest.mark.parametrize(
    ("dotted", "value", "expected"),
    [
        ("optimizer.base_lr", "fast", "valid number"),
        ("optimizer.base_lr", -1, "greater than 0"),
        ("optimizer.base_lr", float("nan"), "finite number"),
        ("data.std", [0.2, 0.2, float("inf")], "finite number"),
        ("data.std", [0.2, 0.0, 0.2], "greater than 0"),
        ("data.mean", [0.5, 0.5], "data.mean.2: missing"),
        ("data.crop_hw", 64, "valid tuple"),
        ("data.crop_hw", [64.5, 128], "valid integer"),
        ("data.dataset", "kitti", "'cityscapes', 'camvid', "),
        ("data.scale_range", [2.0, 0.5], "min 2.0 > max 0.5"),
        ("data.flip_probability", 1.5, "less than or equal to 1"),
        ("data.ignore_index", -100, "greater than or equal to 0"),
        ("data.ignore_index", 18, "expected a value outside 0..18"),
        ("model.classes", 0, "greater than 0"),
        ("model.name", None, "valid string"),
        ("loss.ohem", "top_k", "'valid_fraction', 'pixel_fraction', 'min_kept' or 'none'"),
        ("loss.threshold", 1.0, "less than 1"),
        ("loss.head_weights", {"aux16": -1}, "loss.head_weights.aux16"),
        ("loss.head_weights", [1, 1], "valid dictionary"),
        ("schedule.warmup_iters", 100, "expected less than max_iters (100)"),
        ("schedule.warmup", "cosine", "'exp', 'linear' or 'constant'"),
        ("eval.absent", "nan", "'skip', 'zero', 'one' or 'plus_one'"),
        ("verify.image_hw", [64, 100], "image_hw is (64, 100); expected multiples of 32"),
        ("verify.image_hw", [16, 64], "image_hw is (16, 64); expected multiples of 32"),
        ("verify.train_crop_hw", [48, 32], "train_crop_hw is (48, 32); expected multiples of 32"),
        ("verify.train_iters_float32", 35, "expected a multiple of check_every (10)"),
        ("verify.train_iters_float32", 100, "below train_iters (100)"),
        ("schedule", 3, "schedule: "),
        ("schedule", ..., "schedule: missing; add it or inherit it with _base_"),
        ("model.classes", ..., "model.classes: missing"),
    ],
)
def test_a_wrong_value_names_file_key_and_what_is_expected(
    tmp_path: Path, dotted: str, value: Any, expected: str
) -> None:
    path = write(tmp_path / "wrong.yml", with_value(dotted, value))
    text = message(path)
    assert text.startswith(f"{path}: ")
    assert expected in text
    assert "pydantic" not in text


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    content = with_value("optimizer.base_lrr", 1) | {"modle": {}}
    content["schedule"]["power"] = "steep"
    text = message(write(tmp_path / "c.yml", content))
    assert "3 error(s)" in text
    assert all(word in text for word in ("optimizer.base_lrr", "modle", "schedule.power"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected a mapping of sections, got NoneType"),
        ("- a\n- b\n", "expected a mapping of sections, got list"),
        ("a: [1, 2", "not valid YAML"),
        ("_base_: 3\n", "_base_ is 3; expected a path or a list of paths"),
        ("_base_:\nmodel: {}\n", "_base_ is None; expected a path"),
        ("_base_: [ok.yml, 7]\n", "_base_ is ['ok.yml', 7]; expected a path"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, expected: str) -> None:
    write(tmp_path / "ok.yml", MINIMAL)
    text = message(write(tmp_path / "bad.yml", content))
    assert str(tmp_path / "bad.yml") in text
    assert expected in text


def test_a_file_that_is_not_there_names_the_nearest(path: Path) -> None:
    wrong = path.with_name("smal.yml")
    assert message(wrong) == f"{wrong}: no such configuration file; did you mean {path}?"
    lost = path.parent / "nowhere" / "c.yml"
    assert f"the folder {lost.parent} does not exist either" in message(lost)
    assert "cannot be read" in message(path.parent)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_bytes(b"model: \xff\xfe\n")
    assert "cannot be read" in message(path)


def test_a_file_overrides_its_bases_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "first.yml", MINIMAL)
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "second.yml", {"_base_": "third.yml", "schedule": {"power": 2.0}})
    write(tmp_path / "sub" / "third.yml", {"schedule": {"power": 3.0, "warmup_iters": 7}})
    top = {"_base_": ["first.yml", "sub/second.yml"], "data": {"mean": [0.1, 0.2, 0.3]}}
    config = load_config(write(tmp_path / "top.yml", top))
    # sections merge key by key, lists are replaced whole, a base's path is relative to its file
    assert (config.schedule.max_iters, config.schedule.power) == (100, 2.0)
    assert config.schedule.warmup_iters == 7
    assert (config.data.mean, config.data.std) == ((0.1, 0.2, 0.3), (0.2, 0.2, 0.2))


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = message(write(tmp_path / "c.yml", {"_base_": "lost.yml"}))
    assert text.startswith(f"{tmp_path / 'lost.yml'}: no such configuration file")


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_cyclic_bases_are_told_as_a_circle(tmp_path: Path, names: list[str]) -> None:
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        write(tmp_path / f"{name}.yml", {"_base_": f"{base}.yml"})
    circle = " -> ".join(f"{name}.yml" for name in [*names, names[0]])
    assert f"_base_ is cyclic ({circle})" in message(tmp_path / "a.yml")


def test_one_base_by_two_ways_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path / "root.yml", MINIMAL)
    for name in ("left", "right"):
        write(tmp_path / f"{name}.yml", {"_base_": "root.yml"})
    assert load_config(write(tmp_path / "c.yml", {"_base_": ["left.yml", "right.yml"]}))


def test_overrides_go_through_the_same_checks(path: Path) -> None:
    config = load_config(
        path,
        overrides=[
            "schedule.max_iters=50",
            "verify.image_hw=[32,64]",
            "loss.head_weights.aux16=0.5",
            "loss.head_weights={aux32: 2}",
            "data.brightness=null",
            "schedule.max_iters=60",
        ],
    )
    assert config.schedule.max_iters == 60
    assert config.verify.image_hw == (32, 64)
    assert config.loss.head_weights == {"aux16": 0.5, "aux32": 2.0}
    assert config.data.brightness is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("schedule.max_iters", "expected KEY=VALUE, for example schedule.max_iters=100"),
        ("=3", "expected KEY=VALUE"),
        ("schedule.max_iters=[1", "the value is not valid YAML"),
        ("schedule.max_itres=3", "schedule.max_itres: unknown key; did you mean max_iters?"),
        ("schedule.max_iters=many", "valid integer"),
        ("schedule.max_iters.x=3", "schedule.max_iters: "),
        ("schedule=", "schedule: "),
    ],
)
def test_a_wrong_override_is_named(path: Path, override: str, expected: str) -> None:
    text = message(path, override)
    assert expected in text
    assert f"--set {override}" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.precision=fp16", "'float32', 'float64', 'amp_o1' or 'amp_o2'"),
        ("train.ema_decay=1.0", "less than 1"),
        ("train.ema_decay=0", "greater than 0"),
        ("train.accumulate=0", "greater than 0"),
        ("train.clip_norm=0.0", "greater than 0"),
        ("train.save_intervall=3", "did you mean save_interval?"),
        ("train.sync_bn=native", "should be 'own'"),
        ("train.eval_interval=0", "greater than 0"),
        ("train.patience=-1", "greater than 0"),
    ],
)
def test_the_train_section_is_checked(path: Path, override: str, expected: str) -> None:
    assert expected in message(path, override)
