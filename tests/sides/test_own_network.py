"""A user's own network on one side: built from his file, seen under Torch's names."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.config_pair import PairConfig
from common.errors import ConfigError, WeightsError
from common.weights import write_weights
from fake_data import rules
from pipeline.eval_settings import parse_settings
from pipeline.evaluation import load_model

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = ROOT / "examples" / "minimal"

LAYERS = {
    "torch": """
from torch import nn
from for_torch.norm import BatchNorm2d as Norm
Base, Conv, Many = nn.Module, nn.Conv2d, nn.ModuleList
""",
    "paddle": """
from paddle import nn
from for_paddle.norm import BatchNorm2d as Norm
Base, Conv, Many = nn.Layer, nn.Conv2D, nn.LayerList
""",
}
"""What the networks below are written with, so that one text does for both sides."""

NET = """
class Net(Base):
    def __init__(self, classes, width=4):
        super().__init__()
        self.{stem} = Many([Conv(3, width, 1), Conv(width, width, 1)])
        self.{norm} = Norm(width)
        self.head = Conv(width, classes, 1)

    def forward(self, x):
        feature = self.{norm}(self.{stem}[1](self.{stem}[0](x)))
        return (self.head(feature), feature) if self.training else self.head(feature)
"""
TORCH_NAMES = {"stem": "stem", "norm": "bn"}
PADDLE_NAMES = {"stem": "blocks", "norm": "norm"}


def write(side: Any, folder: Path, text: str) -> str:
    path = folder / "net.py"
    path.write_text(LAYERS[side.name] + text)
    return f"{path}:Net"


def build(side: Any, reference: str, *, classes: int = 5, **settings: Any) -> Any:
    # the file of the other side is never looked at here
    options = settings.pop("options", {})
    references = {"torch": "t.py:Net", "paddle": "p.py:Net", side.name: reference}
    pair = PairConfig(**references, **settings)
    return side.models.build_model("mine", classes=classes, options=options, pair=pair)


def picture(side: Any) -> Any:
    return side.backend.to_tensor(rules.image(3, 2, 8, 8).astype(np.float32))


def test_the_minimal_network_has_what_the_pipeline_asks_for(side: Any) -> None:
    model = build(side, f"{MINIMAL}/{side.name}_model.py:Minimal", options={"width": 2})
    assert (model.name, model.classes, model.heads) == ("mine", 5, ("main",))
    assert (model.head_modules, model.unused, model.ungrouped) == ((), (), ())
    names = side.backend.state_arrays(model)
    assert names["down8.conv.weight"].shape == (8, 4, 3, 3)
    assert "down2.bn.running_var" in names
    with side.backend.capture_outputs(model) as layers:
        outputs = model(picture(side))
    assert list(outputs) == ["main"]
    assert tuple(outputs["main"].shape) == (2, 5, 8, 8)
    assert list(layers)[:3] == ["down2.conv", "down2.bn", "down2.relu"]


def test_several_outputs_are_named_in_training_and_evaluation(side: Any, tmp_path: Path) -> None:
    reference = write(side, tmp_path, NET.format(**TORCH_NAMES))
    model = build(side, reference, heads=("main", "aux"))
    assert list(model(picture(side))) == ["main", "aux"]
    model.eval()
    assert list(model(picture(side))) == ["main"]
    nameless = build(side, reference)
    with pytest.raises(ConfigError, match=r"net\.py:Net returns 2 outputs in training"):
        nameless(picture(side))


def test_paddle_names_of_layers_are_told_as_torch_names(side: Any, tmp_path: Path) -> None:
    own = TORCH_NAMES if side.name == "torch" else PADDLE_NAMES
    names = {"stem.*": "blocks.*", "bn": "norm"}
    reference = write(side, tmp_path, NET.format(**own))
    model = build(side, reference, names=names, heads=("main", "aux"))
    expected = [
        "stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "bn.weight", "bn.bias",
        "head.weight", "head.bias",
    ]  # fmt: skip
    assert list(side.backend.trainable_parameters(model)) == expected
    state = side.backend.state_arrays(model)
    assert set(state) == {*expected, "bn.running_mean", "bn.running_var"}
    arrays = rules.rule_state({name: array.shape for name, array in state.items()})
    side.backend.load_arrays(model, arrays)
    np.testing.assert_array_equal(
        side.backend.to_numpy(model.head.weight), arrays["head.weight"].astype(np.float32)
    )
    with side.backend.capture_outputs(model) as layers:
        outputs = model(picture(side))
    assert list(layers) == ["stem.0", "stem.1", "bn", "head"]
    outputs["main"].sum().backward()
    assert set(side.backend.gradients(model)) == set(expected)
    assert type(model).__name__ == "Net"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"steem.*": "blcks.*"}, r"names no layer of net\.py:Net; its parts: "),
        ({"head": "head", "head.gamma": "head.gama"}, r"head\.gam+a names no layer"),
    ],
)
def test_a_misspelt_pattern_is_told(
    side: Any, tmp_path: Path, names: dict[str, str], expected: str
) -> None:
    own = TORCH_NAMES if side.name == "torch" else PADDLE_NAMES
    with pytest.raises(ConfigError, match=expected):
        build(side, write(side, tmp_path, NET.format(**own)), names=names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "def Net(classes):\n    return classes\n",
            r"net\.py:Net makes a builtins\.int; expected a",
        ),
        ("Net = 3\n", r"net\.py:Net is 3; expected a class, or a function"),
        ("class Net(Base):\n    def __init__(self): pass\n", r"is called as Net\(5\): too many"),
        ("raise OSError('no disk')\nNet = 1\n", r"net\.py: cannot be imported: OSError: no disk"),
        ("import nowhere\nNet = 1\n", r"cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_what_is_no_network_is_told(side: Any, tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(side, write(side, tmp_path, text))


def test_an_attribute_of_the_network_that_the_pipeline_needs_is_told(
    side: Any, tmp_path: Path
) -> None:
    text = NET.format(**TORCH_NAMES).replace(
        "self.head ", "self.heads = Many([])\n        self.head "
    )
    with pytest.raises(ConfigError, match=r"an attribute heads \((Module|Layer)List\).*rename"):
        build(side, write(side, tmp_path, text))


def test_a_name_of_the_family_is_not_taken(side: Any, tmp_path: Path) -> None:
    reference = write(side, tmp_path, NET.format(**TORCH_NAMES))
    pair = PairConfig(**{"torch": "t.py:Net", "paddle": "p.py:Net", side.name: reference})
    with pytest.raises(ConfigError, match="bisenetv1', a network of the family"):
        side.models.build_model("bisenetv1", classes=5, pair=pair)


def test_an_edited_file_is_imported_anew_and_neighbours_are_found(
    side: Any, tmp_path: Path
) -> None:
    (tmp_path / "own_width_of_test.py").write_text("WIDTH = 6\n")
    text = "from own_width_of_test import WIDTH\ndef Net(classes):\n    return Conv(3, {}, 1)\n"
    first = build(side, write(side, tmp_path, text.format("WIDTH")))
    assert side.backend.state_arrays(first)["weight"].shape == (6, 3, 1, 1)
    second = build(side, write(side, tmp_path, text.format(7)))
    assert side.backend.state_arrays(second)["weight"].shape == (7, 3, 1, 1)


def test_a_file_that_changed_since_it_was_read_is_refused(side: Any, tmp_path: Path) -> None:
    reference = write(side, tmp_path, NET.format(**TORCH_NAMES))
    old = {"torch": {"net.py": "0" * 64}, "paddle": {"net.py": "0" * 64}}
    with pytest.raises(ConfigError, match="has changed since the configuration was read"):
        build(side, reference, sources=old)


def test_a_neighbour_that_another_module_hides_is_told(side: Any, tmp_path: Path) -> None:
    (tmp_path / "common.py").write_text("BLOCKS = 3\n")
    text = "import common\n" + NET.format(**TORCH_NAMES)
    with pytest.raises(ConfigError, match=r"imports common, .* rename common\.py"):
        build(side, write(side, tmp_path, text))


def test_the_other_framework_behind_a_package_is_noticed(
    side: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "paddle" if side.name == "torch" else "torch"
    # stands for an installed package that imports it: the text of the user's file does not tell
    text = f"import sys, types\nsys.modules['{other}'] = types.ModuleType('{other}')\nNet = 1\n"
    monkeypatch.setitem(sys.modules, other, None)
    monkeypatch.delitem(sys.modules, other)
    with pytest.raises(ConfigError, match=f"importing it has loaded {other}, too"):
        build(side, write(side, tmp_path, text))


# ---- dropout: every step runs without it, so its settings are recorded ---------------------------
DROPOUTS = """
Maps, Volume = (nn.{0}2{1}, nn.{0}3{1})

