"""Weights of any origin made to fit one of our models, all of them or the backbone only.

Nothing is left out silently: whatever a model lacks, has in another shape, or does not know is an
error that lists it, but for the last layers when the number of classes changes, and for everything
outside the backbone when only that is asked for; those are listed, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from common.checkpoints import Array, Checkpoint
from common.errors import WeightsError
from common.published import Origin, backbone_of, recognise
from common.weight_names import BATCH_COUNTER
from common.weights import check_names_and_shapes

ABN_EPS = np.float32(1e-5)
"""What InPlaceABN adds to the absolute value of its weight (golden: inplace_abn_layer)."""
PLAIN_TWINS = {"bisenetv1_2020": "bisenetv1_fp16_2020", "bisenetv1_diss": "bisenetv1_diss_bn"}
"""Model with InPlaceABN -> the same with plain BatchNorm in its place; the others have none."""


@dataclass(frozen=True)
class Structure:
    """What one of our models consists of."""

    model: str
    classes: int
    shapes: dict[str, tuple[int, ...]]
    """Canonical names and shapes, in model order."""
    names: tuple[str, ...]
    """The framework's own state-dict names, batch counters included, in its order."""
    inplace_abn: frozenset[str]
    """Weights of InPlaceABN layers: their sign means nothing, |weight| + 1e-5 is used."""
    class_dependent: frozenset[str]
    """Weights and biases of the last layers, as long as there are classes."""


@dataclass(frozen=True)
class Fitted:
    """Weights that fit a model, and what was done to them."""

    origin: Origin
    arrays: dict[str, Array]
    """In model order."""
    folded: tuple[str, ...] = ()
    """Weights of BatchNorms that were |weight| + 1e-5 in InPlaceABN and are now written out."""
    skipped: tuple[str, ...] = ()
    """Of the file, not used: "name, shape, why"."""
    absent: tuple[str, ...] = ()
    """Of the model, not in the result: they keep the model's own initialisation."""
    notes: tuple[str, ...] = ()


def fit(
    checkpoint: Checkpoint,
    structure: Structure,
    *,
    source_abn: frozenset[str] | None,
    new_classes: bool = False,
    backbone_only: bool = False,
) -> Fitted:
    """Make a checkpoint fit a model.

    Args:
        checkpoint: as read.
        structure: the model.
        source_abn: weights of the file that are InPlaceABN's; None if nobody knows, and then they
            are taken to be what the model expects.
        new_classes: True leaves out last layers of another number of classes, and accepts a file
            that has none of them.
        backbone_only: True takes the pretrained part only.

    Raises:
        WeightsError: listing every missing, left-over and misshapen name, or every weight of a
            plain BatchNorm that the model's InPlaceABN cannot express.
    """
    origin = recognise(checkpoint, model=structure.model)
    if backbone_only:
        arrays, skipped = select_backbone(checkpoint.arrays, structure.shapes, origin=origin)
        expected = _backbone_shapes(structure.shapes, arrays)
    else:
        arrays, skipped = checkpoint.arrays, ()
        expected = structure.shapes
    if new_classes:
        other = _other_classes(arrays, structure)
        skipped += tuple(f"{name}, {arrays[name].shape}, last layer" for name in other)
        arrays = {name: array for name, array in arrays.items() if name not in other}
        without = structure.class_dependent
        # some of them missing is damage; all of them were left out on purpose
        left_out = without if without.isdisjoint(checkpoint.arrays) else other
        expected = {name: shape for name, shape in expected.items() if name not in left_out}
    check_names_and_shapes(
        expected,
        arrays,
        hint=_hint(checkpoint, origin, structure, backbone_only),
        counters=_counters(checkpoint, origin, structure, backbone_only),
    )
    arrays = {name: arrays[name] for name in expected}
    folded, raw = _gammas(arrays, structure, source_abn)
    if raw and not backbone_only:
        raise WeightsError(
            f"the file has plain BatchNorm where {structure.model} has InPlaceABN, which reads "
            f"|weight| + 1e-5; {_plain_twin(structure.model)}. {len(raw)} layers differ\n"
            + "\n".join(f"  {name}" for name in raw)
        )
    notes = _gamma_notes(arrays, structure, origin, folded, raw, known=source_abn is not None)
    if backbone_only and origin.remark and not origin.models:
        notes = (f"{origin.title}: {origin.remark}", *notes)
    arrays |= {name: plain_gamma(arrays[name]) for name in folded}
    absent = tuple(name for name in structure.shapes if name not in arrays)
    return Fitted(origin, arrays, folded, skipped, absent, notes)


def inplace_abn_weights(checkpoint: Checkpoint, origin: Origin) -> frozenset[str] | None:
    """Return which weights of a file are InPlaceABN's, or None if it does not tell.

    Every other BatchNorm of Torch has a counter of batches beside it.
    """
    if not checkpoint.counted or not (checkpoint.counters or origin.counters is False):
        return None
    return frozenset(
        f"{origin.prefix}{name.removesuffix('running_mean')}weight"
        for name in checkpoint.arrays
        if name.rpartition(".")[2] == "running_mean"
        and f"{name.removesuffix('running_mean')}{BATCH_COUNTER}" not in checkpoint.counters
    )


