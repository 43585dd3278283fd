"""A whole training in this process: resumed with its best, refused, ended by a bad sample."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_command import ROOT, arguments, checkpoint_files, log_rows, newest

from common.checkpoint_store import CheckpointStore
from fake_data.scenes import generate
from tools.train import main

pytestmark = pytest.mark.slow

Command = Callable[..., int]


class KilledError(Exception):
    """Ends a training where a SIGKILL would."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(
        tmp_path_factory.mktemp("data") / "scenes", seed=1, train=5, val=2, size_hw=(48, 96)
    )


@pytest.fixture
def command(side: Any, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a training of few and short iterations, with mIoUs of our own."""
    monkeypatch.chdir(ROOT)
    side.backend.set_threads(1)
    run = importlib.import_module(f"for_{side.name}.training_run")
    trainer = importlib.import_module(f"for_{side.name}.trainer").Trainer
    plain = trainer.step

    def train(out: Path, *more: str, miou: list[float] | None = None, killed_at: int = 0) -> int:
        def step(self: Any, batches: Any, *, stop: bool = False) -> Any:
            if killed_at and self.iteration == killed_at:
                raise KilledError
            return plain(self, batches, stop=stop)

        values = iter(miou or [])
        own = ("--skip_parity_check", "--num_workers", "0", "--iters", "6", "--save_interval", "1")
        light = ("--set", "train.accumulate=1", "--set", "data.root=" + str(scenes))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "step", step)
            patch.setattr(run, "mean_iou", lambda *_, **__: next(values))
            return main(arguments(side.name, scenes, out, *own, *light, *more))

    return train


def facts(out: Path, kind: str, *names: str) -> list[Any]:
    rows = [row for row in log_rows(out) if row["kind"] == kind]
    return [tuple(row[name] for name in names) for row in rows]


def test_best_and_patience_are_carried_over(
    side: Any, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "broken"
    evaluated = ("--do_eval", "--set", "train.patience=3")
    series = [0.5, 0.4, 0.45, 0.3]
    assert command(whole, *evaluated, miou=series) == 0
    with pytest.raises(KilledError):
        command(out, *evaluated, miou=series[:2], killed_at=2)
    # its checkpoint is of before the evaluation, which is done again; without its memory the second
    # would be the best, the third better still, and patience would not be over at the fourth
    resumed = ("--resume_model", "auto")
    assert command(out, *evaluated, *resumed, miou=[*series[1:], 0.2, 0.1]) == 0
    assert log_rows(out)[-1]["kind"] == "stopped_early"
    named = ("iteration", "miou", "best_miou", "best_iteration")
    expected = list(zip([1, 2, 3, 4], series, [0.5] * 4, [1] * 4, strict=True))
    assert facts(out, "eval", *named) == facts(whole, "eval", *named) == expected
    best = [CheckpointStore(folder, keep=1).best() for folder in (whole, out)]
    assert [found.iteration for found in best if found is not None] == [1, 1]
    assert checkpoint_files(out, 4) == checkpoint_files(whole, 4)
    assert facts(out, "warning", "message") == []

    # another measure, other versions: told, and the best so far is no longer compared with
    resume = importlib.import_module(f"for_{side.name}.resume")
    own = resume.versions()
    monkeypatch.setattr(resume, "versions", lambda: {**own, "numpy": "0.1"})
    changed = ("--set", "eval.count_void=true")
    assert command(out, *evaluated, *resumed, *changed, miou=[0.2, 0.3, 0.25]) == 0
    # the fourth again, for its checkpoint does not know of it
    expected = [(4, 0.2, 0.2, 4), (5, 0.3, 0.3, 5), (6, 0.25, 0.3, 5)]
    assert facts(out, "eval", *named)[-3:] == expected
    messages = [message for (message,) in facts(out, "warning", "message")]
    assert any(f"(numpy {np.__version__} -> 0.1)" in message for message in messages)
    assert any("eval.count_void False -> True" in message for message in messages)
    store = CheckpointStore(out, keep=1)
    found = store.best()
    assert found is not None
    assert found.iteration == 5
    assert store.load(out / "superseded_best_000004").iteration == 1


def test_what_cannot_be_gone_on_from_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, new = (tmp_path / name for name in ("one", "other", "new"))
    for out in (one, other):
        # a log line less often than the run is long: the curves are drawn nevertheless
        few = ("--iters", "3", "--log_iters", "10", "--do_eval", "--set", "train.eval_interval=3")
        assert command(out, *few, miou=[0.5]) == 0
        assert (out / "curves.png").exists()
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    path = one / "checkpoints" / "iter_000002"
    capsys.readouterr()
    for asked, part in ((path, "other holds another training"), (one / "best", "holds weights")):
        assert command(other, *few, "--resume_model", str(asked)) == 2
        assert part in capsys.readouterr().err
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    # into a new folder it goes on, and what a run left that saved nothing is set aside
    new.mkdir()
    (new / "train_log.jsonl").write_text('{"kind": "train", "iteration": 1}\n')
    assert command(new, *few, "--resume_model", str(path), miou=[0.25]) == 0
    assert [row["iteration"] for row in log_rows(new) if row["kind"] == "header"] == [2]
    assert (new / "train_log.1.jsonl").exists()
    assert checkpoint_files(new, 3) == checkpoint_files(one, 3)


def test_a_bad_sample_in_mid_run_saves_and_is_told(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "scenes", tmp_path / "out"
    generate(root, seed=1, train=5, val=2, size_hw=(48, 96))
    own = ("--set", f"data.root={root}", "--save_interval", "100")
    path = sorted(root.glob("leftImg8bit/train/*/*.png"))[2]
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert command(out, *own) == 2
    assert str(path) in capsys.readouterr().err
    last = log_rows(out)[-1]
    assert (last["kind"], last["file"], last["rank"]) == ("data_failed", str(path), 0)
    assert path.stem in last["sample"]
    assert "copy or download it again" in last["message"]
    assert last["iteration"] > 0
    assert newest(out).name == f"iter_{last['iteration']:06d}"
    path.write_bytes(content)
    assert command(out, *own, "--resume_model", "auto") == 0
    whole = tmp_path / "whole"
    assert command(whole, *own) == 0
    assert checkpoint_files(out, 6) == checkpoint_files(whole, 6)
