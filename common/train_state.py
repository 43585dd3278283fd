"""What a checkpoint of a training holds besides weights, and whether one may be gone on from.

A checkpoint has weights.safetensors (canonical names, as `bisenet convert` reads them),
momentum.safetensors, ema.safetensors if an average is kept, config.yml, and in its manifest what
`Progress` lists. No state of a random generator is stored, because none is carried from one
iteration to the next: the generator of the framework is seeded anew for every forward pass from
(seed, iteration, rank), as the samples' are from (seed, epoch, index). Paddle could not store its
own: on a CPU it shows no more of it than the seed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.config import Config
from common.errors import CheckpointError

WEIGHTS, MOMENTUM, EMA, CONFIG = (
    "weights.safetensors",
    "momentum.safetensors",
    "ema.safetensors",
    "config.yml",
)

_MODEL_STREAM = 3
"""First word of the spawn key; 1 and 2 are the data path's (common/sampling.py)."""

_FREE = (
    *("description", "source", "published", "gpus", "verify", "eval"),
    *("model.weights", "model.backbone_weights"),
    *("data.root", "data.workers", "data.val_list"),
    *("train.log_interval", "train.save_interval", "train.eval_interval"),
    *("train.keep_checkpoint_max", "train.patience", "train.loader_timeout_s"),
)
"""Keys that may change in a resumed run: no weight depends on them."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands; together with the arrays it is all that a resumed run needs."""

    iteration: int
    """Optimizer steps done."""
    schedule_steps: int
    epoch: int
    """0-based epoch of the next sample."""
    samples: int
    """Samples drawn so far by all processes: the position in the endless sample order."""
    seed: int
    world_size: int
    framework: str
    precision: str
    scaler: dict[str, float]
    """Of the gradient scaler; empty without one."""
    stopping: dict[str, Any]
    """Of early stopping and the best mIoU."""
    evaluated: int
    """Iteration of the last evaluation, 0 before the first."""
    commit: str
    config_digest: str
    config: dict[str, Any]
    code_digest: str = ""
    """Of the sources; empty in checkpoints of before it was told."""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Package -> version."""

    def as_meta(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @staticmethod
    def from_meta(meta: Mapping[str, Any], *, where: str) -> Progress:
        """Return what as_meta has returned.

        Raises:
            CheckpointError: entries are missing.
        """
        needed = [
            entry.name
            for entry in fields(Progress)
            if entry.default is MISSING and entry.default_factory is MISSING
        ]
        missing = [name for name in needed if name not in meta]
        if missing:
            raise CheckpointError(
                f"{where}: the manifest lacks {', '.join(missing)}; expected a checkpoint of a "
                "training. To start from its weights alone, use --weights"
            )
        names = [entry.name for entry in fields(Progress)]
        return Progress(**{name: meta[name] for name in names if name in meta})


def forward_seed(seed: int, *, iteration: int, rank: int, part: int) -> int:
    """Return the seed of the framework's generator for one forward pass of training.

    Args:
        seed: of the run.
        iteration: 0-based.
        rank: of this process: ranks drop different activations.
        part: 0-based batch within the iteration, where gradients are accumulated.
    """
    stream = np.random.SeedSequence(seed, spawn_key=(_MODEL_STREAM, iteration, rank, part))
    return int(stream.generate_state(1)[0])


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name (safetensors) and see that they are on the disk."""
    with path.open("wb") as file:
        file.write(save({name: np.array(array, order="C") for name, array in arrays.items()}))
        file.flush()
        os.fsync(file.fileno())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what write_arrays has written, bit for bit.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def check_resumable(
    saved: Progress, config: Config, *, framework: str, world_size: int, where: str
) -> None:
    """Require that a run goes on as it began: framework, recipe and global batch.

    Args:
        saved: of the checkpoint.
        config: of this run.
        framework: of this run, as Progress.framework.
        world_size: processes of this run.
        where: names the checkpoint in the message.

    Raises:
        CheckpointError: it is the other framework's; or listing every key that differs, with both
            values.
    """
    if saved.framework != framework:
        raise CheckpointError(
            f"{where} is of a training with {saved.framework}, this one is with {framework}: their "
            f"kernels round differently, and a resumed run would be neither. Go on with "
            f"--framework {saved.framework}, or take the weights over: "
            f"--weights {Path(where) / WEIGHTS} --save_dir NEW"
        )
    old, new = flat_config(saved.config), flat_config(config.model_dump(mode="json"))
    # the order of samples is the same for every split of one global batch
    for flat, processes in ((old, saved.world_size), (new, world_size)):
        flat["data.batch_size x processes"] = flat.pop("data.batch_size") * processes
    differing = [
        f"  {key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} now"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key) and not _is_free(key)
    ]
    if differing:
        raise CheckpointError(
            f"{where} was made with another configuration; a resumed run would be neither:\n"
            + "\n".join(differing)
            + "\nRestore these values, or start a new run from its weights: "
            "--weights .../weights.safetensors --save_dir NEW"
        )


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def flat_config(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
