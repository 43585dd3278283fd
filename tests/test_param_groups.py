import json
import math
from pathlib import Path

import pytest

from common.config_sections import OptimizerConfig
from common.param_groups import assign_groups, group_table

HEADS_V1 = ("ffm", "conv_out", "conv_out16", "conv_out32")
HEADS_V2 = ("head", "aux2", "aux3", "aux4", "aux5_4")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

# model -> head modules, OptimizerConfig's options
MODELS = {
    "bisenetv1": (HEADS_V1, {"base_lr": 1e-2, "weight_decay": 5e-4}),
    "bisenetv2": (HEADS_V2, {"base_lr": 5e-3, "weight_decay": 5e-4}),
    "bisenetv1_2020": (HEADS_V1, {"base_lr": 1e-2, "weight_decay": 5e-4}),
    "bisenetv1_diss_2020": (HEADS_V1, {"base_lr": 1e-2, "weight_decay": 5e-4}),
    "bisenetv1_fp16_2020": (HEADS_V1, {"base_lr": 1e-2, "weight_decay": 5e-4}),
    "bisenetv2_2020": ((), {"base_lr": 5e-2, "weight_decay": 5e-4}),
    "bisenetv1_2019": (
        (),
        {"base_lr": 2.5e-2, "weight_decay": 1e-4, "decay_norm_and_bias": True},
    ),
}


def test_rule_by_hand() -> None:
    groups = assign_groups(
        {
            "cp.conv.weight": 4,
            "cp.bn.weight": 1,
            "cp.fc.weight": 2,
            "conv_out.conv.weight": 4,
            "conv_out.conv.bias": 1,
            # the whole first part counts, not a beginning of it
            "conv_out_extra.weight": 4,
        },
        head_modules=("conv_out",),
    )
    assert groups == {
        "cp.conv.weight": "decay",
        "cp.bn.weight": "no_decay",
        "cp.fc.weight": "decay",
        "conv_out.conv.weight": "head_decay",
        "conv_out.conv.bias": "head_no_decay",
        "conv_out_extra.weight": "decay",
    }


def test_what_the_recipe_never_updates_is_in_no_group() -> None:
    parameters = {"cp.conv.weight": 4, "cp.bn.weight": 1, "cp.bn.bias": 1}
    groups = assign_groups(parameters, head_modules=(), ungrouped=("cp.bn.weight", "cp.bn.bias"))
    assert groups == {"cp.conv.weight": "decay"}
    with pytest.raises(ValueError, match=r"ungrouped names cp\.bm\.bias; expected"):
        assign_groups(parameters, head_modules=(), ungrouped=("cp.bm.bias",))


def test_options_of_the_groups() -> None:
    table = group_table(OptimizerConfig(base_lr=0.01, weight_decay=5e-4))
    assert {name: (g.lr_mult, g.weight_decay) for name, g in table.items()} == {
        "decay": (1.0, 5e-4),
        "no_decay": (1.0, 0.0),
        "head_decay": (10.0, 5e-4),
        "head_no_decay": (10.0, 0.0),
    }


def test_everything_decays_in_the_2019_recipe() -> None:
    config = OptimizerConfig(base_lr=0.01, weight_decay=1e-4, decay_norm_and_bias=True)
    assert {group.weight_decay for group in group_table(config).values()} == {1e-4}


@pytest.mark.parametrize("rank", [0, 3, 5])
def test_a_parameter_that_no_rule_covers_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"parameter cp\.odd has {rank} dimensions"):
        assign_groups({"cp.conv.weight": 4, "cp.odd": rank}, head_modules=())


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameters"):
        assign_groups({}, head_modules=())


@pytest.mark.parametrize("model", MODELS)
def test_groups_of_the_published_recipes(golden: Path, published_keys: Path, model: str) -> None:
    heads, options = MODELS[model]
    expected = json.loads((golden / "param_groups.json").read_text())[model]
    shapes = parameter_shapes(published_keys, model)
    groups = assign_groups({name: len(s) for name, s in shapes.items()}, head_modules=heads)
    table = group_table(OptimizerConfig(**options))
    assert list(groups) == list(expected["params"])
    for name, group in groups.items():
        theirs = expected["params"][name]
        ours = table[group]
        assert (ours.lr_mult, ours.weight_decay) == (theirs["lr_mult"], theirs["weight_decay"])


def test_sizes_of_the_v1_groups(published_keys: Path) -> None:
    shapes = parameter_shapes(published_keys, "bisenetv1")
    groups = assign_groups({name: len(s) for name, s in shapes.items()}, head_modules=HEADS_V1)
    sizes: dict[str, list[int]] = {}
    for name, group in groups.items():
        size = sizes.setdefault(group, [0, 0])
        size[0] += 1
        size[1] += math.prod(shapes[name])
    # tensors and numbers, counted on the original optimizer
    assert sizes == {
        "decay": [31, 12536192],
        "no_decay": [62, 12032],
        "head_decay": [8, 875648],
        "head_no_decay": [13, 1849],
    }


def parameter_shapes(published_keys: Path, model: str) -> dict[str, list[int]]:
    content = json.loads((published_keys / f"{model}.json").read_text())
    return {name: shape for name, shape in content["keys"].items() if not name.endswith(BUFFERS)}
