"""Evaluates weights with one framework: every picture once over all processes, then the reports.

Written once for both sides; the one that is asked for is imported by name.
"""

from __future__ import annotations

import heapq
import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.allocator import keep_freed_memory
from common.classes import CLASS_TABLES
from common.config import Config
from common.cpu_kernels import share_cores, usable_cores
from common.datasets import Sample, load_samples, read_sample
from common.errors import DataError, InputError
from common.eval_weights import main_weights
from common.files import file_digest, scratch_folder, write_text
from common.iou import image_mean_iou
from common.pictures import palette_of
from common.provenance import code_digest, git_commit
from pipeline.display import console
from pipeline.eval_display import EvalDisplay
from pipeline.eval_pictures import draw_confusion, draw_errors
from pipeline.eval_result import (
    EvalResult,
    class_table,
    names_of_classes,
    number_table,
    percent,
    worst_images,
)
from pipeline.eval_settings import EvalSettings

MODULES = (
    "backend",
    "checkpoints",
    "models",
    "data",
    "metrics",
    "evaluate",
    "distributed",
    "runtime",
)
WORST = "worst"
"""Folder of the worst pictures in the output folder."""
BLOCK_IMAGES = 16
"""Pictures of which counts and predictions stay on the device until they are read together. Each
prediction is a byte for every pixel there: 2 MiB of a Cityscapes frame."""


@dataclass
class Counted:
    """What one process has counted."""

    matrix: NDArray[np.int64]
    times: NDArray[np.int64]
    """(images,): how often each picture was evaluated here."""
    image_iou: NDArray[np.float64]
    """(images,): 0 where it was not evaluated here."""
    kept: list[tuple[float, int, NDArray[np.uint8]]] = field(
        default_factory=list[tuple[float, int, NDArray[np.uint8]]]
    )
    """(-mean IoU, -image, prediction): the worst pictures of this process, the worst first."""


def run(settings: EvalSettings) -> int:
    """Evaluate, print the tables, write eval.json and the pictures; return the exit code.

    Raises:
        InputError: weights, data or output folder cannot be used.
    """
    if not settings.weights.exists():
        raise InputError(f"--weights {settings.weights}: no such file")
    if settings.framework == "paddle":
        share_cores(os.environ, cores=usable_cores())
    modules = {m: importlib.import_module(f"for_{settings.framework}.{m}") for m in MODULES}
    side = SimpleNamespace(name=settings.framework, **modules)
    side.distributed.initialise(settings.device)
    side.backend.set_device(settings.device)
    keep_freed_memory()
    if side.distributed.is_main():
        prepare_folder(settings.out)
    # nobody draws before all have counted, and so not before the folder is prepared
    result, counted = evaluate(side, settings)
    if side.distributed.is_main():
        report(result, settings)
    # last, for the numbers must not be lost when the disk fills up
    _draw_worst(settings, counted, result.image_iou)
    side.distributed.finalise()
    return 0


def prepare_folder(out: Path) -> None:
    """Make the output folder and remove the worst pictures of an earlier evaluation.

    Before hours of work: a folder that cannot be written is told now.

    Raises:
        InputError: it cannot be written.
    """
    with scratch_folder(out, prefix=".probe."):
        pass
    for path in (out / WORST).glob("[0-9][0-9]*_*.png"):
        path.unlink()


