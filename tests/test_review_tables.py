"""What the review expects of each network and step, held against the published names."""

from pathlib import Path

import pytest
from published_names import read_keys

from pipeline.catalogue import FAMILY
from pipeline.review_values import KINDS, TRAINABLE
from pipeline.steps import STEPS

FILES = {"bisenetv1_diss": "bisenetv1_diss_2020"}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def test_every_network_and_step_has_its_expectations() -> None:
    assert list(FAMILY) == list(TRAINABLE)
    assert set(KINDS) == {(step.name, dtype) for step in STEPS for dtype in step.dtypes}
    assert all(KINDS.values())


@pytest.mark.parametrize("model", [name for name in TRAINABLE if name != "bisenetv1_diss_bn"])
def test_trainable_tensors_are_those_of_the_published_checkpoint(
    published_keys: Path, model: str
) -> None:
    # of bisenetv1_diss_bn no names are recorded: it is bisenetv1_diss with another norm
    keys, aliases = read_keys(published_keys, FILES.get(model, model))
    own = [name for name in keys if name not in aliases and not name.endswith(BUFFERS)]
    assert len(own) == TRAINABLE[model]


def test_a_norm_changes_no_number() -> None:
    assert TRAINABLE["bisenetv1_diss_bn"] == TRAINABLE["bisenetv1_diss"]
