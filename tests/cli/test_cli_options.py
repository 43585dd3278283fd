"""Options and configurations: mistakes are one message, and what is asked for is done."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import CAMVID, CITYSCAPES, Mistake

from common.weights import write_weights
from pipeline import cli
from pipeline.outcome import Options
from pipeline.steps import STEP_NAMES


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "los,forward"], f"unknown step(s) los; steps: {', '.join(STEP_NAMES)}"),
        (["--steps", ","], "unknown step(s) (none named)"),
        (["--device", "tpu"], "--device tpu: expected cpu or gpu"),
        (
            ["--set", "optimizer.base_lrr=1"],
            "optimizer.base_lrr: unknown key; did you mean base_lr",
        ),
        (
            ["--set", "schedule.max_iters=many"],
            "schedule.max_iters: Input should be a valid integer",
        ),
        (["--set", "schedule"], "--set schedule: expected KEY=VALUE"),
        (["--data", "nowhere"], "--data nowhere: no such folder; expected the cityscapes data"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors: no such weights file"),
    ],
)
def test_a_wrong_option_is_one_message(mistake: Mistake, words: list[str], expected: str) -> None:
    text = mistake("--config", CITYSCAPES, *words)
    assert text.startswith("error: ")
    assert expected in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config"], "requires an argument"),
        (["--steps", "loss"], "expected either --config FILE or --all"),
        (["--config", "c.yml", "--all"], "expected either --config FILE or --all"),
        (["--all", "--json"], "--json, --weights and --waivers are for one configuration"),
        (["--config", "c.yml", "--speed", "9"], "No such option"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(
    mistake: Mistake, words: list[str], expected: str
) -> None:
    assert expected in mistake("--out", "o", *words)


def test_a_wrong_configuration_is_one_message(mistake: Mistake, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    assert f"{wrong}: no such configuration file" in mistake("--config", wrong)
    wrong.write_text("_base_: wrong.yml\n")
    assert "_base_ is cyclic (wrong.yml -> wrong.yml)" in mistake("--config", wrong)
    wrong.write_text(f"_base_: {CAMVID}\nmodel: {{clases: 3}}\n")
    assert "model.clases: unknown key; did you mean classes?" in mistake("--config", wrong)
    # brackets are no markup, and long paths are not cut
    wrong.write_text("model: {name: [bold]x[/bold]}\n")
    assert str(wrong) in mistake("--config", wrong)


def test_scenes_cannot_stand_in_for_camvid(mistake: Mistake) -> None:
    assert "name the folder of the real data with --data" in mistake("--config", CAMVID)


def test_a_folder_that_cannot_be_written_is_one_message(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        text = mistake("--config", CITYSCAPES, "--out", out)
        assert text.startswith(f"error: cannot write {out}: ")
        assert "choose another folder or mend its permissions" in text
        text = mistake("--config", CITYSCAPES, "--out", out, command="audit")
        assert text.startswith(f"error: cannot write {out}: ")


def test_an_unknown_fault_lists_the_known_ones(mistake: Mistake) -> None:
    text = mistake("--config", CITYSCAPES, "--faults", "bn_epss", command="audit")
    assert text.startswith("error: unknown fault(s) bn_epss of bisenetv1; faults: ")
    assert "bn_momentum" in text


def test_a_truncated_checkpoint_is_one_message(mistake: Mistake, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, {"conv.weight": np.ones((8, 8), np.float32)})
    path.write_bytes(path.read_bytes()[:-7])
    text = mistake("--config", CITYSCAPES, "--weights", path)
    assert text.startswith(f"error: {path}: truncated or damaged")


@pytest.fixture
def options_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Options]:
    """Run ``bisenet verify`` up to the verification; return what was asked of it."""

    def run(*words: str) -> Options:
        asked: list[Options] = []

        def run_verify(_config: Path, options: Options, **_rest: object) -> int:
            asked.append(options)
            return 0

        monkeypatch.setattr(cli, "run_verify", run_verify)
        monkeypatch.setattr(sys, "argv", ["bisenet", "verify", "--config", str(CAMVID), *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        return asked[0]

    return run


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ([], "logs/bisenetv1_camvid"),
        (["--steps", ",".join(reversed(STEP_NAMES))], "logs/bisenetv1_camvid"),
        (["--steps", "loss"], "output/verify/bisenetv1_camvid"),
        (["--steps", ",".join(["loss"] * len(STEP_NAMES))], "output/verify/bisenetv1_camvid"),
        (["--steps", "loss", "--out", "here"], "here"),
    ],
)
def test_only_all_steps_write_the_evidence(
    options_of: Callable[..., Options], words: list[str], out: str
) -> None:
    assert options_of(*words).out == Path(out)


def test_the_command_is_told_without_the_folders_of_the_machine(
    options_of: Callable[..., Options], tmp_path: Path
) -> None:
    words = ["--data", f"{tmp_path}/my data", f"--weights={tmp_path}/w.safetensors"]
    words += ["--set", f"data.root={tmp_path}/x", "--steps", "loss", "--out", "a/b"]
    assert options_of(*words).command == (
        "bisenet verify --config bisenetv1_camvid.yml --data 'my data' --weights=w.safetensors "
        "--set data.root=x --steps loss --out a/b"
    )


def test_under_nohup_a_hang_up_is_ignored(options_of: Callable[..., Options]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    options_of("--steps", "loss")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == cli._interrupt
