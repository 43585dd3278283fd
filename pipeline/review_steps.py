"""Reviews what the step logs say: all steps there, and every file of the run says the same.

Verdicts, counts and worst values are taken from the text of the logs; the summary and the JUnit
file must say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.files import file_digest
from pipeline.review_evidence import Check, Evidence, judged
from pipeline.review_values import PRINTED
from pipeline.step_logs import Section
from pipeline.steps import SIDES, STEPS, step_named
from pipeline.verdicts import Verdict, bound_for, tensor_of

HEAD = (
    *("config_digest", "recipe_digest", "code_digest", "commit", "command", "date", "model"),
    *("weights", "data", "device", "seed", "machine", "versions"),
)
"""What the head of every log says, as the summary does."""
SIDES_LINE = "reference = torch, actual = paddle"
EVIDENCE = "evidence.json"
"""What the report page is drawn from."""


def step_checks(evidence: Evidence) -> Iterator[Check]:
    """Yield the checks of groups complete and consistent."""
    yield judged("complete", "files", evidence.unreadable, "logs, summary, JUnit file readable")
    yield judged("complete", "steps", missing_steps(evidence), _steps_text(evidence))
    yield judged("complete", "sides", _missing_sides(evidence), "both recorded every step")
    yield judged("consistent", "verdicts", _verdict_problems(evidence), "every row passes")
    yield judged("consistent", "summary", _summary_problems(evidence), "says what the logs say")
    yield judged("consistent", "JUnit", _junit_problems(evidence), "says what the logs say")
    yield judged("consistent", "heads", _head_problems(evidence), "all of one run")
    if (evidence.folder / EVIDENCE).is_file():
        yield judged("consistent", "page", page_problems(evidence), "shows what the logs say")


def _sections(evidence: Evidence) -> list[Section]:
    return list(evidence.sections.values())


def _steps_text(evidence: Evidence) -> str:
    return f"{len(evidence.logs)} steps, {len(evidence.sections)} runs in their dtypes"


def missing_steps(evidence: Evidence) -> Iterator[str]:
    """Yield each step and dtype that the logs, or the summary, do not have, or have twice."""
    for step in STEPS:
        log = evidence.logs.get(step.name)
        if log is None:
            yield f"{step.name}: no log"
            continue
        found = [section.dtype for section in log.sections]
        if log.step != step.name:
            yield f"{step.name}_diff.log is the log of step {log.step}"
        elif sorted(found) != sorted(step.dtypes):
            yield f"{step.name}: {', '.join(found) or 'nothing'}, expected {', '.join(step.dtypes)}"
    for step in STEPS:
        for dtype in step.dtypes:
            if evidence.summary and (step.name, dtype) not in evidence.results:
                yield f"{step.name} {dtype}: not in summary.json"


def _missing_sides(evidence: Evidence) -> Iterator[str]:
    for section in _sections(evidence):
        missing = [side for side in SIDES if side not in section.records]
        if missing:
            yield f"{section.step} {section.dtype}: no record of {', '.join(missing)}"


# ---- one evidence in several files ---------------------------------------------------------------
def _verdict_problems(evidence: Evidence) -> Iterator[str]:
    passed = Verdict.PASS.value
    for section in _sections(evidence):
        where = f"{section.step} {section.dtype}"
        if section.verdict != passed:
            yield f"{where}: {section.verdict}"
        yield from (f"{where}: {text}" for text in _row_problems(section))
        if section.unread:
            yield f"{where}: a line of no known form: {section.unread[0][:60]!r}"
    for log in evidence.logs.values():
        if log.verdict != passed or log.closing != log.step:
            said = f"{log.verdict} of step {log.closing}" if log.verdict else "nothing"
            yield f"{log.step}: its last line says {said}"
    if evidence.summary and evidence.summary.get("verdict") != passed:
        yield f"summary.json: verdict {evidence.summary.get('verdict')}"
    if evidence.summary and evidence.summary.get("exit_code") != 0:
        yield f"summary.json: exit code {evidence.summary.get('exit_code')}"


def _row_problems(section: Section) -> Iterator[str]:
    for row in section.rows:
        if row.verdict != Verdict.PASS.value:
            yield f"{row.verdict} {row.key}"
        elif not row.relative <= row.bound * (1 + PRINTED):
            yield f"{row.key} is off by {row.relative:.2e}, bound {row.bound:.2e}"


def _summary_problems(evidence: Evidence) -> Iterator[str]:
    sections = evidence.sections
    for key, result in evidence.results.items():
        section = sections.get(key)
        if section is None:
            yield f"{' '.join(key)}: in summary.json only"
            continue
        said = {
            "verdict": section.verdict,
            "comparisons": section.comparisons,
            "failing": sum(row.verdict != Verdict.PASS.value for row in section.rows),
            "inputs": section.inputs,
            "records": section.records,
        }
        for name, value in said.items():
            if result.get(name) != value:
                yield f"{' '.join(key)}: {name} is {value} in the log, {result.get(name)} here"
        yield from _worst_problems(section, result)
    digests: Any = summary_digests(evidence.summary)
    for name, digest in digests.items():
        path = evidence.folder / name
        if path.is_file() and file_digest(path) != digest:
            yield f"{name}: another digest in summary.json"


def summary_digests(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the digests of the step logs, which a summary lists beside its chain."""
    listed: Any = summary.get("logs")
    return listed if isinstance(listed, dict) else {}


