"""The weights that a training starts from."""

from __future__ import annotations

from pathlib import Path

from common.checkpoints import Checkpoint
from common.errors import ConfigError
from common.start import StartReport, fit_start, own_start, report_start
from for_torch.backend import load_arrays, state_arrays
from for_torch.checkpoints import model_structure, read_any
from for_torch.models import MODELS, Network


def load_start_weights(
    model: Network, *, weights: Path | None, backbone_weights: Path | None
) -> StartReport:
    """Load what a training starts from into a fresh network; the rest keeps its initialisation.

    Args:
        model: from build_model, with its auxiliary heads.
        weights: a whole network's weights (.safetensors or .pdparams; .pth, .pt or .tar where
            torch reads). Last layers of another number of classes are left out and reported.
        backbone_weights: a backbone's, ImageNet's for example, or a whole network's, of which the
            backbone is taken; files as above. Neither: nothing is loaded.

    Returns:
        What was taken, skipped and left at its initialisation.

    Raises:
        ConfigError: both are given.
        WeightsError: a file cannot be read or does not fit; everything that differs is listed,
            and the model is left as it was.
    """
    if weights is not None and backbone_weights is not None:
        raise ConfigError(
            f"model.weights is {weights} and model.backbone_weights is {backbone_weights}; "
            "expected one of them, the other null: a whole network's weights include its backbone"
        )
    own = state_arrays(model)
    path = backbone_weights if weights is None else weights
    if path is None:
        return own_start(own)
    checkpoint = read_any(path)
    if model.name and model.name not in MODELS:
        return _load_own(model, checkpoint, path=path, whole=backbone_weights is None)
    fitted = fit_start(
        checkpoint,
        model_structure(model.name, classes=model.classes),
        structure_of=lambda name: model_structure(name, classes=model.classes),
        backbone_only=weights is None,
    )
    load_arrays(model, {**own, **fitted.arrays})
    return report_start(path, checkpoint, fitted)


def _load_own(model: Network, checkpoint: Checkpoint, *, path: Path, whole: bool) -> StartReport:
    """Load the weights of a user's own network, of which only he knows what its parts are."""
    if not whole:
        raise ConfigError(
            f"model.backbone_weights is {path}, but what the backbone of {model.name} is, is not "
            "known here; give a whole network's weights as model.weights"
        )
    load_arrays(model, checkpoint.arrays)
    return StartReport(
        source=path,
        what=f"weights of {model.name}, all of them",
        taken=tuple(checkpoint.arrays),
        folded=(),
        skipped=(),
        initial=(),
        notes=checkpoint.notes,
    )
