"""The step logs read back: what pipeline/report.py writes is what pipeline/step_logs.py reads."""

from pathlib import Path

import numpy as np
import pytest
from reviewed_logs import CONFIG

from pipeline import chain
from pipeline.judge import Result
from pipeline.outcome import Options, Outcome
from pipeline.report import write_reports
from pipeline.step_logs import count_kinds, kind_of, parse_step_log, read_step_log
from pipeline.steps import step_named
from pipeline.verdicts import Row, Verdict

META = {
    side: {"versions": {side: "1"}, "inputs": "in", "data": "da", "weights": "by rule"}
    | {"digest": f"of-{side}", "frameworks": [side]}
    for side in ("torch", "paddle")
}
ROWS = (
    Row("iteration0010/state/a", Verdict.PASS, relative=2e-13, bound=1e-12, size=4, index=(1,)),
    Row("state/a", Verdict.PASS, relative=1e-13, bound=1e-12, size=4),
    Row("loss/total", Verdict.FAIL, "off by a lot [x]", 0.5, 0.25, 0.125, 3.0, (2, 1), size=7),
    Row("val/miou", Verdict.FAIL, "NaN", relative=np.inf, max_abs=np.nan, bound=1e-12),
    Row("lr/a", Verdict.MISSING, "recorded by the other side only, not by paddle"),
)
NARROW = Row(
    "lr/b",
    Verdict.PASS,
    relative=1e-8,
    bound=2e-7,
    max_abs=1.0,
    floor=1.25e-8,
    self_ratio=0.5,
    size=3,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    step = step_named("training")
    results = [
        Result(step, "float64", Verdict.FAIL, ROWS, meta=META),
        Result(step, "float32", Verdict.PASS, (NARROW,), meta=META),
        Result(step_named("metric"), "float64", Verdict.ERROR, message="torch recorder: dead\nx"),
    ]
    options = Options(out=tmp_path / "c", steps=("training", "metric"))
    write_reports(Outcome(CONFIG, options, results))
    return tmp_path / "c"


def test_rows_and_heads_come_back(folder: Path) -> None:
    log = read_step_log(folder / "training_diff.log")
    assert (log.step, log.verdict) == ("training", "FAIL")
    assert f"config_digest: {CONFIG.digest()}" in log.head
    wide, narrow = log.sections
    assert (wide.dtype, wide.verdict, wide.comparisons, wide.tensors) == ("float64", "FAIL", 5, 4)
    assert wide.kinds == {"loss": 1, "lr": 1, "state": 1, "val": 1}
    assert (wide.inputs, wide.data, wide.weights) == ("in", "da", "by rule")
    assert wide.records == {"torch": "of-torch", "paddle": "of-paddle"}
    assert wide.frameworks == {"torch": "torch", "paddle": "paddle"}
    rows = {row.tensor: row for row in wide.rows}
    assert rows["state/a"].key == "iteration0010/state/a"
    assert (rows["state/a"].relative, rows["state/a"].snapshots) == (2e-13, 2)
    loss = rows["loss/total"]
    assert (loss.verdict, loss.relative, loss.max_abs, loss.mean_abs) == ("FAIL", 0.125, 0.5, 0.25)
    assert (loss.max_rel, loss.size, loss.detail) == (3.0, 7, "[2, 1] off by a lot [x]")
    assert np.isinf(rows["val/miou"].relative)
    assert np.isnan(rows["val/miou"].max_abs)
    assert rows["lr/a"].verdict == "MISSING"
    assert (narrow.rows[0].floor, narrow.rows[0].rounding) == (1.2e-8, 0.5)
    assert narrow.rules[0].startswith("rule: |torch32 - paddle32| <= 1.5 x floor")
    assert narrow.official.startswith("official threshold")
    assert wide.unread == narrow.unread == ()


def test_a_message_is_kept_as_it_is(folder: Path) -> None:
    log = read_step_log(folder / "metric_diff.log")
    assert log.sections[0].verdict == "ERROR"
    assert log.sections[0].unread[:2] == ("torch recorder: dead", "x")
    assert log.sections[0].comparisons == 0


def test_kinds_of_tensors() -> None:
    assert kind_of("backward", "grad/conv1.weight") == "grad"
    assert kind_of("forward", "eval/layer/conv1") == "eval/layer"
    assert kind_of("training", "iteration0010/momentum/conv1.weight") == "momentum"
    assert kind_of("backward", "label") == "label"
    keys = ["moved/step1/a", "moved/step5/a", "moved/step5/b"]
    assert count_kinds("optimizer", keys) == {"moved/step1": 1, "moved/step5": 2}


def test_what_is_no_step_log() -> None:
    with pytest.raises(ValueError, match="expected 'step NAME: TITLE'"):
        parse_step_log("nothing")
    log = parse_step_log("step loss: terms\nhead: 1\n")
    assert (log.sections, log.verdict, log.head) == ((), "", ("head: 1",))


def test_every_file_of_a_run_is_in_its_chain_and_of_the_next_run_too(folder: Path) -> None:
    assert chain.problems(folder) == []
    step = step_named("training")
    options = Options(out=folder, steps=("training",))
    (folder / "metric_diff.log").write_text("edited between the runs")
    write_reports(Outcome(CONFIG, options, [Result(step, "float64", Verdict.PASS, ROWS[:2])]))
    # what the second run did not make is not vouched for by it
    assert chain.problems(folder) == ["metric_diff.log: changed after it was sealed"]
