"""ADE20K: lists of ADEChallengeData2016 (150 classes; 0 in an annotation is void)."""

from __future__ import annotations

from functools import partial

from common.classes import ADE20K_TRAIN_IDS
from common.prepare.as_published import Layout, prepare_as_published

LAYOUT = Layout(
    name="ade20k",
    encoding="ade20k_ids",
    classes=len(ADE20K_TRAIN_IDS),
    images=("images/{split}", "ADEChallengeData2016/images/{split}"),
    labels=("annotations/{split}", "ADEChallengeData2016/annotations/{split}"),
    splits={"train": "training", "val": "validation"},
)

prepare = partial(prepare_as_published, LAYOUT)
"""Write train.txt and val.txt; see prepare_as_published."""
