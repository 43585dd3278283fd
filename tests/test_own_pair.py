"""A user's own pair in a configuration: what its files say, before any of them is run."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from configurations import message, with_value, write

from common.config import Config, load_config
from common.config_pair import PairConfig
from common.errors import ConfigError
from common.layer_names import check_one_to_one, check_patterns, renaming
from common.own_pair import own_files, parse_reference
from common.own_pair_import import construct, named_outputs, own_settings, settle
from pipeline.inputs import prepare_inputs
from pipeline.records import read_arrays

TORCH = "import torch\n\nclass Net(torch.nn.Module):\n    pass\n"
PADDLE = "import paddle\n\nclass Net(paddle.nn.Layer):\n    pass\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration c.yml with a pair beside it; nothing of the pair is ever imported here."""
    (tmp_path / "t.py").write_text(TORCH)
    (tmp_path / "p.py").write_text(PADDLE)
    content = with_value("model.pair", {"torch": "t.py:Net", "paddle": "p.py:Net"})
    write(tmp_path / "c.yml", content)
    return tmp_path


def loaded(folder: Path, *overrides: str) -> Config:
    return load_config(folder / "c.yml", overrides=overrides)


def pair_of(config: Config) -> PairConfig:
    assert config.model.pair is not None
    return config.model.pair


# ---- the files ----------------------------------------------------------------------------------
def test_files_count_from_the_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    pair = pair_of(loaded(Path("..")))
    assert pair.torch == f"{folder}/t.py:Net"
    assert pair.sources == {
        "torch": {"t.py": hashlib.sha256(TORCH.encode()).hexdigest()},
        "paddle": {"p.py": hashlib.sha256(PADDLE.encode()).hexdigest()},
    }


def test_an_override_counts_from_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "here").mkdir()
    (folder / "here" / "other.py").write_text(PADDLE)
    monkeypatch.chdir(folder / "here")
    pair = pair_of(loaded(folder, "model.pair.paddle=other.py:Net"))
    assert pair.paddle == f"{folder}/here/other.py:Net"
    assert pair.torch == f"{folder}/t.py:Net"


def test_a_base_names_files_of_its_own_folder(folder: Path) -> None:
    below = folder / "below"
    below.mkdir()
    write(below / "c.yml", {"_base_": "../c.yml", "schedule": {"max_iters": 7}})
    assert pair_of(load_config(below / "c.yml")).paddle == f"{folder}/p.py:Net"


def test_the_digests_cover_the_code_and_not_its_place(folder: Path, tmp_path: Path) -> None:
    first = loaded(folder)
    moved = folder.rename(tmp_path.parent / f"{tmp_path.name}_moved")
    assert loaded(moved).digest() == first.digest()
    assert loaded(moved).recipe_digest() == first.recipe_digest()
    (moved / "p.py").write_text(PADDLE + "# one character more\n")
    assert loaded(moved).digest() != first.digest()
    assert loaded(moved).recipe_digest() != first.recipe_digest()


def test_a_file_imported_from_the_folder_belongs_to_the_pair(folder: Path) -> None:
    (folder / "blocks").mkdir()
    (folder / "blocks" / "__init__.py").write_text("from .norm import Norm\n")
    (folder / "blocks" / "norm.py").write_text("import numpy\nNorm = 1\n")
    (folder / "sizes.py").write_text("WIDTH = 3\n")
    (folder / "t.py").write_text(f"from blocks import Norm\nimport os.path, sizes\n{TORCH}")
    sources = pair_of(loaded(folder)).sources["torch"]
    assert list(sources) == ["blocks/__init__.py", "blocks/norm.py", "sizes.py", "t.py"]
    before = loaded(folder).digest()
    (folder / "blocks" / "norm.py").write_text("import numpy\nNorm = 2\n")
    assert loaded(folder).digest() != before


def test_a_resolved_configuration_is_taken_by_its_word_when_the_files_are_elsewhere(
    folder: Path, tmp_path: Path
) -> None:
    config = loaded(folder)
    placeless = config.model.model_copy(update={"pair": pair_of(config).without_place()})
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "config.yml").write_text(config.model_copy(update={"model": placeless}).dump_yaml())
    assert str(folder) not in (logs / "config.yml").read_text()
    assert load_config(logs / "config.yml").digest() == config.digest()


def test_a_resolved_configuration_tells_that_its_files_have_changed(folder: Path) -> None:
    (folder / "resolved.yml").write_text(loaded(folder).dump_yaml())
    assert load_config(folder / "resolved.yml").digest() == loaded(folder).digest()
    (folder / "t.py").write_text(TORCH + "\n")
    assert "have changed since this resolved configuration" in message(folder / "resolved.yml")


