"""The logs, summary.json and junit.xml, written from results made by hand."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from common.config import load_config
from common.errors import InputError
from common.provenance import code_digest
from pipeline.diagnose import first_divergence
from pipeline.judge import Result
from pipeline.outcome import Options, Outcome
from pipeline.report import (
    finite,
    headline,
    official_line,
    one_row_per_tensor,
    worst_verdict,
    write_reports,
)
from pipeline.steps import step_named, with_given_weights
from pipeline.verdicts import Row, Verdict

CONFIG = load_config(
    Path(__file__).resolve().parent.parent / "configs" / "bisenetv1_cityscapes.yml"
)
META = {
    side: {
        "side": side,
        "versions": {side: "1.0", "numpy": "2.0"},
        "inputs": "1234",
        "data": "5678",
        "digest": f"sha-of-{side}",
    }
    for side in ("torch", "paddle")
}
PASSING = Row("easy/loss/main", Verdict.PASS, relative=3e-16, bound=1e-12, max_abs=1e-15, size=7)
OFF = Row(
    "easy/grad/main",
    Verdict.FAIL,
    "off by 2.5e-03 of the largest value",
    max_abs=0.5,
    relative=2.5e-3,
    bound=1e-12,
    index=(1, 2),
    first=(0, 1),
    over=3,
    size=7,
)
NAN = Row("hard/loss/main", Verdict.FAIL, "actual has 1 NaN or Inf of 1", relative=np.inf)
LOST = Row("hard/loss/aux16", Verdict.MISSING, "recorded by the other side only, not by paddle")


def result(
    *rows: Row, verdict: Verdict = Verdict.PASS, step: str = "loss", dtype: str = "float64"
) -> Result:
    found = first_divergence(step, rows)
    seconds = {"torch": 1.0, "paddle": 2.5}
    return Result(step_named(step), dtype, verdict, tuple(rows), found, meta=META, seconds=seconds)


def stopped(verdict: Verdict, message: str, *, step: str = "metric") -> Result:
    return Result(step_named(step), "float64", verdict, message=message)


def outcome_of(results: Sequence[Result], out: Path) -> Outcome:
    steps = tuple({r.step.name for r in results})
    options = Options(out=out, steps=steps, command="bisenet verify --config c.yml")
    return Outcome(CONFIG, options, list(results), seconds=12.34, peak_mib={"torch": 300})


def written(results: Sequence[Result], out: Path) -> tuple[dict[str, Any], ElementTree.Element]:
    """Write the reports; return the summary, read strictly, and the JUnit suite."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    write_reports(outcome_of(results, out))
    summary = json.loads((out / "summary.json").read_text(), parse_constant=refuse)
    return summary, ElementTree.fromstring((out / "junit.xml").read_bytes())


def test_files_and_their_digests(tmp_path: Path) -> None:
    out = tmp_path / "logs" / "c"
    results = [result(PASSING), result(PASSING, dtype="float32"), result(PASSING, step="metric")]
    paths = write_reports(outcome_of(results, out))
    logs = ["loss_diff.log", "metric_diff.log", "evidence.json"]
    names = [*logs, "summary.json", "junit.xml", "config.yml", "report.html"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["logs"]) == logs
    for name in logs:
        assert summary["logs"][name] == hashlib.sha256((out / name).read_bytes()).hexdigest()


def test_a_log_is_evidence(tmp_path: Path) -> None:
    written([result(PASSING), result(OFF, dtype="float32", verdict=Verdict.FAIL)], tmp_path)
    text = (tmp_path / "loss_diff.log").read_text()
    for words in (
        f"config_digest: {CONFIG.digest()}",
        f"recipe_digest: {CONFIG.recipe_digest()}",
        f"code_digest: {code_digest()}",
        "reference = torch, actual = paddle",
        "seed: 0",
        "device: cpu",
        "weights: by rule",
        "data: generated scenes",
        "'paddle': '1.0'",
        "command: bisenet verify --config c.yml",
        "inputs: 1234",
        "data set: 5678",
        "record of torch: sha256 sha-of-torch",
        "record of paddle: sha256 sha-of-paddle",
        "bound 1e-12 for *: float64 keeps 16 digits",
        "rule: |torch32 - paddle32| <= 1.5 x floor",
        "at most 4 times for *: two orders of the same sums; measured",
        "== loss in float64: PASS ==",
        "== loss in float32: FAIL ==",
        "starts at: easy, grad, main",
        "easy/grad/main [1, 2] off by 2.5e-03",
    ):
        assert words in text
    assert text.endswith("verdict of step loss: FAIL\n")
    # a machine's own paths are nobody's business
    assert str(tmp_path) not in text
    assert str(Path.cwd()) not in text


