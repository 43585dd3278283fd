"""What a page is made from: the files of one verification's logs, read without a framework."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from common.errors import InputError
from pipeline.evidence import FILE, Evidence, Line, read_evidence

Json = Mapping[str, Any]

NOT_RECORDED = (
    "Not recorded by this run: it was made before evidence.json was written. "
    "Verifying again records it."
)


@dataclass(frozen=True)
class Source:
    """Everything a page shows."""

    name: str
    """Of the configuration: the folder's name."""
    summary: Json
    evidence: Evidence | None
    audit: Json | None
    """The matrix of deliberate faults of this network; None: there is none."""

    @property
    def results(self) -> Sequence[Json]:
        """The summary's results: one per step and dtype."""
        return cast("Sequence[Json]", self.summary["results"])

    @property
    def verdict(self) -> str:
        """PASS or what else the run says."""
        return str(self.summary["verdict"])

    def worst_lines(self, step: str) -> Mapping[str, Mapping[str, Line]]:
        """Return the kept tensors of a step: key -> dtype -> line, in computation order."""
        kept = self.evidence.tensors.get(step, []) if self.evidence else []
        return {tensor.key: tensor.lines for tensor in kept}


def read_source(folder: Path) -> Source:
    """Read the logs of one verification.

    Raises:
        InputError: there is no summary, or a file is damaged.
    """
    summary = read_json(folder / "summary.json")
    if summary is None:
        raise InputError(f"{folder}: no summary.json; expected the logs of `bisenet verify`")
    if not {"results", "verdict", "model"} <= summary.keys():
        raise InputError(f"{folder}/summary.json: damaged (no results or verdict); verify again")
    return Source(
        name=folder.resolve().name,
        summary=summary,
        evidence=read_evidence(folder / FILE),
        audit=_audit(folder, str(summary["model"])),
    )


def read_json(path: Path) -> Json | None:
    """Read a JSON object; None where the file is missing.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); make it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: damaged (no JSON object); make it again")
    return cast("Json", content)


def _audit(folder: Path, model: str) -> Json | None:
    """Return the network's own matrix, or its part of the family's."""
    own = read_json(folder / "audit.json")
    if own is not None:
        return own
    family = read_json(folder.parent / "audit.json")
    if family is None:
        return None
    findings = [one for one in family.get("findings", []) if one.get("model") == model]
    return {**family, "findings": findings} if findings else None
