"""``bisenet prepare`` and ``bisenet check-data``.

    bisenet prepare cityscapes data/cityscapes --workers 8
    bisenet prepare camvid data/camvid --out data/camvid_11
    bisenet prepare custom data/mine --val-fraction 0.2 --separator tab
    bisenet check-data configs/bisenetv2_cityscapes.yml --data data/cityscapes --out output/check

Exit codes: 0 all right, 1 files failed or the data have a problem, 2 usage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from common.classes import class_table
from common.config import load_config
from common.errors import InputError
from common.files import scratch_folder
from common.prepare import ade20k, camvid, cityscapes, coco_stuff, custom
from common.prepare.check import check_data
from common.prepare.check_report import check_text, write_check
from common.prepare.jobs import Progress as ProgressCallback
from common.prepare.lists import separator_named
from common.prepare.report import Report
from pipeline.display import console, errors

WorkersOption = Annotated[
    int | None,
    typer.Option(help="Processes; 0 works in this one. Default: one per processor core."),
]
_PLAIN_STEPS = 20
"""Lines of progress where there is no terminal to draw a bar in."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("prepare")(prepare_command)
    app.command("check-data")(check_data_command)


def prepare_command(
    dataset: Annotated[
        str, typer.Argument(help="cityscapes, coco_stuff, ade20k, camvid or custom.")
    ],
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    workers: WorkersOption = None,
    separator: Annotated[
        str, typer.Option(help="Between image and label in the lists: ',', space or tab.")
    ] = ",",
    source: Annotated[
        str,
        typer.Option("--from", help="Cityscapes: make labels from polygons or from label_ids."),
    ] = "polygons",
    out: Annotated[
        Path | None, typer.Option(help="Folder of lists and labels; default: ROOT.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(help="Keep label files that are complete and newer than their source."),
    ] = True,
    images: Annotated[Path, typer.Option(help="custom: folder of images in ROOT.")] = Path(
        "images"
    ),
    labels: Annotated[Path, typer.Option(help="custom: folder of labels in ROOT.")] = Path(
        "labels"
    ),
    val_fraction: Annotated[
        float, typer.Option(help="custom without train/val folders: part held out, 0..1.")
    ] = 0.1,
) -> None:
    """Make a data set's label files and lists; a run that was interrupted goes on."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected the folder of the {dataset} data")
    if source not in cityscapes.SOURCES:
        raise InputError(f"--from {source}: expected {' or '.join(cityscapes.SOURCES)}")
    makers: dict[str, Callable[..., Report]] = {
        "cityscapes": partial(cityscapes.prepare, source=source, resume=resume),
        "coco_stuff": coco_stuff.prepare,
        "ade20k": ade20k.prepare,
        "camvid": partial(camvid.prepare, resume=resume),
        "custom": partial(custom.prepare, images=images, labels=labels, val_fraction=val_fraction),
    }
    if dataset not in makers:
        raise InputError(f"data set {dataset!r}: expected one of {', '.join(makers)}")
    with shown_progress(f"preparing {dataset}") as progress:
        report = makers[dataset](
            root,
            out=out,
            separator=separator_named(separator),
            workers=_processes(workers),
            progress=progress,
        )
    path = report.write(out or root)
    console.print(report.text(), highlight=False, soft_wrap=True)
    console.print(f"  {path}", highlight=False)
    raise typer.Exit(report.exit_code)


def check_data_command(
    config: Annotated[Path, typer.Argument(help="Configuration file (YAML).")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data; default: data.root.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of report and pictures; default: output/check/<config name>."),
    ] = None,
    workers: WorkersOption = None,
    overrides: Annotated[
        list[str], typer.Option("--set", help="Override: dotted.key=value; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Read every image and label of a data set; report problems, draw classes and samples."""
    loaded = load_config(config, overrides=overrides)
    chosen = loaded.data.model_copy(update={"root": data}) if data else loaded.data
    classes = loaded.model.classes
    folder = out or Path("output") / "check" / config.stem
    # before every file is read: a folder that cannot be written is told now
    with scratch_folder(folder, prefix=".probe."):
        pass
    with shown_progress("reading samples") as progress:
        check = check_data(chosen, classes=classes, workers=_processes(workers), progress=progress)
    table = class_table(chosen.dataset, classes=classes)
    console.print(check_text(check), highlight=False, soft_wrap=True)
    paths = write_check(check, folder, data=chosen, classes=classes, table=table)
    for path in paths:
        console.print(f"  {path}", highlight=False)
    raise typer.Exit(check.exit_code)


@contextmanager
def shown_progress(title: str) -> Generator[ProgressCallback]:
    """Yield a callback (done, total) that shows a bar with the remaining time.

    Without a terminal, as in a log, about twenty lines are printed instead.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            if not errors.is_terminal and done % max(1, -(-total // _PLAIN_STEPS)) == 0:
                elapsed = progress.tasks[task].elapsed or 0.0
                left = elapsed / done * (total - done)
                errors.print(f"{title}: {done}/{total}, {left:.0f} s left", highlight=False)

        yield show


def _processes(workers: int | None) -> int:
    return (os.cpu_count() or 1) if workers is None else workers
