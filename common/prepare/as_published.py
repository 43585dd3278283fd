"""Data sets whose label files stay as they are published: lists, and a look at every label.

No mapped copies are made: the loader maps the published values with one look-up (common/classes.py,
under 0.1 ms), and a mapped file read as a published one shifts every class without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.classes import VOID, LabelEncoding, label_table
from common.errors import DataError
from common.images import read_label
from common.prepare.jobs import Failure, Progress, run_jobs
from common.prepare.lists import Pair, pairs_by_stem, write_lists
from common.prepare.report import Report


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, and what its labels hold."""

    name: str
    encoding: LabelEncoding
    classes: int
    images: tuple[str, ...]
    """Candidates for the folder of images; ``{split}`` is the data set's name of the split."""
    labels: tuple[str, ...]
    splits: dict[str, str]
    """Our name of a split -> the data set's."""


def prepare_as_published(
    layout: Layout,
    root: Path,
    *,
    out: Path | None = None,
    separator: str = ",",
    workers: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Pair images and labels, look at every label's values, write the lists.

    A pair with a broken label is reported and not listed.

    Args:
        layout: of the data set.
        root: its folder.
        out: folder of the lists; None: root.
        separator: between image and label.
        workers: processes; 0 or 1 works in this one.
        progress: told after each label.

    Raises:
        DataError: a folder is missing, or no split is there.
        InputError: the output folder cannot be written.
    """
    report = Report(layout.name, root)
    pairs: dict[str, list[Pair]] = {}
    for split, name in layout.splits.items():
        images = _folder(root, layout.images, name)
        labels = _folder(root, layout.labels, name)
        if images is None or labels is None:
            wanted = " or ".join(layout.images if images is None else layout.labels)
            report.notes.append(f"{split}: no folder {wanted.format(split=name)}")
            continue
        pairs[split], failures = pairs_by_stem(images, labels)
        report.failures += failures
    if not pairs:
        raise DataError(f"{root}: no {layout.name} data. " + "; ".join(report.notes))
    looked_at = partial(check_label, encoding=layout.encoding, classes=layout.classes)
    bad = check_pairs(report, pairs, looked_at, workers, progress)
    usable = {
        split: [pair for pair in files if pair[1] not in bad[split]]
        for split, files in pairs.items()
    }
    write_lists(report, usable, out=out or root, separator=separator)
    return report


def check_pairs(
    report: Report,
    pairs: dict[str, list[Pair]],
    check: partial[None],
    workers: int,
    progress: Progress | None,
) -> dict[str, set[Path]]:
    """Check every label, count and report; return the broken labels of each split."""
    labels = [(split, label) for split, files in pairs.items() for _, label in files]
    bad: dict[str, set[Path]] = {split: set() for split in pairs}
    outcomes = run_jobs(
        [label for _, label in labels],
        check,
        name_of=_itself,
        workers=workers,
        progress=progress,
    )
    for (split, label), outcome in zip(labels, outcomes, strict=True):
        if isinstance(outcome, Failure):
            report.failures.append(outcome)
            bad[split].add(label)
        else:
            report.checked += 1
    return bad


def check_label(path: Path, *, encoding: LabelEncoding, classes: int) -> None:
    """Read a label file and look at its values.

    Raises:
        DataError: missing, broken, or a value that the data set does not have.
    """
    table = label_table(encoding, classes=classes, ignore_index=VOID)
    wrong = table.wrong_values(read_label(path))
    if wrong:
        raise DataError(
            f"{path}: label values {', '.join(map(str, wrong[:8]))}; expected those of "
            f"{encoding} with {classes} classes"
        )


def _itself(path: Path) -> Path:
    return path


def _folder(root: Path, candidates: tuple[str, ...], split: str) -> Path | None:
    folders = (root / candidate.format(split=split) for candidate in candidates)
    return next((folder for folder in folders if folder.is_dir()), None)
