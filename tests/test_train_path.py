"""The parts of .ci/train_path.py: each comparison must be able to fail, no process may outlive."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

PARTS = Path(__file__).resolve().parent.parent / ".ci" / "train_path_parts.py"


def load_parts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_path_parts", PARTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parts = load_parts()


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Any]:
    said: list[str] = []
    made = parts.Commands(tmp_path, say=said.append)
    yield made
    assert said


def weights(path: Path, **changed: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({"a": np.arange(6, dtype=np.float32), "b": np.zeros(2), **changed}, path)
    return path


def test_equal_weights(tmp_path: Path) -> None:
    assert not parts.file_differences(weights(tmp_path / "1"), weights(tmp_path / "2"))


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("a", np.nextafter(np.arange(6, dtype=np.float32), np.float32(9)), "a: differs by up to"),
        ("b", np.array([0.0, -0.0]), "b: differs by up to 0"),
        ("b", np.zeros(2, np.float32), "b: missing in one"),
        ("c", np.zeros(2), "c: missing in one"),
    ],
)
def test_weights_that_differ_are_named(
    tmp_path: Path, name: str, value: np.ndarray, word: str
) -> None:
    other = weights(tmp_path / "2", **{name: value})
    told = parts.file_differences(weights(tmp_path / "1"), other)
    assert len(told) == 2
    assert word in told[1]


def test_no_weights_are_no_equal_weights(tmp_path: Path) -> None:
    assert parts.file_differences(tmp_path / "1", tmp_path / "2") == [
        f"no such file: {tmp_path / name}" for name in "12"
    ]


def log() -> list[dict[str, Any]]:
    rates = {"backbone": 0.1}
    rows: list[dict[str, Any]] = [{"kind": "header", "iteration": 0}]
    for iteration in (1, 2):
        loss = {"total": 1 / iteration}
        row = {"iteration": iteration, "epoch": 0, "loss": loss, "lr": rates, "ips": 3.0}
        rows.append({"kind": "train", **row})
    score = {"miou": 0.5, "iou": [0.25, 0.75, None], "best_miou": 0.5, "best_iteration": 2}
    return [*rows, {"kind": "eval", "iteration": 2, **score, "seconds": 1.0}]


def test_equal_logs() -> None:
    other = log()
    other[1]["ips"] = other[-1]["seconds"] = 9.0
    assert not parts.log_differences(log(), other)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1]["loss"].update(total=1 + 1e-15),
        lambda rows: rows[2].update(lr={"backbone": 0.2}),
        lambda rows: rows[-1].update(miou=0.5 + 1e-15),
        lambda rows: rows[-1]["iou"].reverse(),
        lambda rows: rows.pop(1),
        lambda rows: rows.pop(),
        lambda rows: rows.insert(1, rows[1]),
    ],
)
def test_logs_that_differ(change: Callable[[list[dict[str, Any]]], Any]) -> None:
    other = log()
    change(other)
    assert len(parts.log_differences(log(), other)) == 1


def test_an_iteration_done_twice_or_never() -> None:
    parts.only_once(log(), "train", [1, 2])
    for rows in (log()[:2], [*log(), log()[1]]):
        with pytest.raises(parts.PathError, match="train lines of iterations"):
            parts.only_once(rows, "train", [1, 2])


def result() -> dict[str, Any]:
    return {
        **{"command": "tools/eval.py", "processes": 2, "seconds": 1.0, "images_per_second": 3.0},
        "numbers": [{"name": "pixel accuracy", "value": 0.9}, {"name": "mIoU", "value": 0.5}],
        "classes": [{"name": n, "iou": v} for n, v in (("road", 0.25), ("sky", 0.75), ("x", None))],
        "confusion_matrix": {"counts": [[1, 2], [3, 4]]},
        "images": {"a": 0.5},
    }


def test_equal_evaluations() -> None:
    other = {**result(), "command": "", "processes": 1, "seconds": 9.0, "images_per_second": 1.0}
    assert not parts.eval_differences(result(), other)
    assert not parts.trainer_differences(log()[-1], other)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["confusion_matrix"]["counts"][0].reverse(),
        lambda found: found["images"].update(a=0.5 + 1e-15),
        lambda found: found["numbers"][0].update(value=0.8),
        lambda found: found.pop("classes"),
        lambda found: found.update(weights_sha256="0"),
    ],
)
def test_evaluations_that_differ(change: Callable[[dict[str, Any]], Any]) -> None:
    other = result()
    change(other)
    assert len(parts.eval_differences(result(), other)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["numbers"][1].update(value=0.5 + 1e-15),
        lambda found: found["classes"][0].update(iou=0.26),
        lambda found: found["classes"][2].update(iou=0.0),
    ],
)
def test_an_evaluation_that_is_not_the_trainers(change: Callable[[dict[str, Any]], Any]) -> None:
    other = result()
    change(other)
    assert len(parts.trainer_differences(log()[-1], other)) == 1


def test_a_log_that_is_being_written(tmp_path: Path) -> None:
    assert parts.log_rows(tmp_path) == []
    (tmp_path / "train_log.jsonl").write_text(json.dumps({"kind": "train"}) + '\n{"kind": "tr')
    assert parts.log_rows(tmp_path) == [{"kind": "train"}]


# ---- commands -----------------------------------------------------------------------------------
CHILD_IN_A_SESSION_OF_ITS_OWN = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
print(subprocess.Popen(sleep, start_new_session=True).pid, flush=True)
"""


def test_another_exit_code_fails(commands: Any) -> None:
    words = [sys.executable, "-c", "import sys; print('why'); sys.exit(3)"]
    assert commands.run("three", words, expected=3) == "why\n"
    with pytest.raises(parts.PathError, match=r"(?s)exit code 3; expected 0.*why"):
        commands.run("three", words)


def test_a_kill_reaches_other_sessions(commands: Any) -> None:
    words = [sys.executable, "-c", f"{CHILD_IN_A_SESSION_OF_ITS_OWN}\ntime.sleep(600)"]
    with parts.Launched(commands, "launcher", words) as job:
        job.wait_for(lambda: job.screen.read_text().endswith("\n"))
        child = int(job.screen.read_text())
        assert os.getsid(child) == child
        assert job.kill() == 2
    assert not alive(child)


def test_a_process_left_running_fails_and_is_killed(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "LEFT_S", 0.1)
    with pytest.raises(parts.PathError, match="left processes") as caught:
        commands.run("orphan", [sys.executable, "-c", CHILD_IN_A_SESSION_OF_ITS_OWN])
    assert not alive(int(str(caught.value).partition("[")[2].partition("]")[0]))


def test_a_command_that_ends_early_is_not_waited_for(commands: Any) -> None:
    with (
        pytest.raises(parts.PathError, match=r"(?s)ended too early.*gone"),
        parts.Launched(commands, "short", [sys.executable, "-c", "print('gone')"]) as job,
    ):
        job.wait_for(lambda: False)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    # nobody may have waited for it yet
    return state != "Z"
