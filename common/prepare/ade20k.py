"""ADE20K: lists of ADEChallengeData2016 (150 classes; 0 in an annotation is void)."""

from __future__ import annotations

from pathlib import Path

from common.classes import ADE20K_TRAIN_IDS
from common.prepare.as_published import Layout, prepare_as_published
from common.prepare.jobs import Progress
from common.prepare.report import Report

LAYOUT = Layout(
    name="ade20k",
    encoding="ade20k_ids",
    classes=len(ADE20K_TRAIN_IDS),
    images=("images/{split}", "ADEChallengeData2016/images/{split}"),
    labels=("annotations/{split}", "ADEChallengeData2016/annotations/{split}"),
    splits={"train": "training", "val": "validation"},
)


def prepare(
    root: Path,
    *,
    out: Path | None = None,
    separator: str = ",",
    workers: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Write train.txt and val.txt; see prepare_as_published."""
    return prepare_as_published(
        LAYOUT, root, out=out, separator=separator, workers=workers, progress=progress
    )