def test_the_configuration_as_it_was_run_is_kept_without_its_place(tmp_path: Path) -> None:
    lists = {"train_list": tmp_path / "t.txt", "val_list": Path("v.txt")}
    data = CONFIG.data.model_copy(update={"root": tmp_path / "frames", **lists})
    model = CONFIG.model.model_copy(
        update={"weights": tmp_path / "v1.pth", "backbone_weights": tmp_path / "resnet18.pth"}
    )
    outcome = outcome_of([result(PASSING)], tmp_path / "out")
    outcome.config = CONFIG.model_copy(update={"data": data, "model": model})
    path = tmp_path / "out" / "config.yml"
    assert path in write_reports(outcome)
    assert str(tmp_path) not in path.read_text()
    found = load_config(path)
    assert found.data.root == Path("frames")
    assert (found.data.train_list, found.data.val_list) == (Path("t.txt"), Path("v.txt"))
    assert found.model.backbone_weights == Path("resnet18.pth")
    assert found.model.weights == Path("v1.pth")
    assert found.verify == CONFIG.verify
    # what has no place of its own is told with the very same digest
    write_reports(outcome_of([result(PASSING)], tmp_path / "out"))
    assert load_config(path).digest() == CONFIG.digest()


def test_the_worst_comes_first(tmp_path: Path) -> None:
    tight = Row("easy/loss/aux16", Verdict.PASS, relative=9e-13, bound=1e-12, size=1)
    written([result(PASSING, LOST, tight, OFF, NAN, verdict=Verdict.FAIL)], tmp_path)
    text = (tmp_path / "loss_diff.log").read_text()
    lines = [line.split() for line in text.splitlines()]
    table = [words[8] for words in lines if words and words[0] in ("PASS", "FAIL", "MISSING")]
    assert table == [row.key for row in (NAN, OFF, LOST, tight, PASSING)]


def test_a_short_log_lists_all_failures_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    tight = Row("easy/loss/aux16", Verdict.PASS, relative=9e-13, bound=1e-12, size=1)
    outcome = outcome_of([result(PASSING, LOST, tight, OFF, NAN, verdict=Verdict.FAIL)], tmp_path)
    outcome.options = replace(outcome.options, listed=1)
    write_reports(outcome)
    text = (tmp_path / "loss_diff.log").read_text()
    for row in (NAN, OFF, LOST):
        assert row.key in text
    assert tight.key not in text.split("starts at")[1]
    assert "2 more tensors pass, each with at most 90.0% of its bound" in text


def test_steps_judged_by_a_users_weights_stay_together(tmp_path: Path) -> None:
    # each is a step object of its own
    results = [
        replace(one, step=with_given_weights(one.step))
        for one in (result(PASSING), result(PASSING, dtype="float32"))
    ]
    write_reports(outcome_of(results, tmp_path))
    text = (tmp_path / "loss_diff.log").read_text()
    assert "== loss in float64: PASS ==" in text
    assert "== loss in float32: PASS ==" in text


def test_code_that_was_edited_during_the_run_is_not_vouched_for(tmp_path: Path) -> None:
    write_reports(replace(outcome_of([result(PASSING)], tmp_path), code="0123"))
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["code_digest"] == "changed during the run, which began with 0123"


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    written([result(OFF, verdict=Verdict.FAIL)], tmp_path)
    summary, suite = written([result(PASSING)], tmp_path)
    assert "FAIL" not in (tmp_path / "loss_diff.log").read_text()
    assert (summary["verdict"], suite.get("failures")) == ("PASS", "0")


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    endless = Row("a/b", Verdict.FAIL, relative=np.nan, bound=np.inf, max_rel=np.inf)
    results = [
        result(NAN, OFF, verdict=Verdict.FAIL),
        result(endless, dtype="float32", verdict=Verdict.FAIL),
        stopped(Verdict.ERROR, "paddle recorder: \x1b[31mboom\x00 é\n<&>"),
    ]
    summary, _ = written(results, tmp_path)
    assert (summary["verdict"], summary["exit_code"]) == ("FAIL", 3)
    assert summary["command"] == "bisenet verify --config c.yml"
    loss, narrow, metric = summary["results"]
    assert (loss["comparisons"], loss["failing"]) == (2, 2)
    assert [worst["relative"] for worst in loss["worst"]] == ["inf", 2.5e-3]
    assert loss["worst"][1]["why"].startswith("float64 keeps 16 digits")
    assert loss["records"] == {"torch": "sha-of-torch", "paddle": "sha-of-paddle"}
    assert (narrow["worst"][0]["relative"], narrow["worst"][0]["bound"]) == ("nan", "inf")
    assert metric["message"].startswith("paddle recorder: ")
    assert (metric["comparisons"], metric["records"], metric["inputs"]) == (0, {}, None)


