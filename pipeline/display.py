"""What a person sees: progress, tables, explanations."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pipeline.blame_lines import blame_lines
from pipeline.judge import Result
from pipeline.outcome import Outcome
from pipeline.report import headline, one_row_per_tensor, worst_verdict
from pipeline.steps import SIDES
from pipeline.verdicts import Verdict

# into a file or a CI log there is no width to fit: no column may be cut
WIDTH = None if sys.stdout.isatty() else 140
# no markup: a message may hold anything in brackets
console = Console(width=WIDTH, markup=False)
errors = Console(stderr=True, width=WIDTH, markup=False)

TAIL_LINES = 12
STYLES = {
    Verdict.PASS: "green",
    Verdict.WITH_WAIVERS: "yellow",
    Verdict.NOT_RUN: "yellow",
}


def report_reprod(verdicts: Mapping[str, bool], display: Console) -> None:
    """Print reprod_log's own verdict on the pairs of files."""
    if not verdicts:
        display.print("reprod_log is not installed: its .npy pairs were written, not compared")
        return
    failed = [name for name, passed in verdicts.items() if not passed]
    text = "all passed" if not failed else f"FAILED for {', '.join(failed)}"
    display.print(f"reprod_log on {len(verdicts)} pairs of files: {text}")


class Display:
    """Shows which step each side is in, and every result as it comes."""

    def __init__(self, target: Console, *, many: bool = False) -> None:
        self.target = target
        self.many = many
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=target,
            transient=True,
            disable=not target.is_terminal,
        )
        self.tasks = {side: self.progress.add_task(f"{side}: starting") for side in SIDES}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Update the lines of the two sides, or print a result."""
        if event["event"] == "judged":
            result: Result = event["result"]
            style = STYLES.get(result.verdict, "bold red")
            name = f"{result.step.name} {result.dtype}"
            job = f"{event['job']:36} " if self.many else ""
            line = Text(f"{job}{name:24}").append(f"{result.verdict.value:8}", style=style)
            self.target.print(line.append(f" {headline(result)}"))
        elif event["event"] == "investigating":
            words = (event["job"] if self.many else "", event["step"], event["dtype"])
            self.target.print(f"looking for what is wrong in {' '.join(words).strip()} ...")
        elif event["event"] == "start":
            words = (event["job"] if self.many else "", event["step"], event["dtype"])
            text = f"{event['side']}: {' '.join(words)} {event['fault'] or ''}"
            self.progress.update(self.tasks[event["side"]], description=text)
        elif event["event"] == "exit":
            self.progress.update(self.tasks[event["side"]], description=f"{event['side']}: done")


def result_table(outcome: Outcome) -> Table:
    """Return the table of results with the worst tensor of each."""
    title = f"{outcome.config.model.name}: reference torch, actual paddle"
    table = Table(title=title, title_justify="left")
    for column in ("step", "dtype", "verdict"):
        table.add_column(column, no_wrap=True)
    for column in ("tensors", "worst", "bound", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("worst tensor", overflow="fold")
    for result in outcome.results:
        rows, _ = one_row_per_tensor(result.rows)
        worst = rows[0] if rows else None
        table.add_row(
            result.step.name,
            result.dtype,
            Text(result.verdict.value, style=STYLES.get(result.verdict, "bold red")),
            str(len(rows)),
            f"{worst.relative:.0e}" if worst else "-",
            f"{worst.bound:.0e}" if worst else "-",
            f"{max((result.seconds or {}).values(), default=0):.1f}",
            worst.key if worst else (result.message.splitlines() or [""])[0],
        )
    return table


def explain_failures(outcome: Outcome) -> None:
    """Print where each failing result starts, its first rows, and a dead recorder's last lines."""
    for result in outcome.results:
        if result.verdict.passed or result.verdict is Verdict.NOT_RUN:
            continue
        console.print(Text(f"\n{result.step.name} {result.dtype}: {result.verdict.value}", "red"))
        if result.divergence:
            console.print(f"  starts at {result.divergence.text}")
        for line in blame_lines(result, outcome.options.out):
            console.print(f"  {line}", highlight=False, soft_wrap=True)
        for row in [row for row in result.rows if not row.verdict.passed][:5]:
            console.print(f"  {row.verdict.value:8} {row.key}: {row.detail}", highlight=False)
        if result.message:
            console.print(f"  {result.message}", highlight=False)
            _print_recorder_tails(outcome, result.message)


def _print_recorder_tails(outcome: Outcome, message: str) -> None:
    for side in SIDES:
        log = outcome.options.out / f"recorder_{side}.log"
        if message.startswith(side) and log.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            console.print(f"  last lines of {log}:", highlight=False)
            for line in lines[-TAIL_LINES:]:
                console.print(Text(f"    {line}"))


def family_table(outcomes: Sequence[Outcome]) -> Table:
    """Return one row per configuration: its verdict and the worst float64 row of each step."""
    table = Table(title="family: reference torch, actual paddle", title_justify="left")
    table.add_column("configuration", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    steps = list(dict.fromkeys(r.step.name for outcome in outcomes for r in outcome.results))
    for step in steps:
        table.add_column(step, justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    for outcome in outcomes:
        verdict = worst_verdict(outcome.results)
        worst: dict[str, str] = {}
        for result in outcome.results:
            row = result.worst
            if result.dtype == result.step.dtypes[0] or not result.verdict.passed:
                shown = f"{row.relative:.0e}" if row else "-"
                worst[result.step.name] = shown if result.verdict.passed else result.verdict.value
        table.add_row(
            outcome.options.out.name,
            Text(verdict.value, style=STYLES.get(verdict, "bold red")),
            *(worst.get(step, "-") for step in steps),
            f"{outcome.seconds:.0f}",
        )
    return table


def plain_table(title: str, rows: Sequence[Any]) -> Table:
    """Return a table of dataclass rows, a column per field."""
    table = Table(title=title, title_justify="left")
    cells = [asdict(row) for row in rows]
    for name in cells[0]:
        table.add_column(name, overflow="fold")
    for cell in cells:
        table.add_row(*(_shown(value) for value in cell.values()))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)
