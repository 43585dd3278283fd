"""The training curve: what is drawn where, and what cannot be drawn."""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from programs import run_program

from common.curves import draw_curves, rate_lines, smoothed
from common.errors import InputError, TrainingError


def train(iteration: int, **loss: Any) -> dict[str, Any]:
    return {"kind": "train", "iteration": iteration, "loss": loss, "lr": {"a": 1e-3, "b": 1e-2}}


def evaluation(iteration: int, miou: Any) -> dict[str, Any]:
    return {"kind": "eval", "iteration": iteration, "miou": miou}


def drawn(folder: Path, *lines: dict[str, Any]) -> Any:
    """Draw a log; return the picture, (H, W, 3) uint8."""
    log = folder / "train_log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_curves(log, folder / "curves.png")
    picture = cv2.imread(str(folder / "curves.png"))
    assert picture is not None
    return picture


def test_the_mean_over_a_window_by_hand() -> None:
    # 80 values: one on each side
    values = np.zeros(80)
    values[[0, 40, 79]] = (6, 3, 9)
    expected = np.zeros(80)
    # the window is narrower at the ends: the first and last value stay
    expected[[0, 1, 39, 40, 41, 78, 79]] = (6, 2, 1, 1, 1, 3, 9)
    np.testing.assert_allclose(smoothed(values), expected, atol=1e-14)
    few = np.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(smoothed(few), few)
    assert smoothed(np.array([])).size == 0


def test_a_panel_for_the_miou_when_there_is_one(tmp_path: Path) -> None:
    lines = [train(10 * n, total=3.0 / n, main=1.0 / n) for n in range(1, 30)]
    without = drawn(tmp_path, *lines)
    with_miou = drawn(tmp_path, *lines, evaluation(100, 0.4), evaluation(200, 0.5))
    assert without.shape[:2] == (620, 900)
    assert with_miou.shape[:2] == (880, 900)
    assert (tmp_path / "curves.png").stat().st_size < 250 * 1024
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "train_log.jsonl"]


@pytest.mark.parametrize(
    "changed",
    [
        [train(1, total=1.0), train(2, total=5.0), train(3, total=1.0)],
        [train(1, total=1.0, main=1.0), train(2, total=2.0), train(3, total=1.0)],
        [{**train(1, total=1.0), "lr": {"a": 0.5}}, train(2, total=2.0), train(3, total=1.0)],
        [
            train(1, total=1.0),
            train(2, total=2.0),
            {"kind": "header", "iteration": 2},
            train(3, total=1.0),
        ],
    ],
)
def test_every_number_shows(tmp_path: Path, changed: list[dict[str, Any]]) -> None:
    before = drawn(tmp_path, train(1, total=1.0), train(2, total=2.0), train(3, total=1.0))
    assert not np.array_equal(before, drawn(tmp_path, *changed))


def test_a_norm_beside_the_loss_does_not_squeeze_it(tmp_path: Path) -> None:
    before = drawn(tmp_path, train(1, total=1.0), train(2, total=2.0))
    after = drawn(tmp_path, train(1, total=1.0, grad_norm=90.0), train(2, total=2.0))
    np.testing.assert_array_equal(before, after)


def test_a_miou_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    lines = [train(1, total=1.0), train(2, total=2.0)]
    points = [evaluation(1, 0.25), evaluation(2, 0.5)]
    with_nan = drawn(tmp_path, *lines, points[0], evaluation(1, "nan"), points[1])
    np.testing.assert_array_equal(with_nan, drawn(tmp_path, *lines, *points))
    drawn(tmp_path, *lines, evaluation(1, "nan"))


def test_groups_of_one_rate_are_one_line_with_all_names(tmp_path: Path) -> None:
    def rates(iteration: int, **lr: float) -> dict[str, Any]:
        return {"kind": "train", "iteration": iteration, "loss": {"total": 1.0}, "lr": lr}

    apart = [rates(1, a=1e-3, b=1e-3), rates(2, a=1e-3, b=1e-2)]
    assert [label for label, _ in rate_lines([*apart])] == ["a", "b"]
    same = [rates(1, a=1e-3, b=1e-2, c=1e-3), rates(2, a=1e-4, b=1e-3, c=1e-4)]
    assert rate_lines(same) == [("a, c", [(1, 1e-3), (2, 1e-4)]), ("b", [(1, 1e-2), (2, 1e-3)])]
    drawn(tmp_path, *same)


def test_one_line_is_enough(tmp_path: Path) -> None:
    drawn(tmp_path, train(1, total=1.0))


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no line of a training"):
        drawn(tmp_path, evaluation(1, 0.5))
    with pytest.raises(TrainingError, match="cannot be read"):
        draw_curves(tmp_path / "none.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_a_missing_matplotlib_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"needs matplotlib .*pip install matplotlib"):
        drawn(tmp_path, train(1, total=1.0))


def test_pyplot_and_its_windows_are_not_loaded(tmp_path: Path) -> None:
    log = tmp_path / "train_log.jsonl"
    log.write_text(json.dumps(train(1, total=1.0)) + "\n")
    program = (
        "import sys; from pathlib import Path; from common.curves import draw_curves;"
        "loaded = 'matplotlib' in sys.modules; draw_curves(Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(loaded, 'matplotlib.figure' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    printed = run_program(program, str(log), str(tmp_path / "curves.png"))
    assert printed.split() == ["False", "True", "False"]
