"""Sums of scores by NumPy: by hand, and against the same steps on whole maps."""

from typing import Any, get_args

import numpy as np
import pytest

from common import score_sums
from common.protocols import ScoreRule
from common.score_sums import add_scores

RULES = get_args(ScoreRule)


def on_whole_maps(logits: np.ndarray, mirrored: np.ndarray | None, rule: str) -> np.ndarray:
    def scores(x: np.ndarray) -> np.ndarray:
        return x if rule == "logits" else np.exp(x) / np.exp(x).sum(axis=0)

    found = scores(logits)
    if mirrored is not None:
        found = found + scores(mirrored)[:, :, ::-1]
    return np.exp(found) if rule == "exp_softmax" else found


def test_by_hand() -> None:
    logits = np.log([[[1.0, 3.0]], [[3.0, 1.0]]])
    mirrored = np.log([[[1.0, 1.0]], [[1.0, 3.0]]])
    total = np.full((2, 1, 2), 10.0)
    add_scores(total, logits, mirrored, rule="softmax")
    # the mirror image's columns come back in the other order
    expected = [[[0.25 + 0.25, 0.75 + 0.5]], [[0.75 + 0.75, 0.25 + 0.5]]]
    np.testing.assert_allclose(total - 10, expected, rtol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("values", [1, 100, 10**6])
def test_blocks_of_any_height_give_the_whole_map(
    rule: Any, mirror: bool, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 100: two rows at a time, and one at the end
    monkeypatch.setattr(score_sums, "_VALUES", values)
    rng = np.random.default_rng(5)
    logits, mirrored = rng.standard_normal((2, 4, 7, 11))
    total = rng.standard_normal((4, 7, 11))
    expected = total + on_whole_maps(logits, mirrored if mirror else None, rule)
    add_scores(total, logits, mirrored if mirror else None, rule=rule)
    np.testing.assert_allclose(total, expected, rtol=1e-13)


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_threads_share_the_rows_without_a_change(threads: int) -> None:
    # seven rows: with nine threads two have none
    rng = np.random.default_rng(7)
    logits, mirrored = rng.standard_normal((2, 4, 7, 11)).astype(np.float32)
    alone, found = np.zeros((2, 4, 7, 11), dtype=np.float32)
    add_scores(alone, logits, mirrored, rule="exp_softmax", threads=1)
    add_scores(found, logits, mirrored, rule="exp_softmax", threads=threads)
    np.testing.assert_array_equal(found, alone)


def test_a_thread_that_fails_is_told() -> None:
    with pytest.raises(ValueError, match="could not be broadcast"):
        add_scores(np.zeros((2, 4, 3)), np.zeros((2, 4, 5)), None, rule="logits", threads=2)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({"OMP_NUM_THREADS": "3"}, 3), ({"OMP_NUM_THREADS": "0"}, 5), ({}, 5)],
)
def test_threads_follow_the_framework_s(
    environment: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_sums, "usable_cores", lambda: 5)
    assert score_sums.threads_of_kernels(environment) == threads


def test_a_part_of_a_sum_and_any_layout_of_the_logits() -> None:
    rng = np.random.default_rng(6)
    logits = rng.standard_normal((5, 6, 3)).transpose(2, 0, 1)
    kept = logits.copy()
    total = np.zeros((3, 8, 9))
    add_scores(total[:, 2:7, 1:7], logits, None, rule="softmax")
    expected = np.zeros((3, 8, 9))
    expected[:, 2:7, 1:7] = on_whole_maps(logits, None, "softmax")
    np.testing.assert_allclose(total, expected, rtol=1e-14)
    np.testing.assert_array_equal(logits, kept)


def test_large_logits_do_not_overflow_and_the_dtype_stays() -> None:
    logits = np.array([[[1e4]], [[-1e4]]], dtype=np.float32)
    total = np.zeros((2, 1, 1), dtype=np.float32)
    add_scores(total, logits, None, rule="softmax")
    assert total.ravel().tolist() == [1.0, 0.0]