def evaluate(side: Any, settings: EvalSettings) -> tuple[EvalResult, Counted]:
    """Evaluate this process's share, add up all processes'.

    Args:
        side: backend, checkpoints, models, data, metrics, evaluate, distributed of one framework.
        settings: what is evaluated, and how.

    Returns:
        The result of all processes, and what this one has counted.

    Raises:
        InputError: weights or data cannot be used.
    """
    config = settings.config
    samples = load_samples(config.data, "val")
    model = load_model(side, settings)
    if settings.device == "cpu":
        # Torch's convolutions are a third faster so; Paddle has no such layout and says so
        model, _ = side.runtime.to_channels_last(model)
    counted = Counted(
        matrix=np.zeros((config.model.classes + 1, config.model.classes), np.int64),
        times=np.zeros(len(samples), np.int64),
        image_iou=np.zeros(len(samples)),
    )
    started = time.perf_counter()
    with EvalDisplay(len(samples), enabled=side.distributed.is_main()) as display:

        def advance(pictures: int) -> None:
            display.advance(pictures * side.distributed.world_size(), at_most=len(samples))

        for indices, block in blocks(side, model, settings, samples, advance):
            _count(counted, indices, block, keep=settings.worst)
    total = side.distributed.all_reduce_array
    times = total(counted.times)
    require_each_once(times, [sample.name for sample in samples])
    image_iou = total(counted.image_iou)
    table = CLASS_TABLES.get(config.data.dataset)
    matrix = total(counted.matrix)
    result = EvalResult(
        config=config,
        protocol=settings.protocol,
        class_names=names_of_classes(table.names if table else None, config.model.classes),
        matrix=matrix,
        image_names=tuple(sample.name for sample in samples),
        image_iou=image_iou,
        seconds=time.perf_counter() - started,
        facts=_facts(side, settings, config),
    )
    return result, counted


def require_each_once(times: NDArray[np.int64], names: Sequence[str]) -> None:
    """Refuse counts in which a picture is missing or weighs double.

    Args:
        times: (images,): how often each picture was evaluated by all processes.
        names: of the pictures.

    Raises:
        RuntimeError: naming the first of them; our own bug, or a process that lost its share.
    """
    wrong = np.flatnonzero(times != 1)
    if len(wrong):
        told = ", ".join(f"{names[i]} ({times[i]} times)" for i in wrong[:3])
        raise RuntimeError(f"{len(wrong)} pictures were not evaluated exactly once: {told}")


def load_model(side: Any, settings: EvalSettings) -> Any:
    """Build the network, without the heads that only training uses, and load the weights.

    Raises:
        WeightsError: the file cannot be read, or does not fit; all that differs is listed.
    """
    config = settings.config.model
    model = side.models.build_model(
        config.name,
        classes=config.classes,
        aux_heads=False,
        options=config.options,
        pair=config.pair,
    )
    checkpoint = side.checkpoints.read_any(settings.weights)
    names = {name: array.shape for name, array in side.backend.state_arrays(model).items()}
    if config.pair is not None:
        # what its auxiliary heads are is known to the user alone: those that are not built are left
        side.backend.load_arrays(model, {n: a for n, a in checkpoint.arrays.items() if n in names})
        model.eval()
        return model
    arrays = main_weights(
        checkpoint,
        side.checkpoints.model_structure(config.name, classes=config.classes),
        names,
        structure_of=lambda name: side.checkpoints.model_structure(name, classes=config.classes),
    )
    side.backend.load_arrays(model, arrays)
    model.eval()
    return model


def blocks(
    side: Any,
    model: Any,
    settings: EvalSettings,
    samples: list[Sample],
    advance: Callable[[int], None],
) -> Iterator[tuple[list[int], Any]]:
    """Yield (indices, metrics.ImageBlock) of this process's pictures, in order.

    A device is not waited for here: it is when a block is read, once for its matrices.

    Args:
        side: the modules of one framework.
        model: in evaluation mode.
        settings: what is evaluated, and how.
        samples: of the whole data set.
        advance: is told the number of pictures of every batch; a device may still be at them.
    """
    config = settings.config
    places = {sample.name: index for index, sample in enumerate(samples)}
    if len(places) != len(samples):
        raise DataError("the validation list names pictures more than once; expected each once")
    loader = side.data.val_loader(
        config.data,
        classes=config.model.classes,
        batch_size=settings.batch_size,
        world_size=side.distributed.world_size(),
        rank=side.distributed.rank(),
    )
    rule = {"classes": config.model.classes, "ignore_index": config.data.ignore_index}
    indices, block = list[int](), side.metrics.ImageBlock(**rule)
    scorer = side.evaluate.Scorer(model, protocol=settings.protocol, max_pixels=settings.max_pixels)
    for batch in loader:
        label = batch["label"]
        predicted = scorer.predict(batch["image"], size_hw=(label.shape[1], label.shape[2]))
        for i, name in enumerate(batch["name"]):
            block.add(predicted[i], label[i])
            indices.append(places[name])
        advance(len(batch["name"]))
        if len(block) >= BLOCK_IMAGES:
            yield indices, block
            indices, block = list[int](), side.metrics.ImageBlock(**rule)
    if indices:
        yield indices, block


