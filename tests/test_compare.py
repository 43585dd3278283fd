"""Comparison of tensors and records: nothing passes that was not compared."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.compare import compare_records, compare_tensor
from pipeline.verdicts import Allowance, Bound, Row, Verdict, bound_for, overall

Array = NDArray[Any]
ROUNDING = Bound("*", 1e-12, "test")
GRADED = np.array([[1.0, -2.0, 4.0], [0.5, 0.0, 3.0]])


def row_of(reference: Any, actual: Any, *, limit: float = 1e-12, free: bool = False) -> Row:
    return compare_tensor(
        "key", np.asarray(reference), np.asarray(actual), limit=limit, may_be_constant=free
    )


def changed(array: Array, index: Any, value: Any) -> Array:
    other = array.copy()
    other[index] = value
    return other


def test_equal_tensors_pass_with_zero_difference() -> None:
    row = row_of(GRADED, GRADED.copy())
    assert row.verdict is Verdict.PASS
    assert (row.max_abs, row.mean_abs, row.relative, row.max_rel, row.over) == (0, 0, 0, 0, 0)
    assert (row.size, row.bound, row.detail) == (6, 1e-12, "")


def test_the_numbers_of_a_difference() -> None:
    # off by 0.5 at (1, 2), where the reference is 3, and by 0.25 at (0, 0), where it is 1
    actual = GRADED.copy()
    actual[1, 2] += 0.5
    actual[0, 0] -= 0.25
    row = row_of(GRADED, actual, limit=0.1)
    assert row.verdict is Verdict.FAIL
    assert row.max_abs == 0.5
    assert row.index == (1, 2)
    assert row.relative == 0.5 / 4
    assert row.mean_abs == 0.75 / 6
    assert row.max_rel == 0.25 / 1
    assert (row.over, row.first) == (1, (1, 2))
    assert row_of(GRADED, actual, limit=0.0625).first == (1, 2)
    assert row_of(GRADED, actual, limit=0.0624).first == (0, 0)


@pytest.mark.parametrize(("limit", "verdict"), [(0.125, Verdict.PASS), (0.1249, Verdict.FAIL)])
def test_the_bound_itself_passes(limit: float, verdict: Verdict) -> None:
    assert row_of(GRADED, changed(GRADED, (1, 2), 3.5), limit=limit).verdict is verdict


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["reference", "actual", "both"])
def test_nan_and_inf_fail_wherever_they_are(value: float, where: str) -> None:
    bad = changed(GRADED, (0, 2), value)
    reference = GRADED if where == "actual" else bad
    actual = GRADED if where == "reference" else bad
    row = row_of(reference, actual, limit=1e9)
    assert row.verdict is Verdict.FAIL
    assert row.relative == np.inf
    assert "1 NaN or Inf of 6, first at (0, 2)" in row.detail


@pytest.mark.parametrize(
    ("reference", "actual"),
    [
        (np.ones((2, 3)), np.ones((3, 2))),
        (GRADED, GRADED.T),
        (np.ones((2, 3)), np.ones((1, 3))),
        (np.ones((2, 3)), np.ones(3)),
        (np.ones(1), np.float64(1)),
        (np.ones((2, 3)), np.ones(6)),
        (np.zeros((0, 3)), np.zeros((3, 0))),
    ],
)
def test_no_shape_is_transposed_broadcast_or_flattened(reference: Array, actual: Array) -> None:
    for one, other in ((reference, actual), (actual, reference)):
        row = row_of(one, other, limit=1e9, free=True)
        assert row.verdict is Verdict.FAIL
        assert row.detail == f"shape {np.shape(other)}, reference {np.shape(one)}"


def test_a_transposed_square_fails() -> None:
    square = np.arange(9.0).reshape(3, 3)
    assert row_of(square, square.T).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.float64, np.float32),
        (np.float32, np.float16),
        (np.float64, np.int64),
        (np.int64, np.bool_),
        (np.float64, np.bool_),
        (np.int32, np.str_),
    ],
)
def test_another_kind_or_float_width_fails(one: Any, other: Any) -> None:
    values = np.array([0, 1, 1])
    for left, right in ((one, other), (other, one)):
        row = row_of(values.astype(left), values.astype(right), limit=1e9)
        assert row.verdict is Verdict.FAIL
        assert row.detail.startswith("dtype ")


def test_the_width_of_integers_and_texts_is_free() -> None:
    labels = np.array([0, 18, 255])
    assert row_of(labels.astype(np.uint8), labels).verdict is Verdict.PASS
    names = np.array(["a", "b"])
    assert row_of(names, names.astype("U9")).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "values",
    [
        np.array([1 + 2j, 3]),
        np.array([1, None], dtype=object),
        np.array([b"a", b"b"]),
        np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
    ],
)
def test_what_has_no_difference_is_refused(values: Array) -> None:
    row = row_of(values, values)
    assert row.verdict is Verdict.FAIL
    assert "not comparable" in row.detail


def test_texts_are_equal_or_not() -> None:
    row = row_of(np.array(["decay", "no_decay"]), np.array(["decay", "decay"]), limit=1e9)
    assert (row.verdict, row.first, row.over) == (Verdict.FAIL, (1,), 1)
    assert row_of(np.asarray("a"), np.asarray("a")).verdict is Verdict.PASS
    assert row_of(np.asarray("a"), np.asarray("b")).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("reference", "actual"),
    [
        (2**53, 2**53 + 1),
        (2**62 + 1, 2**62),
        (-(2**63), 2**63 - 1),
        (-(2**53) - 1, -(2**53)),
    ],
)
def test_neighbours_beyond_2_to_the_53_differ(reference: int, actual: int) -> None:
    # both become the same float64
    row = row_of(np.array([reference, 5]), np.array([actual, 5]), limit=1e9)
    assert (row.verdict, row.first, row.over) == (Verdict.FAIL, (0,), 1)
    assert row.max_abs >= 1
    unsigned = np.array([2**64 - 1, 2**63], np.uint64)
    assert row_of(unsigned, unsigned - np.uint64(1)).verdict is Verdict.FAIL


def test_signed_and_unsigned_beyond_2_to_the_53_differ() -> None:
    reference, actual = np.array([2**53 + 1, 0]), np.array([2**53, 0], np.uint64)
    assert row_of(reference, actual).verdict is Verdict.FAIL


def test_integers_are_equal_whatever_the_bound() -> None:
    counts = np.array([10**6, 3])
    assert row_of(counts, counts + np.array([1, 0]), limit=0.5).verdict is Verdict.FAIL
    assert row_of(np.array([True, False]), np.array([True, True]), limit=1).verdict is Verdict.FAIL


def test_small_unsigned_integers_do_not_wrap() -> None:
    row = row_of(np.array([0, 255], np.uint8), np.array([255, 0], np.uint8))
    assert row.max_abs == 255


def test_a_zero_reference_allows_no_difference() -> None:
    row = row_of(np.zeros(3), np.array([0.0, 1e-300, 0.0]), limit=1e9, free=True)
    assert (row.verdict, row.relative) == (Verdict.FAIL, np.inf)


def test_a_difference_beyond_float64_fails_without_a_warning() -> None:
    row = row_of(np.array([1e308, 1.0]), np.array([-1e308, 1.0]), limit=0.5)
    assert (row.verdict, row.max_abs, row.first) == (Verdict.FAIL, np.inf, (0,))
    tiny = np.array([1.0, 1e-310])
    assert row_of(tiny, np.array([1.0, 1.0]), limit=0.5).max_rel == np.inf


@pytest.mark.parametrize(
    "values",
    [np.zeros(4), np.ones((2, 2)), np.full(3, 7), np.array(["a", "a"]), np.array([True, True])],
)
def test_a_constant_reference_is_vacuous(values: Array) -> None:
    row = row_of(values, values)
    assert row.verdict is Verdict.VACUOUS
    assert row.detail.startswith("constant reference (")
    assert row_of(values, values, free=True).verdict is Verdict.PASS


def test_a_rate_that_never_moved_is_vacuous() -> None:
    rates = {"lr/decay": np.full(50, 1e-2)}
    (row,) = compare_records(rates, rates, bounds=[ROUNDING])
    assert row.verdict is Verdict.VACUOUS


def test_a_difference_from_a_constant_reference_fails() -> None:
    assert row_of(np.zeros(3), np.array([0.0, 0.0, 1.0])).verdict is Verdict.FAIL


def test_a_single_number_is_not_constant() -> None:
    assert row_of(np.float64(2.5), np.float64(2.5)).verdict is Verdict.PASS


def test_no_elements_are_vacuous_even_where_a_constant_is_allowed() -> None:
    empty = np.zeros((0, 3))
    assert row_of(empty, empty, free=True).verdict is Verdict.VACUOUS


ARRAYS: Mapping[str, Array] = {"b": GRADED, "a": GRADED * 2}


@pytest.mark.parametrize(
    ("reference", "actual", "key", "side"),
    [
        (ARRAYS, {"b": GRADED}, "a", "paddle"),
        ({"b": GRADED}, ARRAYS, "a", "torch"),
        (ARRAYS, {"b": GRADED, "A": GRADED * 2}, "a", "paddle"),
        (ARRAYS, {}, "b", "paddle"),
        ({}, ARRAYS, "b", "torch"),
    ],
)
def test_a_missing_or_extra_key_is_missing(
    reference: Mapping[str, Array], actual: Mapping[str, Array], key: str, side: str
) -> None:
    rows = {row.key: row for row in compare_records(reference, actual, bounds=[ROUNDING])}
    assert rows[key].verdict is Verdict.MISSING
    assert rows[key].detail.endswith(f"not by {side}")
    assert set(rows) == {*reference, *actual}
    assert overall(list(rows.values())) is Verdict.MISSING


def test_an_empty_record_is_vacuous() -> None:
    rows = compare_records({}, {}, bounds=[ROUNDING])
    assert [row.verdict for row in rows] == [Verdict.VACUOUS]
    assert overall([]) is Verdict.VACUOUS


def test_rows_come_in_the_order_of_the_reference() -> None:
    turned = {key: ARRAYS[key] for key in reversed(ARRAYS)}
    assert [row.key for row in compare_records(ARRAYS, turned, bounds=[ROUNDING])] == ["b", "a"]


def test_every_tensor_is_reported_after_a_failure() -> None:
    rows = compare_records(ARRAYS, {"b": GRADED + 1, "a": GRADED}, bounds=[ROUNDING])
    assert [row.verdict for row in rows] == [Verdict.FAIL, Verdict.FAIL]


def test_the_first_matching_bound_and_the_allowances_count() -> None:
    bounds = [Bound("train/*", 0.5, "loose"), ROUNDING]
    assert bound_for("train/x", bounds).reason == "loose"
    assert bound_for("eval/train/x", bounds) is ROUNDING
    with pytest.raises(LookupError, match="no bound for eval/x; end the table"):
        bound_for("eval/x", bounds[:1])
    reference = {"train/x": GRADED, "eval/x": GRADED, "eval/flat": np.zeros(2)}
    actual = {**reference, "train/x": GRADED * 1.25, "eval/x": GRADED * 1.25}
    allowed = [Allowance("*/flat", "test")]
    rows = compare_records(reference, actual, bounds=bounds, constants=allowed)
    assert [row.verdict for row in rows] == [Verdict.PASS, Verdict.FAIL, Verdict.PASS]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([Verdict.PASS], Verdict.PASS),
        ([Verdict.PASS, Verdict.VACUOUS], Verdict.VACUOUS),
        ([Verdict.VACUOUS, Verdict.MISSING], Verdict.MISSING),
        ([Verdict.MISSING, Verdict.FAIL, Verdict.PASS], Verdict.FAIL),
        ([Verdict.FAIL, Verdict.ERROR], Verdict.ERROR),
        ([Verdict.PASS, Verdict.NOT_RUN], Verdict.NOT_RUN),
        ([Verdict.PASS, Verdict.WAIVED], Verdict.WITH_WAIVERS),
        ([Verdict.WAIVED, Verdict.FAIL], Verdict.FAIL),
    ],
)
def test_the_gravest_verdict_counts(found: list[Verdict], expected: Verdict) -> None:
    assert overall([Row("k", verdict) for verdict in found]) is expected
    passed = [Verdict.PASS, Verdict.WAIVED, Verdict.WITH_WAIVERS]
    assert [verdict for verdict in Verdict if verdict.passed] == passed


def test_failures_are_graver_than_any_passing_row() -> None:
    rows = [
        Row("tight", Verdict.PASS, relative=9e-13, bound=1e-12),
        Row("missing", Verdict.MISSING),
        Row("off", Verdict.FAIL, relative=2e-12, bound=1e-12),
        Row("nan", Verdict.FAIL, relative=np.inf),
        Row("slack", Verdict.PASS, relative=1e-10, bound=1e-2),
    ]
    ranked = sorted(rows, key=lambda row: row.severity, reverse=True)
    assert [row.key for row in ranked] == ["nan", "off", "missing", "tight", "slack"]


finite = st.floats(min_value=-1e9, max_value=1e9)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(finite, min_size=2, max_size=6),
    position=st.integers(0, 5),
    share=st.floats(min_value=1e-6, max_value=10),
)
def test_any_difference_beyond_the_bound_is_found(
    values: list[float], position: int, share: float
) -> None:
    reference = np.array(values)
    actual = reference.copy()
    scale = float(np.abs(reference).max()) or 1.0
    actual[position % len(values)] += share * scale
    # half of the smallest number there is rounds to no difference at all
    assume(share * scale >= np.finfo(np.float64).tiny)
    assert row_of(reference, actual, limit=share * 0.99).verdict is Verdict.FAIL
    if np.any(reference):
        row = row_of(reference, actual, limit=share * 1.01, free=True)
        assert row.verdict is Verdict.PASS
        assert row.index == (position % len(values),)


@settings(deadline=None, max_examples=60)
@given(
    reference=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    actual=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
)
def test_integers_pass_exactly_when_they_are_equal(reference: list[int], actual: list[int]) -> None:
    pair = [np.array(values, np.int64) for values in (reference, actual)]
    assert row_of(*pair, free=True).verdict.passed == (reference == actual)
    assert row_of(pair[0], pair[0], free=True).verdict.passed


def test_the_comparison_loads_no_framework() -> None:
    assert not {"torch", "paddle"} & set(sys.modules)
