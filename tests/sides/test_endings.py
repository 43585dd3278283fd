"""How a training of two processes ends: early, by a signal, with a NaN, killed."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import endings_program
import numpy as np
import pytest
from endings_program import BAD_BUFFER, BAD_ITERATION, BAD_LAYER, CLIP_NORM
from launching import Ended, run_ranks
from training_command import Run, arguments, command_of, launched, log_rows, send

from common.checkpoint_store import CheckpointStore
from common.stopping import NOT_FINITE, STOPPED
from fake_data.scenes import generate

BOUND = 1e-12
"""Of each tensor's largest value, after three steps in float64."""
RANK = {"torch": b"RANK=1", "paddle": b"PADDLE_TRAINER_ID=1"}

BAD_LABEL, BAD_NUMBER = "gtFine/train/*/*_labelIds.png", 1

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(
        tmp_path_factory.mktemp("data") / "scenes", seed=1, train=5, val=2, size_hw=(48, 96)
    )


@pytest.fixture(scope="module")
def shared(
    side: Any, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Ended]]:
    """Folder and ranks of one start in which several trainings have ended."""
    out = tmp_path_factory.mktemp("shared")
    root = generate(out / "bad_scenes", seed=1, train=5, val=2, size_hw=(48, 96))
    path = sorted(root.glob(BAD_LABEL))[BAD_NUMBER]
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert label is not None
    label[:] = 77
    cv2.imwrite(str(path), label)
    program = Path(endings_program.__file__)
    return out, run_ranks(side.name, "share", out, str(scenes), program=program)


def outputs(ranks: list[Ended]) -> str:
    return "\n".join(rank.output for rank in ranks)


