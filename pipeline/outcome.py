"""What a verification was asked for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import Config
from common.provenance import code_digest
from pipeline.evidence import Collector
from pipeline.judge import Result
from pipeline.records import Record
from pipeline.verdicts import Verdict


@dataclass(frozen=True)
class Options:
    """What the user asked for besides the configuration."""

    out: Path
    """Folder of the logs, logs/<config>."""
    steps: tuple[str, ...]
    data: Path | None = None
    """Folder of real data, replacing data.root."""
    weights: Path | None = None
    waivers: Path | None = None
    """File of waivers; None: waivers.yml in ``out``, if there is one."""
    device: str = "cpu"
    keep_going: bool = False
    command: str = "bisenet verify"
    """The command line, for the logs: whoever reads them can run it again."""
    artefacts: bool = True
    """Keep the arrays of reprod_log's files; of many networks they take gigabytes."""
    listed: int | None = None
    """Tensors that a log lists per step and dtype, worst first, failing ones always; None: all."""
    inject: str | None = None
    """Deliberate faults of the Paddle side, comma-separated: to see what a failure looks like."""
    scratch: Path = Path("data/fake")
    """Where generated data sets are kept between runs."""


@dataclass
class Outcome:
    """All results of a run, and what it took."""

    config: Config
    options: Options
    results: list[Result]
    seconds: float = 0.0
    code: str = field(default_factory=code_digest)
    """Digest of the code when the recorders were started."""
    peak_mib: dict[str, int] = field(default_factory=dict[str, int])
    artefacts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Arrays for the reprod_log files: name -> side -> array."""
    evidence: Collector = field(default_factory=Collector)
    """What the report page draws."""
    failed: dict[tuple[str, str], tuple[Record, Record]] = field(
        default_factory=dict[tuple[str, str], tuple[Record, Record]]
    )
    """Records of the failing results by (step, dtype), until they have been investigated."""

    @property
    def exit_code(self) -> int:
        """0 all passed, 3 a recorder failed, 1 anything else."""
        verdicts = {result.verdict for result in self.results}
        if Verdict.ERROR in verdicts:
            return 3
        return 0 if verdicts and all(verdict.passed for verdict in verdicts) else 1