def _count(counted: Counted, indices: list[int], block: Any, *, keep: int) -> None:
    """Read a block: its matrices, and the predictions of those of its pictures that are kept."""
    # until the block is read, its pictures have their place in it instead of a prediction
    worst: list[tuple[float, int, NDArray[np.uint8] | int]] = list(counted.kept)
    for place, (index, matrix) in enumerate(zip(indices, block.matrices(), strict=True)):
        own = image_mean_iou(matrix)
        counted.matrix += matrix
        counted.times[index] += 1
        counted.image_iou[index] += own
        if not np.isnan(own):
            # of equals the later one goes, as in worst_images; no two entries share an index
            worst.append((-own, -index, place))
    worst = heapq.nlargest(keep, worst, key=lambda entry: entry[:2])
    new = [entry[2] for entry in worst if isinstance(entry[2], int)]
    read = dict(zip(new, block.predictions(new), strict=True))
    counted.kept = [
        (own, index, read[kept] if isinstance(kept, int) else kept) for own, index, kept in worst
    ]


def _draw_worst(settings: EvalSettings, counted: Counted, image_iou: NDArray[np.float64]) -> None:
    """Draw those of the worst pictures that this process has evaluated."""
    data, classes = settings.config.data, settings.config.model.classes
    samples = load_samples(data, "val")
    own = {-index: prediction for _, index, prediction in counted.kept}
    for place, index in enumerate(worst_images(image_iou, settings.worst), start=1):
        if index not in own:
            continue
        image, label = read_sample(samples[index], classes=classes, ignore_index=data.ignore_index)
        name = samples[index].name
        draw_errors(
            settings.out / WORST / f"{place:02d}_{name.replace('/', '_')}.png",
            image,
            label,
            own[index],
            palette=palette_of(data, classes=classes),
            ignore_index=data.ignore_index,
            # the number first: a long name is cut
            text=f"own mIoU {percent(float(image_iou[index]))}, {name.rpartition('/')[2]}",
        )


def _facts(side: Any, settings: EvalSettings, config: Config) -> dict[str, Any]:
    return {
        "command": settings.command,
        "config": settings.config_path.name,
        "config_digest": config.digest(),
        "code_digest": code_digest(),
        "commit": git_commit(),
        "weights": settings.weights.name,
        "weights_sha256": file_digest(settings.weights),
        "model": config.model.name,
        "dataset": config.data.dataset,
        "framework": side.name,
        "versions": side.backend.versions(),
        "device": settings.device,
        "processes": side.distributed.world_size(),
        "max_pixels": settings.max_pixels,
    }


def report(result: EvalResult, settings: EvalSettings) -> None:
    """Print the tables; write eval.json and the confusion matrix."""
    console.print(class_table(result))
    console.print(f"protocol {settings.protocol.text()}", highlight=False, soft_wrap=True)
    console.print(f"  {settings.protocol.source}", highlight=False, soft_wrap=True)
    console.print(number_table(result))
    write_text(settings.out / "eval.json", result.json_text())
    number = result.numbers()[0]
    draw_confusion(
        settings.out / "confusion_matrix.png",
        result.matrix,
        result.class_names,
        title=(
            f"{settings.config_path.stem}, {settings.weights.name}, {number.protocol}: "
            f"{number.name} {percent(number.value)}\n({number.convention})"
        ),
    )
    images = len(result.image_names)
    drawn = f", {WORST}/" if settings.worst else ""
    console.print(
        f"{images} pictures in {result.seconds:.1f} s, "
        f"{images / max(result.seconds, 1e-9):.2f} images/s; {settings.out}/eval.json, "
        f"confusion_matrix.png{drawn}",
        highlight=False,
        soft_wrap=True,
    )
