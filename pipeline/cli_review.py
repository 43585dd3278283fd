"""``bisenet review`` and ``bisenet diff``: what can be said of logs without either framework.

    bisenet review logs
    bisenet review logs --config bisenetv1_cityscapes --junit review.xml
    bisenet diff logs.before logs

Exit codes of a review: 0 accepted, 1 refused, 2 usage or unreadable. Of a diff: 0 the same
verdicts, 1 a regression, 2 unreadable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from common.files import write_text
from common.provenance import ROOT
from pipeline import run_diff
from pipeline.display import console
from pipeline.report import without_controls
from pipeline.review import ACCEPTED, REFUSED, Review, Reviewed, as_json, as_junit, review
from pipeline.review_evidence import Check
from pipeline.review_fresh import Tree
from pipeline.run_diff import FACTOR, Changed, Comparison, RunDiff, StepDiff, compare_runs

STYLES = {"ok": "green", "no": "bold red", "unknown": "yellow"}
MARKS = {"ok": "✓", "no": "✗", "unknown": "-"}
PLAIN_MARKS = {"ok": "ok", "no": "NO", "unknown": "-"}
"""For a terminal or file whose encoding has no tick."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("review")(review_command)
    app.command("diff")(diff_command)


def review_command(
    logs: Annotated[
        Path, typer.Argument(help="Folder of logs, or of one configuration's logs.")
    ] = Path("logs"),
    configs: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            help="Review this configuration (its name); may be repeated. Default: the family, "
            "and whatever else the folder holds.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the real data of logs that were made with some.")
    ] = None,
    committed: Annotated[
        bool,
        typer.Option("--committed", help="Refuse logs that are not as in the checked-out commit."),
    ] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="Of what is accepted, print one line.")
    ] = False,
    printed: Annotated[
        bool, typer.Option("--json", help="Print the review as JSON instead of tables.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the review as JUnit XML.")] = None,
) -> None:
    """Re-check logs without a framework: complete, fresh, untouched, not vacuous; accept or not."""
    # a path is taken as well as a name: shells complete it
    names = [Path(name).name.removesuffix(".yml") for name in configs or ()]
    result = review(logs, names=names, tree=Tree(ROOT, data=data), committed=committed)
    if junit is not None:
        write_text(junit, without_controls(as_junit(result)))
    if printed:
        sys.stdout.write(json.dumps(as_json(result), indent=1) + "\n")
    else:
        show_review(result, brief=brief)
    raise typer.Exit(0 if result.accepted else 1)


def show_review(result: Review, *, brief: bool) -> None:
    """Print the tables, and the verdict last."""
    for one in (*result.configurations, result.common):
        if not one.checks:
            continue
        if brief and one.accepted:
            console.print(Text(f"{one.name}: {ACCEPTED}", "green"))
            continue
        verdict = ACCEPTED if one.accepted else REFUSED
        title = f"{one.name} {one.model}: {verdict}".replace("  ", " ")
        console.print(_table(title, one.checks))
        if one.acceptance:
            title = f"{one.name}: acceptance list of the reproduction guide (* a checkpoint)"
            console.print(_table(title, one.acceptance))
        for waiver in one.waivers:
            console.print(f"waived: {waiver}", highlight=False)
    told = f": {', '.join(result.refused)}" if result.refused else ""
    style = "bold green" if result.accepted else "bold red"
    console.print(Text(f"verdict: {result.verdict}{told}", style=style))
    console.print(summary_line(result), highlight=False)


def summary_line(result: Review) -> str:
    """Return how many checks there were and what they said."""
    every: list[Reviewed] = [*result.configurations, result.common]
    states = [check.state for one in every for check in one.checks]
    return (
        f"{len(result.configurations)} configurations; {states.count('ok')} checks passed, "
        f"{states.count('no')} failed, {states.count('unknown')} not shown by these logs"
    )


