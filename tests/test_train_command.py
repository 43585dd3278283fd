"""tools/train.py from outside: killed, stopped, resumed, refused. One run per process.

Each framework's case is one chain, for the sake of time: a run that nothing disturbs, and one that
is killed, goes on, is asked to stop, loses its newest checkpoint, and goes on again.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.run_log import LOG_NAME
from common.stopping import STOPPED
from fake_data.scenes import generate

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/bisenetv2_cityscapes.yml"
ITERATIONS = 14
PATIENCE_S = 600
"""Seconds until a run is given up: a machine that is busy otherwise is not a failure."""
FRAMEWORKS = ("torch", "paddle")
LAUNCHERS = {"torch": "torch.distributed.run", "paddle": "paddle.distributed.launch"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(
        tmp_path_factory.mktemp("data") / "scenes", seed=1, train=5, val=2, size_hw=(48, 96)
    )


def arguments(framework: str, scenes: Path, out: Path, *more: str) -> list[str]:
    keys = (
        *("train.ema_decay=0.9", "train.accumulate=2", "schedule.warmup_iters=2"),
        *(f"data.root={scenes}", "data.crop_hw=[32,64]"),
    )
    flags = {
        **{"config": CONFIG, "framework": framework, "device": "cpu", "save_dir": str(out)},
        **{"iters": str(ITERATIONS), "batch_size": "2", "num_workers": "1"},
        **{"save_interval": "2", "log_iters": "1", "keep_checkpoint_max": "3"},
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    return [*words, *(word for key in keys for word in ("--set", key)), *more]


class Run:
    """A training in processes of its own, with what it has written so far."""

    def __init__(self, command: list[str], out: Path) -> None:
        self.out = out
        # two processes on two cores: threads that wait for each other cost more than they bring
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def done(self) -> int:
        """Return the iterations done according to the log."""
        rows = [row for row in log_rows(self.out) if row["kind"] == "train"]
        return rows[-1]["iteration"] if rows else 0

    def wait_for(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, f"it ended before:\n{self.text()}"
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.01)

    def finish(self) -> tuple[int, str]:
        try:
            text, _ = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.kill()
        return self.process.returncode, text

    def text(self) -> str:
        return self.process.stdout.read() if self.process.stdout else ""

    def family(self) -> list[int]:
        """Return the ids of all processes below this one, and its own."""
        found, parents = [self.process.pid], _parents()
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kill(self) -> None:
        for pid in self.family() if self.process.poll() is None else []:
            _send(pid, signal.SIGKILL)
        self.process.wait()


def _parents() -> dict[int, int]:
    """Process id -> its parent's, of all processes."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            content = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(content.rpartition(")")[2].split()[1])
    return parents


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def log_rows(out: Path) -> list[dict[str, Any]]:
    try:
        lines = (out / LOG_NAME).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    # what follows the last line feed is being written
    return [json.loads(line) for line in lines[:-1]]


def checkpoint_files(out: Path, iteration: int = ITERATIONS) -> dict[str, bytes]:
    folder = out / "checkpoints" / f"iter_{iteration:06d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def newest(out: Path) -> Path:
    return sorted((out / "checkpoints").glob("iter_*"))[-1]


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def started(command: list[str], out: Path) -> Run:
        runs.append(Run(command, out))
        return runs[-1]

    yield started
    for run in runs:
        run.kill()


def random_moment(name: str) -> tuple[int, float]:
    """Return after how many iterations, and seconds then, to kill: another moment every time."""
    seed = random.SystemRandom().randrange(1000)
    source = random.Random(seed)
    moment = source.randint(3, 6), source.uniform(0, 0.2)
    sys.stdout.write(f"{name}: seed {seed}, iteration {moment[0]}, then {moment[1]:.3f} s\n")
    return moment