@pytest.mark.parametrize(
    ("side", "reference", "source", "expected"),
    [
        ("torch", "gone.py:Net", None, "gone.py, which is no file; paths count from"),
        ("torch", "gone/t.py:Net", None, "which is no file; the folder"),
        ("torch", "t.py", None, "expected FILE.py:CLASS"),
        ("torch", "package.module:Net", None, "expected FILE.py:CLASS"),
        ("torch", "t.py:Net()", None, "expected FILE.py:CLASS"),
        ("torch", "t.py:Nett", None, "t.py defines no Nett; its classes: Net"),
        ("torch", "t.py:Net", "class Net(:\n", "t.py:1: no valid Python"),
        ("torch", "t.py:Net", "import torch\nimport paddle\nNet = 1\n", "t.py:2: imports paddle"),
        ("paddle", "p.py:Net", TORCH, "p.py:1: imports torch, but model.pair.paddle names"),
        ("paddle", "p.py:Net", "def Net():\n    from torch import nn\n", "p.py:2: imports torch"),
        ("torch", "t.py:Net", "from for_paddle.norm import B as Net\n", "imports for_paddle"),
        ("torch", "t.py:Net", "from .blocks import Net\n", "name the module without the dot"),
    ],
)
def test_what_cannot_be_used_is_told_without_running_it(
    folder: Path, side: str, reference: str, source: str | None, expected: str
) -> None:
    if source is not None:
        (folder / reference.partition(":")[0]).write_text(source)
    content = with_value("model.pair", {"torch": "t.py:Net", "paddle": "p.py:Net", side: reference})
    assert expected in message(write(folder / "c.yml", content))


def test_the_other_framework_is_found_in_a_helper_too(folder: Path) -> None:
    (folder / "helper.py").write_text("\nimport torch\n")
    (folder / "p.py").write_text(f"import helper\n{PADDLE}")
    assert f"{folder}/helper.py:2: imports torch" in message(folder / "c.yml")


def test_a_name_may_be_assigned_or_imported(folder: Path) -> None:
    for source in ("from blocks import Net", "import x as Net", "Net = make()", "def Net(): ..."):
        (folder / "t.py").write_text(source)
        assert list(own_files(parse_reference(f"{folder}/t.py:Net"), "torch")) == ["t.py"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("heads", ["out"], "the first one main"),
        ("heads", ["main", "main"], "expected different names"),
        ("heads", [], "at least 1 item"),
        ("names", {"a.*": "b"}, "as many * on both sides"),
        ("names", {"a*": "b*"}, "in place of one whole part"),
        ("head", ["main"], "did you mean heads?"),
    ],
)
def test_a_wrong_setting_is_told(folder: Path, key: str, value: Any, expected: str) -> None:
    pair = {"torch": "t.py:Net", "paddle": "p.py:Net", key: value}
    assert expected in message(write(folder / "c.yml", with_value("model.pair", pair)))


def test_options_are_free_with_a_pair_and_switches_without(folder: Path) -> None:
    options = {"width": 16, "ratio": 0.5, "norm": "batch", "aux": True}
    override = "model.options={width: 16, ratio: 0.5, norm: batch, aux: true}"
    assert loaded(folder, override).model.options == options
    assert loaded(folder, override).digest() != loaded(folder).digest()
    plain = write(folder / "plain.yml", with_value("model.options", {"use_arm": 2}))
    assert "options.use_arm is 2; expected true or false" in message(plain)


# ---- the call -----------------------------------------------------------------------------------
def called(found: Any, *, aux_heads: bool = True, **options: Any) -> Any:
    return construct(found, where="t.py:Net", classes=5, aux_heads=aux_heads, options=options)


def test_classes_come_first_and_options_by_name() -> None:
    def net(classes: int, width: int = 1, *, aux_heads: bool = True) -> tuple[int, int, bool]:
        return classes, width, aux_heads

    assert called(net, width=3) == (5, 3, True)
    assert called(net, aux_heads=False) == (5, 1, False)
    assert called(lambda number: number, aux_heads=False) == 5


def test_a_call_that_does_not_fit_shows_both() -> None:
    def net(*, width: int) -> None:
        raise AssertionError(width)

    with pytest.raises(ConfigError) as caught:
        called(net, width=3)
    assert "has the arguments (*, width: int) -> None and is called as Net(5, width=3)" in str(
        caught.value
    )
    with pytest.raises(ConfigError, match=r"t\.py:Net is 3; expected a class"):
        called(3)


def test_an_error_of_the_constructor_stays_what_it_is() -> None:
    def net(classes: int) -> None:
        raise TypeError(f"{classes} is too few")

    with pytest.raises(TypeError, match="5 is too few"):
        called(net)


