"""Work over several processes: results in order, failures with their file, nothing lost."""

import os
from pathlib import Path

import pytest

from common.errors import DataError, InputError
from common.prepare.jobs import Done, Failure, run_jobs


def halve(number: int) -> int:
    if number == 3:
        raise DataError("three is odd")
    if number == 5:
        raise ZeroDivisionError("a bug")
    if number == 99:
        os._exit(1)
    return number // 2


def name_of(number: int) -> Path:
    return Path(str(number))


@pytest.mark.parametrize("workers", [0, 2])
def test_outcomes_come_in_order_and_none_is_lost(workers: int) -> None:
    outcomes = list(run_jobs(range(20), halve, name_of=name_of, workers=workers))
    assert outcomes[3] == Failure(Path("3"), "three is odd")
    bug = outcomes.pop(5)
    assert isinstance(bug, Failure)
    assert "ZeroDivisionError: a bug" in bug.reason
    del outcomes[3]
    numbers = [number for number in range(20) if number not in (3, 5)]
    assert outcomes == [Done(number // 2) for number in numbers]


def test_a_killed_process_is_told() -> None:
    with pytest.raises(InputError, match="was killed"):
        list(run_jobs([1, 99, 2], halve, name_of=name_of, workers=2))