def end(run: Run, expected: int) -> str:
    code, text = run.finish()
    assert code == expected, text
    return text


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_killed_and_stopped_is_never_interrupted(
    framework: str, scenes: Path, tmp_path: Path, start: Callable[..., Run]
) -> None:
    def train(out: Path, *more: str) -> Run:
        skip = "--skip_parity_check"
        return start(["tools/train.py", *arguments(framework, scenes, out, skip, *more)], out)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    end(train(whole, "--do_eval"), 0)

    iteration, seconds = random_moment("killed")
    run = train(broken, "--do_eval")
    run.wait_for(lambda: run.done() >= iteration)
    time.sleep(seconds)
    _send(run.process.pid, signal.SIGKILL)
    assert run.finish()[0] == -signal.SIGKILL

    run = train(broken, "--do_eval", "--resume_model", "auto")
    run.wait_for(lambda: run.done() >= iteration + 3)
    # to the loader's process too, as torchrun does
    for pid in run.family():
        _send(pid, signal.SIGTERM)
    end(run, STOPPED)
    assert log_rows(broken)[-1]["kind"] == "stopped"
    stopped_at = log_rows(broken)[-1]["iteration"]
    assert newest(broken).name == f"iter_{stopped_at:06d}"

    damaged = newest(broken) / "momentum.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    text = end(train(broken, "--do_eval", "--resume_model", "auto"), 0)
    assert damaged.parent.name in text
    warnings = [row for row in log_rows(broken) if row["kind"] == "warning"]
    assert any(damaged.parent.name in row["message"] for row in warnings)

    expected = checkpoint_files(whole)
    assert set(expected) == {"weights.safetensors", "momentum.safetensors", "ema.safetensors"}
    assert checkpoint_files(broken) == expected
    lines = [
        {row["iteration"]: row["loss"] for row in log_rows(out) if row["kind"] == "train"}
        for out in (whole, broken)
    ]
    assert lines[0] == lines[1]
    assert list(lines[0]) == list(range(1, ITERATIONS + 1))
    best = [(out / "best" / "weights.safetensors").read_bytes() for out in (whole, broken)]
    assert best[0] == best[1]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_killed_are_never_interrupted(
    framework: str, scenes: Path, tmp_path: Path, start: Callable[..., Run]
) -> None:
    def train(out: Path, *more: str) -> Run:
        own = ("--skip_parity_check", "--iters", "6", "--save_interval", "1", *more)
        words = arguments(framework, scenes, out, *own)
        launcher = ["-m", LAUNCHERS[framework], "--nproc_per_node", "2"]
        logs = ["--log_dir", str(tmp_path / "launch")] if framework == "paddle" else []
        return start([*launcher, *logs, "tools/train.py", *words], out)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    end(train(whole), 0)
    run = train(broken)
    run.wait_for(lambda: run.done() >= 2)
    time.sleep(random_moment("two processes killed")[1])
    for pid in run.family():
        _send(pid, signal.SIGKILL)
    run.finish()
    assert not checkpoint_files(broken, 6)
    end(train(broken, "--resume_model", "auto"), 0)
    expected = checkpoint_files(whole, 6)
    assert expected
    assert checkpoint_files(broken, 6) == expected


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_killed_loader_process_ends_the_run_with_a_message(
    framework: str, scenes: Path, tmp_path: Path, start: Callable[..., Run]
) -> None:
    out = tmp_path / "out"
    words = arguments(framework, scenes, out, "--skip_parity_check", "--iters", "100000")
    run = start(["tools/train.py", *words, "--save_interval", "100000"], out)
    run.wait_for(lambda: run.done() >= 1)
    (worker,) = [pid for pid in run.family()[1:] if b"train.py" in _command_of(pid)]
    _send(worker, signal.SIGKILL)
    text = end(run, 2)
    assert "no batch for iteration" in text
    assert log_rows(out)[-1]["kind"] == "loader_failed"


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def test_without_parity_evidence_it_refuses(
    scenes: Path, tmp_path: Path, start: Callable[..., Run]
) -> None:
    # a recipe that nobody has verified
    words = arguments("torch", scenes, tmp_path / "out", "--learning_rate", "0.0123")
    text = end(start(["tools/train.py", *words], tmp_path / "out"), 2)
    assert "--skip_parity_check" in text
    assert "bisenet verify" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--config", "configs/no_such.yml"], "no_such.yml"),
        (["--config", CONFIG, "--set", "train.no_such=1"], "train.no_such"),
    ],
)
def test_wrong_input_is_one_message(
    words: list[str], part: str, tmp_path: Path, start: Callable[..., Run]
) -> None:
    text = end(start(["tools/train.py", *words], tmp_path), 2)
    assert part in text
    assert "Traceback" not in text


def test_bisenet_train_is_the_same_program(tmp_path: Path, start: Callable[..., Run]) -> None:
    text = end(start(["-m", "pipeline.cli", "train", "--help"], tmp_path), 0)
    assert "--resume_model" in text
    assert "Default: paddle." in text
