"""``bisenet audit --source``: mutation testing of for_paddle/ by the verification."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import InputError
from common.files import write_text
from pipeline.display import console, errors
from pipeline.source_audit.campaign import Choice, chosen_mutants, default_jobs, source_audit
from pipeline.source_audit.findings import report_json, report_of, report_text
from pipeline.source_audit.mutants import Mutant
from pipeline.source_audit.trial import Finding


def run_source_audit(choice: Choice, *, jobs: int | None, out: Path, list_only: bool) -> int:
    """Try the chosen mutants, write ``audit_source.log`` and ``.json``; return the exit code."""
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: expected 1 or more")
    if list_only:
        for mutant in chosen_mutants(choice)[1]:
            line = f"{mutant.id} {mutant.title}   {mutant.code}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 0
    audited = source_audit(choice, jobs=jobs or default_jobs(), say=_say, progress=_progress)
    report = report_of(audited)
    text = report_text(report)
    write_text(out / "audit_source.log", text)
    write_text(out / "audit_source.json", json.dumps(report_json(report), indent=1) + "\n")
    console.print(text, highlight=False, markup=False, end="", soft_wrap=True)
    return report.exit_code


def _say(text: str) -> None:
    errors.print(text, highlight=False, markup=False)


def _progress(done: int, total: int, left_s: float, mutant: Mutant, finding: Finding) -> None:
    minutes, seconds = divmod(round(left_s), 60)
    words = f"{finding.found:12} {mutant.title}  {finding.where} {finding.key}"
    line = f"{done}/{total}, {minutes}:{seconds:02} left  {finding.seconds:5.1f} s  {words}"
    errors.print(line, highlight=False, markup=False, soft_wrap=True)
