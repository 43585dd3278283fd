"""How a training begins: with which checkpoint, found by every rank alike, and in which folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.checkpoint_store import Checkpoint, CheckpointStore
from common.config import Config
from common.errors import CheckpointError
from common.log_lines import set_aside
from common.resuming import (
    changes_told,
    require_new,
    require_own_place,
    require_state,
    take_up_best,
)
from common.run_log import LOG_NAME
from common.stopping import EarlyStopping
from common.train_settings import AUTO
from common.train_state import Progress, check_resumable
from for_torch.backend import NAME, versions
from for_torch.distributed import all_reduce_array, barrier, is_main, rank, world_size
from for_torch.trainer import Trainer


@dataclass(frozen=True)
class Resumed:
    """What a run that goes on has taken up."""

    progress: Progress
    own_place: bool
    """The checkpoint is of this output folder."""
    best_is_void: bool
    """best/ was measured in another way, and is to be set aside."""


def find_checkpoint(store: CheckpointStore, *, asked: str | None) -> Checkpoint | None:
    """Return the checkpoint to go on from, or None for a new run.

    Args:
        store: of the output folder.
        asked: a folder, AUTO, or None for a new run.

    Raises:
        CheckpointError: it cannot be used, the folder holds a training that was not asked for, or
            the ranks do not see the same.
    """
    if asked is None:
        require_new(store)
        return None
    found = store.latest() if asked == AUTO else store.load(Path(asked))
    # every rank has looked by itself: a folder that they do not share would show here
    own = -1 if found is None else found.iteration
    if int(all_reduce_array(np.array([own]))[0]) != own * world_size():
        raise CheckpointError(
            f"rank {rank()} finds iteration {own} in {store.folder}, others find another one; all "
            "processes must see the same folder"
        )
    return found


def take_up(
    checkpoint: Checkpoint,
    trainer: Trainer,
    stopping: EarlyStopping,
    *,
    config: Config,
    store: CheckpointStore,
) -> Resumed:
    """Check a checkpoint and restore the training's state; what to warn of goes to the trainer.

    Args:
        checkpoint: from find_checkpoint.
        trainer: before its first step.
        stopping: new.
        config: of the run.
        store: of the output folder.

    Raises:
        CheckpointError: it is no checkpoint to go on from, here or with this configuration.
        WeightsError: it is of another network.
    """
    where = str(checkpoint.folder)
    progress = Progress.from_meta(checkpoint.meta, where=where)
    require_state(checkpoint, config)
    check_resumable(progress, config, framework=NAME, world_size=world_size(), where=where)
    require_own_place(checkpoint, store)
    own_place = store.holds(checkpoint.folder)
    trainer.restore(checkpoint, progress)
    warning, void = take_up_best(stopping, progress, config, own_place=own_place)
    trainer.warnings += checkpoint.warnings
    trainer.warnings += changes_told(
        progress, where=where, code_digest=trainer.code_digest, versions=versions()
    )
    trainer.warnings += [warning] if warning is not None else []
    return Resumed(progress, own_place, void)


def prepare_folder(
    store: CheckpointStore,
    trainer: Trainer,
    *,
    resumed: Resumed | None,
    saves: int,
    evaluates: bool,
) -> None:
    """Make the output folder ready, once every rank has found its checkpoint in it.

    Args:
        store: of the output folder.
        trainer: whose weights tell what a checkpoint takes.
        resumed: what was taken up.
        saves: checkpoints that the run will write.
        evaluates: the run keeps the best weights.

    Raises:
        CheckpointError: it cannot be written, or there is too little room.
    """
    # nobody looks for checkpoints any more when the remains of killed runs are removed
    barrier()
    if is_main():
        best = weights_bytes(trainer)
        copies = 2 + (trainer.average is not None)
        store.check_writable(
            expected_bytes=copies * best, saves=saves, best_bytes=best if evaluates else 0
        )
        if resumed is not None and resumed.best_is_void:
            store.set_best_aside(trainer.iteration)
        if resumed is not None and not resumed.own_place:
            # of a run that ended before its first checkpoint
            set_aside(store.folder / LOG_NAME)
    barrier()


def weights_bytes(trainer: Trainer) -> int:
    """Return the size of the evaluated weights, which are most of best/."""
    return sum(array.nbytes for array in trainer.evaluated_arrays().values())
