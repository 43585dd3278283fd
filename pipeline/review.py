"""The acceptance review: re-checks committed logs without a framework, and gives a verdict.

Of every configuration it asks whether the evidence is complete, consistent, not vacuous, untouched
and fresh, whether reprod_log's files say the same, and which waivers it stands on; then it answers
the reproduction guide's own list. docs/review.md says what each line means and what none can show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from common.errors import InputError
from pipeline import chain
from pipeline.acceptance import acceptance_list
from pipeline.catalogue import FAMILY
from pipeline.review_evidence import Check, Evidence, judged, load_evidence
from pipeline.review_fresh import Tree, audit_problems, fresh_checks
from pipeline.review_reprod import reprod_checks
from pipeline.review_steps import step_checks
from pipeline.review_values import value_checks

WAIVERS = "waivers.yml"
ACCEPTED, REFUSED = "ACCEPTED", "REFUSED"


@dataclass(frozen=True)
class Reviewed:
    """The review of one configuration, or of what all have in common."""

    name: str
    model: str
    checks: tuple[Check, ...]
    acceptance: tuple[Check, ...] = ()
    """The guide's list; it decides nothing by itself."""
    waivers: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """True when no check says no."""
        return all(check.state != "no" for check in self.checks)


@dataclass(frozen=True)
class Review:
    """All configurations of a folder of logs."""

    configurations: tuple[Reviewed, ...]
    common: Reviewed

    @property
    def accepted(self) -> bool:
        """True when every configuration is accepted, and what they have in common."""
        return all(one.accepted for one in (*self.configurations, self.common))

    @property
    def verdict(self) -> str:
        """ACCEPTED or REFUSED."""
        return ACCEPTED if self.accepted else REFUSED

    @property
    def refused(self) -> list[str]:
        """Names of what was refused."""
        return [one.name for one in (*self.configurations, self.common) if not one.accepted]


def review(logs: Path, *, names: Sequence[str] = (), tree: Tree, committed: bool = False) -> Review:
    """Review a folder of logs.

    Args:
        logs: folder that holds one folder per configuration; or the folder of one configuration.
        names: configurations to review; none means every network of the family, and whatever
            else the folder holds.
        tree: code, configurations and pins that the logs must be of.
        committed: refuse logs that are not as in the commit that is checked out.

    Raises:
        InputError: there is no such folder.
    """
    if not logs.is_dir():
        raise InputError(f"{logs}: no such folder; expected logs, or logs/<configuration>")
    if (logs / chain.SUMMARY).is_file() and not names:
        one = review_folder(logs, tree, committed=committed)
        return Review((one,), Reviewed("(family)", "", ()))
    wanted = list(names) or wanted_names(logs)
    reviewed = [review_folder(logs / name, tree, committed=committed) for name in wanted]
    if names:
        return Review(tuple(reviewed), Reviewed("(family)", "", ()))
    models = {one.model for one in reviewed}
    lost = [f"{model}: no logs" for model in FAMILY if model not in models]
    checks = [
        judged("complete", "networks", lost, f"all {len(FAMILY)} of the family"),
        *_root_checks(logs, reviewed, tree),
    ]
    return Review(tuple(reviewed), Reviewed("(family)", "", tuple(checks)))


def wanted_names(logs: Path) -> list[str]:
    """Return the family's configurations, and others that the folder has, in order."""
    family = [path.stem for path in FAMILY.values()]
    found = [folder.name for folder in chain.configuration_folders(logs)]
    return [*family, *(name for name in found if name not in family)]


def review_folder(folder: Path, tree: Tree, *, committed: bool = False) -> Reviewed:
    """Review the evidence of one configuration."""
    evidence = load_evidence(folder)
    if not folder.is_dir():
        missing = Check("complete", "files", "no", f"{folder.name}: no such folder of logs")
        return Reviewed(folder.name, "", (missing,))
    checks = [
        *step_checks(evidence),
        *value_checks(evidence),
        judged("untouched", "chain", chain.problems(folder), "every file as it was sealed"),
        *_strict(fresh_checks(evidence, tree), committed=committed),
        *reprod_checks(evidence),
        *_audit_checks(folder, [str(evidence.summary.get("code_digest"))]),
    ]
    waivers, check = waiver_check(evidence, tree.root)
    return Reviewed(
        folder.name,
        str(evidence.summary.get("model", "")),
        (*checks, check),
        tuple(acceptance_list(evidence, root=tree.root)),
        waivers,
    )


