"""tools/start_weights.py: the file that two trainings can start from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.weights import read_weights

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "bisenetv2_camvid.yml"


def run(out: Path, *more: str, config: Path = CONFIG) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/start_weights.py", "--config", str(config), "--out", str(out)]
    return subprocess.run(
        [*command, "--device", "cpu", *more], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_a_start_is_that_of_its_seed_and_can_be_started_from(
    framework: str, tmp_path: Path
) -> None:
    first, other, again = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    done = run(first, "--framework", framework)
    assert done.returncode == 0, done.stderr
    assert run(other, "--framework", framework, "--seed", "1").returncode == 0
    # all of the first file is taken, whatever the seed
    assert (
        run(again, "--framework", framework, "--seed", "1", "--weights", str(first)).returncode == 0
    )
    arrays = [read_weights(path) for path in (first, other, again)]
    name = "detail.S1.0.conv.weight"
    assert not np.array_equal(arrays[0][name], arrays[1][name])
    assert arrays[0].keys() == arrays[2].keys()
    for key, array in arrays[0].items():
        np.testing.assert_array_equal(arrays[2][key], array, err_msg=key)


def test_an_unknown_configuration_is_a_usage_error(tmp_path: Path) -> None:
    done = run(tmp_path / "a.safetensors", config=tmp_path / "none.yml")
    assert done.returncode == 2
    assert "none.yml" in done.stderr
    assert not any(tmp_path.iterdir())
