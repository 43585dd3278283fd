"""The outcome of a data check as text, JSON and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.classes import ClassTable
from common.config_sections import DataConfig
from common.files import write_text
from common.pictures import save_png
from common.prepare.check import DataCheck, SplitCheck
from common.prepare.check_pictures import histogram_picture, samples_picture

REPORT = "check.json"


def write_check(
    check: DataCheck, folder: Path, *, data: DataConfig, classes: int, table: ClassTable
) -> list[Path]:
    """Write check.json and, of each split, a histogram and a picture of samples; return the files.

    Raises:
        InputError: the folder cannot be written.
    """
    paths = [folder / REPORT]
    write_text(paths[0], json.dumps(as_json(check, data=data, table=table), indent=1) + "\n")
    for split, one in check.splits.items():
        title = f"{data.dataset}, {split}: {len(one.samples)} samples, share of pixels"
        path = folder / f"histogram_{split}.png"
        save_png(path, histogram_picture(one, table, title=title))
        paths.append(path)
        picture = samples_picture(one.good, table, classes=classes, ignore_index=data.ignore_index)
        if picture is not None:
            paths.append(folder / f"samples_{split}.png")
            save_png(paths[-1], picture)
    return paths


def as_json(check: DataCheck, *, data: DataConfig, table: ClassTable) -> dict[str, Any]:
    """Return the outcome as plain values."""
    return {
        "dataset": data.dataset,
        "passed": not check.problems,
        "problems": [
            {"kind": problem.kind, "file": str(problem.file), "text": problem.text}
            for problem in check.problems
        ],
        "warnings": check.warnings,
        "splits": {split: _split_json(one, table) for split, one in check.splits.items()},
    }


def check_text(check: DataCheck, *, shown: int = 50) -> str:
    """Return the outcome for a person; of many problems the first ones."""
    lines: list[str] = []
    for split, one in check.splits.items():
        sizes = sorted(one.sizes)
        text = f"{split}: {len(one.samples)} samples, {len(one.good)} without a problem"
        if sizes:
            others = f" to {_size(sizes[-1])}, {len(sizes)} sizes" if len(sizes) > 1 else ""
            text += f", {_size(sizes[0])}{others}"
        lines.append(text)
        statistics = one.statistics()
        if statistics is not None:
            mean, std = (", ".join(f"{value:.4f}" for value in row) for row in statistics)
            lines.append(f"  mean ({mean}), std ({std}) of R, G, B")
    lines += [f"warning: {warning}" for warning in check.warnings]
    if check.problems:
        lines.append(f"{len(check.problems)} problems:")
    lines += [f"  {p.kind}: {p.file}: {p.text}" for p in check.problems[:shown]]
    if len(check.problems) > shown:
        lines.append(f"  and {len(check.problems) - shown} more in {REPORT}")
    return "\n".join(lines)


def _size(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[0]}x{size_hw[1]}"


def _split_json(one: SplitCheck, table: ClassTable) -> dict[str, Any]:
    statistics = one.statistics()
    pixels = max(int(one.labels.sum()), 1)
    return {
        "samples": len(one.samples),
        "without_problem": len(one.good),
        "sizes_hw": {_size(size): count for size, count in sorted(one.sizes.items())},
        "mean": statistics[0] if statistics else None,
        "std": statistics[1] if statistics else None,
        "classes": [
            {
                **{"name": name, "pixels": int(count), "share": int(count) / pixels},
                "images": int(images),
            }
            for name, count, images in zip(
                (*table.names, "void"), one.labels, one.label_images, strict=True
            )
        ],
    }
