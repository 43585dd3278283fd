"""A whole, small set of logs as a passing verification writes it, for the review to judge.

Written by the pipeline's own writers, of the present steps, code and configuration; only the
numbers in the rows are made up. reprod_log's files are written here, for reprod_log would load
Paddle.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import load_config
from common.files import file_digest
from common.provenance import ROOT, code_digest
from pipeline import chain, report
from pipeline.judge import Result
from pipeline.outcome import Options, Outcome
from pipeline.report import write_reports
from pipeline.reprod import WANTED
from pipeline.review_fresh import DATA_SET, Tree
from pipeline.review_values import KINDS, TRAINABLE
from pipeline.rounding import CROSS_FACTOR, ULP
from pipeline.steps import SIDES, STEP_NAMES, STEPS, Step
from pipeline.verdicts import Row, Verdict, bound_for

NAME, MODEL = "bisenetv1_cityscapes", "bisenetv1"
COMMIT = "0123456789ab"
MEAN = 2.0**-60
FLOOR = 1e-7
DATE = "2026/11/20 13:39:55"
CONFIG = load_config(
    ROOT / "configs" / f"{NAME}.yml", overrides=("verify.image_hw=[32, 64]", "verify.batch_size=2")
)
COMMAND = (
    f"bisenet verify --config configs/{NAME}.yml --set 'verify.image_hw=[32, 64]' "
    "--set verify.batch_size=2"
)


def tree() -> Tree:
    """Return the tree that the logs are of, with a commit that git need not know."""
    return Tree(ROOT, commits={COMMIT: code_digest()})


def keys_of(step: Step, dtype: str) -> Iterator[str]:
    """Yield the tensors of a step: each kind that it must have, and every parameter."""
    named = ("grad", "rounding", "group", "state", "momentum")
    for kind in KINDS[step.name, dtype]:
        if kind.startswith(("step", "moved/")) or kind in named:
            for number in range(TRAINABLE[MODEL]):
                layer = f"layer{number}" if number else "conv_out"
                yield f"{kind}/{layer}.weight"
        elif kind in ("train", "val") and step.name == "data":
            yield f"{kind}/epoch0/sample0/0_read/image"
        elif kind.endswith("loss"):
            yield from (f"{kind}/total", f"{kind}/main")
        else:
            yield f"{kind}/x" if kind != "label" else "label"


def row_of(step: Step, dtype: str, key: str) -> Row:
    """Return a passing row, judged by the present bounds."""
    own: dict[str, Any] = {"mean_abs": MEAN, "max_abs": MEAN, "max_rel": MEAN, "size": 30}
    if dtype == "float32" and "float64" in step.dtypes:
        if key.startswith("rounding/"):
            own |= {"relative": 1e-7, "bound": 1e-6, "max_rel": 1.0}
            return Row(key, Verdict.PASS, **own, self_ratio=1.0)
        bound = CROSS_FACTOR * FLOOR + 4 * ULP
        return Row(
            key, Verdict.PASS, **own, relative=1e-7, bound=bound, floor=FLOOR, self_ratio=1.0
        )
    bound = bound_for(key, step.bounds).relative
    if not bound:
        return Row(key, Verdict.PASS, size=30)
    return Row(key, Verdict.PASS, **own, relative=bound / 100, bound=bound)


def results(digests: dict[str, str]) -> list[Result]:
    """Return passing results of all steps."""
    found: list[Result] = []
    for step in STEPS:
        for dtype in step.dtypes:
            meta = {
                side: {
                    "side": side,
                    "versions": {side: _pinned(side), "numpy": _pinned("numpy")},
                    "frameworks": [side],
                    "inputs": digests.get(step.name, "by rule"),
                    "data": digests[DATA_SET],
                    "weights": "by rule",
                    "digest": f"{ord(side[0]) + len(step.name) + len(dtype):064x}",
                }
                for side in SIDES
            }
            rows = tuple(row_of(step, dtype, key) for key in keys_of(step, dtype))
            seconds = {side: 1.0 for side in SIDES}
            found.append(Result(step, dtype, Verdict.PASS, rows, meta=meta, seconds=seconds))
    return found


def _pinned(name: str) -> str:
    package = {"paddle": "paddlepaddle"}.get(name, name)
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def write_logs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ``folder/bisenetv1_cityscapes`` with everything a run of it leaves; return it."""
    monkeypatch.setattr(report, "git_commit", lambda: COMMIT)
    own = tree()
    lists = {"train_list": None, "val_list": None}
    config = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update=lists)})
    out = folder / NAME
    options = Options(out=out, steps=STEP_NAMES, command=COMMAND)
    digests = own.inputs(config, real=False)
    outcome = Outcome(config, options, results(digests), seconds=1.0)
    write_reports(outcome)
    write_reprod_files(out / "log_reprod", outcome)
    chain.renew(out, "log_reprod")
    chain.link(folder)
    return out


def write_reprod_files(folder: Path, outcome: Outcome) -> None:
    """Write what reprod_log would: a pair and a log per step."""
    folder.mkdir()
    for step, (name, wide, narrow) in WANTED.items():
        arrays: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
        lines: list[str] = []
        for result in outcome.results:
            prefixes = wide if result.dtype == "float64" else narrow
            if result.step.name != step or not prefixes:
                continue
            for row in result.rows:
                if not row.key.startswith(prefixes):
                    continue
                key = f"{row.key}/{result.dtype}"
                arrays["torch"][key] = np.zeros(row.size)
                arrays["paddle"][key] = np.full(row.size, row.mean_abs)
                lines += [f"{key}: ", f"\tmean diff: check passed: True, value: {row.mean_abs}"]
        for side in SIDES:
            np.save(folder / f"{name}_{side}.npy", np.array(arrays[side], dtype=object))
        text = "".join(f"[{DATE}] root INFO: {line}\n" for line in [*lines, "diff check passed"])
        (folder / f"{name}_diff.log").write_text(text)


def reseal(folder: Path) -> None:
    """Seal a changed folder again, as whoever edits a log can."""
    summary = json.loads((folder / chain.SUMMARY).read_text())
    del summary[chain.KEY]
    summary["logs"] = {path.name: file_digest(path) for path in folder.glob("*_diff.log")}
    (folder / chain.SUMMARY).unlink()
    chain.seal(folder, summary, written=())
    chain.link(folder.parent)


def copied(folder: Path, target: Path) -> Path:
    """Return a copy of a configuration's logs, with the seals of the folder above."""
    shutil.copytree(folder.parent, target)
    return target / folder.name