class Net(Base):
    def __init__(self, classes, **mode):
        super().__init__()
        self.plain, self.maps, self.volume = nn.{0}(0.1, **mode), Maps(0.25), Volume(0.5)
        self.alpha, self.other = nn.AlphaDropout(0.75), nn.ReLU()
"""


def with_dropout(side: Any, folder: Path, **mode: str) -> Any:
    text = DROPOUTS.format("Dropout", "d" if side.name == "torch" else "D")
    return build(side, write(side, folder, text), options=mode)


def test_rate_and_kind_of_every_dropout_are_told(side: Any, tmp_path: Path) -> None:
    found = side.backend.dropout_options(with_dropout(side, tmp_path))
    assert list(found) == ["plain", "maps", "volume", "alpha"]
    assert [options["p"] for options in found.values()] == [0.1, 0.25, 0.5, 0.75]
    assert [options["whole_maps"] for options in found.values()] == [0.0, 1.0, 1.0, 0.0]
    assert {options["eval_scale"] for options in found.values()} == {1.0}


def test_no_dropout_is_left(side: Any, tmp_path: Path) -> None:
    side.backend.disable_dropout(model := with_dropout(side, tmp_path))
    assert {o["p"] for o in side.backend.dropout_options(model).values()} == {0.0}


def test_paddles_other_mode_shows(side: Any, tmp_path: Path) -> None:
    if side.name == "torch":
        pytest.skip("Torch has one mode")
    found = side.backend.dropout_options(with_dropout(side, tmp_path, mode="downscale_in_infer"))
    assert found["plain"]["eval_scale"] == pytest.approx(0.9)


# ---- weights ------------------------------------------------------------------------------------
def test_a_training_starts_from_all_weights_or_says_what_is_wrong(
    side: Any, tmp_path: Path
) -> None:
    model = build(side, write(side, tmp_path, NET.format(**TORCH_NAMES)))
    own = side.backend.state_arrays(model)
    drawn = rules.rule_state({name: array.shape for name, array in own.items()})
    path = tmp_path / "w.safetensors"
    write_weights(path, {name: a.astype(np.float32) for name, a in drawn.items()})
    start = importlib.import_module(f"for_{side.name}.start")
    report = start.load_start_weights(model, weights=path, backbone_weights=None)
    assert set(report.taken) == set(own)
    now = side.backend.state_arrays(model)["head.weight"]
    np.testing.assert_array_equal(now, drawn["head.weight"].astype(np.float32))
    with pytest.raises(ConfigError, match="the backbone of mine is, is not known"):
        start.load_start_weights(model, weights=None, backbone_weights=path)
    smaller = build(side, write(side, tmp_path, NET.format(**TORCH_NAMES)), classes=4)
    with pytest.raises(WeightsError, match=r"head\.weight"):
        start.load_start_weights(smaller, weights=path, backbone_weights=None)


def test_an_evaluation_loads_what_a_training_has_saved(side: Any, tmp_path: Path) -> None:
    path, config = tmp_path / "w.safetensors", MINIMAL / "minimal.yml"
    model = build(side, f"{MINIMAL}/{side.name}_model.py:Minimal", classes=19)
    own = side.backend.state_arrays(model)
    write_weights(path, rules.rule_state({name: array.shape for name, array in own.items()}))
    settings = parse_settings(["--config", str(config), "--weights", str(path)])
    checkpoints = importlib.import_module(f"for_{side.name}.checkpoints")
    loaded = load_model(
        SimpleNamespace(backend=side.backend, models=side.models, checkpoints=checkpoints), settings
    )
    assert not loaded.training
    np.testing.assert_array_equal(
        side.backend.state_arrays(loaded)["down4.conv.weight"],
        rules.weight("down4.conv.weight", (32, 16, 3, 3)).astype(np.float32),
    )
