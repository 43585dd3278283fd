"""Switches of the networks: from the configuration to the constructor, the loss and the probes."""

import inspect
import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load_config
from common.config_sections import LossConfig, OptimizerConfig, ScheduleConfig
from common.errors import ConfigError
from pipeline.cases import Case, build_network
from pipeline.inputs import prepare_inputs
from pipeline.probes import probe_backward, probe_loss
from pipeline.records import read_arrays

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FLAGS = ("use_boundary_2", "use_boundary_4", "use_boundary_8", "use_boundary_16")
SWITCHES_2019 = {
    "use_arm": ("cp.arm16", "cp.arm32"),
    "use_global_pooling": ("cp.conv_avg", "cp.bn_avg"),
}
"""Switch of 2019's network -> the layers that run only with it."""


def configured(stem: str, options: Mapping[str, bool]) -> Config:
    """Load a published configuration with switches set as on the command line, and made small."""
    texts = [f"model.options.{name}={str(on).lower()}" for name, on in options.items()]
    small = ["model.classes=3", "verify.batch_size=2", "verify.image_hw=[32,32]"]
    return load_config(CONFIGS / f"{stem}.yml", overrides=[*texts, *small])


def flags(*on: str) -> dict[str, bool]:
    return {flag: flag in on for flag in FLAGS}


