"""From two records to a verdict: what is fed to the judge, and what it must say."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.diagnose import first_divergence
from pipeline.judge import Result, compare_float32, compare_float64, judge, provenance_problems
from pipeline.records import Record
from pipeline.steps import ROUNDING, SIDES, STEPS, Step, step_named, with_given_weights
from pipeline.verdicts import Row, Verdict

Array = NDArray[Any]
Arrays = dict[str, Array]
IGNORE = 255


def meta(side: str, **changes: Any) -> dict[str, Any]:
    common = {"dtype": "float64", "config": "c", "inputs": "i", "weights": "w", "seed": 0}
    common["data"] = "files"
    return {"side": side, "frameworks": [side], **common, "digest": f"d-{side}", **changes}


def pair_of(torch: Arrays, paddle: Arrays | None = None) -> list[Record]:
    other = torch if paddle is None else paddle
    return [Record(torch, meta("torch")), Record(other, meta("paddle"))]


def result_of(step: Step, torch: Arrays, paddle: Arrays | None = None) -> Result:
    pair = pair_of(torch, paddle)
    rows = compare_float64(step, [record.arrays for record in pair], ignore_index=IGNORE)
    return judge(step, "float64", pair, rows)


def backward_arrays() -> Arrays:
    return {
        "label": np.array([[[0, 3], [IGNORE, 0]]]),
        "loss/total": np.asarray(2.5),
        "layer/ffm": np.array([1.0, -2.0, 3.0]),
        "grad/conv.weight": np.arange(1.0, 10.0).reshape(3, 3),
        "grad/conv.bias": np.array([0.5, -0.25]),
    }


BACKWARD = step_named("backward")


def test_equal_records_pass() -> None:
    result = result_of(BACKWARD, backward_arrays())
    assert result.verdict is Verdict.PASS
    assert result.divergence is None
    assert len(result.rows) == 5
    assert result.meta is not None
    assert result.meta["paddle"]["digest"] == "d-paddle"


def _set(key: str, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key] = np.asarray(value)

    return change


def _apply(key: str, function: Callable[[Array], Array]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key] = function(arrays[key])

    return change


@pytest.mark.parametrize(
    ("change", "verdict", "detail"),
    [
        (_apply("layer/ffm", lambda a: a * np.array([1, np.nan, 1])), Verdict.FAIL, "NaN"),
        (_apply("layer/ffm", lambda a: a / np.array([1, 0.0, 1])), Verdict.FAIL, "Inf"),
        (lambda arrays: arrays.pop("layer/ffm"), Verdict.MISSING, "not by paddle"),
        (_set("layer/more", [1.0, 2.0]), Verdict.MISSING, "not by torch"),
        (_apply("grad/conv.weight", np.transpose), Verdict.FAIL, "off by"),
        (_apply("grad/conv.weight", lambda a: a[:1]), Verdict.FAIL, "shape (1, 3)"),
        (_apply("layer/ffm", lambda a: a[None]), Verdict.FAIL, "shape (1, 3), reference (3,)"),
        (_apply("layer/ffm", lambda a: a.astype(np.int64)), Verdict.FAIL, "dtype int64"),
        (_apply("layer/ffm", lambda a: a.astype(np.float32)), Verdict.FAIL, "dtype float32"),
        (_apply("layer/ffm", lambda a: a * (1 + 1e-10)), Verdict.FAIL, "off by 1.0e-10"),
        (_apply("label", lambda a: a + 1), Verdict.FAIL, "off by"),
        (_apply("grad/conv.bias", lambda a: a * 0), Verdict.FAIL, "off by"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_whatever_differs_on_one_side_is_found(
    change: Callable[[Arrays], Any], verdict: Verdict, detail: str
) -> None:
    actual = backward_arrays()
    change(actual)
    result = result_of(BACKWARD, backward_arrays(), actual)
    assert result.verdict is verdict
    assert result.divergence is not None
    (row,) = [row for row in result.rows if not row.verdict.passed]
    assert detail in row.detail
    assert result.worst == row


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (_set("grad/conv.weight", np.zeros((3, 3))), Verdict.VACUOUS),
        (_set("grad/conv.weight", np.ones((3, 3))), Verdict.VACUOUS),
        (_set("layer/ffm", np.zeros(3)), Verdict.VACUOUS),
        (_set("layer/ffm", np.zeros((0, 3))), Verdict.VACUOUS),
        (_set("label", np.full((1, 2, 2), 4)), Verdict.VACUOUS),
        (_set("label", [[[4, IGNORE], [4, 4]]]), Verdict.VACUOUS),
        (_set("label", [[[IGNORE, IGNORE], [IGNORE, IGNORE]]]), Verdict.VACUOUS),
        (_set("grad/conv.bias", [0.0, 0.0]), Verdict.VACUOUS),
        (_set("layer/ffm", [1.0, np.nan, 2.0]), Verdict.FAIL),
        (_set("layer/ffm", [1.0, np.inf, 2.0]), Verdict.FAIL),
        (lambda arrays: arrays.clear(), Verdict.VACUOUS),
    ],
)
def test_what_is_empty_or_not_finite_on_both_sides_does_not_pass(
    change: Callable[[Arrays], Any], verdict: Verdict
) -> None:
    arrays = backward_arrays()
    change(arrays)
    assert result_of(BACKWARD, arrays).verdict is verdict


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ("training", "moved/conv.weight"),
        ("training", "moved/bn.running_mean"),
        ("optimizer", "moved/step1/conv.weight"),
        ("backward", "grad/conv.bias"),
    ],
)
def test_what_did_not_move_is_vacuous(step: str, key: str) -> None:
    result = result_of(step_named(step), {key: np.asarray(0.0)})
    assert result.verdict is Verdict.VACUOUS
    assert result.rows[0].detail.startswith("all zero: a parameter ")
    assert result_of(step_named(step), {key: np.asarray(1e-9)}).verdict is Verdict.PASS


def test_a_side_that_did_not_move_fails() -> None:
    key = "moved/conv.weight"
    moved, still = {key: np.asarray(0.5)}, {key: np.asarray(0.0)}
    assert result_of(step_named("training"), moved, still).verdict is Verdict.FAIL
    assert result_of(step_named("training"), still, moved).verdict is Verdict.FAIL


def test_a_rate_that_never_moved_is_vacuous() -> None:
    arrays = {"lr/decay": np.full(50, 0.01), "options/decay/momentum": np.asarray(0.9)}
    result = result_of(step_named("lr_schedule"), arrays)
    assert [row.verdict for row in result.rows] == [Verdict.VACUOUS, Verdict.PASS]
    assert result.verdict is Verdict.VACUOUS


def test_labels_of_a_case_without_any_valid_pixel_are_allowed() -> None:
    loss = step_named("loss")
    void = np.full((1, 2, 2), IGNORE)
    zero = np.zeros((1, 3, 2, 2))
    allowed = {"all_void/label": void, "all_void/grad/main": zero}
    assert result_of(loss, allowed).verdict is Verdict.PASS
    assert result_of(loss, {"easy/label": void}).verdict is Verdict.VACUOUS
    assert result_of(loss, {"easy/grad/main": zero}).verdict is Verdict.VACUOUS


@pytest.mark.parametrize(
    ("side", "changes", "row"),
    [
        (1, {"side": "torch"}, "provenance/paddle"),
        (0, {"side": "paddle"}, "provenance/torch"),
        (1, {"frameworks": ["torch", "paddle"]}, "provenance/paddle"),
        (0, {"frameworks": ["torch", "paddle"]}, "provenance/torch"),
        (1, {"frameworks": ["torch"]}, "provenance/paddle"),
        (1, {"frameworks": []}, "provenance/paddle"),
        (1, {"dtype": "float32"}, "provenance/paddle"),
        (1, {"config": "other"}, "provenance/config"),
        (0, {"inputs": "other"}, "provenance/inputs"),
        (0, {"inputs": None}, "provenance/inputs"),
        (1, {"data": "other"}, "provenance/data"),
        (0, {"data": "not used"}, "provenance/data"),
        (1, {"weights": "by rule"}, "provenance/weights"),
        (1, {"seed": 1}, "provenance/seed"),
    ],
)
def test_records_that_cannot_be_compared_are_an_error(
    side: int, changes: Mapping[str, Any], row: str
) -> None:
    arrays = backward_arrays()
    pair = pair_of(arrays)
    pair[side] = replace(pair[side], meta={**pair[side].meta, **changes})
    rows = compare_float64(BACKWARD, [arrays, arrays], ignore_index=IGNORE)
    result = judge(BACKWARD, "float64", pair, rows)
    assert result.verdict is Verdict.ERROR
    assert [r.key for r in result.rows if r.verdict is Verdict.ERROR] == [row]


def test_swapped_records_are_two_errors() -> None:
    problems = provenance_problems(list(reversed(pair_of({}))), "float64")
    assert [row.key for row in problems] == ["provenance/torch", "provenance/paddle"]


def test_no_rows_are_vacuous() -> None:
    assert judge(BACKWARD, "float64", pair_of({}), []).verdict is Verdict.VACUOUS


FORWARD = step_named("forward")
WIDE: Arrays = {"eval/layer/a": np.linspace(-1, 1, 50), "eval/head/main": np.linspace(0, 3, 50)}


def narrow(arrays: Arrays) -> Arrays:
    return {key: array.astype(np.float32) for key, array in arrays.items()}


def float32_rows(
    torch: Arrays, paddle: Arrays, wide: tuple[Arrays, Arrays] = (WIDE, WIDE)
) -> dict[str, Row]:
    rows = compare_float32(FORWARD, (torch, paddle), wide, ignore_index=IGNORE)
    return {row.key: row for row in rows}


def test_float32_passes_by_its_floor() -> None:
    rows = float32_rows(narrow(WIDE), narrow(WIDE))
    assert {row.verdict for row in rows.values()} == {Verdict.PASS}
    assert all(row.floor is not None for row in rows.values())


def test_float32_keys_missing_anywhere_are_missing() -> None:
    less = narrow(WIDE)
    del less["eval/head/main"]
    for pair in ((less, narrow(WIDE)), (narrow(WIDE), less)):
        rows = float32_rows(*pair)
        assert rows["eval/head/main"].verdict is Verdict.MISSING
        assert rows["eval/layer/a"].verdict is Verdict.PASS
    short = {"eval/layer/a": WIDE["eval/layer/a"]}
    for wide in ((short, WIDE), (WIDE, short)):
        rows = float32_rows(narrow(WIDE), narrow(WIDE), wide)
        assert rows["eval/head/main"].verdict is Verdict.MISSING
        assert "rounding floor is unknown" in rows["eval/head/main"].detail


def test_an_empty_float32_record_is_vacuous() -> None:
    assert float32_rows({}, {})["(record)"].verdict is Verdict.VACUOUS


def test_float32_gradients_that_are_zero_are_vacuous() -> None:
    wide = {"grad/a": np.array([1e-60, 0.0])}
    rows = compare_float32(
        BACKWARD, (narrow(wide), narrow(wide)), (wide, wide), ignore_index=IGNORE
    )
    assert [row.verdict for row in rows] == [Verdict.VACUOUS]


LINE = np.linspace(1.0, 2.0, 51)


def with_rounding(times: float) -> Array:
    """Return the line with ``times`` the last place of its typical value, which is 1.5."""
    return (LINE + times * 1.5 * 2.0**-23).astype(np.float32)


@pytest.mark.parametrize(
    ("step", "key", "times", "verdict"),
    [
        ("forward", "train/layer/bn", 3.5, Verdict.PASS),
        ("forward", "train/layer/bn", 4.5, Verdict.FAIL),
        ("loss", "easy/grad/main", 3.5, Verdict.PASS),
        ("loss", "easy/grad/main", 4.5, Verdict.FAIL),
        ("loss", "easy/loss/main", 8, Verdict.PASS),
        ("loss", "easy/loss/main", 12, Verdict.FAIL),
        ("optimizer", "step5/param/conv.weight", 3.5, Verdict.PASS),
        ("optimizer", "step5/param/conv.weight", 4.5, Verdict.FAIL),
        ("backward", "buffer/bn.running_mean", 8, Verdict.PASS),
        ("backward", "buffer/bn.running_mean", 12, Verdict.FAIL),
        ("backward", "loss/total", 12, Verdict.FAIL),
        # a single draw of gradients can be chance; rounding/* judges several
        ("backward", "grad/conv.weight", 9000, Verdict.PASS),
        ("backward", "layer/ffm", 9000, Verdict.PASS),
        ("training", "first/loss", 8, Verdict.PASS),
        ("training", "first/loss", 12, Verdict.FAIL),
        # what iterations made of a flip
        ("training", "state/conv.weight", 9000, Verdict.PASS),
    ],
)
def test_how_much_more_than_torch_a_tensor_may_round(
    step: str, key: str, times: float, verdict: Verdict
) -> None:
    pair = {key: LINE.astype(np.float32)}, {key: with_rounding(times)}
    (row,) = compare_float32(
        step_named(step), pair, ({key: LINE}, {key: LINE}), ignore_index=IGNORE
    )
    assert row.verdict is verdict
    assert row.self_ratio == pytest.approx(times, rel=0.1)
    assert ("times Torch's" in row.detail) == (verdict is Verdict.FAIL)


@pytest.mark.parametrize(("times", "verdict"), [(8, Verdict.PASS), (12, Verdict.FAIL)])
def test_how_much_more_gradients_may_round_over_all_draws(times: float, verdict: Verdict) -> None:
    key, grad = "rounding/conv.weight", "grad/conv.weight"
    drawn = np.linspace(1e-6, 2e-6, 6)
    torch = {grad: LINE.astype(np.float32), key: drawn}
    paddle = {grad: with_rounding(900), key: times * drawn}
    rows = compare_float32(
        BACKWARD, (torch, paddle), ({grad: LINE}, {grad: LINE}), ignore_index=IGNORE
    )
    assert {row.key: row.verdict for row in rows} == {grad: Verdict.PASS, key: verdict}
    found = first_divergence("backward", rows)
    assert (found is not None) == (verdict is Verdict.FAIL)
    if found is not None:
        assert found.text == "rounding of the gradient of parameter conv.weight"


def test_a_dead_layer_is_empty_evidence_by_rule_and_a_users_own_matter() -> None:
    step, arrays = step_named("forward"), {"eval/layer/ffm.sigmoid": np.full((1, 8, 1, 1), 0.5)}
    (row,) = compare_float64(step, (arrays, arrays), ignore_index=IGNORE)
    assert row.verdict is Verdict.VACUOUS
    given = with_given_weights(step)
    (row,) = compare_float64(given, (arrays, arrays), ignore_index=IGNORE)
    assert row.verdict is Verdict.PASS
    # it is compared all the same
    other = {"eval/layer/ffm.sigmoid": np.full((1, 8, 1, 1), 0.6)}
    (row,) = compare_float64(given, (arrays, other), ignore_index=IGNORE)
    assert row.verdict is Verdict.FAIL


def test_a_buffer_that_is_wrong_in_float32_only_fails() -> None:
    # a variance over N instead of N - 1 values: one part in N = 2**16, and right in float64
    key, grad = "buffer/bn.running_var", "grad/conv.weight"
    biased = (LINE * (1 - 2.0**-16)).astype(np.float32)
    torch, wide = {key: LINE, grad: LINE}, {key: LINE, grad: LINE}
    rows = compare_float32(
        BACKWARD,
        (narrow(torch), {key: biased, grad: with_rounding(900)}),
        (wide, wide),
        ignore_index=IGNORE,
    )
    assert {row.key: row.verdict for row in rows} == {key: Verdict.FAIL, grad: Verdict.PASS}


def test_the_table_of_steps() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    for step in STEPS:
        # float64 decides, so it comes first where there is one; every key has a bound
        assert step.dtypes in (("float64",), ("float32",), ("float64", "float32"))
        assert step.bounds[-1].pattern == "*"
        assert all(bound.reason for bound in step.bounds)
        assert step.rounding[-1].pattern == "*"
        assert all("measured" in bound.reason for bound in step.rounding)
        assert all(rule.reason for rule in (*step.constants, *step.nonzero))
        loose = [bound for bound in step.bounds if bound.relative > ROUNDING.relative]
        assert all("measured" in bound.reason for bound in loose)
        assert all(bound.relative < 1e-8 for bound in loose if not bound.by_chance)
    with pytest.raises(LookupError, match="no step 'speed'; steps: data, forward"):
        step_named("speed")
    assert ROUNDING.relative == 1e-12
    assert SIDES == ("torch", "paddle")
