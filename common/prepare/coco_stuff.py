"""COCO-Stuff: lists of the COCO 2017 images and the stuffthingmaps labels (171 of 182 values).

Source: CoinCheung/BiSeNet@6b4b67a, which makes its lists from the names that both folders have.
Departures: sorted (there the order of a set, another one on every run), and a file without a
partner is reported.
"""

from __future__ import annotations

from functools import partial

from common.classes import COCO_STUFF_TRAIN_IDS
from common.prepare.as_published import Layout, prepare_as_published

LAYOUT = Layout(
    name="coco_stuff",
    encoding="coco_stuff_ids",
    classes=len(COCO_STUFF_TRAIN_IDS),
    images=("images/{split}", "{split}"),
    labels=("labels/{split}", "stuffthingmaps/{split}", "stuffthingmaps_trainval2017/{split}"),
    splits={"train": "train2017", "val": "val2017"},
)

prepare = partial(prepare_as_published, LAYOUT)
"""Write train.txt and val.txt; see prepare_as_published."""
