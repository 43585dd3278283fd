"""The command line: ``bisenet verify``, ``bisenet audit``.

    bisenet verify --config configs/bisenetv1_cityscapes.yml
    bisenet audit --config configs/bisenetv1_cityscapes.yml

Exit codes: 0 passed, 1 a difference (or a surviving fault), 2 usage or configuration, 3 a recorder
failed.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from common.config import load_config
from common.errors import InputError
from common.files import write_text
from pipeline.compare import Verdict
from pipeline.judge import Result
from pipeline.report import headline, one_row_per_tensor, worst_verdict, write_reports
from pipeline.reprod import write_artefacts
from pipeline.runner import Options, Outcome, selected_steps, verify
from pipeline.steps import SIDES, STEP_NAMES

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
# into a file or a CI log there is no width to fit: no column may be cut
WIDTH = None if sys.stdout.isatty() else 140
console = Console(width=WIDTH)
errors = Console(stderr=True, width=WIDTH)

TAIL_LINES = 12
STYLES = {Verdict.PASS: "green", Verdict.NOT_RUN: "yellow"}

ConfigOption = Annotated[Path, typer.Option("--config", help="Configuration file (YAML).")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="Override: dotted.key=value; may be repeated.")
]


@app.callback()
def _root() -> None:  # pyright: ignore[reportUnusedFunction]
    """Prove that a Paddle network is its Torch reference, step by step."""


@app.command("verify")
def verify_command(
    config: ConfigOption,
    steps: Annotated[
        str, typer.Option(help=f"Comma-separated steps out of: {', '.join(STEP_NAMES)}.")
    ] = ",".join(STEP_NAMES),
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of real data; default: generated street scenes."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Start weights (.safetensors); default: by rule from the names."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the logs; default: logs/<config name>.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or gpu, for both sides.")] = "cpu",
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Run all steps even after one failed.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of the table.")
    ] = False,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
) -> None:
    """Record both sides, compare every tensor, write the logs, give the verdict."""
    options = Options(
        out=out or Path("logs") / config.stem,
        steps=tuple(word.strip() for word in steps.split(",") if word.strip()),
        data=data,
        weights=weights,
        device=device,
        keep_going=keep_going,
    )
    raise typer.Exit(run_verify(config, options, overrides=overrides, as_json=as_json))


def run_verify(config: Path, options: Options, *, overrides: list[str], as_json: bool) -> int:
    """Verify, write the logs, print the result; return the exit code."""
    if options.device not in ("cpu", "gpu"):
        raise InputError(f"--device {options.device}: expected cpu or gpu")
    selected_steps(options.steps)
    loaded = load_config(config, overrides=overrides)
    display = errors if as_json else console
    with _Display(display) as show:
        outcome = verify(loaded, options, progress=show.on_event)
    paths = write_reports(outcome)
    if outcome.exit_code == 0:
        verdicts = write_artefacts(options.out / "log_reprod", outcome.artefacts)
        _report_reprod(verdicts, display)
    if as_json:
        sys.stdout.write((options.out / "summary.json").read_text(encoding="utf-8"))
        return outcome.exit_code
    console.print(_table(outcome))
    _explain_failures(outcome)
    peak = ", ".join(f"{side} {mib} MiB" for side, mib in sorted(outcome.peak_mib.items()))
    console.print(f"{outcome.seconds:.0f} s; peak memory of the recorders: {peak or 'unknown'}")
    for path in paths:
        console.print(f"  {path}", highlight=False)
    verdict = worst_verdict(outcome.results)
    console.print(Text(f"verdict: {verdict.value}", style=STYLES.get(verdict, "bold red")))
    return outcome.exit_code


def _report_reprod(verdicts: Mapping[str, bool], display: Console) -> None:
    failed = [name for name, passed in verdicts.items() if not passed]
    text = "all passed" if not failed else f"FAILED for {', '.join(failed)}"
    display.print(f"reprod_log on {len(verdicts)} pairs of files: {text}")


class _Display:
    """Shows which step each side is in, and every result as it comes."""

    def __init__(self, target: Console) -> None:
        self.target = target
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=target,
            transient=True,
            disable=not target.is_terminal,
        )
        self.tasks = {side: self.progress.add_task(f"{side}: starting") for side in SIDES}

    def __enter__(self) -> _Display:
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
            line = Text(f"{name:24}").append(f"{result.verdict.value:8}", style=style)
            self.target.print(line.append(f" {headline(result)}"))
        elif event["event"] == "start":
            text = f"{event['side']}: {event['step']} {event['dtype']} {event['fault'] or ''}"
            self.progress.update(self.tasks[event["side"]], description=text)
        elif event["event"] == "exit":
            self.progress.update(self.tasks[event["side"]], description=f"{event['side']}: done")


def _table(outcome: Outcome) -> Table:
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


def _explain_failures(outcome: Outcome) -> None:
    for result in outcome.results:
        if result.verdict in (Verdict.PASS, Verdict.NOT_RUN):
            continue
        console.print(Text(f"\n{result.step.name} {result.dtype}: {result.verdict.value}", "red"))
        if result.divergence:
            console.print(f"  starts at {result.divergence.text}")
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


@app.command("audit")
def audit_command(
    config: ConfigOption,
    faults: Annotated[
        str, typer.Option(help="Comma-separated names of faults; default: all.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the matrix; default: logs/<config name>.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="List the faults and stop.")] = False,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
) -> None:
    """Put deliberate faults into the Paddle side and see that each is caught where it belongs."""
    from pipeline.audit import audit, matrix_text, select_faults

    chosen = select_faults(faults)
    if list_only:
        for fault in chosen:
            console.print(f"{fault.name:28} {fault.step:12} {fault.title}", highlight=False)
        return
    loaded = load_config(config, overrides=overrides)
    folder = out or Path("logs") / config.stem
    with _Display(console) as show:
        outcome = audit(loaded, chosen, folder=folder, progress=show.on_event)
    text = matrix_text(outcome)
    write_text(folder / "audit.log", text)
    write_text(folder / "audit.json", json.dumps(outcome.as_json(), indent=1) + "\n")
    console.print(text, highlight=False, end="")
    raise typer.Exit(0 if outcome.all_caught else 1)


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; input errors are one message and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # a terminated run cleans up like an interrupted one: no orphaned recorder, no half log
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        app()
    except InputError as error:
        errors.print(Text(f"error: {error}"))
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted: no log was written")
        sys.exit(130)


if __name__ == "__main__":
    main()
