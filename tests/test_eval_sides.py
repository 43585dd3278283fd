"""Paddle's and Torch's labels under every protocol: counted, each framework in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.protocols import PROTOCOLS

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import importlib, sys
from dataclasses import replace
import numpy as np
from common.protocols import PROTOCOLS, StartSize
from fake_data import rules

side, out, size = sys.argv[1], sys.argv[2], (64, 96)
backend, models, evaluate = (
    importlib.import_module(f"for_{side}.{name}") for name in ("backend", "models", "evaluate")
)
backend.set_threads(1)
found = {}
for name in ("bisenetv1", "stdc1"):
    model = models.build_model(name, classes=19, aux_heads=False)
    shapes = {key: array.shape for key, array in backend.state_arrays(model).items()}
    arrays = {key: rules.weight(key, shape) for key, shape in shapes.items()}
    # the classifier's mean over classes is nearly one map for all: without it, labels vary
    key = "conv_out.conv_out.weight"
    arrays[key] = arrays[key] - arrays[key].mean(axis=1, keepdims=True)
    backend.load_arrays(model, arrays)
    model.eval()
    image = backend.to_tensor(rules.image(7, 2, *size).astype(np.float32))
    for protocol in PROTOCOLS.values():
        if protocol.crop_hw is not None:
            protocol = replace(protocol, crop_hw=(32, 64))
        if protocol.start.shape_hw is not None:
            protocol = replace(protocol, start=StartSize(shape_hw=(48, 80)))
        labels = evaluate.Scorer(model, protocol=protocol).predict(image, size_hw=size)
        found[f"{name}/{protocol.name}"] = backend.to_numpy(labels).astype(np.uint8)
np.savez(out, **found)
"""


@pytest.mark.slow
def test_labels_of_both_sides_are_equal(tmp_path: Path) -> None:
    labels: dict[str, dict[str, np.ndarray]] = {}
    for side in ("torch", "paddle"):
        out = tmp_path / f"{side}.npz"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, side, str(out)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with np.load(out) as arrays:
            labels[side] = dict(arrays)
    reference, actual = labels["torch"], labels["paddle"]
    assert list(reference) == list(actual)
    assert len(reference) == 2 * len(PROTOCOLS)
    differing = {key: int((reference[key] != actual[key]).sum()) for key in reference}
    assert not any(differing.values()), differing
    # constant maps would be equal whatever was computed
    assert all(len(np.unique(array)) >= 3 for array in reference.values())