def source_abn(
    checkpoint: Checkpoint, structure: Structure, *, structure_of: Callable[[str], Structure]
) -> frozenset[str] | None:
    """Return which weights of a file are InPlaceABN's, or None if nobody knows.

    Args:
        checkpoint: as read; if it names the model it was written for, that model decides.
        structure: the model it is meant for.
        structure_of: returns the structure of any of our models, by name.
    """
    if not checkpoint.model:
        return inplace_abn_weights(checkpoint, recognise(checkpoint, model=structure.model))
    if checkpoint.model == structure.model:
        return structure.inplace_abn
    return structure_of(checkpoint.model).inplace_abn


def plain_gamma(weight: Array) -> Array:
    """Return the weight with which a plain BatchNorm computes what InPlaceABN does with this."""
    return np.abs(weight) + weight.dtype.type(ABN_EPS)


def select_backbone(
    arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], *, origin: Origin
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Take the backbone's arrays out of a file: of the backbone alone, or of a whole network.

    Args:
        arrays: the file's, canonical.
        shapes: the model's names and shapes.
        origin: what the file is.

    Returns:
        The backbone's arrays under the model's names, and "name, shape, why" of all others.
    """
    prefixes = backbone_of(list(shapes)).prefixes
    found: dict[str, Array] = {}
    skipped: list[str] = []
    for own_name, array in arrays.items():
        name = origin.prefix + own_name
        if own_name.startswith(origin.drops):
            skipped.append(f"{own_name}, {array.shape}, no part of our backbone")
        elif not name.startswith(prefixes):
            skipped.append(f"{own_name}, {array.shape}, outside the backbone")
        else:
            found[name] = array
    return found, tuple(skipped)


def _backbone_shapes(
    shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Array]
) -> dict[str, tuple[int, ...]]:
    """Return the backbone's shapes; a part that files may lack is required once it has begun."""
    backbone = backbone_of(list(shapes))
    absent = tuple(
        part for part in backbone.optional if not any(name.startswith(part) for name in arrays)
    )
    return {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(backbone.prefixes) and not name.startswith(absent)
    }


def _other_classes(arrays: Mapping[str, Array], structure: Structure) -> list[str]:
    """Names of last layers that differ from the model's in the number of classes alone."""
    return [
        name
        for name in structure.shapes
        if name in structure.class_dependent
        and name in arrays
        and arrays[name].ndim == len(structure.shapes[name])
        and arrays[name].shape[1:] == structure.shapes[name][1:]
        and arrays[name].shape != structure.shapes[name]
    ]


def _counters(
    checkpoint: Checkpoint, origin: Origin, structure: Structure, backbone_only: bool
) -> dict[str, Array]:
    """Return the batch counters that have to be the model's: of the backbone, or all."""
    if not backbone_only:
        return checkpoint.counters
    prefixes = backbone_of(list(structure.shapes)).prefixes
    return {
        origin.prefix + name: array
        for name, array in checkpoint.counters.items()
        if (origin.prefix + name).startswith(prefixes) and not name.startswith(origin.drops)
    }


def _plain_twin(model: str) -> str:
    if model in PLAIN_TWINS:
        return f"expected --model {PLAIN_TWINS[model]}, its plain twin"
    return "no model here has plain BatchNorm in its place"


def _hint(checkpoint: Checkpoint, origin: Origin, structure: Structure, backbone_only: bool) -> str:
    what = f"{checkpoint.where} is {origin.title}"
    if origin.models and structure.model not in origin.models:
        return f"{what}; expected --model {' or '.join(origin.models)}, got {structure.model}"
    if origin.backbone and not backbone_only:
        return f"{what}: a backbone alone; pass --backbone-only"
    remark = f": {origin.remark}" if origin.remark and not origin.models else ""
    return f"{what}{remark}; asked for {structure.model} with {structure.classes} classes"


def _gammas(
    arrays: Mapping[str, Array], structure: Structure, source_abn: frozenset[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the BatchNorm weights to fold, and those of a plain one put into an InPlaceABN."""
    if source_abn is None:
        return (), ()
    norms = [
        f"{name.removesuffix('running_mean')}weight"
        for name in arrays
        if name.rpartition(".")[2] == "running_mean"
    ]
    own = structure.inplace_abn
    folded = tuple(name for name in norms if name in source_abn and name not in own)
    raw = tuple(name for name in norms if name in own and name not in source_abn)
    return folded, raw


def _gamma_notes(
    arrays: Mapping[str, Array],
    structure: Structure,
    origin: Origin,
    folded: tuple[str, ...],
    raw: tuple[str, ...],
    *,
    known: bool,
) -> tuple[str, ...]:
    notes = [origin.remark] if folded and origin.remark else []
    if raw:
        # upstream starts its InPlaceABN networks from ImageNet weights in just this way
        negative = sum(int((arrays[name] < 0).sum()) for name in raw)
        notes.append(
            f"{len(raw)} BatchNorm weights are taken as they are by InPlaceABN, which reads "
            f"|weight| + 1e-5; {negative} numbers lose their sign"
        )
    has_abn = not structure.inplace_abn.isdisjoint(arrays)
    if not known and (has_abn or origin.counters is not None):
        expects = "InPlaceABN's" if has_abn else "plain BatchNorm's"
        notes.append(f"the file does not tell whose its BatchNorm weights are: taken for {expects}")
    return tuple(notes)
