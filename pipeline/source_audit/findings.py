"""What the audit of the source found: rates by file, survivors with their line, exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.provenance import git_commit
from pipeline.source_audit.campaign import Audited
from pipeline.source_audit.equivalent import EQUIVALENT, Equivalent, row_for, unmatched
from pipeline.source_audit.mutants import Mutant
from pipeline.source_audit.trial import Finding

VERDICTS = ("caught", "crashed", "timeout", "survived", "not executed", "equivalent")
NOTICED = ("caught", "crashed", "timeout")
UNNOTICED = ("survived", "not executed")


@dataclass(frozen=True)
class Row:
    """A mutant and what became of it."""

    mutant: Mutant
    finding: Finding
    equivalent: Equivalent | None

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        unnoticed = self.finding.found in UNNOTICED
        return "equivalent" if unnoticed and self.equivalent else self.finding.found

    @property
    def is_wrongly_excused(self) -> bool:
        """True when the table calls equivalent what a number has caught."""
        return self.equivalent is not None and self.finding.found == "caught"


@dataclass(frozen=True)
class SourceReport:
    """The rows and what is wrong with the table of equivalent changes."""

    audited: Audited
    rows: tuple[Row, ...]
    unmatched: tuple[Equivalent, ...]

    @property
    def survivors(self) -> list[Row]:
        """Those that nothing noticed and nothing excuses."""
        return [row for row in self.rows if row.verdict in UNNOTICED]

    @property
    def exit_code(self) -> int:
        """0: every mutant was noticed or is equivalent, and the table is right; else 1."""
        wrong = any(row.is_wrongly_excused for row in self.rows)
        return 1 if self.survivors or self.unmatched or wrong else 0


def report_of(audited: Audited, table: Sequence[Equivalent] = EQUIVALENT) -> SourceReport:
    """Put findings and the table of equivalent changes together."""
    rows = tuple(
        Row(mutant, audited.found[mutant.id], row_for(mutant, table)) for mutant in audited.chosen
    )
    return SourceReport(audited, rows, tuple(unmatched(audited.every, table)))


def _rate(counts: Mapping[str, int]) -> str:
    """Return the share that was noticed of those that are not equivalent."""
    noticed = sum(counts.get(verdict, 0) for verdict in NOTICED)
    judged = noticed + sum(counts.get(verdict, 0) for verdict in UNNOTICED)
    return f"{100 * noticed / judged:.1f} %" if judged else "-"


def _counts(rows: Sequence[Row]) -> dict[str, Counter[str]]:
    table: dict[str, Counter[str]] = {}
    for row in rows:
        table.setdefault(row.mutant.file, Counter())[row.verdict] += 1
    table["all"] = Counter(row.verdict for row in rows)
    return table


def report_text(report: SourceReport) -> str:
    """Return the log: a table of rates, then every survivor with its line."""
    audited = report.audited
    lines = [
        f"changes of for_paddle/: {len(report.rows)} of {len(audited.every)} tried",
        f"commit {git_commit()}, digest of what decides {audited.digest[:12]}",
        f"{audited.seconds:.0f} s for {audited.new} new; the others were known",
        "",
        f"{'file':28}" + "".join(f"{verdict:>14}" for verdict in VERDICTS) + f"{'noticed':>10}",
    ]
    for file, counts in _counts(report.rows).items():
        numbers = "".join(f"{counts[verdict]:>14}" for verdict in VERDICTS)
        lines.append(f"{file:28}{numbers}{_rate(counts):>10}")
    lines += ["", f"survivors: {len(report.survivors)}"]
    for row in report.survivors:
        lines += _told(row)
    excused = [row for row in report.rows if row.verdict == "equivalent"]
    lines += ["", f"equivalent: {len(excused)}"]
    for row in excused:
        assert row.equivalent is not None  # it is what makes it so
        lines += [*_told(row), f"    {row.equivalent.reason}"]
    for row in report.rows:
        if row.is_wrongly_excused:
            lines.append(f"the table calls {row.mutant.title} equivalent, but it was caught")
    for entry in report.unmatched:
        lines.append(
            f"the table's row matches no change: {entry.file} {entry.scope} {entry.code!r} "
            f"{entry.change!r}; correct its text or remove it"
        )
    return "\n".join(lines) + "\n"


def _told(row: Row) -> list[str]:
    mutant = row.mutant
    why = "" if row.finding.found == "survived" else f" ({row.finding.found})"
    return [
        f"  for_paddle/{mutant.file}:{mutant.line} in {mutant.scope or 'the module'}{why}",
        f"    {mutant.code}",
        f"    {mutant.change}",
    ]


def report_json(report: SourceReport) -> dict[str, Any]:
    """Return the same for programs."""
    audited = report.audited
    return {
        "commit": git_commit(),
        "digest": audited.digest,
        "seconds": round(audited.seconds),
        "mutants": len(audited.every),
        "tried": len(report.rows),
        "counts": {file: dict(counts) for file, counts in _counts(report.rows).items()},
        "unmatched_rows": [asdict(row) for row in report.unmatched],
        "rows": [
            {
                "id": row.mutant.id,
                "file": row.mutant.file,
                "line": row.mutant.line,
                "scope": row.mutant.scope,
                "operator": row.mutant.operator,
                "code": row.mutant.code,
                "change": row.mutant.change,
                "verdict": row.verdict,
                "where": row.finding.where,
                "key": row.finding.key,
                "detail": row.finding.detail,
                "reason": row.equivalent.reason if row.equivalent else "",
                "seconds": row.finding.seconds,
            }
            for row in report.rows
        ],
    }