# ---- what it returns ----------------------------------------------------------------------------
def outputs(value: Any, heads: tuple[str, ...], *, training: bool = True) -> dict[str, Any]:
    return named_outputs(value, heads, training=training, where="t.py:Net")


def test_outputs_are_named() -> None:
    assert outputs(1, ("main",)) == {"main": 1}
    assert outputs((1, 2), ("main", "aux")) == {"main": 1, "aux": 2}
    assert outputs([1], ("main", "aux"), training=False) == {"main": 1}
    assert outputs(1, ("main", "aux"), training=False) == {"main": 1}
    found = outputs({"aux": 2, "main": 1}, ("main", "aux"))
    assert list(found.items()) == [("main", 1), ("aux", 2)]


@pytest.mark.parametrize(
    ("value", "training", "expected"),
    [
        ((1, 2, 3), False, "returns 3 outputs in evaluation; model.pair.heads is [main, aux]"),
        ((1, 2, 3), True, "returns 3 outputs in training"),
        (1, True, "returns one tensor in training"),
        ((1,), True, "returns 1 outputs in training"),
        ((), False, "returns 0 outputs"),
        ({"out": 1, "aux": 2}, True, "returns a dict with the keys out, aux in training"),
        ({"aux": 2}, False, "returns a dict with the keys aux"),
        ({"main": 1, "aux": 2, "edge": 3}, True, "the keys main, aux, edge"),
    ],
)
def test_outputs_that_do_not_fit_their_names(value: Any, training: bool, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        outputs(value, ("main", "aux"), training=training)
    assert expected in str(caught.value)


def test_attributes_are_set_but_nothing_of_the_users_is_lost(folder: Path) -> None:
    class Net:
        heads = ("main",)

    settings = own_settings(pair_of(loaded(folder)), name="mine", classes=5)
    settle(net := Net(), settings, where="t.py:Net")
    assert (net.heads, vars(net)["unused"], vars(net)["classes"]) == (("main",), (), 5)

    class Taken:
        unused = object()

    with pytest.raises(ConfigError, match=r"has an attribute unused \(object\)"):
        settle(Taken(), settings, where="t.py:Net")


# ---- names --------------------------------------------------------------------------------------
def test_a_name_is_turned_by_the_longest_pattern() -> None:
    rename = renaming(
        {
            "cp": "context",
            "cp.block.*.conv": "context.layer.*.c",
            "cp.block.0.conv": "context.first",
        }
    )
    assert rename("context.layer.7.c.weight") == "cp.block.7.conv.weight"
    assert rename("context.first.weight") == "cp.block.0.conv.weight"
    assert rename("context.other.bn._mean") == "cp.other.bn._mean"
    assert rename("context") == "cp"
    assert rename("contextual.weight") == "contextual.weight"
    assert rename("") == ""


def test_stars_keep_their_order() -> None:
    rename = renaming({"a.*.b.*": "x.*.*"})
    assert rename("x.1.2.weight") == "a.1.b.2.weight"


def test_a_pattern_without_a_layer_is_told() -> None:
    known = ["context", "context.conv", "context.conv.weight", "head.weight"]
    check_patterns(["context.*", "head"], known, where="p.py:Net")
    with pytest.raises(ConfigError) as caught:
        check_patterns(["contxt", "head.*.weight"], known, where="p.py:Net")
    assert "contxt, head.*.weight names no layer of p.py:Net; its parts: context, head" in str(
        caught.value
    )


def test_two_names_never_become_one() -> None:
    rename = renaming({"a": "b"})
    check_one_to_one(["b.weight", "c.weight"], rename, where="p.py:Net")
    with pytest.raises(ConfigError, match=r"turns a.weight and b.weight .* the same name a.weight"):
        check_one_to_one(["a.weight", "b.weight"], rename, where="p.py:Net")


# ---- sizes of pictures --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("multiple", "sizes"),
    [
        (1, {(33, 65), (72, 104), (64, 33)}),
        (8, {(40, 72), (72, 104), (64, 40)}),
        (32, {(64, 96), (96, 128), (64, 64)}),
    ],
)
def test_a_network_can_ask_for_multiples(
    folder: Path, tmp_path: Path, multiple: int, sizes: set[tuple[int, int]]
) -> None:
    config = loaded(folder, f"model.pair.size_multiple={multiple}", "verify.image_hw=[32, 64]")
    prepare_inputs(tmp_path / "inputs", config, steps=["forward"], real_frames=False)
    arrays = read_arrays(tmp_path / "inputs" / "forward.npz")
    assert {array.shape[2:] for name, array in arrays.items() if name != "image"} == sizes