def _worst_problems(section: Section, result: Mapping[str, Any]) -> Iterator[str]:
    worst: Any = result.get("worst")
    if not isinstance(worst, list) or (not worst and section.rows):
        yield f"{section.step} {section.dtype}: summary.json has no worst tensors"
        return
    for row, told in zip(section.rows, worst, strict=False):
        shown = (f"{row.relative:.2e}", f"{row.bound:.2e}")
        reason = bound_for(row.key, step_named(section.step).bounds).reason
        if told.get("why") != reason:
            yield f"{row.key}: summary.json gives another reason for its bound than the table"
        if told.get("tensor") != row.key or tuple(map(_printed, _numbers(told))) != shown:
            yield (
                f"{section.step} {section.dtype}: worst in the log {row.key} {shown[0]}, "
                f"in summary.json {told.get('tensor')} {told.get('relative')}"
            )


def _numbers(told: Mapping[str, Any]) -> tuple[Any, Any]:
    return told.get("relative"), told.get("bound")


def _printed(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, (int, float)) else str(value)


def _junit_problems(evidence: Evidence) -> Iterator[str]:
    if not evidence.junit:
        yield "junit.xml has no test cases"
        return
    expected = {
        f"{section.step}[{section.dtype}]": section.verdict == Verdict.PASS.value
        for section in _sections(evidence)
    }
    for name, passed in expected.items():
        ended = evidence.junit.get(name, "missing")
        if (ended == "passed") != passed:
            yield f"{name}: {ended} in junit.xml"
    yield from (f"{name}: in junit.xml only" for name in evidence.junit if name not in expected)


def _head_problems(evidence: Evidence) -> Iterator[str]:
    """Compare the head of every log with the summary: one swapped file has another run's."""
    summary = evidence.summary
    for log in evidence.logs.values():
        if SIDES_LINE not in log.head:
            yield f"{log.step}_diff.log: its head does not say {SIDES_LINE!r}"
        stated = dict(line.split(": ", 1) for line in log.head if ": " in line)
        if missing := [key for key in HEAD if key not in stated]:
            yield f"{log.step}_diff.log: its head has no {', '.join(missing)}"
        for key, value in stated.items():
            if key in summary and str(summary[key]) != value:
                yield f"{log.step}_diff.log: {key} is {value}, in summary.json {summary[key]}"


def page_problems(evidence: Evidence) -> Iterator[str]:
    """Yield tensors of which the page's own file says something else than the step's log."""
    try:
        content: Any = json.loads((evidence.folder / EVIDENCE).read_bytes())
        tables: Mapping[str, Any] = content["tensors"]
        lines = [(step, dtype, line) for step, rows in tables.items() for row in rows
                 for dtype, line in _page_lines(row)]  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        yield f"{EVIDENCE}: unreadable or truncated ({error!r})"
        return
    logged = {
        key: {row.tensor: row for row in section.rows} for key, section in evidence.sections.items()
    }
    for step, dtype, (key, verdict, relative) in lines:
        section = evidence.sections.get((step, dtype))
        row = logged.get((step, dtype), {}).get(tensor_of(key))
        if row is None:
            if section is None or not section.more:
                yield f"{EVIDENCE}: {step} {dtype} {key} is in no log"
        elif verdict != row.verdict or f"{relative:.2e}" != f"{row.relative:.2e}":
            yield (
                f"{EVIDENCE}: {step} {dtype} {key} is {verdict} {relative:.2e}, "
                f"in the log {row.verdict} {row.relative:.2e}"
            )


def _page_lines(row: Sequence[Any]) -> Iterator[tuple[str, tuple[str, str, float]]]:
    """Yield dtype -> (tensor, verdict, relative) of a flat row: key, then three per dtype."""
    for dtype, start in (("float64", 1), ("float32", 4)):
        verdict, relative = row[start], row[start + 1]
        if verdict is not None:
            # an empty text stands for PASS, and a text for what JSON cannot hold
            yield dtype, (str(row[0]), verdict or Verdict.PASS.value, float(relative))