def test_junit_counts_every_verdict(tmp_path: Path) -> None:
    results = [
        result(PASSING),
        result(OFF, dtype="float32", verdict=Verdict.FAIL),
        result(LOST, step="forward", verdict=Verdict.MISSING),
        result(Row("x", Verdict.VACUOUS, "constant"), step="data", verdict=Verdict.VACUOUS),
        stopped(Verdict.ERROR, "torch recorder: \x1b[31mboom\x00 é\n<&>"),
        stopped(Verdict.NOT_RUN, "stopped after loss", step="training"),
    ]
    _, suite = written(results, tmp_path)
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "6", "failures": "3", "errors": "1", "skipped": "1"}
    cases = list(suite)
    assert [case.get("name") for case in cases[:2]] == ["loss[float64]", "loss[float32]"]
    assert cases[0].get("classname") == "bisenetv1.loss"
    assert cases[0].get("time") == "2.50"
    kinds = [[child.tag for child in case] for case in cases]
    assert kinds == [[], ["failure"], ["failure"], ["failure"], ["error"], ["skipped"]]
    assert (cases[1][0].text or "").startswith("FAIL easy/grad/main off by")
    assert cases[4][0].get("message") == "torch recorder: ?[31mboom? é"


def test_junit_names_its_encoding(tmp_path: Path) -> None:
    written([result(PASSING)], tmp_path)
    assert "encoding='utf-8'" in (tmp_path / "junit.xml").read_text().splitlines()[0]


def test_snapshots_of_a_training_are_merged_by_their_worst() -> None:
    rows = [
        Row("iteration0010/state/a", Verdict.PASS, relative=1e-14, bound=1e-12),
        Row("iteration0020/state/a", Verdict.FAIL, relative=1e-11, bound=1e-12),
        Row("state/a", Verdict.PASS, relative=5e-13, bound=1e-12),
        Row("state/b", Verdict.PASS, relative=9e-13, bound=1e-12),
    ]
    merged, counts = one_row_per_tensor(rows)
    assert [row.key for row in merged] == ["iteration0020/state/a", "state/b"]
    assert counts == {"state/a": 3, "state/b": 1}


def test_the_official_threshold_is_reported_and_does_not_decide() -> None:
    rows = [
        Row("a", Verdict.PASS, mean_abs=1e-7, size=3, floor=1e-7),
        Row("b", Verdict.PASS, mean_abs=1e-3, size=3, floor=1e-2),
        Row("labels", Verdict.PASS, mean_abs=5, size=3),
    ]
    text = official_line(result(*rows, dtype="float32"))
    assert "mean abs difference <= 1e-06 holds for 1 of 2 tensors; largest 1.00e-03 at b" in text
    assert official_line(result(rows[2], dtype="float32")).endswith("no floating tensor")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (result(PASSING), "worst easy/loss/main 3.0e-16"),
        (result(PASSING, OFF, verdict=Verdict.FAIL), "FAIL starts at easy, grad, main"),
        (stopped(Verdict.ERROR, "torch recorder: a\nb"), "torch recorder: a"),
        (result(verdict=Verdict.VACUOUS), ""),
    ],
)
def test_headlines(given: Result, expected: str) -> None:
    assert headline(given) == expected


def test_the_verdict_of_a_run() -> None:
    assert worst_verdict([]) is Verdict.VACUOUS
    assert worst_verdict([result(PASSING)]) is Verdict.PASS
    late = [result(PASSING), result(OFF, verdict=Verdict.FAIL), stopped(Verdict.NOT_RUN, "-")]
    assert worst_verdict(late) is Verdict.FAIL


def test_numbers_that_json_can_hold() -> None:
    assert (finite(0.5), finite(-1e300)) == (0.5, -1e300)
    assert [finite(x) for x in (np.inf, -np.inf, np.nan)] == ["inf", "-inf", "nan"]


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*loss_diff\.log"):
        write_reports(outcome_of([result(PASSING)], tmp_path / "file"))
