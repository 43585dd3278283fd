"""The runner judges what recorders wrote: order, verdicts, what is left behind."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_recorder import EVERYTHING, Play, verdicts

from common.config import Config
from pipeline.judge import Result
from pipeline.outcome import Options, Outcome
from pipeline.steps import step_named
from pipeline.verdicts import Verdict


def test_equal_records_pass_and_are_removed(play: Play, out: Path) -> None:
    events: list[Mapping[str, Any]] = []
    outcome = play(EVERYTHING, events=events)
    assert verdicts(outcome) == {"lr_schedule float64": "PASS"}
    assert outcome.exit_code == 0
    assert outcome.peak_mib == {"torch": 7, "paddle": 7}
    assert outcome.results[0].seconds == {"torch": 0.5, "paddle": 0.5}
    assert set(outcome.artefacts["lr_schedule"]) == {"torch", "paddle"}
    # the recorders' own output stays, for whoever looks for the cause of a crash
    assert sorted(p.name for p in out.iterdir()) == ["recorder_paddle.log", "recorder_torch.log"]
    assert [e["event"] for e in events].count("start") == 2
    assert any(e["event"] == "judged" and isinstance(e["result"], Result) for e in events)


def test_a_difference_stops_the_run_unless_told_otherwise(play: Play) -> None:
    body = """
    for run in plan["runs"]:
        wrong = side == "paddle" and run["step"] == "metric"
        arrays = {key: a.astype(run["dtype"]) + wrong for key, a in GOOD.items()}
        write(run, arrays)
        done(run)
    """
    steps = ("lr_schedule", "metric", "data")
    outcome = play(body, steps=steps)
    expected = {"data float32": "PASS", "metric float64": "FAIL", "lr_schedule float64": "NOT RUN"}
    assert verdicts(outcome) == expected
    assert outcome.exit_code == 1
    assert outcome.results[-1].message == "stopped after metric (float64); --keep-going runs on"
    outcome = play(body, steps=steps, keep_going=True)
    assert verdicts(outcome) == expected | {"lr_schedule float64": "PASS"}
    assert outcome.exit_code == 1


@pytest.mark.parametrize(
    ("change", "verdict", "code"),
    [
        ("arrays['lr/decay'][3] = np.nan", "FAIL", 1),
        ("arrays['lr/decay'] = arrays['lr/decay'][:-1]", "FAIL", 1),
        ("arrays['lr/decay'] = arrays['lr/decay'].astype('f4')", "FAIL", 1),
        ("arrays['lr/more'] = np.ones(2)", "MISSING", 1),
        ("del arrays['lr/decay']", "MISSING", 1),
        ("arrays.clear()", "MISSING", 1),
        ("meta = {'side': 'torch'}", "ERROR", 3),
        ("meta = {'frameworks': ['torch', 'paddle']}", "ERROR", 3),
        ("meta = {'weights': 'others'}", "ERROR", 3),
        ("meta = {'data': 'others'}", "ERROR", 3),
    ],
)
def test_a_wrong_record_of_one_side(play: Play, change: str, verdict: str, code: int) -> None:
    outcome = play(f"""
    for run in plan["runs"]:
        arrays, meta = {{key: a.copy() for key, a in GOOD.items()}}, {{}}
        if side == "paddle":
            {change}
        write(run, arrays, **meta)
        done(run)
    """)
    assert verdicts(outcome) == {"lr_schedule float64": verdict}
    assert outcome.exit_code == code


@pytest.mark.parametrize(
    "change",
    ["arrays.clear()", "arrays['lr/decay'] = np.full(9, 0.01)", "arrays['x'] = np.zeros(0)"],
)
def test_what_is_empty_on_both_sides_is_vacuous(play: Play, change: str) -> None:
    outcome = play(f"""
    for run in plan["runs"]:
        arrays = dict(GOOD)
        {change}
        write(run, arrays)
        done(run)
    """)
    assert verdicts(outcome) == {"lr_schedule float64": "VACUOUS"}
    assert outcome.exit_code == 1


def test_what_a_library_prints_is_passed_over(play: Play) -> None:
    noise = """
    sys.stdout.buffer.write(b"I0101 grpc \\xff\\xfe noise\\n3\\n[1]\\n{}\\n{\\"a\\": 1}\\nnull\\n")
    sys.stdout.flush()
    """
    assert play(textwrap.dedent(noise) + EVERYTHING).exit_code == 0


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 1),
        ([Verdict.PASS], 0),
        ([Verdict.PASS, Verdict.PASS], 0),
        ([Verdict.PASS, Verdict.FAIL, Verdict.NOT_RUN], 1),
        ([Verdict.MISSING], 1),
        ([Verdict.VACUOUS], 1),
        ([Verdict.PASS, Verdict.NOT_RUN], 1),
        ([Verdict.FAIL, Verdict.ERROR], 3),
        ([Verdict.ERROR, Verdict.NOT_RUN], 3),
    ],
)
def test_exit_codes(config: Config, found: list[Verdict], code: int) -> None:
    results = [Result(step_named("loss"), "float64", verdict) for verdict in found]
    assert Outcome(config, Options(Path("x"), ("loss",)), results).exit_code == code


def test_a_waived_difference_passes_with_waivers(play: Play, out: Path) -> None:
    body = """
    for run in plan["runs"]:
        arrays = {key: a.astype(run["dtype"]) for key, a in GOOD.items()}
        arrays["lr/decay"] *= 2.0 if side == "paddle" else 1.0
        write(run, arrays)
        done(run)
    """
    out.mkdir()
    waiver = """
    - tensor: lr/decay
      step: lr_schedule
      dtype: float64
      relation: {kind: factor, value: FACTOR}
      reason: twice the batch, twice the rate
      lifted_by: nobody, it is a test
      expires: 9999-12-31
    """
    (out / "waivers.yml").write_text(textwrap.dedent(waiver).replace("FACTOR", "2.0"))
    outcome = play(body)
    assert verdicts(outcome) == {"lr_schedule float64": "PASS with waivers"}
    assert outcome.exit_code == 0
    (out / "waivers.yml").write_text(textwrap.dedent(waiver).replace("FACTOR", "2.1"))
    assert verdicts(play(body)) == {"lr_schedule float64": "FAIL"}
