"""The weights that a training starts from: which of a file's are taken, and what is said about it.

Here is what needs no framework; for_torch/start.py and for_paddle/start.py load the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from common.checkpoints import Checkpoint
from common.errors import WeightsError
from common.fitting import Fitted, Structure, fit, source_abn
from common.published import recognise


@dataclass(frozen=True)
class StartReport:
    """Where the weights of a network come from before its training."""

    source: Path | None
    """The file; None if the network keeps its own initialisation."""
    what: str
    """What the file was recognised as."""
    taken: tuple[str, ...]
    """Names of the network's weights and buffers that are the file's."""
    folded: tuple[str, ...]
    """Of those, |weight| + 1e-5 of InPlaceABN, written out for a plain BatchNorm."""
    skipped: tuple[str, ...]
    """Of the file, not used: "name, shape, why"."""
    initial: tuple[str, ...]
    """Names of the network's weights and buffers that keep their initialisation."""
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return the report in lines: all that is skipped, the rest counted by module."""
        if self.source is None:
            return f"start: own initialisation, {_by_module(self.initial)}"
        lines = [
            f"start: {self.source}",
            f"  recognised: {self.what}",
            f"  taken:      {_by_module(self.taken)}",
            f"  initial:    {_by_module(self.initial)}",
            *(f"  note:       {note}" for note in self.notes),
        ]
        if self.folded:
            lines.append(
                f"  folded |weight| + 1e-5 of InPlaceABN into BatchNorm: {len(self.folded)}"
            )
        if self.skipped:
            lines.append(f"  skipped, in the file but not used: {len(self.skipped)}")
            lines += [f"    {entry}" for entry in self.skipped]
        return "\n".join(lines)


def own_start(names: Iterable[str]) -> StartReport:
    """Return the report about a network that keeps its own initialisation."""
    return StartReport(None, "", (), folded=(), skipped=(), initial=tuple(names), notes=())


def report_start(source: Path, checkpoint: Checkpoint, fitted: Fitted) -> StartReport:
    """Return the report about a network that has taken what fitted."""
    return StartReport(
        source=source,
        what=fitted.origin.title,
        taken=tuple(fitted.arrays),
        folded=fitted.folded,
        skipped=fitted.skipped,
        initial=fitted.absent,
        notes=(*checkpoint.notes, *fitted.notes),
    )


def fit_start(
    checkpoint: Checkpoint,
    structure: Structure,
    *,
    structure_of: Callable[[str], Structure],
    backbone_only: bool,
) -> Fitted:
    """Take from a file what a training starts with.

    Args:
        checkpoint: as read.
        structure: of the network.
        structure_of: returns the structure of any of our models, by name; the file may be of
            another one with another kind of BatchNorm.
        backbone_only: True takes the backbone alone; False everything but last layers of another
            number of classes.

    Raises:
        WeightsError: the file does not fit; everything that differs is listed.
    """
    origin = recognise(checkpoint, model=structure.model)
    if origin.backbone and not backbone_only:
        raise WeightsError(
            f"{checkpoint.where} is {origin.title}, not a whole network's weights; give it as "
            "model.backbone_weights in place of model.weights"
        )
    return fit(
        checkpoint,
        structure,
        source_abn=source_abn(checkpoint, structure, structure_of=structure_of),
        new_classes=not backbone_only,
        backbone_only=backbone_only,
    )


def _by_module(names: Iterable[str]) -> str:
    """Return "8 tensors (cp 5, ffm 3)"."""
    counts = Counter(name.partition(".")[0] for name in names)
    parts = ", ".join(f"{module} {count}" for module, count in counts.items())
    return f"{counts.total()} tensors" + (f" ({parts})" if parts else "")
