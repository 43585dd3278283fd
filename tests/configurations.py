"""A small configuration, variations of it, and what is said about a wrong one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import load_config
from common.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "model": {"name": "bisenetv1", "classes": 19},
    "data": {
        "dataset": "cityscapes",
        "root": "data/cityscapes",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "crop_hw": [64, 128],
        "batch_size": 2,
    },
    "optimizer": {"base_lr": 0.01, "weight_decay": 0.0005},
    "schedule": {"max_iters": 100},
}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def with_value(dotted: str, value: Any) -> dict[str, Any]:
    """Return the minimal configuration with one value changed; ``...`` removes the key."""
    content = copy.deepcopy(MINIMAL)
    section: dict[str, Any] = content
    *sections, key = dotted.split(".")
    for name in sections:
        section = section.setdefault(name, {})
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return content


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides)
    return str(caught.value)
