"""Two trainings of one recipe: what is compared, what is refused, what is drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.errors import TrainingError
from common.run_comparison import read_pair


def log(folder: Path, package: str, totals: dict[int, float], **changes: Any) -> Path:
    header = {"kind": "header", "iteration": 0, "config_digest": "c", "world_size": 2}
    header |= {"versions": {package: "1.0", "numpy": "2"}} | changes.get("header", {})
    rate = changes.get("rate", 1e-3)
    lines: list[dict[str, Any]] = [header]
    for iteration, total in totals.items():
        loss = {"total": total, "main": total / 2}
        lines.append({"kind": "train", "iteration": iteration, "loss": loss, "lr": {"a": rate}})
    folder.mkdir()
    (folder / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "train_log.jsonl"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run tools/compare_trainings.py."""
    return subprocess.run(
        [sys.executable, "tools/compare_trainings.py", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_iterations_of_both_are_compared(tmp_path: Path) -> None:
    first = log(tmp_path / "a", "paddle", {10: 4.0, 20: 2.0, 30: 1.0})
    second = log(tmp_path / "b", "torch", {10: 4.0, 20: 2.5}, rate=1.5e-3)
    pair = read_pair(first, second)
    assert pair.names == ("Paddle 1.0", "Torch 1.0")
    assert pair.iterations.tolist() == [10, 20]
    np.testing.assert_allclose(pair.differences, [0, 0.25])
    table = dict(pair.table())
    assert table["iterations compared"] == 2
    assert table["relative difference at iteration 10"] == 0
    assert table["largest relative difference"] == pytest.approx(0.25)
    assert table["mean of the last tenth, Torch 1.0"] == pytest.approx(2.5)
    assert table["largest difference of a learning rate"] == pytest.approx(5e-4)


@pytest.mark.parametrize("changes", [{"config_digest": "d"}, {"world_size": 1}])
def test_trainings_of_two_recipes_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = log(tmp_path / "a", "paddle", {10: 4.0})
    second = log(tmp_path / "b", "torch", {10: 4.0}, header=changes)
    with pytest.raises(TrainingError, match=f"{next(iter(changes))} is"):
        read_pair(first, second)


def test_logs_without_a_common_iteration_are_refused(tmp_path: Path) -> None:
    first = log(tmp_path / "a", "paddle", {10: 4.0})
    second = log(tmp_path / "b", "torch", {15: 4.0})
    with pytest.raises(TrainingError, match="no iteration is in both"):
        read_pair(first, second)


def test_the_command_prints_and_draws(tmp_path: Path) -> None:
    totals = {i: 3 / i for i in range(1, 40)}
    log(tmp_path / "a", "paddle", totals)
    log(tmp_path / "b", "torch", {i: t * 1.001 for i, t in totals.items()})
    out = tmp_path / "curves.png"
    done = command(tmp_path / "a", tmp_path / "b", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "largest relative difference                  0.001" in done.stdout
    picture = cv2.imread(str(out))
    assert picture is not None
    assert picture.shape[1] == 900
    # both lines, of matplotlib's first two colours (BGR)
    for colour in ([180, 119, 31], [14, 127, 255]):
        assert np.any(np.all(np.abs(picture.astype(int) - colour) < 12, axis=2))


def test_a_folder_without_a_log_is_a_usage_error(tmp_path: Path) -> None:
    done = command(tmp_path, tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "train_log.jsonl") in done.stderr
