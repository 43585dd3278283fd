"""How two ranks end: python endings_program.py SIDE TASK OUT SCENES. Imports one framework.

``share``: several trainings in one process, for the sake of time: clipping, and the command with
early stopping, a signal to rank 1, a loss that is not finite on rank 1, a label that cannot be used
(of the scenes in OUT/bad_scenes). The last one ends the
process as the command would.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training_command import arguments  # noqa: E402

from common.config import Config  # noqa: E402
from tools.train import main as train_command  # noqa: E402

MODULES = ("backend", "distributed", "trainer", "training_run")
CLASSES, SIZE, IMAGES = 5, (64, 64), 8
CLIP_NORM = 0.5
BAD_ITERATION = 3
"""1-based; on rank 1 but for the buffer."""
BAD_LAYER = "detail.S2.1.conv"
BAD_BUFFER = "detail.S2.1.bn.running_mean"


def main() -> None:
    name, task, out, scenes = sys.argv[1:]
    modules = {m: importlib.import_module(f"for_{name}.{m}") for m in MODULES}
    side = SimpleNamespace(name=name, **modules)
    side.backend.set_threads(1)
    sys.exit(TASKS[task](side, Path(out), Path(scenes)))


def share(side: Any, out: Path, scenes: Path) -> int:
    run, distributed = side.training_run, side.distributed
    launched_rank = int(os.environ.get("RANK", os.environ.get("PADDLE_TRAINER_ID", "0")))
    if launched_rank == 0:
        # before the other process is there: this one alone, with the whole batch
        np.savez(out / "clip_alone.npz", **clipped(side))
    distributed.initialise("cpu", timeout_s=300)
    rank, leave = distributed.rank(), run.finalise
    np.savez(out / f"clip_{rank}.npz", **clipped(side))
    # one start for all: the command neither joins the job again nor leaves it
    run.initialise = lambda _device: None
    run.finalise = lambda: None

    def command(case: str, *more: str) -> int:
        own = ("--skip_parity_check", "--num_workers", "0", "--iters", "6", *more)
        return train_command(arguments(side.name, scenes, out / case, *own))

    found = worse_every_time(run)
    codes: dict[str, Any] = {
        "early": command("early", "--do_eval", "--set", "train.patience=1"),
        "miou": found,
    }
    for case, fault in (("signal", send_term), ("synchronised", spoil)):
        with_fault(side, fault)
        codes[case] = command(case, "--set", "train.sync_bn=true")
    with_fault(side, spoil_buffer, rank=0)
    codes["buffer"] = command("buffer", "--set", "train.sync_bn=false")
    codes["data"] = command("data", "--set", f"data.root={out / 'bad_scenes'}")
    (out / f"codes_{rank}.json").write_text(json.dumps(codes))
    run.finalise = leave
    with_fault(side, spoil)
    return command("alone", "--set", "train.sync_bn=false")


def worse_every_time(run: Any) -> list[float]:
    """Take the number of evaluations before it from every mIoU; return where the real ones go."""
    plain = run.mean_iou
    found: list[float] = []

    def mean_iou(matrix: Any, **options: Any) -> float:
        found.append(plain(matrix, **options))
        return found[-1] - len(found) + 1

    run.mean_iou = mean_iou
    return found


def clipped(side: Any) -> dict[str, Any]:
    """Do three clipped steps in float64 on this process's part of the batches."""
    distributed = side.distributed
    world, rank = distributed.world_size(), distributed.rank()
    trainer = side.trainer.Trainer(clip_config(), device="cpu")
    rng = np.random.default_rng(0)
    norms: list[float] = []
    for _ in range(3):
        # parts that differ in size and direction of their gradients
        image = rng.normal(size=(IMAGES, 3, *SIZE)) * np.arange(1, IMAGES + 1).reshape(-1, 1, 1, 1)
        label = rng.integers(0, CLASSES, size=(IMAGES, *SIZE))
        part = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
        batch = {
            "image": side.backend.to_tensor(image[part].astype(np.float32)),
            "label": side.backend.to_tensor(label[part]),
            "name": [f"picture{number}" for number in range(IMAGES)][part],
        }
        norms.append(trainer.step([batch]).grad_norm)
    return {"norms": np.array(norms), **side.backend.state_arrays(trainer.model)}


def clip_config() -> Config:
    """BiSeNetV1, which has no dropout, with plain cross entropy: two halves are one whole."""
    return Config.model_validate(
        {
            "model": {"name": "bisenetv1", "classes": CLASSES},
            "data": {
                **{"dataset": "list", "root": "nowhere", "crop_hw": SIZE, "batch_size": 4},
                **{"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
            },
            "loss": {"ohem": "none"},
            "optimizer": {"base_lr": 0.01, "weight_decay": 5e-4},
            "schedule": {"max_iters": 10},
            "train": {
                **{"precision": "float64", "seed": 3, "sync_bn": True},
                **{"clip_norm": CLIP_NORM},
            },
        }
    )


# ---- faults of one rank -------------------------------------------------------------------------
def with_fault(side: Any, fault: Callable[[Any, Any], None], *, rank: int = 1) -> None:
    """Let the trainer of a rank call the fault before its step of BAD_ITERATION."""
    trainer = side.trainer.Trainer
    plain = vars(trainer).get("plain_step", trainer.step)
    trainer.plain_step = plain

    def step(self: Any, batches: list[dict[str, Any]], *, stop: bool = False) -> Any:
        if self.iteration + 1 == BAD_ITERATION and side.distributed.rank() == rank:
            fault(side, self)
        return plain(self, batches, stop=stop)

    trainer.step = step


def send_term(_side: Any, _trainer: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def spoil(side: Any, trainer: Any) -> None:
    """Give one weight of this rank a NaN."""
    _set_nan(side, trainer, f"{BAD_LAYER}.weight")


def spoil_buffer(side: Any, trainer: Any) -> None:
    """Give a statistic a NaN, which no training step reads: the next checkpoint finds it."""
    _set_nan(side, trainer, BAD_BUFFER)


def _set_nan(side: Any, trainer: Any, name: str) -> None:
    arrays = side.backend.state_arrays(trainer.model)
    arrays[name].reshape(-1)[0] = np.nan
    side.backend.load_arrays(trainer.model, arrays)


TASKS = {"share": share}

if __name__ == "__main__":
    main()