def _strict(checks: Iterable[Check], *, committed: bool) -> Iterator[Check]:
    for check in checks:
        refuse = committed and check.name == "committed" and check.state == "unknown"
        yield Check(check.group, check.name, "no", check.text) if refuse else check


def _root_checks(logs: Path, reviewed: Sequence[Reviewed], tree: Tree) -> Iterator[Check]:
    yield judged("untouched", "chain", chain.root_problems(logs), f"{len(reviewed)} seals linked")
    yield from _audit_checks(logs, [tree.code])


def _audit_checks(folder: Path, digests: Sequence[str]) -> Iterator[Check]:
    """Yield the check of the audit's matrix, where there is one."""
    path = folder / "audit.json"
    if not path.is_file():
        return
    try:
        content: Any = json.loads(path.read_bytes())
        problems = list(audit_problems(content, digests))
        caught = len(content.get("findings", []))
    except (OSError, ValueError, AttributeError) as error:
        yield Check("complete", "audit", "no", f"audit.json: unreadable ({error})")
        return
    yield judged("fresh", "audit", problems, f"all {caught} faults caught")


# ---- waivers -------------------------------------------------------------------------------------
def waiver_check(evidence: Evidence, root: Path) -> tuple[tuple[str, ...], Check]:
    """List the waivers that a configuration stands on.

    Args:
        evidence: of one configuration.
        root: of the tree; waivers.yml of the evidence comes before that of the tree.
    """
    rows: list[str] = []
    for path in (evidence.folder / WAIVERS, root / WAIVERS):
        if not path.is_file():
            continue
        try:
            content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            return (), Check("waivers", "listed", "no", f"{WAIVERS}: unreadable ({error})")
        rows = [_waiver_text(row) for row in _waiver_rows(content)]
        break
    said: Any = evidence.summary.get("waivers", [])
    waived = [str(row) for row in said] if isinstance(said, list) else []
    text = f"{len(rows)} in {WAIVERS}" if rows else "none"
    if waived and not rows:
        return (), Check("waivers", "listed", "no", f"{waived} without a {WAIVERS}")
    return tuple(rows), Check("waivers", "listed", "ok", text)


def _waiver_rows(content: Any) -> list[Any]:
    if isinstance(content, dict):
        inner: Any = content.get("waivers")
        content = inner if isinstance(inner, list) else [content]
    return [row for row in content if row] if isinstance(content, list) else []


def _waiver_text(row: Any) -> str:
    if isinstance(row, dict):
        return ", ".join(f"{key}: {value}" for key, value in row.items())
    return str(row)


# ---- for machines --------------------------------------------------------------------------------
def as_json(result: Review) -> dict[str, Any]:
    """Return the review as JSON holds it."""
    return {
        "verdict": result.verdict,
        "refused": result.refused,
        "common": _reviewed_json(result.common),
        "configurations": [_reviewed_json(one) for one in result.configurations],
    }


def _reviewed_json(one: Reviewed) -> Mapping[str, Any]:
    return {"verdict": ACCEPTED if one.accepted else REFUSED, **asdict(one)}


def as_junit(result: Review) -> str:
    """Return the review as JUnit XML: a test case per check; what is not shown is skipped."""
    suite = ElementTree.Element("testsuite", name="bisenet review")
    counts = {"failure": 0, "skipped": 0}
    total = 0
    for one in (*result.configurations, result.common):
        for check in one.checks:
            total += 1
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{one.name}.{check.group}", name=check.name
            )
            tag = {"no": "failure", "unknown": "skipped"}.get(check.state)
            if tag:
                counts[tag] += 1
                ElementTree.SubElement(case, tag, message=check.text)
    suite.set("tests", str(total))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", "0")
    suite.set("skipped", str(counts["skipped"]))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True).decode() + "\n"
