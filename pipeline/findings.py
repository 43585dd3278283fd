"""What an audit found: one finding per deliberate fault, and the matrix of them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.verdicts import Verdict


@dataclass(frozen=True)
class Finding:
    """What became of one fault."""

    model: str
    fault: str
    step: str
    dtype: str
    title: str
    expected: str
    found: str
    """Key at which the difference starts; empty when nothing differs."""
    text: str
    """The same in words, or the recorder's error."""
    caught: bool
    relative: float
    """Largest difference at that key."""
    rounding: float | None = None
    """float32 only: Paddle's own rounding over Torch's at that key."""


@dataclass(frozen=True)
class AuditOutcome:
    """The whole matrix."""

    findings: tuple[Finding, ...]
    clean: Mapping[str, str]
    """"model step dtype" -> verdict of the run without a fault after all the others."""
    head: Mapping[str, str]
    seconds: float

    @property
    def all_caught(self) -> bool:
        """True when every fault was caught and the fault-free runs passed."""
        return all(f.caught for f in self.findings) and set(self.clean.values()) == {"PASS"}

    @property
    def exit_code(self) -> int:
        """0 all caught, 3 a recorder failed without a fault, 1 a fault survived."""
        if Verdict.ERROR.value in self.clean.values():
            return 3
        return 0 if self.all_caught else 1

    def as_json(self) -> dict[str, Any]:
        """Return the matrix for audit.json."""
        return {
            **self.head,
            "seconds": round(self.seconds, 1),
            "clean": dict(self.clean),
            "findings": [
                {
                    **asdict(finding),
                    "relative": f"{finding.relative:.3e}",
                    "rounding": _ratio_text(finding.rounding),
                }
                for finding in self.findings
            ],
        }


def _ratio_text(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.1f}"


def matrix_text(outcome: AuditOutcome) -> str:
    """Return the matrix as text: one line per fault, survivors first."""
    lines = [
        "audit: deliberate wrong ports of the Paddle side, each against the step it belongs to"
    ]
    lines += [f"{key}: {value}" for key, value in outcome.head.items()]
    lines.append(
        f"{'verdict':9} {'model':14} {'step':12} {'dtype':8} {'fault':26} {'differs':>8} "
        f"{'rounding':>9}  starts at"
    )
    for finding in sorted(outcome.findings, key=lambda f: f.caught):
        verdict = "caught" if finding.caught else "SURVIVED"
        where = finding.text or "nothing differs"
        lines.append(
            f"{verdict:9} {finding.model:14} {finding.step:12} {finding.dtype:8} "
            f"{finding.fault:26} {finding.relative:8.1e} "
            f"{_ratio_text(finding.rounding) or '-':>9}  {where}"
        )
        if not finding.caught:
            lines.append(f"{'':9} expected the difference to start at {finding.expected}")
    caught = sum(finding.caught for finding in outcome.findings)
    lines.append("rounding: Paddle's own rounding over Torch's, in float32")
    clean = ", ".join(f"{step} {verdict}" for step, verdict in outcome.clean.items())
    lines.append(f"without a fault, after all of them: {clean}")
    lines.append(f"{caught} of {len(outcome.findings)} faults caught, {outcome.seconds:.0f} s")
    return "\n".join(lines) + "\n"
