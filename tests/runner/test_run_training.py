"""The snapshots of a training, compared while it runs."""

from typing import Any

import pytest
from fake_recorder import Play, verdicts

from common.config import Config
from pipeline.judging import snapshot_parts
from pipeline.outcome import Outcome
from pipeline.verdicts import Verdict

TRAINING = """
state = {"state/a": np.linspace(1, 2, 9), "moved/a": np.asarray(0.5)}
for run in plan["runs"]:
    wide = run["dtype"] == "float64"
    arrays = {key: a.astype(run["dtype"]) for key, a in state.items()}
    for done_iterations in (2, 6, 8) if wide else ():
        part = f"iteration{done_iterations:04d}"
        snapshot = {key: a for key, a in arrays.items() if key.startswith("state")}
        if side == "paddle":
            CHANGE
        if snapshot is not None:
            write(run, snapshot, part)
    if wide and not (side == "paddle" and FLOORLESS):
        # iteration 4, where float32 stops
        write(run, arrays, "floor")
    write(run, arrays)
    done(run)
"""


LOSSES = """
for run in plan["runs"]:
    wide = run["dtype"] == "float64"
    loss = np.array([3.0, 2.0, 1.0, 0.5])
    arrays = {"loss/total": loss.astype(run["dtype"]), "loss/main": loss.astype(run["dtype"])}
    if wide:
        for part in ("iteration0002", "iteration0006", "iteration0008"):
            write(run, {"state/a": loss}, part)
        write(run, {**arrays, "state/a": loss}, "floor")
    elif side == "torch" and not UNPERTURBED:
        shifted = {f"{name}/{key}": a + np.float32(1e-3)
                   for key, a in arrays.items() for name in ("up", "down")}
        write(run, shifted, "perturbed")
    elif side == "paddle":
        arrays = {key: a + np.float32(AWAY) for key, a in arrays.items()}
    write(run, arrays)
    done(run)
"""


@pytest.fixture
def training(config: Config) -> Config:
    short = {"train_iters": 10, "check_every": 2, "train_iters_float32": 4}
    return config.model_copy(update={"verify": config.verify.model_copy(update=short)})


def train(
    play: Play, training: Config, *, change: str = "pass", floorless: bool = False
) -> Outcome:
    body = TRAINING.replace("CHANGE", change).replace("FLOORLESS", str(floorless))
    return play(body, steps=("training",), configuration=training, keep_going=True)


def test_every_snapshot_of_a_training_is_compared(play: Play, training: Config) -> None:
    assert snapshot_parts(training) == {
        "iteration0002": "iteration0002",
        "iteration0004": "floor",
        "iteration0006": "iteration0006",
        "iteration0008": "iteration0008",
    }
    outcome = train(play, training)
    assert verdicts(outcome) == {"training float64": "PASS", "training float32": "PASS"}
    keys = [row.key for row in outcome.results[0].rows]
    assert keys[:4] == [f"iteration{n:04d}/state/a" for n in (2, 4, 6, 8)]
    assert keys[4:] == ["state/a", "moved/a"]


def test_a_snapshot_that_one_side_did_not_record_is_missing(play: Play, training: Config) -> None:
    outcome = train(play, training, change="snapshot = snapshot if part[-1] != '6' else None")
    assert outcome.results[0].verdict is Verdict.MISSING
    rows = {row.key: row.verdict for row in outcome.results[0].rows}
    assert rows["iteration0006"] is Verdict.MISSING
    assert [key for key, verdict in rows.items() if not verdict.passed] == ["iteration0006"]
    assert outcome.exit_code == 1


def test_a_snapshot_that_both_sides_lack_is_missing(play: Play, training: Config) -> None:
    more = training.verify.model_copy(update={"train_iters": 12})
    outcome = train(play, training.model_copy(update={"verify": more}))
    assert outcome.results[0].verdict is Verdict.MISSING
    lost = [row.key for row in outcome.results[0].rows if not row.verdict.passed]
    assert lost == ["iteration0010"]


def test_a_snapshot_that_differs_fails_though_the_end_agrees(play: Play, training: Config) -> None:
    wrong = "snapshot = {'state/a': arrays['state/a'] + (part[-1] == '6')}"
    outcome = train(play, training, change=wrong)
    assert outcome.results[0].verdict is Verdict.FAIL
    assert outcome.results[0].divergence is not None
    assert outcome.results[0].divergence.key == "iteration0006/state/a"


def test_without_a_float64_record_there_is_no_floor(play: Play, training: Config) -> None:
    outcome = train(play, training, floorless=True)
    # the floor is one of the snapshots, too
    assert verdicts(outcome) == {"training float64": "MISSING", "training float32": "ERROR"}
    assert "no rounding floor" in outcome.results[1].message
    assert outcome.exit_code == 3


def narrow_rows(play: Play, training: Config, *, away: float, unperturbed: bool = False) -> Any:
    body = LOSSES.replace("AWAY", str(away)).replace("UNPERTURBED", str(unperturbed))
    outcome = play(body, steps=("training",), configuration=training, keep_going=True)
    return outcome, {row.key: row for row in outcome.results[1].rows}


def test_a_float32_training_is_judged_by_torchs_own_chaos(play: Play, training: Config) -> None:
    outcome, rows = narrow_rows(play, training, away=5e-3)
    assert rows["band/loss/main"].detail.startswith("chaos: 5.0 times as far")
    assert rows["band/loss/main"].verdict is Verdict.PASS
    (curve,) = [c for c in outcome.evidence.curves if (c.dtype, c.term) == ("float32", "total")]
    assert curve.band == pytest.approx([1e-3] * 4, rel=1e-3)
    assert curve.apart == pytest.approx([5e-3] * 4, rel=1e-3)


def test_beyond_it_a_float32_training_is_a_bug(play: Play, training: Config) -> None:
    _, rows = narrow_rows(play, training, away=2e-2)
    assert rows["band/loss/total"].detail.startswith("bug: 20.0 times as far")
    assert rows["band/loss/total"].verdict is Verdict.FAIL


def test_a_training_without_perturbed_runs_proves_no_chaos(play: Play, training: Config) -> None:
    _, rows = narrow_rows(play, training, away=0, unperturbed=True)
    assert rows["band/loss/main"].verdict is Verdict.MISSING
