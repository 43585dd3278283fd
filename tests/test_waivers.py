"""Accepted differences: only what a waiver says exactly, only as long as it says."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InputError
from pipeline.differences import Array
from pipeline.judge import compare_float64
from pipeline.steps import step_named
from pipeline.verdicts import Row, Verdict, overall
from pipeline.waivers import Waiver, waive, waivers_of

TODAY = date(2026, 11, 20)
FIELDS: dict[str, Any] = {
    "tensor": "eval/layer/a",
    "step": "forward",
    "dtype": "float64",
    "relation": {"kind": "factor", "value": 1.5},
    "reason": "the published weights need it",
    "lifted_by": "the authors",
    "expires": TODAY,
}
TORCH = np.array([1.0, 2.0, -4.0])


def waiver(**changes: Any) -> Waiver:
    return Waiver.model_validate({**FIELDS, **changes})


def judged(actual: Array, *waivers: Waiver, today: date = TODAY) -> list[Row]:
    pair = [{"eval/layer/a": TORCH, "eval/layer/b": TORCH}]
    pair.append({"eval/layer/a": actual, "eval/layer/b": TORCH})
    rows = compare_float64(step_named("forward"), pair, ignore_index=255)
    return waive(waivers, rows, pair, step="forward", dtype="float64", today=today)


@pytest.mark.parametrize(
    ("kind", "value", "actual"),
    [
        ("factor", 1.5, TORCH * 1.5),
        ("offset", 0.25, TORCH + 0.25),
        ("shift", 1, np.array([1.0, 1.0, 2.0])),
        ("difference", 0.1, TORCH + 0.3),
    ],
)
def test_what_a_waiver_says_is_waived(kind: str, value: float, actual: Array) -> None:
    rows = judged(actual, waiver(relation={"kind": kind, "value": value}))
    assert [row.verdict for row in rows] == [Verdict.WAIVED, Verdict.PASS]
    assert rows[0].detail.startswith("waived until 2026-11-20: ")
    assert rows[0].detail.endswith("; the published weights need it")
    assert rows[0].relative > rows[0].bound
    assert overall(rows) is Verdict.WITH_WAIVERS
    assert overall(rows).value == "PASS with waivers"


@pytest.mark.parametrize("actual", [TORCH * 1.5000001, TORCH * 1.4, TORCH + 1, TORCH * np.nan])
def test_anything_else_fails(actual: Array) -> None:
    rows = judged(actual, waiver())
    assert rows[0].verdict is Verdict.FAIL
    assert "not waived: " in rows[0].detail
    assert overall(rows) is Verdict.FAIL


def test_beyond_its_difference_a_tensor_fails() -> None:
    rows = judged(TORCH + 0.5, waiver(relation={"kind": "difference", "value": 0.1}))
    assert rows[0].verdict is Verdict.FAIL


def test_an_expired_waiver_fails_and_waives_nothing() -> None:
    rows = judged(TORCH * 1.5, waiver(), today=date(2026, 11, 21))
    assert [row.verdict for row in rows] == [Verdict.FAIL, Verdict.PASS, Verdict.FAIL]
    assert rows[2].key == "waiver/eval/layer/a"
    assert rows[2].detail == "expired on 2026-11-20; the authors can lift it, or renew it"


def test_an_unused_waiver_fails() -> None:
    rows = judged(TORCH, waiver(), waiver(tensor="eval/layer/other*"))
    assert [row.verdict for row in rows] == [Verdict.PASS] * 2 + [Verdict.FAIL] * 2
    assert {row.detail.partition(":")[0] for row in rows[2:]} == {"unused"}


def test_a_waiver_is_for_its_own_step_and_dtype() -> None:
    for other in (waiver(step="backward"), waiver(dtype="float32")):
        rows = judged(TORCH * 1.5, other)
        assert [row.verdict for row in rows] == [Verdict.FAIL, Verdict.PASS]


def test_a_tensor_that_one_side_lacks_cannot_be_waived() -> None:
    rows = [Row("eval/layer/a", Verdict.MISSING, "recorded by the other side only")]
    pair: list[dict[str, Array]] = [{"eval/layer/a": TORCH}, {}]
    found = waive([waiver()], rows, pair, step="forward", dtype="float64", today=TODAY)
    assert [row.verdict for row in found] == [Verdict.MISSING, Verdict.FAIL]
    snapshot = [Row("iteration0010/state/a", Verdict.FAIL, "off")]
    one = waiver(tensor="*state/a", step="training")
    (row,) = waive([one], snapshot, [{}, {}], step="training", dtype="float64", today=TODAY)
    assert row.verdict is Verdict.FAIL
    assert "not in the final record" in row.detail


ROW = """
- tensor: eval/layer/a
  step: forward
  dtype: float64
  relation: {kind: factor, value: 1.5}
  reason: the published weights need it
  lifted_by: the authors
  expires: 2026-11-20
"""


def test_the_file_lies_beside_the_logs_or_is_named(tmp_path: Path) -> None:
    assert waivers_of(tmp_path, None) == ()
    (tmp_path / "waivers.yml").write_text(ROW)
    assert waivers_of(tmp_path, None) == (waiver(),)
    other = tmp_path / "none.yml"
    other.write_text("")
    assert waivers_of(tmp_path, other) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROW.replace("factor", "roughly"), r"waiver 0.relation.kind: Input should be 'factor'"),
        (ROW.replace("forward", "foward"), r"waiver 0.step: Input should be 'data'"),
        (ROW.replace("  reason: the published weights need it\n", ""), r"0.reason: Field required"),
        (ROW.replace("reason: the published weights need it", "reason: ok"), r"at least 10 char"),
        (ROW + "  rtol: 1\n", r"waiver 0.rtol: Extra inputs are not permitted"),
        ("tensor: a", r"waiver \(the file\): Input should be a valid list"),
        ("- [", r"waivers cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_row_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.yml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        waivers_of(tmp_path, path)
    with pytest.raises(InputError, match="cannot be read"):
        waivers_of(tmp_path, tmp_path / "absent.yml")
