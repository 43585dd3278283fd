"""Two runs of the pipeline compared, from logs made by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reviewed_logs import CONFIG, NAME
from typer.testing import CliRunner

from common.errors import InputError
from pipeline import report
from pipeline.cli import app
from pipeline.judge import Result
from pipeline.outcome import Options, Outcome
from pipeline.report import write_reports
from pipeline.run_diff import Changed, RunDiff, StepDiff, as_json, compare_runs
from pipeline.steps import SIDES, step_named
from pipeline.verdicts import Row, Verdict

FIRST = {"grad/conv1": 1e-15, "grad/conv2": 1e-13, "grad/conv3": 2e-14, "grad/conv4": 0.0}


def result(rows: dict[str, float], *, step: str = "backward", **other: Any) -> Result:
    made = tuple(
        Row(
            key,
            Verdict.PASS if relative <= 1e-11 else Verdict.FAIL,
            relative=relative,
            bound=1e-11,
            size=9,
        )
        for key, relative in rows.items()
    )
    verdict = Verdict.PASS if all(row.verdict.passed for row in made) else Verdict.FAIL
    meta = {
        side: {"versions": {side: other.get(side, "3.0")}, "inputs": "1", "data": "2"}
        | {
            "digest": other.get("digest", {}).get(side, "3"),
            "weights": "by rule",
            "frameworks": [side],
        }
        for side in SIDES
    }
    seconds = {"torch": 1.0, "paddle": other.get("seconds", 2.0)}
    return Result(step_named(step), "float64", verdict, made, meta=meta, seconds=seconds)


def write_run(out: Path, *results: Result, listed: int | None = None, device: str = "cpu") -> Path:
    options = Options(out=out, steps=("backward",), listed=listed, device=device)
    write_reports(Outcome(CONFIG, options, list(results), seconds=5.0, peak_mib={"torch": 300}))
    return out


def step_of(run: RunDiff, name: str = "backward") -> StepDiff:
    return next(step for step in run.steps if step.step == name)


def test_errors_that_grew_and_shrank(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", result(FIRST))
    # 50 times, 1/50, five times (not told), and from nothing to below the last place (not told)
    changed = {"grad/conv1": 5e-14, "grad/conv2": 2e-15, "grad/conv3": 1e-13, "grad/conv4": 1e-16}
    second = write_run(tmp_path / "b", result(changed))
    found = compare_runs(first, second)
    assert found.exit_code == 0
    step = step_of(found.runs[0])
    told = {change.tensor: change.factor for change in step.changes}
    assert told == pytest.approx({"grad/conv1": 50, "grad/conv2": 0.02})
    assert (step.worst_first, step.worst_second) == ("grad/conv2", "grad/conv3")
    assert (step.only_first, step.only_second, step.bounds) == ((), (), ())
    more = step_of(compare_runs(first, second, factor=4).runs[0]).changes
    assert {change.tensor for change in more} == {"grad/conv1", "grad/conv2", "grad/conv3"}
    assert more[-1].tensor == "grad/conv3"


def test_the_same_run_twice_differs_in_nothing(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", result(FIRST))
    second = write_run(tmp_path / "b", result(FIRST))
    run = compare_runs(first, second).runs[0]
    assert not any(step.differs for step in run.steps)
    assert step_of(run).records == "torch, paddle"
    moved = write_run(tmp_path / "c", result(FIRST, digest={"paddle": "4"}))
    assert step_of(compare_runs(first, moved).runs[0]).records == "torch"
    assert {line.what for line in run.provenance} <= {"date"}


def test_tensors_of_one_run_only(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", result(FIRST))
    renamed = {"grad/conv1": 1e-15, "grad/conv2": 1e-13, "grad/conv5": 2e-14}
    second = write_run(tmp_path / "b", result(renamed))
    step = step_of(compare_runs(first, second).runs[0])
    assert set(step.only_first) == {"grad/conv3", "grad/conv4"}
    assert step.only_second == ("grad/conv5",)
    # a log of the two worst says nothing on what it does not list
    short = write_run(tmp_path / "c", result(renamed), listed=2)
    step = step_of(compare_runs(first, short).runs[0])
    assert step.only_first == ()
    assert step.only_second == ("grad/conv5",)


def test_a_regression_and_a_repair(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", result(FIRST))
    broken = write_run(tmp_path / "b", result({**FIRST, "grad/conv2": 0.5}))
    found = compare_runs(first, broken)
    assert found.exit_code == 1
    step = step_of(found.runs[0])
    assert (step.first, step.second, step.regressed) == ("PASS", "FAIL", True)
    assert step.changes[0].tensor == "grad/conv2"
    back = compare_runs(broken, first)
    assert back.exit_code == 0
    assert not step_of(back.runs[0]).regressed


def test_a_step_that_the_second_run_left_out(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", result(FIRST), result({"easy/x": 0.0}, step="loss"))
    second = write_run(tmp_path / "b", result(FIRST))
    found = compare_runs(first, second)
    assert found.exit_code == 1
    assert step_of(found.runs[0], "loss").second == "(none)"
    assert compare_runs(second, first).exit_code == 0


def test_a_loosened_bound_is_told(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", result(FIRST))
    loose = step_named("backward")
    loose = replace(loose, bounds=(*loose.bounds[:-1], replace(loose.bounds[-1], relative=1e-9)))
    second = write_run(tmp_path / "b", replace(result(FIRST), step=loose))
    step = step_of(compare_runs(first, second).runs[0])
    assert step.bounds == (
        Changed("bound", "bound 1e-12 for *", "(none)"),
        Changed("bound", "(none)", "bound 1e-09 for *"),
    )
    assert step.differs


def test_provenance_and_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "git_commit", lambda: "aaaaaaaaaaaa")
    first = write_run(tmp_path / "a", result(FIRST, paddle="2.6.2"))
    monkeypatch.setattr(report, "git_commit", lambda: "bbbbbbbbbbbb")
    second = write_run(tmp_path / "b", result(FIRST, paddle="3.3.1", seconds=9.0), device="gpu")
    run = compare_runs(first, second).runs[0]
    told = {line.what: (line.first, line.second) for line in run.provenance}
    told.pop("date", None)
    assert told == {
        "commit": ("aaaaaaaaaaaa", "bbbbbbbbbbbb"),
        "device": ("cpu", "gpu"),
        "versions.paddle.paddle": ("2.6.2", "3.3.1"),
    }
    assert Changed("seconds backward float64 paddle", "2.0", "9.0") in run.timing
    assert Changed("peak MiB torch", "300", "300") in run.timing


def test_families(tmp_path: Path) -> None:
    for root in ("a", "b"):
        write_run(tmp_path / root / NAME, result(FIRST))
    write_run(tmp_path / "a" / "old", result(FIRST))
    write_run(tmp_path / "b" / "new", result(FIRST))
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    missing = {run.name: run.missing for run in found.runs}
    assert missing == {NAME: "", "old": "second", "new": "first"}
    assert found.exit_code == 1
    shutil.rmtree(tmp_path / "a" / "old")
    assert compare_runs(tmp_path / "a", tmp_path / "b").exit_code == 0


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / NAME, result(FIRST))
    two = write_run(tmp_path / "b" / NAME, result(FIRST))
    with pytest.raises(InputError, match=r"nowhere: no logs; expected summary\.json"):
        compare_runs(tmp_path / "nowhere", two)
    with pytest.raises(InputError, match=f"compare .* with .*{NAME}"):
        compare_runs(one, tmp_path / "b")
    with pytest.raises(InputError, match=r"--factor 0\.5: expected more than 1"):
        compare_runs(one, two, factor=0.5)
    (two / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: unreadable or truncated"):
        compare_runs(one, two)


def test_the_command(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", result(FIRST))
    second = write_run(tmp_path / "b", result({**FIRST, "grad/conv2": float("inf")}))
    run = CliRunner()
    done = run.invoke(app, ["diff", str(first), str(second)])
    assert done.exit_code == 1
    assert "PASS -> FAIL" in done.output
    assert "backward float64: grad/conv2 1.0e-13 -> inf, inf times" in done.output
    done = run.invoke(app, ["diff", str(first), str(second), "--json"])
    content = json.loads(done.stdout)
    assert (done.exit_code, content["exit_code"]) == (1, 1)
    assert content["runs"][0]["steps"][0]["regressed"]
    assert content == json.loads(json.dumps(as_json(compare_runs(first, second))))
    assert run.invoke(app, ["diff", str(first), str(first)]).exit_code == 0
