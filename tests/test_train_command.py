"""tools/train.py from outside: killed, stopped, resumed, refused. One run per process.

Each framework's case is one chain, for the sake of time: a run that nothing disturbs, and one that
is killed, goes on, is asked to stop, loses its newest checkpoint, and goes on again.
"""

import hashlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evidence import write_evidence
from training_command import (
    CONFIG,
    ITERATIONS,
    ROOT,
    Run,
    arguments,
    checkpoint_files,
    command_of,
    end,
    launched,
    log_rows,
    newest,
    send,
)

from common.stopping import STOPPED
from common.train_settings import parse_settings
from fake_data.scenes import generate

FRAMEWORKS = ("torch", "paddle")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(
        tmp_path_factory.mktemp("data") / "scenes", seed=1, train=5, val=2, size_hw=(48, 96)
    )


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def started(command: list[str], out: Path, **options: Any) -> Run:
        runs.append(Run(command, out, **options))
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
    send(run.process.pid, signal.SIGKILL)
    assert run.finish()[0] == -signal.SIGKILL

    run = train(broken, "--do_eval", "--resume_model", "auto")
    run.wait_for(lambda: run.done() >= iteration + 3)
    # to the loader's process too, as torchrun does
    for pid in run.family():
        send(pid, signal.SIGTERM)
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
    scores = [
        [
            (row["iteration"], row["miou"], row["best_miou"], row["best_iteration"])
            for row in log_rows(out)
            if row["kind"] == "eval"
        ]
        for out in (whole, broken)
    ]
    # also of a checkpoint that was gone on from: it is saved before its evaluation
    assert scores[0] == scores[1]
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
        return start(launched(framework, tmp_path / "launch", *words), out)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    end(train(whole), 0)
    run = train(broken)
    run.wait_for(lambda: run.done() >= 2)
    time.sleep(random_moment("two processes killed")[1])
    for pid in run.family():
        send(pid, signal.SIGKILL)
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
    (worker,) = [pid for pid in run.family()[1:] if b"train.py" in command_of(pid)]
    send(worker, signal.SIGKILL)
    text = end(run, 2)
    assert "no batch for iteration" in text
    assert log_rows(out)[-1]["kind"] == "loader_failed"


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_stopped_loader_process_ends_the_run_with_a_message(
    framework: str, scenes: Path, tmp_path: Path, start: Callable[..., Run]
) -> None:
    out = tmp_path / "out"
    words = arguments(framework, scenes, out, "--skip_parity_check", "--iters", "100000")
    limit = ("--save_interval", "100000", "--set", "train.loader_timeout_s=5")
    run = start(["tools/train.py", *words, *limit], out)
    run.wait_for(lambda: run.done() >= 1)
    (worker,) = [pid for pid in run.family()[1:] if b"train.py" in command_of(pid)]
    send(worker, signal.SIGSTOP)
    text = end(run, 2)
    assert f"loader process {worker} is stopped by a signal" in text
    assert "Traceback" not in text
    last = log_rows(out)[-1]
    assert last["kind"] == "loader_failed"
    assert "train.loader_timeout_s" in last["message"]
    # nothing of what was done is lost
    assert newest(out).name == f"iter_{last['iteration']:06d}"


def test_without_parity_evidence_it_refuses(
    scenes: Path, tmp_path: Path, start: Callable[..., Run]
) -> None:
    # a recipe that nobody has verified
    words = arguments("torch", scenes, tmp_path / "out", "--learning_rate", "0.0123")
    text = end(start(["tools/train.py", *words], tmp_path / "out"), 2)
    assert "--skip_parity_check" in text
    assert "bisenet verify" in text
    assert not (tmp_path / "out").exists()


@pytest.fixture
def verified(scenes: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """The arguments of a short training and the evidence for it, which lies where it starts."""
    words = arguments("torch", scenes, tmp_path / "out", "--iters", "3")
    words[words.index(CONFIG)] = str(ROOT / CONFIG)
    config = parse_settings(words).config
    write_evidence(tmp_path / "logs", config, name=Path(CONFIG).stem)
    return words, tmp_path / "logs" / Path(CONFIG).stem / "summary.json"


@pytest.mark.slow
def test_with_parity_evidence_it_trains(
    verified: tuple[list[str], Path], tmp_path: Path, start: Callable[..., Run]
) -> None:
    words, summary = verified
    end(start([str(ROOT / "tools/train.py"), *words], tmp_path / "out", cwd=tmp_path), 0)
    header, *rows = log_rows(tmp_path / "out")
    assert header["kind"] == "header"
    assert header["parity"] == hashlib.sha256(summary.read_bytes()).hexdigest()
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == [1, 2, 3]


def test_evidence_of_other_code_is_refused(
    verified: tuple[list[str], Path], tmp_path: Path, start: Callable[..., Run]
) -> None:
    words, summary = verified
    content = json.loads(summary.read_text())
    summary.write_text(json.dumps({**content, "code_digest": "0" * 64}))
    run = start([str(ROOT / "tools/train.py"), *words], tmp_path / "out", cwd=tmp_path)
    text = end(run, 2)
    assert "stale: the code has changed since (verified 000000000000" in text
    assert "--skip_parity_check" in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--config", "configs/no_such.yml"], "no_such.yml"),
        (["--config", CONFIG, "--set", "train.no_such=1"], "train.no_such"),
        (
            ["--config", CONFIG, "--skip_parity_check", "--device", "cpu", "--precision", "fp16"],
            "Paddle has mixed precision on a GPU only",
        ),
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
