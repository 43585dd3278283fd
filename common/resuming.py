"""Whether a training goes on from a checkpoint: what is refused, and what is warned of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.checkpoint_store import BEST, Checkpoint, CheckpointStore
from common.config import Config
from common.errors import CheckpointError
from common.stopping import EarlyStopping
from common.train_state import EMA, MOMENTUM, WEIGHTS, Progress, flat_config

_MEASURE = ("eval", "data.val_list")
"""Keys that decide what a mIoU means."""


def require_new(store: CheckpointStore) -> None:
    """Require that no training was saved in the folder, for one that begins there.

    Raises:
        CheckpointError: one was.
    """
    found = store.latest()
    if found is not None:
        raise CheckpointError(
            f"{store.folder} holds a training already, at iteration {found.iteration}; go on with "
            "--resume_model auto, or choose another --save_dir"
        )


def require_state(checkpoint: Checkpoint, config: Config) -> None:
    """Require that a checkpoint holds all that a training goes on from.

    Raises:
        CheckpointError: naming what is missing, and what can be done with the rest.
    """
    needed = [WEIGHTS, MOMENTUM, *([EMA] if config.train.ema_decay is not None else [])]
    missing = [name for name in needed if name not in checkpoint.files]
    if not missing:
        return
    weights = checkpoint.folder / WEIGHTS
    if checkpoint.folder.name == BEST and MOMENTUM in missing:
        raise CheckpointError(
            f"{checkpoint.folder}: best/ holds weights only; start from it with --weights {weights}"
            ", or go on from a folder in checkpoints/"
        )
    raise CheckpointError(
        f"{checkpoint.folder}: lacks {', '.join(missing)}, without which the training cannot go "
        f"on as it was; go on from another checkpoint, or start from its weights: "
        f"--weights {weights} --save_dir NEW"
    )


def require_own_place(checkpoint: Checkpoint, store: CheckpointStore) -> None:
    """Require that a run goes on in the checkpoint's own folder, or in one without a training.

    Raises:
        CheckpointError: the folder holds another training, which would be overwritten.
    """
    if store.holds(checkpoint.folder) or not store.is_used():
        return
    raise CheckpointError(
        f"{store.folder} holds another training than {checkpoint.folder}, and would lose its best/ "
        "and its checkpoints to it; choose a new --save_dir, or that of the checkpoint. "
        f"To go on with what {store.folder} holds: --resume_model auto"
    )


def changes_told(
    saved: Progress, *, where: str, code_digest: str, versions: Mapping[str, str]
) -> list[str]:
    """Return warnings about what is allowed to differ, but ends the equality to the bit.

    Args:
        saved: of the checkpoint; one of an older version does not tell its code and versions.
        where: names the checkpoint.
        code_digest: of this run.
        versions: of this run, package -> version.
    """
    told: list[str] = []
    if saved.code_digest and saved.code_digest != code_digest:
        told.append(
            f"{where} was made by other code ({saved.code_digest[:12]}, commit {saved.commit}; now "
            f"{code_digest[:12]}): the run may not end as one never interrupted"
        )
    differing = [
        f"{name} {version} -> {versions.get(name, 'none')}"
        for name, version in saved.versions.items()
        if versions.get(name) != version
    ]
    if differing:
        told.append(
            f"{where} was made with other versions ({', '.join(differing)}): the run may not end "
            "as one never interrupted"
        )
    return told


def take_up_best(
    stopping: EarlyStopping, saved: Progress, config: Config, *, own_place: bool
) -> tuple[str | None, bool]:
    """Give early stopping its state back, unless what a mIoU means has changed since.

    Args:
        stopping: new.
        saved: of the checkpoint.
        config: of this run.
        own_place: the run goes on in the folder of the checkpoint, where best/ is.

    Returns:
        What to warn of, if anything; and whether best/ is to be set aside.
    """
    old, new = flat_config(saved.config), flat_config(config.model_dump(mode="json"))
    changed = [
        f"{key} {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key) and _is_measure(key)
    ]
    best: Any = saved.stopping.get("best")
    if changed and best is not None:
        at = saved.stopping.get("best_iteration")
        return (
            f"mIoU is measured in another way now ({', '.join(changed)}): the best so far, "
            f"{best:.4f} at iteration {at}, counts no more; its best/ is set aside, and "
            "train.patience counts anew"
        ), own_place
    if changed:
        return None, False
    stopping.load_state_dict(saved.stopping)
    if best is not None and not own_place:
        return (
            f"best/ is empty until a mIoU is above {best:.4f}, that of iteration "
            f"{stopping.best_iteration}, which is kept in the folder of the checkpoint"
        ), False
    return None, False


def _is_measure(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _MEASURE)
