"""Deliberate faults from end to end: the layer that is itself wrong is found, and replayed."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load_config
from pipeline import investigate as module
from pipeline.blame import Traces, blame
from pipeline.examine import Exam
from pipeline.failure import FailureCase, read_case
from pipeline.inputs import prepare_inputs
from pipeline.investigate import Scene, failing_contexts, investigate
from pipeline.judge import Result
from pipeline.record import Job, Run
from pipeline.recording import Recording
from pipeline.records import read_record, record_name
from pipeline.steps import step_named
from pipeline.trace_cases import About, case_of
from pipeline.traces import unpack
from pipeline.verdicts import Row, Verdict

ROOT = Path(__file__).resolve().parent.parent
CITYSCAPES = ROOT / "configs" / "bisenetv1_cityscapes.yml"
SMALL = ("verify.image_hw=[32,32]", "verify.batch_size=4")
SHORT = (
    "verify.train_iters=4", "verify.train_iters_float32=2", "verify.check_every=2",
    "verify.train_warmup_iters=1",
)  # fmt: skip

# fault -> step, kind, layer, words of the place
FAULTS: Mapping[str, tuple[str, str, str, str]] = {
    "none": ("backward", "", "", ""),
    "bn_eps": ("forward", "layer", "cp.resnet.bn1", "layer cp.resnet.bn1 (eval)"),
    "padding_same": ("forward", "layer", "sp.conv2.conv", "layer sp.conv2.conv (eval)"),
    "ffm_concat_order": ("forward", "layer", "ffm", "in what it hands to ffm.convblk (eval)"),
    "ffm_residual_missing": ("forward", "layer", "ffm", "layer ffm (eval)"),
    "aux_heads_swapped": ("forward", "layer", "network", "the network itself, head aux16 (eval)"),
    "branch_detached": ("backward", "layer_gradient", "sp", "back to sp.conv_out: none arrives"),
    "half_gradient": ("backward", "layer_gradient", "cp.arm32", "it sends back to cp.arm32."),
    "bias_frozen": (
        "backward",
        "parameter_gradient",
        "conv_out.conv_out.bias",
        "gradient of parameter conv_out.conv_out.bias",
    ),
    "bn_momentum": (
        "backward",
        "buffer",
        "cp.resnet.bn1.running_mean",
        "buffer cp.resnet.bn1.running_mean",
    ),
    "void_as_class": ("backward", "loss", "loss", "loss term"),
}


@dataclass(frozen=True)
class Recorded:
    """The records of all faults, made by one pair of recorders."""

    config: Config
    work: Path

    def case(self, fault: str) -> list[FailureCase]:
        step = FAULTS[fault][0]
        name = record_name(step, "float64", "torch")
        reference = unpack(read_record(self.work / step, name).arrays)
        name = record_name(step, "float64", "paddle")
        arrays = read_record(self.work / fault, name).arrays
        traces = Traces(reference, unpack(arrays, reference=reference.arrays))
        about = About(step, "float64", self.config, inject=fault)
        return [case_of(one, traces, about) for one in blame(traces)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    work = tmp_path_factory.mktemp("faults")
    config = load_config(CITYSCAPES, overrides=list(SMALL))
    (work / "config.yml").write_text(config.dump_yaml())
    steps = ("forward", "backward")
    prepare_inputs(work / "inputs", config, steps=steps, real_frames=False)
    job = Job(name="v1", config=work / "config.yml", inputs=work / "inputs", runs=[])
    exam = Exam(contexts=["eval", "train"])

    def run(step: str, folder: str, fault: str | None, *, forced: bool) -> Run:
        asked = exam.model_copy(update={"reference": work / step if forced else None})
        return Run(step=step, dtype="float64", fault=fault, folder=work / folder, exam=asked)

    own = [run(step, step, None, forced=False) for step in steps]
    wrong = [
        run(step, fault, None if fault == "none" else fault, forced=True)
        for fault, (step, *_) in FAULTS.items()
    ]
    jobs = {
        "torch": [job.model_copy(update={"runs": own})],
        "paddle": [job.model_copy(update={"runs": wrong})],
    }
    with Recording(
        jobs,  # pyright: ignore[reportArgumentType]
        work=work,
        logs=work,
        device="cpu",
        progress=lambda _: None,
    ) as recording:
        while len(recording.ended) < 2:
            recording.pump(0.5)
    assert set(recording.ended.values()) == {0}, (work / "recorder_paddle.log").read_text()
    return Recorded(config, work)


def test_nobody_is_to_blame_without_a_fault(recorded: Recorded) -> None:
    assert recorded.case("none") == []


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "none"])
def test_the_wrong_layer_is_blamed(recorded: Recorded, fault: str) -> None:
    _, kind, layer, words = FAULTS[fault]
    cases = recorded.case(fault)
    first = cases[0]
    assert (first.kind, first.name) == (kind, layer)
    assert words in first.where
    for case in cases:
        assert not np.array_equal(case.arrays["reference"], case.arrays["actual"])
    if kind != "buffer" and kind != "loss":
        # what comes after it works on agreeing inputs, and is not blamed
        assert len(cases) == 1


def test_what_a_case_holds(recorded: Recorded) -> None:
    (case,) = recorded.case("bn_eps")
    x, weight = case.arrays["input/0"], case.arrays["parameter/weight"]
    mean, variance = case.arrays["buffer/running_mean"], case.arrays["buffer/running_var"]

    def computed(eps: float) -> Any:
        scale = weight / np.sqrt(variance + eps)
        centred = x - mean[:, None, None]
        return centred * scale[:, None, None] + case.arrays["parameter/bias"][:, None, None]

    # from the case alone either side's numbers can be computed again
    np.testing.assert_allclose(computed(1e-5), case.arrays["reference"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(computed(1.1e-5), case.arrays["actual"], rtol=1e-10, atol=1e-12)
    assert case.spec["torch"]["eps"] == 1e-5
    assert case.spec["paddle"]["eps"] == 1.1e-5
    glue = recorded.case("ffm_concat_order")[0].arrays
    np.testing.assert_array_equal(
        glue["reference"], np.concatenate([glue["input/0"], glue["input/1"]], axis=1)
    )
    np.testing.assert_array_equal(
        glue["actual"], np.concatenate([glue["input/1"], glue["input/0"]], axis=1)
    )
    loss = recorded.case("void_as_class")[0].arrays
    assert {"logits/main", "label", "term/main/reference", "term/main/actual"} <= set(loss)


def bisenet(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_training_is_bisected_logged_and_replayed(tmp_path: Path) -> None:
    sets = [word for override in (*SMALL, *SHORT) for word in ("--set", override)]
    verify = ["verify", "--config", str(CITYSCAPES), "--steps", "training", *sets]
    done = bisenet(*verify, "--inject", "trained_in_eval_mode", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    place = "iteration 1, forward: layer cp.resnet.bn1 (train)"
    out = Path("output") / "verify" / "bisenetv1_cityscapes"
    replay = f"bisenet replay {out}/failures/01_training_float64"
    log = (tmp_path / out / "training_diff.log").read_text()
    for text in (done.stdout, log):
        assert f"itself wrong: {place}" in text
        assert replay in text
        assert "trained_in_eval_mode" in text
        assert "no evidence" in text
    assert str(tmp_path) not in log
    assert not (tmp_path / "logs").exists()
    summary = json.loads((tmp_path / out / "summary.json").read_text())
    assert summary["results"][0]["blames"][0]["where"] == place
    assert summary["results"][0]["blames"][0]["iteration"] == 1
    case = read_case(tmp_path / out / "failures" / "01_training_float64")
    assert (case.iteration, case.phase, case.name) == (1, "forward", "cp.resnet.bn1")
    # the loop left Paddle's layers in evaluation mode, and the case knows
    assert [case.spec[side]["training"] for side in ("torch", "paddle")] == [True, False]
    done = bisenet(*replay.split()[1:], cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "the difference persists" in done.stdout
    # the next run passes, and leaves no failures
    done = bisenet(*verify[:4], "metric", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / out / "failures").exists()


def test_a_mended_layer_is_gone(recorded: Recorded, tmp_path: Path) -> None:
    from dataclasses import replace

    from pipeline.failure import write_case
    from pipeline.replay import replay

    (case,) = recorded.case("half_gradient")
    write_case(tmp_path / "wrong", case)
    found = replay(tmp_path / "wrong")
    assert (found.rerun, found.persists) == (True, True)
    assert found.comparisons[1].relative < 1e-14
    mended = replace(case, settings={**case.settings, "inject": None})
    write_case(tmp_path / "right", mended)
    found = replay(tmp_path / "right")
    assert (found.persists, found.exit_code, found.note) == (False, 0, "the difference has gone")


def test_faults_are_kept_away_from_the_evidence(tmp_path: Path) -> None:
    words = ["verify", "--config", str(CITYSCAPES), "--inject", "bn_eps"]
    done = bisenet(*words, "--out", "logs/x", cwd=tmp_path)
    assert done.returncode == 2
    assert "logs/ holds evidence" in done.stderr
    done = bisenet(*words[:-1], "nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "no fault 'nonsense'" in done.stderr
    done = bisenet("verify", "--all", "--inject", "bn_eps", cwd=tmp_path)
    assert done.returncode == 2


def failing(step: str, dtype: str = "float64", verdict: Verdict = Verdict.FAIL) -> Result:
    rows = (Row("eval/layer/a", Verdict.PASS), Row("eval/head/main", verdict, relative=1.0))
    return Result(step_named(step), dtype, verdict, rows)


def scene(tmp_path: Path) -> Scene:
    job = Job(name="x", config=tmp_path / "c.yml", inputs=tmp_path / "in", runs=[])
    return Scene(load_config(CITYSCAPES), job, tmp_path, tmp_path / "work", lambda _: None)


def test_a_crash_hides_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> Any:
        raise RuntimeError("the disk is full\nand more")

    monkeypatch.setattr(module, "find_cases", crash)
    found = investigate([failing("forward"), failing("forward", "float32")], scene(tmp_path))
    assert [result.verdict for result in found] == [Verdict.FAIL, Verdict.FAIL]
    assert (
        found[0].investigation == "the investigation failed, the verdict stands: the disk is full"
    )
    assert "not investigated" in found[1].investigation


def test_what_passed_costs_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_cases", lambda *_: pytest.fail("looked into"))
    (tmp_path / "failures" / "01_loss_float64").mkdir(parents=True)
    results = [failing("loss", verdict=verdict) for verdict in (Verdict.PASS, Verdict.NOT_RUN)]
    assert investigate(results, scene(tmp_path)) == results
    assert not (tmp_path / "failures").exists()
    assert not (tmp_path / "work").exists()


def test_what_compared_nothing_has_no_layer_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_cases", lambda *_: pytest.fail("looked into"))
    (found,) = investigate([failing("forward", verdict=Verdict.VACUOUS)], scene(tmp_path))
    assert found.investigation.startswith("nothing differs")


def test_only_failing_passes_are_traced() -> None:
    def contexts(*failed: str) -> list[str]:
        keys = ("train/head/main", "eval/head/main", "odd33x65/head/main", "eval/layer/a")
        rows = [Row(k, Verdict.FAIL if k in failed else Verdict.PASS) for k in keys]
        return failing_contexts(Result(step_named("forward"), "float64", Verdict.FAIL, tuple(rows)))

    assert contexts("odd33x65/head/main") == ["odd33x65"]
    # training moves the running statistics: it comes last
    assert contexts("train/head/main", "eval/layer/a") == ["eval", "train"]
