"""How fast label files are made from polygons, against the official json2labelImg.

    python -m benchmarks.label_preparation
    python -m benchmarks.label_preparation --data CITYSCAPES

Both read the same annotations, write PNGs of train ids and are measured in turn on every file, in
this one process; the pixels must be equal. The ratio is of CPU seconds, so it is per core.
Without --data, the annotations are the synthetic scenes' at 1024 x 2048, and as many again with
100 random polygons of up to 60 points, about what a busy street has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.allocator import keep_freed_memory
from common.prepare.cityscapes import LABEL_IDS, label_from_polygons
from common.prepare.labels import LabelJob, make_label
from fake_data.scenes import generate

HW = (1024, 2048)
POLYGONS = 100


def busy_annotation(seed: int) -> dict[str, Any]:
    """Return an annotation of random star-shaped polygons, the later the smaller."""
    rng = np.random.default_rng(seed)
    names = sorted(LABEL_IDS)
    objects: list[dict[str, Any]] = []
    for number in range(POLYGONS):
        centre = rng.uniform((0, 0), (HW[1], HW[0]))
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 60))))
        radii = rng.uniform(10, 400) * (1 - number / 120) * rng.uniform(0.6, 1, len(angles))
        around = np.stack([np.cos(angles) * radii, np.sin(angles) * radii / 2], axis=1)
        points = np.clip(np.rint(centre + around), 0, (HW[1] - 1, HW[0] - 1)).astype(int)
        label = names[int(rng.integers(len(names)))]
        objects.append({"label": label, "polygon": points.tolist()})
    return {"imgHeight": HW[0], "imgWidth": HW[1], "objects": objects}


def annotation_files(root: Path | None, scratch: Path, *, count: int) -> list[Path]:
    """Return annotation files: of a real data set, or made up."""
    if root is None:
        root = generate(scratch / "scenes", train=count, val=0, size_hw=HW)
        busy = root / "gtFine" / "train" / "busy"
        busy.mkdir()
        for number in range(count):
            path = busy / f"busy_{number:06d}_000019_gtFine_polygons.json"
            path.write_text(json.dumps(busy_annotation(number)), encoding="utf-8")
        count *= 2
    files = sorted((root / "gtFine").glob("*/*/*_gtFine_polygons.json"))
    if not files:
        raise SystemExit(f"{root}: no gtFine/<split>/<city>/*_gtFine_polygons.json")
    return files[:: max(len(files) // count, 1)][:count]


def measure(files: list[Path], scratch: Path) -> tuple[float, float]:
    """Return the CPU seconds of (the official tool, ours) for all files, in turn on each."""
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    official, ours = 0.0, 0.0
    for number, path in enumerate(files):
        theirs_png, ours_png = scratch / "official.png", scratch / "ours.png"
        for tool in ("official", "ours") if number % 2 else ("ours", "official"):
            start = time.process_time()
            if tool == "official":
                json2labelImg(str(path), str(theirs_png), "trainIds")
                official += time.process_time() - start
            else:
                job = LabelJob(path, ours_png)
                make_label(job, draw=label_from_polygons, resume=False)
                ours += time.process_time() - start
        theirs = cv2.imread(str(theirs_png), cv2.IMREAD_UNCHANGED)
        if not np.array_equal(theirs, cv2.imread(str(ours_png), cv2.IMREAD_UNCHANGED)):
            raise SystemExit(f"{path}: the two label files differ")
    return official, ours


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Label preparation against json2labelImg.")
    parser.add_argument("--data", type=Path, help="Cityscapes folder; default: made up")
    parser.add_argument("--files", type=int, default=16, help="annotations (default 16)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds measured (default 5)")
    chosen = parser.parse_args()
    # as a process of `bisenet prepare`
    cv2.setNumThreads(0)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        files = annotation_files(chosen.data, scratch, count=chosen.files)
        measure(files[:2], scratch)
        results = [measure(files, scratch) for _ in range(chosen.rounds)]
    ratios = [official / ours for official, ours in results]
    official_ms, ours_ms = (statistics.median(r[i] for r in results) for i in (0, 1))
    per_file = 1e3 / len(files)
    print(f"{len(files)} annotations, {chosen.rounds} rounds, all pixels equal")
    print(f"json2labelImg {official_ms * per_file:.2f} ms, ours {ours_ms * per_file:.2f} ms of CPU")
    print(
        f"json2labelImg / ours: median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
