"""The log of a training: one line per interval, each iteration once, and what a person sees."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from common.errors import InputError
from common.run_log import RunLog

HEADER: dict[str, Any] = {
    "command": "train --config c.yml",
    "config_digest": "c0",
    "code_digest": "d0",
    "commit": "0123456789ab",
    "versions": {"numpy": "2.0"},
    "parity": "p0",
    "world_size": 2,
}


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = 0

    def scalar(self, name: str, value: float, iteration: int) -> None:
        self.scalars.append((name, value, iteration))

    def image(self, name: str, hwc_uint8: NDArray[np.uint8], iteration: int) -> None:
        raise AssertionError(f"{name} {hwc_uint8.shape} at {iteration}: a log hands on no pictures")

    def close(self) -> None:
        self.closed += 1


def plain() -> Console:
    return Console(file=io.StringIO(), width=60, force_terminal=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def open_log(folder: Path, *, start: int = 0, total: int = 1000, **options: Any) -> RunLog:
    options.setdefault("console", plain())
    return RunLog(folder, enabled=True, total_iterations=total, start_iteration=start, **options)


def lines_of(folder: Path, name: str = "train_log.jsonl") -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / name).read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def write_line(log: RunLog, iteration: int, *, loss: float = 1.0) -> dict[str, Any]:
    return log.train(iteration, epoch=0, terms={"total": loss}, lr={"backbone": 0.1})


def test_a_line_holds_what_was_measured_since_the_last(tmp_path: Path) -> None:
    with open_log(tmp_path, total=12) as log:
        write_line(log, 1)
        log.step(images=8, data_s=0.5, step_s=1.5)
        log.step(images=8, data_s=0.5, step_s=1.5)
        terms = {"total": 2.5, "main": 2.0, "aux16": 0.5}
        rates = {"backbone": 1e-2, "head": 1e-1}
        returned = log.train(4, epoch=3, terms=terms, lr=rates, memory_mib=512.0)
    first, line = lines_of(tmp_path)
    assert (first["ips"], first["data_s"], first["step_s"], first["eta_s"]) == (None,) * 4
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "kind": "train",
        "iteration": 4,
        "epoch": 3,
        "loss": terms,
        "lr": rates,
        # 16 images in 4 seconds
        "ips": 4.0,
        "data_s": 0.5,
        "step_s": 1.5,
        # 8 iterations left of 2 seconds each
        "eta_s": 16.0,
        "memory_mib": 512.0,
    }
    assert {key: value for key, value in returned.items() if key != "time"} == line


def test_each_interval_is_measured_by_itself(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.step(images=4, data_s=0.0, step_s=4.0)
        assert write_line(log, 1)["ips"] == 1.0
        log.step(images=4, data_s=0.5, step_s=0.5)
        line = write_line(log, 2)
        assert line["ips"] == 4.0
        # the remaining time is told from more than one interval: mean of 4 and 1 seconds
        assert line["eta_s"] == 998 * 2.5


def test_the_header_is_first_and_tells_the_provenance(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.header(**HEADER, facts={"seed": 3})
        write_line(log, 10)
    line = lines_of(tmp_path)[0]
    assert line.pop("time")
    assert line == {
        "kind": "header",
        "iteration": 0,
        **HEADER,
        "total_iterations": 1000,
        "seed": 3,
    }


def test_skipping_the_parity_check_is_told(tmp_path: Path) -> None:
    console = plain()
    with open_log(tmp_path, console=console) as log:
        log.header(**{**HEADER, "parity": None})
    assert lines_of(tmp_path)[0]["parity"] is None
    assert "parity evidence: not checked" in shown(console)


def test_a_resumed_log_has_each_iteration_once(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.header(**HEADER)
        for iteration in (100, 200, 300):
            write_line(log, iteration, loss=1.0)
            log.evaluation(iteration, miou=0.5, facts={})
    with (tmp_path / "train_log.jsonl").open("ab") as stream:
        # torn by a kill
        stream.write(b'{"kind": "train", "iteration": 40')
    with open_log(tmp_path, start=200) as log:
        log.header(**HEADER)
        write_line(log, 300, loss=2.0)
    found = [(line["kind"], line["iteration"]) for line in lines_of(tmp_path)]
    assert found == [
        ("header", 0),
        ("train", 100),
        ("eval", 100),
        ("train", 200),
        ("eval", 200),
        ("header", 200),
        ("train", 300),
    ]
    assert lines_of(tmp_path)[-1]["loss"] == {"total": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["train_log.jsonl"]


def test_a_new_run_sets_an_older_log_aside(tmp_path: Path) -> None:
    for loss in (1.0, 2.0, 3.0):
        with open_log(tmp_path) as log:
            write_line(log, 10, loss=loss)
    for name, loss in (("train_log.1", 1.0), ("train_log.2", 2.0), ("train_log", 3.0)):
        assert [line["loss"]["total"] for line in lines_of(tmp_path, f"{name}.jsonl")] == [loss]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    console, sink = plain(), Recorder()
    log = RunLog(
        tmp_path,
        enabled=False,
        total_iterations=10,
        start_iteration=0,
        console=console,
        sinks=[sink],
    )
    with log:
        log.header(**HEADER)
        log.step(images=8, data_s=1.0, step_s=1.0)
        assert write_line(log, 1)["ips"] == 4.0
        log.evaluation(1, miou=0.5, facts={})
        log.event("warning", 1, {"message": "x"})
    assert list(tmp_path.iterdir()) == []
    assert shown(console) == ""
    assert (sink.scalars, sink.closed, log.sinks) == ([], 0, [])


@pytest.mark.parametrize("again", [False, True])
def test_an_evaluation_that_comes_again_is_there_once(tmp_path: Path, again: bool) -> None:
    def evaluated(log: RunLog, miou: float) -> None:
        log.evaluation(4, miou=miou, facts={})

    with open_log(tmp_path) as log:
        write_line(log, 4)
        log.event("checkpoint", 4, {})
        evaluated(log, 0.25)
    with open_log(tmp_path, start=4, evaluates_again=again) as log:
        if again:
            evaluated(log, 0.5)
    assert [line["kind"] for line in lines_of(tmp_path)] == ["train", "checkpoint", "eval"]
    assert lines_of(tmp_path)[-1]["miou"] == (0.5 if again else 0.25)


def test_sinks_see_every_number(tmp_path: Path) -> None:
    sink = Recorder()
    with open_log(tmp_path, sinks=[sink]) as log:
        log.step(images=6, data_s=1.0, step_s=2.0)
        log.train(1, epoch=0, terms={"total": 3.0, "main": 1.0}, lr={"head": 0.5})
        log.evaluation(1, miou=0.25, facts={"best": 0.25})
    assert sink.scalars == [
        ("loss/total", 3.0, 1),
        ("loss/main", 1.0, 1),
        ("lr/head", 0.5, 1),
        ("speed/ips", 2.0, 1),
        ("eval/miou", 0.25, 1),
    ]
    assert sink.closed == 1


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    console = plain()
    with open_log(tmp_path, console=console) as log:
        log.step(images=8, data_s=0.25, step_s=1.75)
        rates = {"backbone": 1e-2, "head": 0.1}
        log.train(10, epoch=2, terms={"total": 2.5, "main": 2.0}, lr=rates, memory_mib=1024.4)
        log.evaluation(10, miou=0.51234, facts={"best_iteration": 10, "iou": [0.1, 0.2]})
        log.event("stopped", 10, {"signal": "SIGTERM [x]"})
    assert shown(console).splitlines() == [
        "10/1000  epoch 2  loss total 2.5000 main 2.0000  lr backbone 1.00e-02 head 1.00e-01  "
        "4.0 images/s  data 0.250 s, step 1.750 s  1024 MiB  0:33:00 left",
        "evaluation at iteration 10: mIoU 0.5123, best_iteration 10",
        "stopped at iteration 10: signal SIGTERM [x]",
    ]


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with open_log(tmp_path, start=500, console=console) as log:
        for _ in range(3):
            log.step(images=8, data_s=0.25, step_s=1.75)
        log.train(503, epoch=2, terms={"total": 2.5}, lr={"head": 0.1})
        log.event("checkpoint", 503, {"folder": "iter_000503"})
    text = shown(console)
    for words in (
        "503/1000",
        "loss total 2.5000",
        "4.0 images/s",
        "0:16:34 left",
        "checkpoint at iteration 503: folder iter_000503",
    ):
        assert words in text
    # the bar is drawn again and again, an event stays: it is printed once
    assert text.count("checkpoint at iteration 503") == 1


def test_what_json_lacks_becomes_text(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.evaluation(1, miou=float("nan"), facts={"iou": [0.5, float("inf")], "p": (1, 2)})
    line = lines_of(tmp_path)[0]
    assert (line["miou"], line["iou"], line["p"]) == ("nan", [0.5, "inf"], [1, 2])


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    with (
        pytest.raises(InputError, match=r"train_log\.jsonl: the log cannot be written"),
        open_log(tmp_path / "output"),
    ):
        pass


def test_an_error_inside_closes_the_log_and_goes_on(tmp_path: Path) -> None:
    sink = Recorder()
    log = open_log(tmp_path, sinks=[sink])

    def work() -> None:
        with log:
            write_line(log, 1)
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert sink.closed == 1
    assert [line["iteration"] for line in lines_of(tmp_path)] == [1]
