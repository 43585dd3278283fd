"""Verdicts, order of runs, cache, equivalent changes and the report, with a fake recorder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from common.provenance import ROOT
from pipeline.diagnose import Divergence
from pipeline.judge import Result
from pipeline.source_audit.campaign import Audited
from pipeline.source_audit.deciding import imported_files
from pipeline.source_audit.equivalent import EQUIVALENT, Equivalent, row_for, unmatched
from pipeline.source_audit.experiments import Run, ordered
from pipeline.source_audit.findings import report_json, report_of, report_text
from pipeline.source_audit.mutants import Mutant, all_mutants
from pipeline.source_audit.store import Store
from pipeline.source_audit.trial import Finding, tried
from pipeline.source_audit.workers import Reply, Request
from pipeline.steps import step_named
from pipeline.verdicts import Row, Verdict

MUTANT = Mutant(
    id="0123456789ab",
    file="layers.py",
    scope="spatial_mean",
    operator="twin",
    line=3,
    code="return paddle.mean(x)",
    old="mean",
    new="sum",
    span=(0, 0),
    block=(3, 3),
)
FORWARD, BACKWARD = Run("net", "forward", "float64"), Run("net", "backward", "float64")


@dataclass
class FakeJudge:
    """Runs of a reference whose results are given."""

    verdicts: dict[Run, Verdict]
    seconds: dict[Run, float] = field(default_factory=lambda: {FORWARD: 1.0, BACKWARD: 2.0})

    def executing(self, mutant: Mutant) -> list[Run]:  # noqa: ARG002
        return list(self.verdicts)

    def request(
        self,
        run: Run,  # noqa: ARG002
        *,
        package: Path,
        folder: Path,
        seconds: float,
    ) -> Request:
        return Request(package=str(package), plan={}, errors=str(folder), seconds=seconds)

    def judge(self, run: Run, folder: Path) -> Result:  # noqa: ARG002
        verdict = self.verdicts[run]
        divergence = None if verdict.passed else Divergence("eval/layer/a", "starts at a")
        return Result(step_named(run.step), run.dtype, verdict, divergence=divergence)


@dataclass
class FakeWorker:
    """A worker that answers without recording."""

    status: str = "recorded"
    error: str = ""
    asked: list[Request] = field(default_factory=list[Request])

    def ask(self, request: Request) -> Reply:
        self.asked.append(request)
        if self.error:
            path = Path(request.errors) / "forward.error.txt"
            path.write_text(self.error, encoding="utf-8")
        return Reply(status=self.status, seconds=1.0)


def trial(verdicts: dict[Run, Verdict], worker: FakeWorker, work: Path) -> Finding:
    return tried(MUTANT, judge=FakeJudge(verdicts), worker=worker, work=work)


PASSING = {FORWARD: Verdict.PASS, BACKWARD: Verdict.PASS}


def test_the_first_run_that_sees_it_ends_the_trial(tmp_path: Path) -> None:
    worker = FakeWorker()
    found = trial({FORWARD: Verdict.FAIL, BACKWARD: Verdict.PASS}, worker, tmp_path)
    assert (found.found, found.where, found.key) == ("caught", FORWARD.name, "eval/layer/a")
    assert found.runs == len(worker.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_survivor_has_passed_every_run(tmp_path: Path) -> None:
    worker = FakeWorker()
    assert trial(PASSING, worker, tmp_path).found == "survived"
    assert len(worker.asked) == 2


def test_what_a_later_run_sees_is_caught_there(tmp_path: Path) -> None:
    found = trial({**PASSING, BACKWARD: Verdict.VACUOUS}, FakeWorker(), tmp_path)
    assert (found.found, found.where, found.runs) == ("caught", BACKWARD.name, 2)


@pytest.mark.parametrize(
    ("status", "verdict"), [("failed", "crashed"), ("killed", "crashed"), ("timeout", "timeout")]
)
def test_an_end_without_numbers_is_no_catch(tmp_path: Path, status: str, verdict: str) -> None:
    found = trial(PASSING, FakeWorker(status, error="NameError: x\n\nmore"), tmp_path)
    assert found.found == verdict
    if status == "failed":
        assert found.detail == "NameError: x"


def test_nothing_is_run_for_a_line_that_no_step_executes(tmp_path: Path) -> None:
    worker = FakeWorker()
    assert trial({}, worker, tmp_path).found == "not executed"
    assert worker.asked == []


def test_the_cheapest_likely_run_comes_first_and_float32_last() -> None:
    narrow, loss = Run("a", "forward", "float32"), Run("a", "loss", "float64")
    seconds = {narrow: 0.1, loss: 0.5, FORWARD: 3.0, BACKWARD: 2.0}
    assert ordered("layers.py", list(seconds), seconds) == [FORWARD, loss, BACKWARD, narrow]
    assert ordered("losses.py", list(seconds), seconds)[0] == loss


def test_a_step_is_run_in_so_many_experiments_only() -> None:
    runs = [Run(f"net{i}", "backward", "float64") for i in range(9)]
    assert ordered("norm.py", runs, {run: 9.0 - i for i, run in enumerate(runs)}) == runs[:5:-1]


# store ---------------------------------------------------------------------------------------


def test_results_outlive_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    store = Store(path, "digest")
    store.add(Finding("a", "caught", "net forward float64", "key", "text", 1, 2.0))
    store.add(Finding("b", "survived"))
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"digest": "digest", "mutant": "c", "fou')
    again = Store(path, "digest")
    assert again.found == store.found
    again.add(Finding("d", "crashed"))
    assert set(Store(path, "digest").found) == {"a", "b", "d"}


def test_results_of_other_code_are_not_taken(tmp_path: Path) -> None:
    Store(tmp_path / "r.jsonl", "old").add(Finding("a", "caught"))
    assert Store(tmp_path / "r.jsonl", "new").found == {}


def test_what_decides_is_what_recorder_and_judge_import() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in imported_files()}
    assert {"pipeline/probes.py", "pipeline/compare.py", "for_paddle/losses.py"} <= names
    assert {"for_torch/models/bisenetv2.py", "common/iou.py", "pipeline/__init__.py"} <= names
    assert not {"pipeline/cli.py", "pipeline/source_audit/equivalent.py"} & names


# equivalent changes and the report ----------------------------------------------------------------


ROW = Equivalent("layers.py", "spatial_*", "return paddle.mean(x)", "mean -> *", "a reason")


def audited(found: Finding, mutant: Mutant = MUTANT) -> Audited:
    return Audited((mutant,), (mutant,), {mutant.id: found}, "d" * 64, 1.0, 1)


def test_rows_are_matched_by_text() -> None:
    assert row_for(MUTANT, [ROW]) is ROW
    assert row_for(replace(MUTANT, line=99), [ROW]) is ROW
    assert row_for(replace(MUTANT, code="return paddle.mean(y)"), [ROW]) is None
    assert row_for(replace(MUTANT, new="std", old="var"), [ROW]) is None


def test_brackets_in_code_are_themselves() -> None:
    row = Equivalent("layers.py", "*", "x = y[0] + *", "*", "a reason")
    assert row.covers(replace(MUTANT, code="x = y[0] + 1"))
    assert not row.covers(replace(MUTANT, code="x = y0 + 1"))


@pytest.mark.parametrize(
    ("found", "rows", "verdict", "code"),
    [
        ("caught", [], "caught", 0),
        ("crashed", [], "crashed", 0),
        ("timeout", [], "timeout", 0),
        ("survived", [], "survived", 1),
        ("not executed", [], "not executed", 1),
        ("survived", [ROW], "equivalent", 0),
        ("not executed", [ROW], "equivalent", 0),
        # a reason that a number refutes
        ("caught", [ROW], "caught", 1),
        # a row for nothing
        ("caught", [replace(ROW, code="gone")], "caught", 1),
    ],
)
def test_exit_code(found: str, rows: list[Equivalent], verdict: str, code: int) -> None:
    report = report_of(audited(Finding(MUTANT.id, found)), rows)  # pyright: ignore[reportArgumentType]
    assert [row.verdict for row in report.rows] == [verdict]
    assert report.exit_code == code
    assert report_json(report)["counts"]["all"] == {verdict: 1}


def test_the_report_shows_a_survivor_with_its_line() -> None:
    text = report_text(report_of(audited(Finding(MUTANT.id, "survived")), []))
    assert (
        "for_paddle/layers.py:3 in spatial_mean\n    return paddle.mean(x)\n    mean -> sum" in text
    )
    assert "0.0 %" in text


def test_the_report_names_rows_that_match_nothing() -> None:
    text = report_text(report_of(audited(Finding(MUTANT.id, "caught")), [replace(ROW, scope="f")]))
    assert "matches no change: layers.py f" in text
    assert "100.0 %" in text


def test_the_table_fits_the_source() -> None:
    mutants = list(all_mutants(ROOT / "for_paddle", shared=[ROOT / "common"]))
    assert unmatched(mutants, EQUIVALENT) == []
    assert all(len(row.reason) > 15 for row in EQUIVALENT)


def test_rows_have_the_key_of_the_worst_tensor(tmp_path: Path) -> None:
    """A verdict without a divergence is told by its worst row."""

    class Judge(FakeJudge):
        def judge(self, run: Run, folder: Path) -> Result:  # noqa: ARG002
            rows = (Row("a", Verdict.PASS), Row("b", Verdict.FAIL, "too far"))
            return Result(step_named(run.step), run.dtype, Verdict.FAIL, rows)

    found = tried(MUTANT, judge=Judge(PASSING), worker=FakeWorker(), work=tmp_path)
    assert (found.found, found.key, found.detail) == ("caught", "b", "too far")
