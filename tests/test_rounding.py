"""float32: two records are judged by the rounding that the float64 records measure."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.rounding import CROSS_FACTOR, ULP, compare_tensor_float32
from pipeline.verdicts import Row, Verdict

Array = NDArray[Any]
WIDE = np.linspace(-1.0, 2.0, 1001).reshape(7, 143)
SELF_LIMIT = 10.0


def noise(seed: int, size: float) -> Array:
    return np.random.default_rng(seed).uniform(-size, size, WIDE.shape)


def narrow_row(torch32: Array, paddle32: Array, **options: Any) -> Row:
    pair64 = options.pop("pair64", (WIDE, WIDE))
    options.setdefault("self_limit", SELF_LIMIT)
    return compare_tensor_float32("key", (torch32, paddle32), pair64, **options)


def rounded(seed: int, size: float = 3e-6) -> Array:
    return (WIDE + noise(seed, size)).astype(np.float32)


def test_rounding_on_both_sides_passes_by_its_own_floor() -> None:
    row = narrow_row(rounded(1), rounded(2))
    assert row.verdict is Verdict.PASS
    assert row.floor == pytest.approx(2 * 3e-6 / 2, rel=0.05)
    assert row.bound == pytest.approx(CROSS_FACTOR * row.floor + 4 * ULP)
    assert row.self_ratio == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("limit", [10.0, 1000.0])
def test_more_rounding_than_torch_fails_by_the_self_ratio(limit: float) -> None:
    just = narrow_row(rounded(1), rounded(2, 3e-6 * 0.7 * limit), self_limit=limit)
    assert just.verdict is Verdict.PASS
    row = narrow_row(rounded(1), rounded(2, 3e-6 * 1.5 * limit), self_limit=limit)
    assert row.verdict is Verdict.FAIL
    assert f"times Torch's (limit {limit:g})" in row.detail


def test_a_detour_by_half_precision_fails() -> None:
    half = WIDE.astype(np.float16).astype(np.float32)
    assert narrow_row(WIDE.astype(np.float32), half).verdict is Verdict.FAIL


@pytest.mark.parametrize("share", [0.3, 0.05])
def test_exact_elements_do_not_hide_the_others(share: float) -> None:
    """Behind a ReLU, or where few pixels are hard, most elements are zero on either side."""
    kept = np.arange(WIDE.size).reshape(WIDE.shape) % round(1 / share) == 0
    wide = np.where(kept, WIDE, 0.0)
    torch32, half = wide.astype(np.float32), wide.astype(np.float16).astype(np.float32)
    row = narrow_row(torch32, half, pair64=(wide, wide))
    assert row.verdict is Verdict.FAIL
    assert "times Torch's" in row.detail
    same = narrow_row(torch32, wide.astype(np.float32), pair64=(wide, wide))
    assert same.verdict is Verdict.PASS


def test_rounding_is_seen_beside_a_large_value() -> None:
    """One large element must not lend the small ones its last place."""
    wide = np.append(WIDE.ravel() / 1000, 100.0)
    torch32 = wide.astype(np.float32)
    off = (wide * (1 + 3e-6)).astype(np.float32)
    row = narrow_row(torch32, off, pair64=(wide, wide))
    assert (row.verdict, row.self_ratio) == (Verdict.FAIL, pytest.approx(25, rel=0.2))


def test_the_tail_of_a_saturated_activation_says_nothing() -> None:
    wide = np.append(np.full(1000, 1e-30), [0.2, 0.4, 0.7])
    torch32 = wide.astype(np.float32)
    paddle32 = np.append(np.full(1000, 1.1e-30), [0.2, 0.4, 0.7]).astype(np.float32)
    assert narrow_row(torch32, paddle32, pair64=(wide, wide)).verdict is Verdict.PASS


def test_another_float32_program_fails_by_the_floor() -> None:
    # agreement with its own float64 run is not enough: the two float64 runs must agree too
    torch32, paddle32 = rounded(1), (rounded(2) * np.float32(1.001)).astype(np.float32)
    row = narrow_row(torch32, paddle32, pair64=(WIDE, WIDE * 1.001))
    assert row.verdict is Verdict.FAIL
    assert row.detail.startswith("off by ")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_nan_and_inf_fail_in_any_of_the_four_records(value: float, position: int) -> None:
    arrays = [rounded(1), rounded(2), WIDE.copy(), WIDE.copy()]
    arrays[position][3, 3] = value
    row = narrow_row(arrays[0], arrays[1], pair64=(arrays[2], arrays[3]))
    assert row.verdict is Verdict.FAIL
    assert "NaN or Inf" in row.detail


def test_shapes_and_dtypes_of_all_four_records_count() -> None:
    assert narrow_row(rounded(1), rounded(2)[:, :-1]).verdict is Verdict.FAIL
    assert narrow_row(rounded(1), rounded(2).astype(np.float64)).verdict is Verdict.FAIL
    other = (WIDE.T.copy(), WIDE.T.copy())
    row = narrow_row(rounded(1), rounded(2), pair64=other)
    assert (row.verdict, row.relative) == (Verdict.FAIL, np.inf)


def test_integers_and_constants_in_float32_runs() -> None:
    counts = np.arange(6)
    wide = (counts, counts)
    assert narrow_row(counts, counts, pair64=wide).verdict is Verdict.PASS
    assert narrow_row(counts, counts + 1, pair64=wide).verdict is Verdict.FAIL
    flat = np.zeros(3, np.float32)
    wide = (np.zeros(3), np.zeros(3))
    assert narrow_row(flat, flat, pair64=wide).verdict is Verdict.VACUOUS
    assert narrow_row(flat, flat, pair64=wide, may_be_constant=True).verdict is Verdict.PASS


def test_without_any_rounding_a_few_units_in_the_last_place_are_allowed() -> None:
    exact = np.array([1.0, 2.0, 4.0])
    narrow = exact.astype(np.float32)
    for steps, verdict in ((4, Verdict.PASS), (40, Verdict.FAIL)):
        actual = narrow + np.float32(steps * 2 * ULP)
        # paddle's float64 run is off as well, so that the floor does not grow with it
        row = narrow_row(narrow, actual, pair64=(exact, actual.astype(np.float64)))
        assert row.verdict is verdict


def test_the_float32_difference_is_relative_to_float64_as_its_limit_is() -> None:
    # one place and two places where exactly it is 1.7: by the triangle inequality within the floor
    place = np.float32(ULP)
    torch32, paddle32 = np.array(place), np.array(2 * place)
    wide = np.array(1.7 * ULP)
    row = compare_tensor_float32(
        "moved/w", (torch32, paddle32), (wide, wide), self_limit=float("inf")
    )
    assert row.verdict is Verdict.PASS
    assert row.relative == pytest.approx(1 / 1.7)
    assert row.floor == pytest.approx(1 / 1.7)
    # also where one side has not moved at all
    row = compare_tensor_float32(
        "moved/w", (np.array(np.float32(0)), paddle32), (wide, wide), self_limit=float("inf")
    )
    assert row.verdict is Verdict.PASS