def _table(title: str, checks: tuple[Check, ...]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    grouped = any(check.group != checks[0].group for check in checks)
    for name in ("", *(["group"] if grouped else []), "check"):
        table.add_column(name, no_wrap=True)
    table.add_column("text", overflow="fold")
    marks = MARKS if console.encoding.lower().startswith("utf") else PLAIN_MARKS
    for check in checks:
        mark = Text(marks[check.state], STYLES[check.state])
        table.add_row(mark, *([check.group] if grouped else []), check.name, check.text)
    return table


SHOWN = 8
"""Tensors of a step that are shown one by one; --json has all."""


def diff_command(
    first: Annotated[Path, typer.Argument(help="Logs of the run to start from.")],
    second: Annotated[Path, typer.Argument(help="Logs of the run that is asked about.")],
    factor: Annotated[
        float, typer.Option(help="Tell errors that grew or shrank by more than this factor.")
    ] = FACTOR,
    printed: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON instead of tables.")
    ] = False,
) -> None:
    """Compare two runs: provenance, verdicts, errors that grew or shrank, seconds."""
    found = compare_runs(first, second, factor=factor)
    if printed:
        sys.stdout.write(json.dumps(run_diff.as_json(found), indent=1) + "\n")
    else:
        show_comparison(found)
    raise typer.Exit(found.exit_code)


def show_comparison(found: Comparison) -> None:
    """Print what differs between two runs, configuration by configuration."""
    for run in found.runs:
        if run.missing:
            only = "second" if run.missing == "first" else "first"
            console.print(Text(f"{run.name}: in the {only} run only", "yellow"))
            continue
        _show_run(run, found)
    regressed = [run.name for run in found.runs if run.regressed]
    if regressed:
        console.print(Text(f"regressions: {', '.join(regressed)}", style="bold red"))
    else:
        console.print(Text("no regression", style="bold green"))


def _show_run(run: RunDiff, found: Comparison) -> None:
    console.print(_changes_table(f"{run.name}: provenance that differs", run.provenance))
    table = Table(title=f"{run.name}: steps", title_justify="left")
    for column in ("step", "dtype", "verdict", "same records", "larger", "smaller", "only in"):
        table.add_column(column, no_wrap=True)
    table.add_column("worst tensor", overflow="fold")
    for step in run.steps:
        grown = sum(change.factor > 1 for change in step.changes)
        verdict = step.first if step.first == step.second else f"{step.first} -> {step.second}"
        worst = step.worst_second
        if step.worst_first != worst:
            worst = f"{step.worst_first or '-'} -> {worst or '-'}"
        only = f"{len(step.only_first)} / {len(step.only_second)}"
        counts = (step.records or "-", str(grown), str(len(step.changes) - grown), only)
        style = "bold red" if step.regressed else ""
        table.add_row(step.step, step.dtype, Text(verdict, style), *counts, worst)
    console.print(table)
    for step in run.steps:
        _show_step(step, found.factor)
    # each step's own seconds are in --json
    totals = [line for line in run.timing if not line.what.startswith("seconds ")]
    console.print(_changes_table(f"{run.name}: time and memory", totals))


def _show_step(step: StepDiff, factor: float) -> None:
    name = f"{step.step} {step.dtype}"
    for change in step.changes[:SHOWN]:
        words = f"{change.first:.1e} -> {change.second:.1e}, {change.factor:.3g} times"
        console.print(f"  {name}: {change.tensor} {words}", highlight=False)
    if len(step.changes) > SHOWN:
        more = len(step.changes) - SHOWN
        console.print(f"  {name}: {more} more by over {factor:g} times", highlight=False)
    for where, names in (("first", step.only_first), ("second", step.only_second)):
        if names:
            told = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            console.print(f"  {name}: in the {where} run only: {told}", highlight=False)
    for bound in step.bounds:
        console.print(f"  {name}: {bound.first} -> {bound.second}", highlight=False)


def _changes_table(title: str, lines: Sequence[Changed]) -> Table:
    # a title is no wider than its table
    table = Table(
        title=title if lines else f"{title}: nothing",
        title_justify="left",
        min_width=len(title) + 9,
    )
    for column in ("", "first", "second"):
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(line.what, line.first, line.second)
    return table
