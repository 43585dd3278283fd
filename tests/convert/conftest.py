"""Checkpoints of three networks, as they are published."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conversions import run_strictly, served

# a published-like checkpoint of every model asked for: the model's own names, random numbers,
# counters, negative weights of InPlaceABN, second names of STDC; and its canonical arrays
PUBLISH = """
import sys
import numpy as np
import torch
from common.checkpoints import with_aliases
from common.weights import write_weights
from for_torch.checkpoints import write_own
from for_torch.models import build_model
from pathlib import Path
folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    rng = np.random.default_rng(0)
    state = {}
    for key, tensor in build_model(name, classes=19).state_dict().items():
        counter = key.endswith("num_batches_tracked")
        drawn = rng.standard_normal(tuple(tensor.shape), dtype=np.float32)
        state[key] = np.array(7, dtype=np.int64) if counter else drawn
    write_own(folder / f"{name}.pth", with_aliases(state))
    np.savez(folder / f"{name}.npz", **state)
"""


@pytest.fixture(scope="session", autouse=True)
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with served(tmp_path_factory.mktemp("server")):
        yield


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a .pth of each, and its arrays in an .npz; for reading only."""
    folder = tmp_path_factory.mktemp("published")
    run_strictly(PUBLISH, str(folder), "bisenetv1_diss", "stdc1", "bisenetv2")
    return folder
