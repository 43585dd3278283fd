"""Every configuration in configs/: it loads, both sides know its network, its text is honest."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yml"))
CLASSES = {"cityscapes": 19, "camvid": 11, "coco_stuff": 171, "ade20k": 150}


def model_names(side: str) -> set[str]:
    """Return the keys of MODELS, from the source text: no framework is loaded here."""
    tree = ast.parse((ROOT / f"for_{side}" / "models" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODELS":
            assert isinstance(node.value, ast.Dict)
            return {ast.literal_eval(key) for key in node.value.keys if key is not None}
    raise AssertionError(f"for_{side}/models/__init__.py assigns no MODELS table")


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def config(path: Path) -> Config:
    return load_config(path)


def test_there_are_configurations() -> None:
    assert len(CONFIGS) >= 2


def test_both_sides_know_the_network(config: Config) -> None:
    assert model_names("torch") == model_names("paddle")
    assert config.model.name in model_names("torch")


def test_the_file_name_tells_the_data(path: Path, config: Config) -> None:
    assert config.model.classes == CLASSES[config.data.dataset]
    # face parsing has public weights, but its data set is none of ours
    assert config.data.dataset in path.stem or path.stem.endswith("_face")
    assert config.description
    assert config.source


def test_the_fixed_batch_fits_every_stride(config: Config) -> None:
    assert all(size % 32 == 0 for size in config.verify.image_hw)


def test_no_path_is_absolute(config: Config) -> None:
    paths = [config.data.root, config.data.train_list, config.data.val_list]
    assert not any(path.is_absolute() for path in paths if path)


def test_what_is_dumped_loads_as_the_same(tmp_path: Path, config: Config) -> None:
    dumped = tmp_path / "c.yml"
    dumped.write_text(config.dump_yaml())
    assert load_config(dumped).digest() == config.digest()


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_a_file_states_only_differences_from_its_base(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    base = own.pop("_base_", [])
    names = base if isinstance(base, list) else [base]
    assert all((path.parent / name).is_file() for name in names)
    for dotted, value in leaves(own):
        for name in names:
            inherited = dict(leaves(yaml.safe_load((path.parent / name).read_text())))
            assert inherited.get(dotted, ...) != value, f"{dotted} is already {value} in {name}"
