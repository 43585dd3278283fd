"""What a comparison says: verdicts, the rows they stand in, and the bounds they are made by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import numpy as np

_SNAPSHOT = re.compile(r"^iteration\d+/")


class Verdict(str, Enum):
    """Outcome of one tensor, one step or one run."""

    PASS = "PASS"
    FAIL = "FAIL"
    MISSING = "MISSING"
    VACUOUS = "VACUOUS"
    ERROR = "ERROR"
    NOT_RUN = "NOT RUN"
    WAIVED = "WAIVED"
    """A tensor whose difference is what a waiver says (pipeline/waivers.py)."""
    WITH_WAIVERS = "PASS with waivers"
    """A step or run that passes but for such tensors."""

    @property
    def passed(self) -> bool:
        """True for PASS, and for what is waived."""
        return self in (Verdict.PASS, Verdict.WAIVED, Verdict.WITH_WAIVERS)


@dataclass(frozen=True)
class Bound:
    """Largest difference allowed, relative to the tensor's largest reference value."""

    pattern: str
    """Shell pattern of the keys it is for; the first matching bound counts."""
    relative: float
    reason: str
    """Why this number and not a smaller one: a measurement or a property of the kernel."""
    by_chance: bool = False
    """What is compared was drawn by two generators: it uses a good part of the bound by chance."""


@dataclass(frozen=True)
class Allowance:
    """Keys whose reference may be constant, or must not be zero, with the reason."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Row:
    """The comparison of one tensor."""

    key: str
    verdict: Verdict
    detail: str = ""
    """What is wrong, in words; empty when it passed."""
    max_abs: float = 0.0
    mean_abs: float = 0.0
    relative: float = 0.0
    """max_abs over the largest |reference|: the deciding number, and so the bound that would have
    passed."""
    max_rel: float = 0.0
    """Largest elementwise |difference| / |reference|, over elements that are not zero."""
    index: tuple[int, ...] = ()
    """Where the largest difference is."""
    first: tuple[int, ...] = ()
    """The first element over the bound, in memory order: in a series, the iteration."""
    over: int = 0
    """Elements whose own difference exceeds the bound."""
    size: int = 0
    bound: float = 0.0
    floor: float | None = None
    """float32 only: |torch32 - torch64| + |paddle32 - paddle64|, relative like the rest."""
    self_ratio: float | None = None
    """float32 only: Paddle's own rounding over Torch's (medians)."""
    by_chance: bool = False
    """See Bound."""

    @property
    def severity(self) -> tuple[bool, float]:
        """Sort key: failures first, then by the share of the bound that is used.

        A draw that passes comes last: what it uses of its bound tells nothing.
        """
        if self.by_chance and self.verdict.passed:
            return False, 0.0
        share = self.relative / self.bound if self.bound else self.relative
        return (not self.verdict.passed, share if np.isfinite(share) else np.inf)


def matching(pattern: str, key: str) -> bool:
    """Tell whether a key matches a shell pattern."""
    return fnmatchcase(key, pattern)


def bound_for(key: str, bounds: Sequence[Bound]) -> Bound:
    """Return the first bound whose pattern matches. A table ends with the pattern ``*``."""
    for bound in bounds:
        if matching(bound.pattern, key):
            return bound
    raise LookupError(f"no bound for {key}; end the table with a bound for '*'")


def overall(rows: Sequence[Row]) -> Verdict:
    """Return PASS if there are rows and all of them pass, else the gravest verdict.

    Rows that are waived make it a PASS with waivers.
    """
    if not rows:
        return Verdict.VACUOUS
    order = (Verdict.ERROR, Verdict.FAIL, Verdict.MISSING, Verdict.VACUOUS, Verdict.NOT_RUN)
    found = {row.verdict for row in rows}
    passed = Verdict.WITH_WAIVERS if Verdict.WAIVED in found else Verdict.PASS
    return next((verdict for verdict in order if verdict in found), passed)


def tensor_of(key: str) -> str:
    """Return the key without the snapshot of a training that it belongs to."""
    return _SNAPSHOT.sub("", key)


def one_row_per_tensor(rows: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """Merge the snapshots of a training: the worst row of each tensor, and how many there were."""
    worst: dict[str, Row] = {}
    counts: dict[str, int] = {}
    for row in rows:
        name = tensor_of(row.key)
        counts[name] = counts.get(name, 0) + 1
        if name not in worst or row.severity > worst[name].severity:
            worst[name] = row
    return sorted(worst.values(), key=lambda row: row.severity, reverse=True), counts
