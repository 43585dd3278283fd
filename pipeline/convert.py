"""Convert weights between Torch (.pth), Paddle (.pdparams) and .safetensors, totally or not at all.

    bisenet convert model_final_v1_city_new.pth v1.pdparams --model bisenetv1

One framework suffices, in this process: torch where a .pth is read or written, whichever is
installed otherwise (it only tells what the model consists of).

A model's weights come back to the bit from any way through the three formats (bfloat16 ones as
float32, which holds them exactly). Batch counters do not: only a .pth is written
with them, so that after a way through another format they are written as 0; both are reported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoints import Array, Checkpoint, with_aliases
from common.errors import InputError, WeightsError
from common.fitting import Fitted, Structure, fit, source_abn
from common.published import Origin
from common.weight_names import is_batch_counter
from common.weights import SUFFIXES, TORCH_SUFFIXES, write_weights

DEFAULT_CLASSES = 19
"""Assumed until the file's last layer has told (Cityscapes)."""
MAX_CLASSES = 65536
"""More than any label image can tell apart; a file that claims more must not fill the memory."""


@dataclass(frozen=True)
class ConversionReport:
    """What was converted, and all that is not in the result."""

    source: Path
    target: Path
    model: str
    classes: int
    origin: Origin
    """What the file was recognised as."""
    tensors: int
    """Weights and buffers written, without second names and batch counters."""
    numbers: int
    """Their elements."""
    counters: int
    """Batch counters of the source that the target's type has no place for."""
    folded: tuple[str, ...]
    """Weights |weight| + 1e-5 of InPlaceABN, written out for a plain BatchNorm."""
    skipped: tuple[str, ...]
    """Of the file, left out as asked for: "name, shape, why"."""
    absent: tuple[str, ...]
    """Of the model, not in the result."""
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return the report in lines, lists in full."""
        lines = [
            f"{self.source} -> {self.target}",
            f"  recognised: {self.origin.title}",
            f"  model:      {self.model}, {self.classes} classes",
            f"  written:    {self.tensors} tensors, {self.numbers:,} numbers",
            *(f"  note:       {note}" for note in self.notes),
        ]
        if self.counters:
            lines.append(
                f"  dropped:    {self.counters} batch counters, of which nothing is computed"
            )
        lists = (
            ("folded |weight| + 1e-5 of InPlaceABN into BatchNorm", self.folded),
            ("skipped, in the file but not in the result", self.skipped),
            ("absent, in the model but not in the result", self.absent),
        )
        for title, names in lists:
            if names:
                lines.append(f"  {title}: {len(names)}")
                lines += [f"    {name}" for name in names]
        return "\n".join(lines)


def convert(
    source: Path,
    target: Path,
    *,
    model: str,
    classes: int | None = None,
    backbone_only: bool = False,
) -> ConversionReport:
    """Convert a weights file.

    Args:
        source: .pth, .pt, .tar (of torch.save), .safetensors or .pdparams.
        target: .pth, .safetensors or .pdparams; replaced only by a complete file.
        model: name of our model.
        classes: number of classes of the model, 1 to MAX_CLASSES. Last layers of another number
            in the file are left out and listed. None: as many as the file has.
        backbone_only: take the pretrained part only; the rest is left out and listed.

    Raises:
        InputError: a file cannot be read or written, the weights do not fit (every difference is
            listed), the model is unknown, or torch is needed and not installed.
    """
    for path, suffixes in ((source, (*SUFFIXES, *TORCH_SUFFIXES)), (target, (*SUFFIXES, ".pth"))):
        if path.suffix not in suffixes:
            raise InputError(f"{path}: type {path.suffix!r}; expected {', '.join(suffixes)}")
    if classes is not None and not 1 <= classes <= MAX_CLASSES:
        raise InputError(f"--classes {classes}: expected 1 to {MAX_CLASSES}")
    # pathlib raises on names that are too long
    if os.path.isdir(target):  # noqa: PTH112
        raise InputError(f"{target}: is a folder; expected the name of a file to write")
    checkpoints = _checkpoints(
        torch_needed=bool({source.suffix, target.suffix} & {*TORCH_SUFFIXES})
    )
    checkpoint: Checkpoint = checkpoints.read_any(source)
    structure = _structure(checkpoints, checkpoint, model, classes)
    fitted = fit(
        checkpoint,
        structure,
        source_abn=source_abn(
            checkpoint,
            structure,
            structure_of=lambda name: checkpoints.model_structure(name, classes=structure.classes),
        ),
        new_classes=classes is not None,
        backbone_only=backbone_only,
    )
    try:
        dropped, zeroed = _write(checkpoints, target, checkpoint, structure, fitted)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; no file was changed. Make room, or "
            "choose another folder"
        ) from None
    zero_note = f"{zeroed} batch counters are written as 0: the source has none for them"
    return ConversionReport(
        source=source,
        target=target,
        model=model,
        classes=structure.classes,
        origin=fitted.origin,
        tensors=len(fitted.arrays),
        numbers=sum(array.size for array in fitted.arrays.values()),
        counters=dropped,
        folded=fitted.folded,
        skipped=fitted.skipped,
        absent=fitted.absent,
        notes=(*checkpoint.notes, *fitted.notes, *((zero_note,) if zeroed else ())),
    )


def _checkpoints(*, torch_needed: bool) -> Any:
    """Import the side whose framework reads the files and tells what the model consists of."""
    if importlib.util.find_spec("torch") is not None:
        return importlib.import_module("for_torch.checkpoints")
    if torch_needed:
        raise InputError(
            "a .pth is read and written by torch, which is not installed: pip install torch. "
            "Between .safetensors and .pdparams either framework will do"
        )
    return importlib.import_module("for_paddle.checkpoints")


def _structure(
    checkpoints: Any, checkpoint: Checkpoint, model: str, classes: int | None
) -> Structure:
    structure: Structure = checkpoints.model_structure(model, classes=classes or DEFAULT_CLASSES)
    found = {
        checkpoint.arrays[name].shape[0]
        for name in structure.class_dependent
        if name in checkpoint.arrays and checkpoint.arrays[name].ndim
    }
    impossible = sorted(number for number in found if not 1 <= number <= MAX_CLASSES)
    if impossible:
        raise WeightsError(
            f"{checkpoint.where}: its last layers are for {impossible[0]} classes; expected 1 to "
            f"{MAX_CLASSES}"
        )
    # several numbers are an error that the comparison of shapes will list
    if classes is None and len(found) == 1 and found != {structure.classes}:
        structure = checkpoints.model_structure(model, classes=found.pop())
    return structure


def _write(
    checkpoints: Any, target: Path, checkpoint: Checkpoint, structure: Structure, fitted: Fitted
) -> tuple[int, int]:
    """Write the target.

    Returns:
        How many batch counters of the source it does not hold, and how many it holds as 0 that
        the source does not have.
    """
    if target.suffix not in TORCH_SUFFIXES:
        write_weights(target, fitted.arrays, model=structure.model)
        return len(checkpoint.counters), 0
    counters = {fitted.origin.prefix + name: a for name, a in checkpoint.counters.items()}
    state: dict[str, Array] = {}
    for name in structure.names:
        if name in fitted.arrays:
            state[name] = fitted.arrays[name]
        elif is_batch_counter(name) and _weight_beside(name) in fitted.arrays:
            state[name] = counters.get(name, np.array(0, dtype=np.int64))
    checkpoints.write_own(target, with_aliases(state))
    written = {name for name in state if is_batch_counter(name)}
    return len(counters.keys() - written), len(written - counters.keys())


def _weight_beside(counter: str) -> str:
    return f"{counter.rpartition('.')[0]}.weight"
