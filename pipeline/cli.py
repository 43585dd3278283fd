"""The command line.

    bisenet verify --config configs/bisenetv1_cityscapes.yml
    bisenet verify --all
    bisenet audit --config configs/bisenetv1_cityscapes.yml
    bisenet audit --source --sample 200
    bisenet convert model_final_v1_city_new.pth v1.safetensors --model bisenetv1
    bisenet models
    bisenet configs

Exit codes: 0 passed, 1 a difference (or a surviving fault), 2 usage or configuration, 3 a recorder
failed.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from common.config import load_config
from common.errors import InputError
from common.files import write_text
from pipeline import (
    chain,
    cli_data,
    cli_eval,
    cli_replay,
    cli_report,
    cli_review,
    cli_train,
    new_model,
)
from pipeline.catalogue import FAMILY, FAMILY_OVERRIDES, ModelRow, catalogue_rows
from pipeline.display import (
    STYLES,
    Display,
    console,
    errors,
    explain_failures,
    family_table,
    plain_table,
    report_reprod,
    result_table,
)
from pipeline.outcome import Options
from pipeline.page.index import FILE as INDEX
from pipeline.page.index import refresh_index, write_index
from pipeline.report import worst_verdict, write_reports
from pipeline.reprod import remove_artefacts, write_artefacts
from pipeline.runner import selected_steps, verify, verify_all
from pipeline.steps import STEP_NAMES

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
cli_data.register(app)
cli_eval.register(app)
cli_replay.register(app)
cli_report.register(app)
cli_review.register(app)
cli_train.register(app)
new_model.register(app)

SetOption = Annotated[
    list[str], typer.Option("--set", help="Override: dotted.key=value; may be repeated.")
]


@app.callback()
def _root() -> None:  # pyright: ignore[reportUnusedFunction]
    """Prove that a Paddle network is its Torch reference, step by step."""


@app.command("verify")
def verify_command(
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration file (YAML).")
    ] = None,
    family: Annotated[
        bool, typer.Option("--all", help="One configuration of every network, in one run.")
    ] = False,
    steps: Annotated[
        str, typer.Option(help=f"Comma-separated steps out of: {', '.join(STEP_NAMES)}.")
    ] = ",".join(STEP_NAMES),
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of real data; default: generated street scenes."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Start weights (.safetensors, .pdparams); default: by rule."),
    ] = None,
    waivers: Annotated[
        Path | None,
        typer.Option(help="Accepted differences; default: waivers.yml beside the logs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the logs; default: logs/<config name>; of some steps, output/verify."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or gpu, for both sides.")] = "cpu",
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Run all steps even after one failed.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of the table.")
    ] = False,
    inject: Annotated[
        str,
        typer.Option(
            help="Put deliberate faults into the Paddle side, to see a failure; see audit --list. "
            "Writes to output/verify, never to logs."
        ),
    ] = "",
    overrides: SetOption = [],  # noqa: B006 - typer copies it
) -> None:
    """Record both sides, compare every tensor, write the logs, give the verdict."""
    if device not in ("cpu", "gpu"):
        raise InputError(f"--device {device}: expected cpu or gpu")
    if (config is None) != family:
        raise InputError("expected either --config FILE or --all, and not both")
    options = Options(
        out=out or Path("logs"),
        steps=tuple(word.strip() for word in steps.split(",") if word.strip()),
        data=data,
        weights=weights,
        waivers=waivers,
        device=device,
        keep_going=keep_going,
        command=_command_line(),
        inject=inject or None,
    )
    if inject:
        _require_faults(inject, family=family, out=out)
    chosen = selected_steps(options.steps)
    if config is None:
        if as_json or weights or waivers:
            text = "--json, --weights and --waivers are for one configuration, not for --all"
            raise InputError(text)
        raise typer.Exit(run_family(options, overrides=overrides))
    if out is None:
        # a part of the steps must not take the place of the whole evidence
        whole = len(chosen) == len(STEP_NAMES) and not inject
        root = Path("logs") if whole else PARTIAL
        options = replace(options, out=root / config.stem)
    raise typer.Exit(run_verify(config, options, overrides=overrides, as_json=as_json))


PARTIAL = Path("output") / "verify"


def _require_faults(names: str, *, family: bool, out: Path | None) -> None:
    """Refuse faults that there are not, and a place in which evidence is kept."""
    from pipeline.faults import fault_named

    if family:
        raise InputError("--inject is for one configuration, not for --all")
    if out is not None and out.resolve().is_relative_to(Path("logs").resolve()):
        raise InputError(f"--inject with --out {out}: logs/ holds evidence; choose another folder")
    try:
        for name in names.split(","):
            fault_named(name)
    except LookupError as error:
        raise InputError(f"--inject: {error.args[0]}") from None


def _command_line() -> str:
    """Return this command for the logs, without the folders of this machine."""
    parts = (word.rpartition("=") for word in sys.argv[1:])
    words = (f"{key}{sign}{Path(v).name if v.startswith('/') else v}" for key, sign, v in parts)
    return shlex.join(["bisenet", *words])


def run_verify(config: Path, options: Options, *, overrides: list[str], as_json: bool) -> int:
    """Verify one configuration, write the logs, print the result; return the exit code."""
    loaded = load_config(config, overrides=overrides)
    display = errors if as_json else console
    with Display(display) as show:
        outcome = verify(loaded, options, progress=show.on_event)
    paths = write_reports(outcome)
    refresh_index(options.out)
    remove_artefacts(options.out / "log_reprod", options.steps)
    if outcome.exit_code == 0:
        report_reprod(write_artefacts(options.out / "log_reprod", outcome.artefacts), display)
    chain.renew(options.out, "log_reprod")
    if as_json:
        sys.stdout.write((options.out / "summary.json").read_text(encoding="utf-8"))
        return outcome.exit_code
    console.print(result_table(outcome))
    explain_failures(outcome)
    peak = ", ".join(f"{side} {mib} MiB" for side, mib in sorted(outcome.peak_mib.items()))
    console.print(f"{outcome.seconds:.0f} s; peak memory of the recorders: {peak or 'unknown'}")
    for path in paths:
        console.print(f"  {path}", highlight=False)
    verdict = worst_verdict(outcome.results)
    if options.inject:
        console.print(f"with the deliberate fault {options.inject}: no evidence of anything")
    console.print(Text(f"verdict: {verdict.value}", style=STYLES.get(verdict, "bold red")))
    return outcome.exit_code


FAMILY_LISTED = 300
"""Tensors in each log: with all of them the logs of the family would take ten megabytes."""


def run_family(options: Options, *, overrides: list[str]) -> int:
    """Verify one configuration per network with two recorders in all; return the exit code."""
    experiments = [
        (
            load_config(path, overrides=[*FAMILY_OVERRIDES, *overrides]),
            replace(
                options,
                out=options.out / path.stem,
                keep_going=True,
                artefacts=False,
                listed=FAMILY_LISTED,
            ),
        )
        for path in FAMILY.values()
    ]
    with Display(console, many=True) as show:
        outcomes = verify_all(experiments, logs=options.out, progress=show.on_event)
    for outcome in outcomes:
        write_reports(outcome)
        explain_failures(outcome)
    write_index(options.out)
    names = (outcome.options.out.name for outcome in outcomes)
    chain.link(options.out, INDEX, *names)
    console.print(family_table(outcomes))
    seconds = sum(outcome.seconds for outcome in outcomes)
    console.print(f"{seconds:.0f} s; logs: {options.out}/<configuration>/", highlight=False)
    codes = {outcome.exit_code for outcome in outcomes}
    return max(codes) if codes != {0} else 0


@app.command("audit")
def audit_command(
    config: Annotated[
        Path | None, typer.Option("--config", help="Audit this configuration's network.")
    ] = None,
    family: Annotated[bool, typer.Option("--all", help="Audit every network.")] = False,
    faults: Annotated[
        str, typer.Option(help="Comma-separated names of faults; default: all of the network.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the matrix; default: logs/<config name>, with --all logs."),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="List the faults (--source: the changes) and stop.")
    ] = False,
    explain: Annotated[
        bool, typer.Option(help="Ask for each fault's explanation too, which takes longer.")
    ] = True,
    source: Annotated[
        bool, typer.Option("--source", help="Change the source of for_paddle/, place by place.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(help="--source: so many changes at random; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="--source: seed of the sample.")] = 0,
    files: Annotated[
        str, typer.Option(help="--source: comma-separated shell patterns below for_paddle/.")
    ] = "*",
    jobs: Annotated[
        int | None, typer.Option(help="--source: processes; default: one per core.")
    ] = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
) -> None:
    """Put deliberate faults into the Paddle side and see that each is caught where it belongs."""
    from pipeline.audit import audit, select_faults, shown_in
    from pipeline.cli_source_audit import run_source_audit
    from pipeline.findings import matrix_text
    from pipeline.source_audit.campaign import Choice

    if source:
        if config is not None or family or faults or overrides:
            raise InputError("--source has experiments of its own: no --config, --all, --set")
        choice = Choice(files=files, sample=sample, seed=seed)
        folder = out or Path("logs")
        raise typer.Exit(run_source_audit(choice, jobs=jobs, out=folder, list_only=list_only))
    if (config is None) != family:
        raise InputError("expected either --config FILE or --all, and not both")
    if config is None:
        paths, folder = list(FAMILY.values()), out or Path("logs")
    else:
        paths, folder = [config], out or Path("logs") / config.stem
    loaded = [load_config(path, overrides=overrides) for path in paths]
    chosen = select_faults(faults, models=[one.model.name for one in loaded])
    if list_only:
        for fault in chosen:
            words = f"{fault.model:16} {fault.name:28} {fault.step:12} {shown_in(fault):8}"
            line = f"{words} {fault.title}"
            console.print(line, highlight=False)
        return
    with Display(console, many=family) as show:
        outcome = audit(loaded, chosen, folder=folder, progress=show.on_event, explain=explain)
    text = matrix_text(outcome)
    write_text(folder / "audit.log", text)
    write_text(folder / "audit.json", json.dumps(outcome.as_json(), indent=1) + "\n")
    chain.renew(folder, "audit.log", "audit.json")
    console.print(text, highlight=False, end="", soft_wrap=True)
    raise typer.Exit(outcome.exit_code)


@app.command("convert")
def convert_command(
    source: Annotated[Path, typer.Argument(help="Weights: .pth, .tar, .safetensors, .pdparams.")],
    target: Annotated[Path, typer.Argument(help="File to write; its suffix is its format.")],
    model: Annotated[str, typer.Option(help="Network that the weights are for.")],
    classes: Annotated[
        int | None,
        typer.Option(help="Classes of the result; last layers of another number are left out."),
    ] = None,
    backbone_only: Annotated[
        bool, typer.Option("--backbone-only", help="Take the backbone, leave the rest.")
    ] = False,
) -> None:
    """Convert a checkpoint between the frameworks, totally: nothing is skipped silently."""
    from pipeline.convert import convert

    report = convert(source, target, model=model, classes=classes, backbone_only=backbone_only)
    console.print(report.text(), highlight=False, soft_wrap=True)


@app.command("configs")
def configs_command(
    folder: Annotated[Path, typer.Option(help="Folder of the configurations.")] = Path("configs"),
) -> None:
    """List the configurations with the figures that were published for them."""
    console.print(plain_table("configurations", catalogue_rows(folder)))


@app.command("models")
def models_command(
    size: Annotated[str, typer.Option(help="HxW to count the work at, multiples of 32.")] = (
        "512x1024"
    ),
    side: Annotated[str, typer.Option(help="Framework that counts: torch or paddle.")] = "torch",
) -> None:
    """List the networks: parameters, multiply-accumulates, heads, source."""
    command = [sys.executable, "-m", "pipeline.catalogue", "models", "--side", side, "--size", size]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise typer.Exit(done.returncode)
    rows = [ModelRow(**row) for row in json.loads(done.stdout)]
    console.print(plain_table(f"networks, GMACs at {size}", rows))


INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(*_: object) -> NoReturn:
    for number in _SIGNALS:
        # a second Ctrl-C must not stop the cleaning up
        signal.signal(number, signal.SIG_IGN)
    # not KeyboardInterrupt, which typer turns into an exit code of its own
    raise SystemExit(INTERRUPTED)


def main() -> None:
    """Run the command line; input errors are one message and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # a terminated run cleans up like an interrupted one: no orphaned recorder, no half log
    for number in _SIGNALS:
        # under nohup a hang-up is to be ignored
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        app()
    except InputError as error:
        errors.print(Text(f"error: {error}"), soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            verdict = "; the recorders were stopped and no verdict was given"
            errors.print("interrupted" + (verdict if {"verify", "audit"} & set(sys.argv) else ""))
        raise


if __name__ == "__main__":
    main()
