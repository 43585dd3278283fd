"""The boundary loss in NumPy: hand numbers, and every wrong rule that is known by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from explained import assert_named, assert_silent, case_of, unrelated

from pipeline.explain import boundary
from pipeline.explain.boundary import Detail, boundary_gradient, boundary_terms, interpolation
from pipeline.explain.loss import explain_logits_gradient, explain_loss
from pipeline.failure import FailureCase

IGNORE = 255
LOSS: dict[str, Any] = {
    "head_weights": {"boundary8": 0.5},
    "detail_ignore_void": False,
    "detail_ignore_frame": False,
}
SETTINGS = {"loss": LOSS, "ignore_index": IGNORE, "classes": 6}


def given() -> FailureCase:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 6, (2, 8, 12)).repeat(3, 1).repeat(3, 2)
    label[:, 9:15, 6:12] = IGNORE
    arrays = {
        "reference": 0.0,
        "actual": 0.0,
        "label": label,
        "logits/boundary8": rng.standard_normal((2, 1, 6, 9)),
    }
    return case_of("loss", "boundary8_bce", arrays, SETTINGS)


def case_with(part: str, wrong: Detail) -> FailureCase:
    case = given()
    right = Detail.of(case)
    made = [boundary._make(case, "boundary8", detail) for detail in (right, wrong)]  # pyright: ignore[reportPrivateUsage]
    factor = 0.5 if part == "gradient" else 1.0
    sides = [factor * np.asarray(getattr(one, part)) for one in made]
    arrays = {**case.arrays, "reference": sides[0], "actual": sides[1]}
    if part == "gradient":
        return case_of("logits_gradient", "boundary8", arrays, SETTINGS)
    return case_of("loss", f"boundary8_{part}", arrays, SETTINGS)


RIGHT = Detail(IGNORE)
COARSE_TOO = (False, *[True] * 7)
OTHER_FUSION = (False, False, False, True, False, True, True, True)
WRONG = [
    ("align-corners", "bce", replace(RIGHT, align_corners=False)),
    ("align-corners", "dice", replace(RIGHT, align_corners=False)),
    ("align-corners", "gradient", replace(RIGHT, align_corners=False)),
    ("ignore-index", "bce", replace(RIGHT, ignore_void=True)),
    ("boundary-frame", "dice", replace(RIGHT, ignore_frame=True)),
    ("boundary-side", "bce", replace(RIGHT, lower_side=True)),
    ("boundary-strides", "bce", replace(RIGHT, strides=(1, 4, 8))),
    ("boundary-fusion", "bce", replace(RIGHT, table=COARSE_TOO)),
    ("boundary-fusion", "gradient", replace(RIGHT, table=OTHER_FUSION)),
    ("reduction", "bce", replace(RIGHT, scale=2.0)),
    ("dice", "dice", replace(RIGHT, squared=True)),
    ("dice", "gradient", replace(RIGHT, whole_batch=True)),
]


@pytest.mark.parametrize(("relation", "part", "wrong"), WRONG)
def test_a_wrong_boundary_loss_is_named(relation: str, part: str, wrong: Detail) -> None:
    explain = explain_logits_gradient if part == "gradient" else explain_loss
    case = case_with(part, wrong)
    if (relation, part) == ("reduction", "bce"):
        # with two images the sum over them is also the term counted twice
        assert [h.relation for h in explain(case)] == ["doubled-term", "reduction"]
        return
    assert_named(explain, case, relation)


@pytest.mark.parametrize("part", ["bce", "dice"])
def test_an_unrelated_number_has_no_hint(part: str) -> None:
    assert_silent(explain_loss, unrelated(case_with(part, RIGHT)))


def test_edges_are_those_of_the_higher_side() -> None:
    label = np.zeros((1, 4, 4), np.int64)
    label[0, :, 2:] = 3
    found = RIGHT.edges(label, 1)[0]
    # the frame is class 0 beyond: the right column is an edge, too
    np.testing.assert_array_equal(found, np.tile([False, False, True, True], (4, 1)))
    inside = replace(RIGHT, ignore_frame=True).edges(label, 1)[0]
    np.testing.assert_array_equal(inside, np.tile([False, False, True, False], (4, 1)))


def test_the_coarsest_scale_alone_is_no_edge() -> None:
    assert boundary.fused_table() == (False, True, True, True, False, True, True, True)


def test_interpolation_lays_the_corners_on_each_other() -> None:
    np.testing.assert_allclose(
        interpolation(2, 3, align_corners=True), [[1, 0], [0.5, 0.5], [0, 1]]
    )
    np.testing.assert_allclose(
        interpolation(2, 4, align_corners=False), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )


def test_the_gradient_is_the_slope_of_the_terms() -> None:
    case, step = given(), 1e-6
    slope = boundary_gradient(case, "boundary8")
    for place in ((0, 0, 2, 3), (1, 0, 5, 8)):
        sums: list[float] = []
        for change in (step, -step):
            logits = case.arrays["logits/boundary8"].copy()
            logits[place] += change
            arrays = {**case.arrays, "logits/boundary8": logits}
            sums.append(sum(boundary_terms(replace(case, arrays=arrays), "boundary8").values()))
        assert slope[place] == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-6)
