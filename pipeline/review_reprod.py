"""Reviews reprod_log's files against the step logs, and its .npy pairs where they are.

reprod_log's own verdict proves little (it passes NaN, empty logs and transposed shapes), so its
names and numbers are held against ours, and pairs that are on this machine are compared anew. A
pair is a pickle; it is read by the restricted unpickler of common/pdparams.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import WeightsError
from common.pdparams import decode
from pipeline.records import Array
from pipeline.reprod import LARGEST, THRESHOLD, WANTED
from pipeline.review_evidence import Check, Evidence, judged
from pipeline.review_values import PRINTED
from pipeline.step_logs import LogRow
from pipeline.steps import SIDES, Dtype

FOLDER = "log_reprod"
CLOCKS_APART = timedelta(hours=15)
"""reprod_log writes local time without its zone, the summary UTC."""
_LINE = re.compile(r"^\[(?P<date>[\d/]+ [\d:]+)\] \S+ INFO: ?(?P<text>.*)$")
_VALUE = re.compile(r"^\s*mean diff: check passed: (?P<passed>\w+), value: (?P<value>\S+)$")
_PASSED, _FAILED = "diff check passed", "diff check failed"


@dataclass(frozen=True)
class ReprodLog:
    """A ``<name>_diff.log`` of reprod_log."""

    values: Mapping[str, float]
    """Key with its dtype -> mean absolute difference."""
    failed: tuple[str, ...]
    endings: tuple[str, ...]
    """Each "diff check passed" or "failed"; a log has one."""
    dates: tuple[datetime, ...]


def reprod_checks(evidence: Evidence) -> Iterator[Check]:
    """Yield the checks of group reprod_log; one "unknown" where a run has made no such files."""
    folder = evidence.folder / FOLDER
    if not any(folder.glob("*_diff.log")):
        listed: Any = evidence.summary.get("chain", {})
        files: Any = listed.get("files", {}) if isinstance(listed, dict) else {}
        if any(str(name).startswith(f"{FOLDER}/") for name in files):
            yield Check("reprod_log", "logs", "no", "the chain has its logs, the folder has none")
            return
        text = "none: a run over the family keeps none; bisenet verify --config makes them"
        yield Check("reprod_log", "logs", "unknown", text)
        return
    problems: list[str] = []
    logs: dict[str, ReprodLog] = {}
    for step, (name, _, _) in WANTED.items():
        try:
            logs[step] = read_reprod_log(folder / f"{name}_diff.log")
        except FileNotFoundError:
            problems.append(f"{name}_diff.log: missing")
        except (OSError, ValueError) as error:
            problems.append(f"{name}_diff.log: {error}")
    for step, log in logs.items():
        problems += [f"{WANTED[step][0]}_diff.log: {text}" for text in _log_problems(log)]
        problems += _age_problems(WANTED[step][0], log, str(evidence.summary.get("date", "")))
    yield judged("reprod_log", "logs", problems, f"{len(logs)} logs say passed")
    differing = [
        text for step, log in logs.items() for text in _against_records(evidence, step, log)
    ]
    total = sum(len(log.values) for log in logs.values())
    yield judged("reprod_log", "records", differing, f"{total} values are those of the step logs")
    yield _pairs_check(folder, logs)


def read_reprod_log(path: Path) -> ReprodLog:
    """Read a log that reprod_log wrote.

    Raises:
        ValueError: a line is none of reprod_log's.
        OSError: it cannot be read.
    """
    values: dict[str, float] = {}
    failed: list[str] = []
    endings: list[str] = []
    dates: list[datetime] = []
    key = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        found = _LINE.match(line)
        if found is None:
            raise ValueError(f"line {number} is none of reprod_log's: {line[:60]!r}")
        dates.append(datetime.strptime(found["date"], "%Y/%m/%d %H:%M:%S"))
        text = found["text"]
        if value := _VALUE.match(text):
            values[key] = float(value["value"])
            if value["passed"] != "True":
                failed.append(key)
        elif text.startswith("diff check"):
            endings.append(text)
        elif text.rstrip().endswith(":"):
            key = text.rstrip().removesuffix(":")
        else:
            raise ValueError(f"line {number} is none of reprod_log's: {line[:60]!r}")
    return ReprodLog(values, tuple(failed), tuple(endings), tuple(dates))


def _log_problems(log: ReprodLog) -> Iterator[str]:
    if not log.values:
        yield "nothing was compared"
    if log.endings != (_PASSED,):
        yield f"it ends with {' and '.join(log.endings) or 'no verdict'}"
    yield from (f"{key} failed" for key in log.failed)
    for key, value in log.values.items():
        # NaN is no difference to reprod_log
        if key not in log.failed and not value <= THRESHOLD:
            yield f"{key} passed with {value:g}, its threshold is {THRESHOLD:g}"


def _age_problems(name: str, log: ReprodLog, date: str) -> Iterator[str]:
    try:
        verified = datetime.fromisoformat(date).astimezone(timezone.utc).replace(tzinfo=None)
    except ValueError:
        yield "summary.json has no date"
        return
    if log.dates and log.dates[0] < verified - CLOCKS_APART:
        yield f"{name}_diff.log: expired, of {log.dates[0]}, verified {verified}"


def _against_records(evidence: Evidence, step: str, log: ReprodLog) -> Iterator[str]:
    """Yield keys and values that are not those of the step's own log, in either direction."""
    name, wide, narrow = WANTED[step]
    expected: dict[str, LogRow] = {}
    complete = True
    dtypes: tuple[tuple[Dtype, tuple[str, ...]], ...] = (("float64", wide), ("float32", narrow))
    for dtype, prefixes in dtypes:
        section = evidence.sections.get((step, dtype))
        if section is None or not prefixes:
            continue
        complete = complete and not section.more
        for row in section.rows:
            if row.tensor.startswith(prefixes):
                expected[f"{row.tensor}/{dtype}"] = row
    for key, value in log.values.items():
        row = expected.get(key)
        if row is None and complete:
            yield f"{name}_diff.log: {key} is not among the tensors of step {step}"
        elif row is not None and _comparable(row) and not _same(value, row.mean_abs):
            yield f"{name}_diff.log: {key} is {value:.2e}, the step's log has {row.mean_abs:.2e}"
    for key, row in expected.items():
        # integers other than int64 (label maps) are in no pair: only what has a bound must be
        if row.bound and key not in log.values:
            yield f"{name}_diff.log: {key} is missing"


