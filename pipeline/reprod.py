"""The acceptance artefacts of the Paddle world: .npy pairs and *_diff.log made by reprod_log.

    python -m pipeline.reprod FOLDER

For every ``<name>_torch.npy`` / ``<name>_paddle.npy`` in FOLDER, reprod_log itself loads both,
compares them and writes ``<name>_diff.log``. It runs in a process of its own because importing it
imports Paddle. The verdict of a verification never comes from it: reprod_log passes NaN, empty
logs and transposed shapes.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path
from pipeline.records import Array
from pipeline.steps import SIDES

THRESHOLD = 1e-6
"""reprod_log's default, on the mean absolute difference of each key."""

WANTED: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "data": ("data", (), ("train/epoch0/sample0/", "val/epoch0/sample0/")),
    "forward": ("forward", ("eval/head/", "train/head/"), ()),
    "metric": ("metric", ("",), ()),
    "loss": ("loss", ("mostly", "heavy", "all_void"), ()),
    "backward": ("backward", ("loss/", "grad/conv_out", "grad/head", "grad/aux"), ()),
    "lr_schedule": ("lr", ("lr/",), ()),
    "optimizer": (
        "optimizer",
        # BiSeNetV2 calls its last layers head.conv_out
        tuple(
            f"step5/{k}/{n}" for k in ("param", "momentum") for n in ("conv_out", "head.conv_out")
        ),
        (),
    ),
    "training": ("train_align", ("loss/", "lr/", "val/"), ()),
}
"""Step -> (file name, prefixes of the float64 keys, prefixes of the float32 keys).

reprod_log knows one absolute threshold, which float32 logits of size 100 exceed by rounding alone.
The pairs hold what decides, the float64 run; float32 is in our own logs with its rounding floor.
"""
_OF_LAST_LAYER: Mapping[str, tuple[str, ...]] = {
    "backward": ("grad/",),
    "optimizer": ("step5/param/", "step5/momentum/"),
}
"""Step -> kinds of keys of which a network without such names gives its last layer's."""
LARGEST = 300_000
"""Elements; of a larger tensor every n-th one goes in, to keep the files small."""


def artefact_arrays(step: str, dtype: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the floating arrays of a record that go into the step's .npy pair."""
    _, wide, narrow = WANTED[step]
    chosen = _chosen(step, wide if dtype == "float64" else narrow, list(arrays))
    return {
        # a copy: a view would hold the whole record, whose file has gone
        f"{key}/{dtype}": array.reshape(-1)[:: -(-array.size // LARGEST)].copy()
        if array.size > LARGEST
        else array.copy()
        for key, array in arrays.items()
        if key in chosen and array.dtype.kind in "fi"
    }


def _chosen(step: str, prefixes: tuple[str, ...], keys: Sequence[str]) -> set[str]:
    chosen = {key for key in keys if prefixes and key.startswith(prefixes)}
    for kind in _OF_LAST_LAYER.get(step, ()) if prefixes else ():
        own = [key for key in keys if key.startswith(kind)]
        if own and not chosen.intersection(own):
            layer = own[-1].rpartition(".")[0]
            chosen |= {key for key in own if key.rpartition(".")[0] == layer}
    return chosen


def remove_artefacts(folder: Path, steps: Iterable[str]) -> None:
    """Delete the artefacts of steps that are run again: none may outlive a failing run."""
    for step in steps:
        name = WANTED[step][0]
        for path in (folder / f"{name}_diff.log", *(folder / f"{name}_{s}.npy" for s in SIDES)):
            path.unlink(missing_ok=True)


def write_artefacts(
    folder: Path, artefacts: Mapping[str, Mapping[str, Mapping[str, Array]]]
) -> dict[str, bool]:
    """Write the .npy pairs into ``folder`` and let reprod_log compare them.

    Args:
        folder: logs/<config>/log_reprod.
        artefacts: step -> side -> key -> array.

    Returns:
        Name of each pair -> reprod_log's own verdict; empty when it is not installed.
    """
    for step, sides in artefacts.items():
        name = WANTED[step][0]
        if not all(sides.get(side) for side in SIDES):
            raise RuntimeError(f"no arrays of step {step} for reprod_log: it would pass by itself")
        for side in SIDES:
            # reprod_log's file format: a pickled dict, written by numpy alone
            pair = np.array(dict(sides.get(side, {})), dtype=object)
            with (
                atomic_path(folder / f"{name}_{side}.npy") as temporary,
                temporary.open("wb") as stream,
            ):
                np.save(stream, pair)
    if find_spec("reprod_log") is None:
        return {}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.reprod", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"reprod_log failed on {folder}:\n{done.stderr[-2000:]}")
    verdicts: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return verdicts


def _compare(folder: Path) -> dict[str, bool]:
    from reprod_log import ReprodDiffHelper

    verdicts: dict[str, bool] = {}
    for reference in sorted(folder.glob("*_torch.npy")):
        name = reference.name.removesuffix("_torch.npy")
        helper: Any = ReprodDiffHelper()
        pair = [helper.load_info(str(folder / f"{name}_{side}.npy")) for side in SIDES]
        helper.compare_info(*pair)
        with atomic_path(folder / f"{name}_diff.log") as temporary:
            helper.report(diff_threshold=THRESHOLD, path=str(temporary))
            text = temporary.read_text(encoding="utf-8")
        # its logger keeps every file it was ever given and repeats later lines in all of them
        logging.getLogger("root").handlers.clear()
        verdicts[name] = "diff check passed" in text and "diff check failed" not in text
    return verdicts


def main() -> int:
    """Compare every pair in the folder named on the command line."""
    verdicts = _compare(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(verdicts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
