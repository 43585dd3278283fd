"""What an audit found: one finding per deliberate fault, and the matrix of them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.verdicts import Verdict


@dataclass(frozen=True)
class Explanation:
    """What an investigation says of a fault."""

    blamed: str
    """The place that is wrong by itself, in words; empty if none was found."""
    relation: str = ""
    """Its first confirmed relation (Hint.relation), or nothing."""
    residual: float | None = None
    """What is left of the difference with that relation."""


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
    why: str | None = None
    """The relation that explains the fault, where one does."""
    blamed: str = ""
    """What an investigation blames, in words."""
    explanation: str | None = None
    """The relation that it names first, "" if none; None if it was not asked."""
    residual: float | None = None
    """What is left of the difference with that relation."""

    @property
    def explained(self) -> bool:
        """False when an explanation was asked for and is not the one that is expected."""
        return self.why is None or self.explanation is None or self.explanation == self.why


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
        """True when every fault was caught and explained and the fault-free runs passed."""
        return all(f.caught and f.explained for f in self.findings) and set(
            self.clean.values()
        ) == {"PASS"}

    @property
    def exit_code(self) -> int:
        """0 all caught and explained, 3 a recorder failed without a fault, 1 otherwise."""
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
                    "residual": _residual_text(finding.residual),
                    "explained": finding.explained,
                }
                for finding in self.findings
            ],
        }


def _ratio_text(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.1f}"


def _residual_text(residual: float | None) -> str | None:
    return None if residual is None else f"{residual:.1e}"


def _verdict(finding: Finding) -> str:
    if not finding.caught:
        return "SURVIVED"
    return "caught" if finding.explained else "MISJUDGED"


def matrix_text(outcome: AuditOutcome) -> str:
    """Return the matrix as text: one line per fault; survivors and wrong explanations first."""
    lines = [
        "audit: deliberate wrong ports of the Paddle side, each against the step it belongs to"
    ]
    lines += [f"{key}: {value}" for key, value in outcome.head.items()]
    lines.append(
        f"{'verdict':9} {'model':14} {'step':12} {'dtype':8} {'fault':26} {'differs':>8} "
        f"{'rounding':>9}  {'explanation':24} {'residual':>8}  starts at"
    )
    for finding in sorted(outcome.findings, key=lambda f: (f.caught, f.explained)):
        lines += _finding_lines(finding)
    caught = sum(finding.caught for finding in outcome.findings)
    lines.append("rounding: Paddle's own rounding over Torch's, in float32")
    lines.append(
        "explanation: the relation that reproduces the difference in the layer (or record) that is "
        "wrong by itself, and what is left of the difference with it"
    )
    clean = ", ".join(f"{step} {verdict}" for step, verdict in outcome.clean.items())
    lines.append(f"without a fault, after all of them: {clean}")
    count = f"{caught} of {len(outcome.findings)} faults caught"
    if asked := [f for f in outcome.findings if f.explanation is not None and f.why is not None]:
        right = sum(finding.explained for finding in asked)
        count += f", {right} of {len(asked)} with the expected explanation"
    lines.append(f"{count}, {outcome.seconds:.0f} s")
    return "\n".join(lines) + "\n"


def _finding_lines(finding: Finding) -> list[str]:
    where = finding.text or "nothing differs"
    lines = [
        f"{_verdict(finding):9} {finding.model:14} {finding.step:12} {finding.dtype:8} "
        f"{finding.fault:26} {finding.relative:8.1e} "
        f"{_ratio_text(finding.rounding) or '-':>9}  {finding.explanation or '-':24} "
        f"{_residual_text(finding.residual) or '-':>8}  {where}"
    ]
    if not finding.caught:
        lines.append(f"{'':9} expected the difference to start at {finding.expected}")
    if not finding.explained:
        blamed = finding.blamed or "nothing is blamed"
        lines.append(f"{'':9} expected the explanation {finding.why} of: {blamed}")
    return lines