def _comparable(row: LogRow) -> bool:
    return row.size <= LARGEST and row.snapshots == 1


def _same(value: float, printed: float) -> bool:
    return abs(value - printed) <= PRINTED * max(abs(value), abs(printed))


# ---- the pairs -----------------------------------------------------------------------------------
def read_pair(path: Path) -> dict[str, Array]:
    """Read a dictionary of arrays that np.save has pickled, without calling anything it names.

    Raises:
        ValueError: it is no such file.
        WeightsError: it holds more than arrays, or is damaged.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)  # pyright: ignore[reportArgumentType]
    if version != (1, 0):
        raise ValueError(f"{path.name}: an array header of version {version}, expected 1.0")
    header = np.lib.format.read_array_header_1_0(stream)  # pyright: ignore[reportArgumentType]
    if header[0] != () or not header[2].hasobject:
        raise ValueError(f"{path.name}: an array of shape {header[0]}, expected one dictionary")
    loaded = decode(content[stream.tell() :], where=path.name, boxed=True)
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name}: holds a {type(loaded).__name__}, expected a dictionary")
    arrays = {str(key): value for key, value in loaded.items() if isinstance(value, np.ndarray)}
    if len(arrays) != len(loaded):
        raise ValueError(f"{path.name}: holds more than arrays")
    return arrays


def _pairs_check(folder: Path, logs: Mapping[str, ReprodLog]) -> Check:
    names = [f"{WANTED[step][0]}_{side}.npy" for step in logs for side in SIDES]
    present = [name for name in names if (folder / name).is_file()]
    if not present:
        text = "the .npy pairs are on the machine that made them; no repository holds them"
        return Check("reprod_log", "pairs", "unknown", text)
    problems = [f"{name}: missing" for name in names if name not in present]
    compared = 0
    for step, log in logs.items():
        name = WANTED[step][0]
        if f"{name}_torch.npy" in present and f"{name}_paddle.npy" in present:
            problems += _pair_problems(folder, name, log)
            compared += len(log.values)
    return judged("reprod_log", "pairs", problems, f"{compared} pairs of arrays compared anew")


def _pair_problems(folder: Path, name: str, log: ReprodLog) -> Iterator[str]:
    try:
        reference, actual = (read_pair(folder / f"{name}_{side}.npy") for side in SIDES)
    except (OSError, ValueError, WeightsError) as error:
        yield str(error)
        return
    if set(reference) != set(actual) or set(reference) != set(log.values):
        yield f"{name}: the pair and {name}_diff.log are not of the same keys"
    for key in log.values.keys() & reference.keys() & actual.keys():
        first, second = reference[key], actual[key]
        if first.shape != second.shape:
            yield f"{name}: {key} has shapes {first.shape} and {second.shape}"
            continue
        mean = float(np.mean(np.abs(first.astype(np.float64) - second.astype(np.float64))))
        if not np.isfinite(mean) or not np.isclose(mean, log.values[key], rtol=1e-6, atol=1e-300):
            yield f"{name}: {key} differs by {mean:.3e}, its log says {log.values[key]:.3e}"
