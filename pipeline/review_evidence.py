"""What an acceptance review looks at: one configuration's folder, read without trusting it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from pipeline.step_logs import Section, StepLog, read_step_log
from pipeline.steps import STEPS

State = Literal["ok", "no", "unknown"]
SHOWN = 4
"""Findings of one check that are told one by one."""


@dataclass(frozen=True)
class Check:
    """One line of a review."""

    group: str
    """complete, consistent, not vacuous, untouched, fresh, reprod_log, waivers, or acceptance."""
    name: str
    state: State
    """"unknown": not shown by this evidence, with the reason; it refuses nothing."""
    text: str = ""


def judged(group: str, name: str, problems: Iterable[str], ok: str = "") -> Check:
    """Return a check that is ok when there are no problems, else one that tells the first few."""
    found = list(problems)
    if not found:
        return Check(group, name, "ok", ok)
    more = f"; {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Check(group, name, "no", "; ".join(found[:SHOWN]) + more)


@dataclass(frozen=True)
class Evidence:
    """The files of one configuration."""

    folder: Path
    summary: Mapping[str, Any]
    """Empty when it cannot be read."""
    logs: Mapping[str, StepLog]
    junit: Mapping[str, str]
    """Test case -> passed, failure, error or skipped."""
    unreadable: tuple[str, ...] = field(default=())
    """Each file that is missing or cannot be read, and why."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def sections(self) -> dict[tuple[str, str], Section]:
        """The logs' sections by step and dtype."""
        return {(s.step, s.dtype): s for log in self.logs.values() for s in log.sections}

    @property
    def results(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """The summary's results by step and dtype."""
        listed: Any = self.summary.get("results", [])
        rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
        return {(str(row.get("step")), str(row.get("dtype"))): row for row in rows}


def load_evidence(folder: Path) -> Evidence:
    """Read a configuration's folder; what cannot be read is listed and not raised."""
    unreadable: list[str] = []
    summary: dict[str, Any] = {}
    junit: dict[str, str] = {}
    logs: dict[str, StepLog] = {}
    try:
        content: Any = json.loads((folder / "summary.json").read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {type(content).__name__}")
        summary = content
    except (OSError, ValueError) as error:
        unreadable.append(_told("summary.json", error))
    try:
        junit = _read_junit(folder / "junit.xml")
    except (OSError, ElementTree.ParseError) as error:
        unreadable.append(_told("junit.xml", error))
    for step in STEPS:
        name = f"{step.name}_diff.log"
        try:
            logs[step.name] = read_step_log(folder / name)
        except (OSError, ValueError) as error:
            unreadable.append(_told(name, error))
    return Evidence(folder, summary, logs, junit, tuple(unreadable))


def _told(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name}: missing"
    return f"{name}: unreadable or truncated ({error})"


def _read_junit(path: Path) -> dict[str, str]:
    """Return how each test case ended. The file is our own: no entities are in it."""
    content = path.read_bytes()
    if b"<!" in content:
        # a document type could define entities that expand without end
        raise ElementTree.ParseError("it has a document type or comment, which we never write")
    suite = ElementTree.fromstring(content)
    return {
        case.get("name", ""): next((node.tag for node in case), "passed")
        for case in suite.iter("testcase")
    }
