"""The weights that an evaluation needs of a file: not those of heads that only training uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from common.checkpoints import Array, Checkpoint
from common.errors import WeightsError
from common.fitting import Structure, fit, source_abn
from common.published import recognise


def main_weights(
    checkpoint: Checkpoint,
    structure: Structure,
    main: Mapping[str, tuple[int, ...]],
    *,
    structure_of: Callable[[str], Structure],
) -> dict[str, Array]:
    """Return the arrays of the network without its auxiliary heads, checked totally.

    Args:
        checkpoint: as read; with or without auxiliary heads.
        structure: of the network with them.
        main: names and shapes of the network without them.
        structure_of: returns the structure of any of our models, by name; the file may be of
            another one with another kind of BatchNorm.

    Raises:
        WeightsError: the file does not fit; everything that differs is listed. Or it holds a
            backbone alone.
    """
    origin = recognise(checkpoint, model=structure.model)
    if origin.backbone:
        raise WeightsError(
            f"{checkpoint.where} is {origin.title}, not a whole network's weights; there is "
            "nothing to evaluate before a training"
        )
    known_abn = source_abn(checkpoint, structure, structure_of=structure_of)
    auxiliary = set(structure.shapes) - set(main)
    kept = {name: a for name, a in checkpoint.arrays.items() if name not in auxiliary}
    reduced = replace(
        structure, shapes={name: s for name, s in structure.shapes.items() if name in main}
    )
    return fit(replace(checkpoint, arrays=kept), reduced, source_abn=known_abn).arrays