def is_of(name: str, layers: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{layer}." for layer in layers))


# ---- which there are --------------------------------------------------------------------------
def test_the_table_is_complete(side: Any) -> None:
    """Every yes-or-no argument of a constructor is a switch, but for two that are none."""
    others = {"aux_heads", "spatial_path"}
    for name, build in side.models.MODELS.items():
        bound = isinstance(build, partial)
        network = build.func if bound else build
        arguments = inspect.signature(network.__init__).parameters
        switches = [key for key, row in arguments.items() if isinstance(row.default, bool)]
        expected = tuple(key for key in switches if key not in others)
        assert side.models.OPTIONS.get(name, ()) == expected, name
        # what a name stands for cannot be switched
        assert not set(expected) & set(build.keywords if bound else ())
    assert set(side.models.OPTIONS) == {"bisenetv1_2019", "stdc1", "stdc2", "bisestdc", "bisestdc2"}


@pytest.mark.parametrize(
    ("name", "option", "known"),
    [
        ("bisenetv1_2019", "use_amr", "use_arm, use_global_pooling"),
        ("bisenetv1_2019", "use_boundary_8", "use_arm, use_global_pooling"),
        ("stdc1", "use_arm", ", ".join(FLAGS)),
        ("bisestdc2", "aux_heads", ", ".join(FLAGS)),
        ("bisenetv1", "use_arm", "none"),
        # which published network it is, is told by its name
        ("bisenetv1", "spatial_path", "none"),
        ("bisenetv1_2020", "norm", "none"),
        ("bisenetv2", "form", "none"),
    ],
)
def test_an_option_that_is_not_there_is_refused(
    side: Any, name: str, option: str, known: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        side.models.build_model(name, classes=2, options={option: True})
    assert str(caught.value) == (
        f"model.options names {option}, which {name} does not have; its options: {known}"
    )


def test_all_wrong_options_are_named(side: Any) -> None:
    options = {"use_arm": True, "zoom": False, "blur": True}
    with pytest.raises(ConfigError, match=r"model.options names zoom, blur, which bisenetv1_2019 "):
        side.models.build_model("bisenetv1_2019", classes=2, options=options)


# ---- from the configuration to the network ----------------------------------------------------
def test_set_reaches_the_network(side: Any) -> None:
    path = CONFIGS / "bisenetv1_2019_cityscapes.yml"
    plain = build_network(side, load_config(path).model)
    assert (plain.name, plain.classes) == ("bisenetv1_2019", 19)
    assert (plain.cp.use_arm, plain.cp.use_global_pooling) == (False, False)
    override = "model.options.use_global_pooling=true"
    changed = build_network(side, load_config(path, overrides=[override]).model)
    assert (changed.cp.use_arm, changed.cp.use_global_pooling) == (False, True)
    wrong = load_config(path, overrides=["model.options.use_boundary_2=true"])
    with pytest.raises(ConfigError, match=r"use_boundary_2, which bisenetv1_2019 does not have"):
        build_network(side, wrong.model)


def test_a_switch_is_on_or_off() -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.use_arm"):
        load_config(
            CONFIGS / "bisenetv1_2019_cityscapes.yml", overrides=["model.options.use_arm=2"]
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bisenetv1_2019", {"use_arm": True, "use_global_pooling": True}),
        ("stdc1", flags(*FLAGS)),
        ("stdc2", flags()),
        ("bisestdc", flags("use_boundary_16")),
    ],
)
def test_no_switch_changes_names_or_shapes(
    side: Any, name: str, options: Mapping[str, bool]
) -> None:
    """So one weights file fits whatever is switched, and conversion need not ask."""
    plain, switched = (
        side.backend.state_arrays(side.models.build_model(name, classes=2, options=given))
        for given in (None, options)
    )
    assert [(k, a.shape) for k, a in plain.items()] == [(k, a.shape) for k, a in switched.items()]


# ---- through loss, probes, groups and training ------------------------------------------------
EVERY_COMBINATION = [
    dict(zip(FLAGS, on, strict=True)) for on in itertools.product((False, True), repeat=4)
]
CASES = [
    *(("bisestdc_seg50_cityscapes", options) for options in EVERY_COMBINATION),
    ("stdc1_seg50_cityscapes", flags("use_boundary_2", "use_boundary_16")),
    ("bisenetv1_2019_cityscapes", {"use_arm": True, "use_global_pooling": True}),
]


def case_id(value: object) -> str:
    if isinstance(value, str):
        return value.partition("_c")[0]
    assert isinstance(value, dict)
    return "+".join(name.removeprefix("use_") for name, on in value.items() if on) or "none"


@pytest.mark.parametrize(("stem", "options"), CASES, ids=case_id)
def test_loss_and_probes_follow_the_switches(
    side: Any, tmp_path: Path, stem: str, options: dict[str, bool]
) -> None:
    config = configured(stem, options)
    prepare_inputs(tmp_path, config, steps=("loss", "backward"), real_frames=False)
    model = build_network(side, config.model)
    boundaries = [
        flag.replace("use_boundary_", "boundary")
        for flag, on in options.items()
        if on and flag in FLAGS
    ]
    assert [head for head in model.heads if head.startswith("boundary")] == boundaries
    classes = [head for head in model.heads if head not in boundaries]
    parts = [f"{boundary}_{term}" for boundary in boundaries for term in ("bce", "dice")]
    inputs = read_arrays(tmp_path / "loss.npz")
    case = Case(
        config, "float32", {k: a for k, a in inputs.items() if k.startswith("mostly_easy/")}
    )
    ((_, recorded),) = probe_loss(side, case)
    terms = [key.removeprefix("mostly_easy/loss/") for key in recorded if "/loss/" in key]
    assert terms == ["total", *classes, *parts]
    case = Case(config, "float32", read_arrays(tmp_path / "backward.npz"))
    ((_, recorded),) = probe_backward(side, case)
    assert [key.removeprefix("loss/") for key in recorded if key.startswith("loss/")] == terms
    found = {key.removeprefix("grad/") for key in recorded if key.startswith("grad/")}
    parameters = set(side.backend.trainable_parameters(model))
    assert found == {name for name in parameters if not is_of(name, model.unused)}
    # what is switched off is in a group of the optimizer all the same, as upstream has it
    optimizer, _ = side.optim.build_optimizer(
        model, optimizer=config.optimizer, schedule=config.schedule
    )
    groups = side.optim.parameter_groups(optimizer, model)
    assert set(groups) == parameters - set(getattr(model, "ungrouped", ()))


@pytest.mark.parametrize("use_arm", [False, True])
@pytest.mark.parametrize("use_global_pooling", [False, True])
def test_a_training_step_moves_what_is_switched_on(
    side: Any, use_arm: bool, use_global_pooling: bool
) -> None:
    options = {"use_arm": use_arm, "use_global_pooling": use_global_pooling}
    model = side.models.build_model("bisenetv1_2019", classes=3, options=options)
    off = tuple(
        layer for name, layers in SWITCHES_2019.items() if not options[name] for layer in layers
    )
    assert model.unused == off
    before = side.backend.state_arrays(model)
    optimizer, scheduler = side.optim.build_optimizer(
        model,
        optimizer=OptimizerConfig(base_lr=0.1, weight_decay=1e-4, decay_norm_and_bias=True),
        schedule=ScheduleConfig(max_iters=10),
    )
    rng = np.random.default_rng(0)
    model.train()
    side.train.train_step(
        model,
        side.losses.build_loss(LossConfig(ohem="none"), classes=3, ignore_index=255),
        optimizer,
        scheduler,
        image=side.backend.to_tensor(rng.standard_normal((4, 3, 64, 64), dtype=np.float32)),
        label=side.backend.to_tensor(rng.integers(0, 3, (4, 64, 64))),
    )
    after = side.backend.state_arrays(model)
    still = {name for name in before if np.array_equal(before[name], after[name])}
    # a bias before a BatchNorm has no gradient but rounding: it may stay
    assert still - {"cp.conv_avg.bias"} == {
        name for name in before if is_of(name, off) and name != "cp.conv_avg.bias"
    }
