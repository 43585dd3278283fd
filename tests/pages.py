"""Logs of a passing and of a failing port, made by the pipeline's own code from arrays by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from evidence import META

from common.config import load_config
from pipeline.chaos import perturbation_rows
from pipeline.diagnose import Blame, first_divergence
from pipeline.differences import Array
from pipeline.evidence import Collector
from pipeline.failure import Hint
from pipeline.judge import Result, compare_float32, compare_float64
from pipeline.outcome import Options, Outcome
from pipeline.records import record_name, write_arrays, write_record
from pipeline.report import write_reports
from pipeline.steps import step_named
from pipeline.verdicts import overall

CONFIG = load_config(
    Path(__file__).resolve().parent.parent / "configs" / "bisenetv1_cityscapes.yml"
)
ODD_NAME = "layer/<script>alert('x')</script>&\"quoted\""
"""No name that breaks out of a page may break it."""
Pair = tuple[dict[str, Array], dict[str, Array]]


def write_logs(folder: Path, *, wrong: bool = False) -> None:
    """Write the logs of a run into a folder; ``wrong`` puts a fault into layer 3."""
    work = folder.parent / f"{folder.name}.work"
    rng = np.random.default_rng(0)
    collector, results = Collector(), list[Result]()
    frame = {"frame0": rng.standard_normal((1, 3, 64, 96))}
    write_arrays(work / "inputs" / "forward.npz", frame)
    rounding = {
        f"{run}/loss/total": np.linspace(3, 1, 6, dtype=np.float32) + np.float32(1e-4)
        for run in ("up", "down")
    }
    write_record(work, record_name("training", "float32", "torch", "perturbed"), rounding, {})
    for step, maker in MAKERS.items():
        pair64 = maker(np.random.default_rng(1), wrong)
        pair32 = tuple({k: _narrow(a) for k, a in arrays.items()} for arrays in pair64)
        for dtype in step_named(step).dtypes:
            pair = pair32 if dtype == "float32" and step != "data" else pair64
            result = _judged(step, dtype, (pair64, pair32), work)
            if wrong and (step, dtype) == ("forward", "float64"):
                result = replace(result, blames=(BLAME,))
            results.append(collector.add(result, pair, work=work, config=CONFIG))
    options = Options(out=folder, steps=tuple(MAKERS), command="bisenet verify --config c.yml")
    outcome = Outcome(CONFIG, options, results, seconds=1.5, evidence=collector)
    write_audit(folder)
    write_reports(outcome)


def _narrow(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _judged(step: str, dtype: str, pairs: Any, work: Path) -> Result:
    wide, narrow = pairs
    row = step_named(step)
    if dtype == "float32" and "float64" in row.dtypes:
        rows = compare_float32(row, narrow, wide, ignore_index=255)
        rows += perturbation_rows(row, narrow, work)
    else:
        rows = compare_float64(row, wide, ignore_index=255)
    found = first_divergence(step, rows)
    seconds = {"torch": 1.0, "paddle": 2.0}
    return Result(row, dtype, overall(rows), tuple(rows), found, meta=META, seconds=seconds)


def _layers(rng: np.random.Generator, wrong: bool) -> Pair:
    names = [*(f"eval/layer/l{n}" for n in range(6)), f"eval/{ODD_NAME}", "eval/layer/last"]
    torch = {name: rng.standard_normal((2, 3, 4)) for name in names}
    torch["frame0/head/main"] = rng.standard_normal((1, 19, 64, 96))
    paddle = {name: a * (1 + 1e-15) for name, a in torch.items()}
    if wrong:
        for name in names[3:]:
            paddle[name] = torch[name] * 1.01
        paddle["frame0/head/main"] = torch["frame0/head/main"] + 0.05 * rng.standard_normal(
            (1, 19, 64, 96)
        )
    return torch, paddle


def _samples(rng: np.random.Generator, wrong: bool) -> Pair:
    torch: dict[str, Array] = {}
    for prefix in ("train_padded", "train", "val"):
        where = f"{prefix}/epoch0/sample0/5_dataset"
        torch[f"{where}/image"] = rng.standard_normal((3, 32, 48)).astype(np.float32)
        torch[f"{where}/label"] = rng.integers(0, 19, (32, 48))
    paddle = {key: a.copy() for key, a in torch.items()}
    if wrong:
        paddle["val/epoch0/sample0/5_dataset/image"][:, :, 5:9] += 0.5
    return torch, paddle


def _gradients(rng: np.random.Generator, wrong: bool) -> Pair:
    torch: dict[str, Array] = {"label": rng.integers(0, 19, (2, 4))}
    torch["loss/total"] = np.asarray(2.5)
    for name in ("a", "b", "c"):
        torch[f"layer/{name}"] = rng.standard_normal((2, 3))
        torch[f"grad/{name}.weight"] = rng.standard_normal((3, 3))
        torch[f"buffer/{name}.running_mean"] = rng.standard_normal(3)
    paddle = dict(torch)
    if wrong:
        paddle["buffer/b.running_mean"] = 0.9 * torch["buffer/b.running_mean"]
    return torch, paddle


def _rates(_: np.random.Generator, wrong: bool) -> Pair:
    series = np.linspace(1e-2, 0, 500) ** 0.9
    return {"lr/decay": series}, {"lr/decay": np.roll(series, 1) if wrong else series}


def _training(rng: np.random.Generator, wrong: bool) -> Pair:
    loss = np.linspace(3, 1, 6)
    matrix = rng.integers(1, 50, (20, 19))
    matrix[:, 4] = matrix[4] = 0
    torch = {"loss/total": loss, "val/matrix": matrix, "val/miou": np.asarray(0.3)}
    return torch, {**torch, "loss/total": loss * (1.02 if wrong else 1)}


MAKERS: Mapping[str, Any] = {
    "data": _samples,
    "forward": _layers,
    "backward": _gradients,
    "lr_schedule": _rates,
    "training": _training,
}


def write_audit(folder: Path) -> None:
    finding = {"model": "bisenetv1", "step": "forward", "dtype": "float64", "title": "eps < 1e-5",
               "expected": "eval/*", "text": "layer l1 (eval)", "relative": "1.0e-03"}  # fmt: skip
    findings = [
        {**finding, "fault": "eps", "found": "eval/layer/l1", "caught": True, "rounding": None},
        {**finding, "fault": "bias", "found": "", "text": "", "caught": False, "rounding": "2.0"},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    audit = {"commit": "0", "clean": {"bisenetv1 forward float64": "PASS"}, "findings": findings}
    (folder / "audit.json").write_text(json.dumps(audit))


HINT = Hint("constant-factor", "is 1.01 times <the reference>", before=1e-2, residual=2.2e-16)
BLAME = Blame(
    key="eval/layer/l3",
    kind="layer",
    name="l3",
    where="layer l3 (eval)",
    folder="failures/01_forward_float64",
    hints=(HINT,),
)
