"""What the evidence rests on: deliberate faults, caught or not, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.page.html import Child, Markup, details, element, paragraph, section, table
from pipeline.page.parts import ABSENT, badge, facts_list, shown
from pipeline.page.source import Json, Source


def faults_section(source: Source) -> Markup:
    """Return the matrix of deliberate faults."""
    if source.audit is None:
        text = "No audit.json beside these logs; `bisenet audit` makes it."
        return section("faults", "Would it have noticed?", paragraph(text))
    findings: list[Json] = sorted(source.audit["findings"], key=_is_right)
    caught = sum(bool(one["caught"]) for one in findings)
    explained = any("explanation" in one for one in findings)
    head = ["fault", "caught", "step", "dtype", "what was done", "difference starts at", "size"]
    if explained:
        head.append("explanation")
    rows = [_finding(one, explained=explained) for one in findings]
    clean: Mapping[str, Any] = source.audit.get("clean", {})
    after = ", ".join(f"{name} {verdict}" for name, verdict in clean.items())
    return section(
        "faults",
        "Would it have noticed?",
        paragraph(
            f"{caught} of {len(findings)} wrong ports, made on purpose, are caught in their step "
            "at their place. Caught means that the difference starts where the fault was put."
        ),
        table(head, rows, caption="Deliberate faults, survivors first", text=(1, 2, 3, 4, 5, 7)),
        details("After all faults, without one", paragraph(after or "not recorded")),
    )


def _is_right(finding: Json) -> tuple[bool, bool]:
    return bool(finding["caught"]), finding.get("explained") is not False


def _finding(finding: Json, *, explained: bool) -> list[Child]:
    word = badge("PASS" if finding["caught"] else "FAIL")
    name = word.replace("PASS", "caught").replace("FAIL", "SURVIVED")
    cells: list[Child] = [
        str(finding["fault"]),
        Markup(name),
        str(finding["step"]),
        str(finding["dtype"]),
        str(finding["title"]),
        str(finding["text"] or "nothing differs"),
        shown(str(finding["relative"])),
    ]
    if explained:
        explanation = str(finding.get("explanation") or ABSENT)
        if finding.get("explained") is False:
            explanation += f" (expected {finding['why']})"
        cells.append(explanation)
    return cells


def provenance_section(source: Source) -> Markup:
    """Return versions, digests, commit, machine, command and date."""
    summary = source.summary
    versions: Mapping[str, Mapping[str, str]] = summary.get("versions", {})
    facts: list[tuple[str, Child]] = [
        ("command", element("code", str(summary.get("command")))),
        ("date", str(summary.get("date"))),
        ("commit", element("code", str(summary.get("commit")))),
        ("machine", f"{summary.get('machine')}, {summary.get('device')}"),
        ("time", f"{summary.get('seconds')} s; peak MiB {_peaks(summary)}"),
        ("weights", str(summary.get("weights"))),
        ("data", str(summary.get("data"))),
        ("seed", str(summary.get("seed"))),
    ]
    facts += [
        (f"{side} side", ", ".join(f"{name} {text}" for name, text in packages.items()))
        for side, packages in versions.items()
    ]
    digests = [
        (name, element("code", str(summary.get(name))))
        for name in ("config_digest", "recipe_digest", "code_digest")
    ]
    verify: Mapping[str, Any] = summary.get("verify", {})
    sizes = ", ".join(f"{name} {shown_setting(value)}" for name, value in verify.items())
    logs: Mapping[str, str] = summary.get("logs", {})
    files = [(name, element("code", digest)) for name, digest in logs.items()]
    records = [
        (f"{one['step']} {one['dtype']}", element("code", one["records"].get("torch", ABSENT)),
         element("code", one["records"].get("paddle", ABSENT)), element("code", str(one["inputs"])))
        for one in source.results
    ]  # fmt: skip
    return section(
        "provenance",
        "Provenance",
        facts_list([*facts, *digests, ("sizes", sizes)]),
        details(
            "Digests of the log files (sha256)",
            table(("file", "sha256"), files, caption="Digests of the log files", text=(1,)),
        ),
        details(
            "Digests of records and inputs (sha256)",
            table(
                ("step", "Torch's record", "Paddle's record", "inputs"),
                records,
                caption="Digests of the records, deleted after the comparison, and of the inputs",
                text=(1, 2, 3),
            ),
        ),
    )


def shown_setting(value: object) -> str:
    """Return a setting as a person writes it."""
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownVariableType]


def _peaks(summary: Json) -> str:
    peaks: Mapping[str, int] = summary.get("peak_mib") or {}
    return ", ".join(f"{side} {mib}" for side, mib in sorted(peaks.items())) or "unknown"
