"""A verification with recorders that are a few lines each."""

import stat
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_recorder import PYTHON, RECORDER, ROOT, Play

from common.config import Config, load_config
from pipeline.outcome import Options, Outcome
from pipeline.runner import verify

SMALL = ("verify.image_hw=[32,64]", "verify.batch_size=1")


@pytest.fixture
def config() -> Config:
    return load_config(ROOT / "configs" / "bisenetv1_cityscapes.yml", overrides=SMALL)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Config, scratch: Path, out: Path
) -> Play:
    """Verify with recorders that run the given lines."""

    def verify_with(
        body: str,
        *,
        steps: tuple[str, ...] = ("lr_schedule",),
        keep_going: bool = False,
        events: list[Mapping[str, Any]] | None = None,
        configuration: Config = config,
    ) -> Outcome:
        script = tmp_path / "recorder"
        text = RECORDER.format(python=PYTHON, root=str(ROOT), body=textwrap.dedent(body))
        script.write_text(text)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))
        options = Options(out=out, steps=steps, keep_going=keep_going, scratch=scratch)
        seen = events if events is not None else []
        return verify(configuration, options, progress=seen.append)

    return verify_with
