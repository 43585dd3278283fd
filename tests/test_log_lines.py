"""JSON lines: torn and damaged ones, cutting, and a disk that takes no more."""

import json
import logging
import resource
from pathlib import Path

import pytest
from forking import in_child

from common.errors import TrainingError
from common.log_lines import LineWriter, cut_lines, read_lines, set_aside


def test_damaged_lines_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"iteration": 1}\n\n{"iteration": 2\n[3]\n\xff\xfe\n{"iteration": 4}\n{"it')
    with caplog.at_level(logging.WARNING):
        assert read_lines(path) == [{"iteration": 1}, {"iteration": 4}]
    damaged = [record.getMessage().rpartition("line ")[2] for record in caplog.records]
    assert damaged == [f"{number} is damaged and left out" for number in (3, 4, 5, 7)]


def test_a_missing_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"x\.jsonl: the log cannot be read \(No such file"):
        read_lines(tmp_path / "x.jsonl")


def test_lines_past_an_iteration_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"iteration": n, "text": "Straße"} for n in (0, 10, 20, 30)] + [{"note": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cut_lines(path, past=20) == 1
    assert read_lines(path) == [*lines[:3], {"note": 1}]
    assert cut_lines(path, past=20) == 0


def test_lines_that_come_again_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kinds = [("eval", 10), ("train", 20), ("checkpoint", 20), ("eval", 20), ("eval", 30)]
    lines = [{"kind": kind, "iteration": iteration} for kind, iteration in kinds]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cut_lines(path, past=20, repeated="eval") == 2
    assert read_lines(path) == lines[:3]


def test_an_older_file_gets_the_next_free_number(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert set_aside(path) is None
    for number in (1, 2):
        path.write_text(str(number))
        assert set_aside(path) == tmp_path / f"log.{number}.jsonl"
    assert (tmp_path / "log.1.jsonl").read_text() == "1"


def test_a_full_disk_is_warned_of_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    writer = LineWriter(Path("/dev/full"))
    with caplog.at_level(logging.WARNING):
        for iteration in (1, 2, 3):
            writer.write({"iteration": iteration})
    writer.close()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["/dev/full: the log is not written any more (No space left on device)"]


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def work() -> None:
        writer = LineWriter(path)
        writer.write({"iteration": 1})
        size = path.stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # room for a part of the second line only
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
        writer.write({"iteration": 2})
        writer.write({"iteration": 3})
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.write({"iteration": 4})
        writer.close()

    assert in_child(work) == 0
    assert path.read_bytes() == b'{"iteration": 1}\n{"ite\n{"iteration": 4}\n'
