"""What the runner looks at before a recorder starts."""

import os
from pathlib import Path

import pytest
from fake_recorder import ROOT

from common.config import Config, load_config
from common.errors import ConfigError, DataError, InputError, WeightsError
from fake_data import scenes
from pipeline import inputs
from pipeline.inputs import data_digest
from pipeline.outcome import Options
from pipeline.recording import recorder_environment
from pipeline.runner import resolve_data, selected_steps, verify
from pipeline.steps import STEP_NAMES


def test_steps_are_selected_in_the_order_of_the_table() -> None:
    assert [step.name for step in selected_steps(("loss", "data", "loss"))] == ["data", "loss"]
    assert [step.name for step in selected_steps(STEP_NAMES)] == list(STEP_NAMES)
    with pytest.raises(ConfigError, match=r"unknown step\(s\) los, x; steps: data, forward"):
        selected_steps(("los", "data", "x"))
    with pytest.raises(ConfigError, match=r"\(none named\); steps: data"):
        selected_steps(())


def test_real_data_is_looked_at_before_anything_starts(config: Config, tmp_path: Path) -> None:
    real = tmp_path / "real"
    with pytest.raises(InputError, match="real: no such folder; expected the cityscapes data"):
        resolve_data(config, Options(tmp_path, ("loss",), data=real))
    (real / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="train: no file matches"):
        resolve_data(config, Options(tmp_path, ("loss",), data=real))


def test_the_digest_of_the_data_is_of_its_files(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = scenes.generate(tmp_path / "here", train=1, val=1, size_hw=(32, 64))
    there = scenes.generate(tmp_path / "there", train=1, val=1, size_hw=(32, 64))

    def digest(folder: Path) -> str:
        return data_digest(resolve_data(config, Options(tmp_path, ("data",), data=folder)))

    assert digest(here) == digest(there)
    (path,) = there.glob("gtFine/val/**/*labelIds.png")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert digest(here) != digest(there)
    monkeypatch.setattr(inputs, "HASHED_BYTES", 0)
    assert digest(here) == digest(there)
    path.write_bytes(content + b"0")
    assert digest(here) != digest(there)


def test_scenes_stand_in_for_cityscapes_only(tmp_path: Path) -> None:
    camvid = load_config(ROOT / "configs" / "bisenetv1_camvid.yml")
    with pytest.raises(InputError, match=r"'camvid'.*name the folder of the real data with --data"):
        resolve_data(camvid, Options(tmp_path, ("loss",), scratch=tmp_path))


def test_bad_weights_and_folders_are_told_before_anything_starts(
    config: Config, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runner.Recording", None)
    options = Options(
        tmp_path / "out", ("loss",), scratch=scratch, weights=tmp_path / "w.safetensors"
    )
    with pytest.raises(WeightsError, match="no such weights file"):
        verify(config, options, progress=print)
    (tmp_path / "file").write_text("")
    options = Options(tmp_path / "file" / "out", ("loss",), scratch=scratch)
    with pytest.raises(InputError, match=r"cannot write .*choose another folder"):
        verify(config, options, progress=print)
    assert list((tmp_path / "out").iterdir()) == []


def test_recorders_share_the_processors() -> None:
    environment = recorder_environment()
    threads = int(environment["OMP_NUM_THREADS"])
    assert 1 <= threads <= max(1, (os.cpu_count() or 2) // 2)
    assert environment["PATH"] == os.environ["PATH"]
