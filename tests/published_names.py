"""Names of published checkpoints, and checkpoints of names without their numbers."""

import json
from pathlib import Path

import numpy as np

from common.checkpoints import Checkpoint, checkpoint_from


def small_checkpoint(names: list[str], *, counted: bool = False) -> Checkpoint:
    content = {name: np.zeros(1, dtype=np.float32) for name in names}
    return checkpoint_from(content, where="w.pth", counted=counted)


def read_keys(folder: Path, name: str) -> tuple[dict[str, list[int]], dict[str, str]]:
    content = json.loads((folder / f"{name}.json").read_text())
    return content["keys"], content.get("aliases", {})
