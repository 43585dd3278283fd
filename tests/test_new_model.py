"""bisenet new-model: what it lays, and what it refuses. tests/cli/test_cli_own_pair.py runs it."""

import sys
from pathlib import Path

import pytest

from common.config import load_config
from common.errors import InputError
from pipeline import cli
from pipeline.new_model import EXAMPLE, class_name, lay_files


@pytest.mark.parametrize(
    ("name", "expected"), [("enet", "Enet"), ("fast_scnn", "FastScnn"), ("net2_x", "Net2X")]
)
def test_a_class_is_called_after_the_network(name: str, expected: str) -> None:
    assert class_name(name) == expected


def test_the_files_carry_the_name_and_load(tmp_path: Path) -> None:
    paths = lay_files("fast_net", tmp_path / "a" / "b")
    assert [path.name for path in paths] == [
        "torch_model.py", "paddle_model.py", "fast_net.yml", "README.md",
    ]  # fmt: skip
    config = load_config(tmp_path / "a" / "b" / "fast_net.yml")
    assert config.model.name == "fast_net"
    assert config.model.pair is not None
    assert config.model.pair.torch.endswith("torch_model.py:FastNet")
    for path in paths:
        assert "minimal" not in path.read_text().lower()
    example = load_config(EXAMPLE / "minimal.yml")
    assert example.optimizer == config.optimizer


def test_nothing_is_overwritten_and_nothing_half_laid(tmp_path: Path) -> None:
    (tmp_path / "paddle_model.py").write_text("mine")
    (tmp_path / "other.txt").write_text("mine, too")
    with pytest.raises(InputError, match=r"paddle_model\.py: there already, and nothing is"):
        lay_files("enet", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.txt", "paddle_model.py"]
    assert (tmp_path / "paddle_model.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "expected lower-case letters"),
        ("ENet", "expected lower-case letters"),
        ("../enet", "expected lower-case letters"),
        ("1net", "expected lower-case letters"),
        ("e__net", "expected lower-case letters"),
        ("enet\n", "expected lower-case letters"),
        ("e" * 61, "at most 60"),
        ("class", "no word of Python's"),
        ("stdc1", "is a network of the family"),
        ("conv_block", "makes a class ConvBlock, which the files use"),
        ("tensor", "makes a class Tensor"),
    ],
)
def test_a_name_that_cannot_be_used(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        lay_files(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        lay_files("enet", tmp_path / "file" / "below")


def test_the_command_prints_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bisenet", "new-model", "enet"])
    with pytest.raises(SystemExit) as caught:
        cli.app()
    assert caught.value.code == 0
    assert "  bisenet verify --config enet/enet.yml" in capsys.readouterr().out.splitlines()
    assert (tmp_path / "enet" / "torch_model.py").is_file()