def codes(shared: tuple[Path, list[Ended]], case: str) -> list[Any]:
    out, ranks = shared
    files = [out / f"codes_{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), outputs(ranks)
    return [json.loads(file.read_text())[case] for file in files]


def newest(folder: Path) -> int:
    found = CheckpointStore(folder, keep=3).latest()
    assert found is not None
    assert not found.warnings
    return found.iteration


# ---- one start -----------------------------------------------------------------------------------
def test_clipping_by_two_is_clipping_by_one(shared: tuple[Path, list[Ended]]) -> None:
    out, ranks = shared
    assert (out / "clip_1.npz").exists(), outputs(ranks)
    alone, first, second = (dict(np.load(out / f"clip_{name}.npz")) for name in ("alone", "0", "1"))
    assert set(alone) == set(first) == set(second)
    # all three steps were clipped, by different factors
    assert (alone["norms"] > 1.5 * CLIP_NORM).all()
    assert alone["norms"].std() > 0.01
    for key, reference in alone.items():
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
        worst = np.abs(first[key] - reference).max()
        assert worst <= BOUND * np.abs(reference).max(), f"{key}: {worst}"


def test_both_ranks_stop_early_together(shared: tuple[Path, list[Ended]]) -> None:
    assert codes(shared, "early") == [0, 0]
    # of all pictures, though each rank has seen one of the two
    first, second = codes(shared, "miou")
    assert first == second
    assert len(first) == 2
    rows = log_rows(shared[0] / "early")
    # evaluated at 2, not bettered at 4
    assert [row["iteration"] for row in rows if row["kind"] == "eval"] == [2, 4]
    assert rows[-1]["kind"] == "stopped_early"
    assert rows[-1]["best_iteration"] == 2
    assert newest(shared[0] / "early") == 4


def test_a_signal_to_one_rank_stops_both(shared: tuple[Path, list[Ended]]) -> None:
    assert codes(shared, "signal") == [STOPPED, STOPPED]
    last = log_rows(shared[0] / "signal")[-1]
    # it came in the third step; the fourth tells the other rank
    assert (last["kind"], last["iteration"]) == ("stopped", BAD_ITERATION + 1)
    assert last["signal"] == "a signal to another process"
    assert newest(shared[0] / "signal") == BAD_ITERATION + 1


def _assert_told(folder: Path) -> None:
    """The message names iteration, layer and the bad rank's batch; what was saved stays."""
    last = log_rows(folder)[-1]
    assert (last["kind"], last["iteration"]) == ("not_finite", BAD_ITERATION - 1)
    assert f"of iteration {BAD_ITERATION} is not finite" in last["message"]
    assert f"first layer with a NaN or Inf: {BAD_LAYER}\n" in last["message"]
    (line,) = [line for line in last["message"].split("\n") if "samples of the batch" in line]
    assert len(line.split(": ")[1].split(", ")) == 2
    assert newest(folder) == BAD_ITERATION - 1
    assert (
        f"last good checkpoint: {folder}/checkpoints/iter_00000{BAD_ITERATION - 1}"
        in (last["message"])
    )


def test_what_one_rank_finds_not_finite_ends_both(shared: tuple[Path, list[Ended]]) -> None:
    out, ranks = shared
    assert [rank.code for rank in ranks] == [NOT_FINITE, NOT_FINITE], outputs(ranks)
    for rank in ranks:
        # they end together, and none takes the other for lost
        assert "has ended before the job did" not in rank.output
        # whichever is read: both tell the same
        assert log_rows(out / "alone")[-1]["message"] in rank.output
    _assert_told(out / "alone")


def test_synchronised_norms_do_not_hide_the_rank(shared: tuple[Path, list[Ended]]) -> None:
    """Where the statistics are shared the other rank's layers are bad, too, but later ones."""
    assert codes(shared, "synchronised") == [NOT_FINITE, NOT_FINITE]
    _assert_told(shared[0] / "synchronised")


def test_a_checkpoint_that_rank_0_refuses_ends_both(shared: tuple[Path, list[Ended]]) -> None:
    assert codes(shared, "buffer") == [NOT_FINITE, NOT_FINITE]
    last = log_rows(shared[0] / "buffer")[-1]
    assert (last["kind"], last["iteration"]) == ("not_finite", BAD_ITERATION + 1)
    assert BAD_BUFFER in last["message"]
    assert newest(shared[0] / "buffer") == BAD_ITERATION - 1


def test_what_one_rank_cannot_read_ends_both(shared: tuple[Path, list[Ended]]) -> None:
    """Both know why, none takes the other for lost, and what was done is saved."""
    assert codes(shared, "data") == [2, 2]
    out, ranks = shared
    last = log_rows(out / "data")[-1]
    path = sorted((out / "bad_scenes").glob(BAD_LABEL))[BAD_NUMBER]
    assert (last["kind"], last["file"]) == ("data_failed", str(path))
    assert "label value 77" in last["message"]
    for number, rank in enumerate(ranks):
        assert "out of memory" not in rank.output
        told = f"error: rank {last['rank']} failed to read its data: {path}: "
        own = f"error: {path}: "
        assert (own if number == last["rank"] else told) in rank.output
    assert last["iteration"] == 0 or newest(out / "data") == last["iteration"]


# ---- under the launcher --------------------------------------------------------------------------
@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def started(command: list[str], out: Path) -> Run:
        runs.append(Run(command, out))
        return runs[-1]

    yield started
    for run in runs:
        run.kill()


def _rank_1(run: Run, side: Any) -> int:
    """Return the process id of rank 1."""
    for pid in run.family():
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if RANK[side.name] in variables and b"train.py" in command_of(pid):
                return pid
    raise AssertionError("no process is rank 1")


def test_killed_then_asked_to_stop_under_the_launcher(
    side: Any, scenes: Path, tmp_path: Path, start: Callable[..., Run]
) -> None:
    out, logs = tmp_path / "out", tmp_path / "launcher"

    def train(*more: str) -> Run:
        own = ("--skip_parity_check", "--num_workers", "0", "--iters", "100000", *more)
        return start(launched(side.name, logs, *arguments(side.name, scenes, out, *own)), out)

    def told(run: Run) -> tuple[int, str]:
        code, text = run.finish()
        return code, text + "".join(log.read_text() for log in sorted(logs.glob("workerlog.*")))

    run = train()
    run.wait_for(lambda: run.done() >= 3)
    send(_rank_1(run, side), signal.SIGKILL)
    code, text = told(run)
    assert code not in (0, None), text
    # who is told by: the launcher or the other rank, whichever is faster
    assert "SIGKILL" in text or "code -9" in text or "rank 1 has ended" in text
    saved = newest(out)
    assert saved >= 2

    run = train("--resume_model", "auto")
    run.wait_for(lambda: run.done() >= saved + 2)
    send(run.process.pid, signal.SIGTERM)
    code, text = told(run)
    last = log_rows(out)[-1]
    assert (last["kind"], last["signal"]) == ("stopped", "SIGTERM"), text
    assert newest(out) == last["iteration"] > saved
    assert code == LAUNCHERS_CODE[side.name], text


LAUNCHERS_CODE = {"torch": 1, "paddle": 15}
"""Exit code of each framework's launcher after a SIGTERM, which docs/training.md tells."""
