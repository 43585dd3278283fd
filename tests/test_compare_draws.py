"""The float32 rule for gradients: several draws, of which single ones may be spoilt by a flip."""

import numpy as np
import pytest

from pipeline.rounding import compare_draws
from pipeline.verdicts import Verdict

TORCH = np.array([1e-6, 2e-6, 1e-6, 3e-6, 1e-6, 2e-6])


def verdict(torch: np.ndarray, paddle: np.ndarray) -> Verdict:
    return compare_draws("rounding/w", torch, paddle, self_limit=10).verdict


def test_equal_rounding_passes_and_says_its_ratio() -> None:
    row = compare_draws("rounding/w", TORCH, 2 * TORCH, self_limit=10)
    assert row.verdict is Verdict.PASS
    assert row.self_ratio == pytest.approx(2)
    assert row.relative <= row.bound


def test_flips_in_four_draws_are_chance() -> None:
    flipped = TORCH.copy()
    flipped[:4] = 1e-3
    assert verdict(TORCH, flipped) is Verdict.PASS


def test_a_detour_in_all_draws_fails_even_when_torch_flips_once() -> None:
    detour = np.full(6, 5e-4)
    assert verdict(TORCH, detour) is Verdict.FAIL
    torch = TORCH.copy()
    torch[2] = 1e-3
    row = compare_draws("rounding/w", torch, detour, self_limit=10)
    assert row.verdict is Verdict.FAIL
    # the smallest of the other five: 5e-4 over 3e-6
    assert row.self_ratio == pytest.approx(5e-4 / 3e-6)
    assert row.index == (3,)
    assert "166.7 times Torch's (limit 10)" in row.detail


def test_an_exact_reference_is_taken_as_one_unit_in_the_last_place() -> None:
    exact = np.zeros(6)
    assert verdict(exact, np.full(6, 1e-7)) is Verdict.PASS
    assert verdict(exact, np.full(6, 2e-6)) is Verdict.FAIL


def test_nan_and_too_few_draws_never_pass() -> None:
    broken = TORCH.copy()
    broken[5] = np.nan
    assert verdict(TORCH, broken) is Verdict.FAIL
    assert verdict(TORCH[:2], TORCH[:2]) is Verdict.VACUOUS
    assert verdict(TORCH, TORCH[:5]) is Verdict.FAIL
