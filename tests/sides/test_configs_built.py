"""Every configuration is built: network, loss, optimizer, schedule, and held against upstream's.

Each network is built once, with 19 classes: neither groups nor names depend on their number.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load_config
from common.schedule import lr_factor
from pipeline.catalogue import MODEL_SOURCES, model_row

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yml"))
CLASSES = 19

GROUPS = {
    "bisenetv1_cityscapes": "bisenetv1",
    "bisenetv1_2020_cityscapes": "bisenetv1_2020",
    "bisenetv1_diss_cityscapes": "bisenetv1_diss_2020",
    # plain BatchNorm has the same parameters
    "bisenetv1_diss_face": "bisenetv1_diss_2020",
    "bisenetv1_fp16_2020_cityscapes": "bisenetv1_fp16_2020",
    "bisenetv1_2019_cityscapes": "bisenetv1_2019",
    "bisenetv2_cityscapes": "bisenetv2",
    "bisenetv2_2020_cityscapes": "bisenetv2_2020",
    "stdc1_seg50_cityscapes": "stdc1",
    "stdc1_seg75_cityscapes": "stdc1",
    "stdc2_seg50_cityscapes": "stdc2",
    "stdc2_seg75_cityscapes": "stdc2",
    "bisestdc_seg50_cityscapes": "bisestdc",
    "bisestdc_seg75_cityscapes": "bisestdc",
    "bisestdc2_cityscapes": "bisestdc2",
}
"""Configuration -> the model of param_groups.json whose recipe it states."""

SERIES = {
    "bisenetv1_cityscapes": "coincheung_6b4b67a/bisenetv1_city",
    "bisenetv2_cityscapes": "coincheung_6b4b67a/bisenetv2_city",
    "bisenetv2_2020_cityscapes": "coincheung_a8ddd22/bisenetv2",
    "bisenetv1_2020_cityscapes": "coincheung_a8ddd22/bisenetv1",
    "bisenetv1_diss_cityscapes": "coincheung_a8ddd22/bisenetv1",
    "bisenetv1_diss_face": "coincheung_a8ddd22/bisenetv1",
    "bisenetv1_fp16_2020_cityscapes": "coincheung_a8ddd22/bisenetv1",
    "bisenetv1_2019_cityscapes": "coincheung_2d6d8f1/bisenetv1",
    "stdc1_seg50_cityscapes": "stdc_seg_59ff37f/stdc",
    "stdc1_seg75_cityscapes": "stdc_seg_59ff37f/stdc",
    "stdc2_seg50_cityscapes": "stdc_seg_59ff37f/stdc",
    "stdc2_seg75_cityscapes": "stdc_seg_59ff37f/stdc",
    "bisestdc_seg50_cityscapes": "bisestdc_06f8733/bisestdc",
    "bisestdc_seg75_cityscapes": "bisestdc_06f8733/bisestdc",
    "bisestdc2_cityscapes": "bisestdc_06f8733/bisestdc",
    "bisenetv2_cityscapes_1024x1024_160k": "paddleseg_d7975e7/bisenetv2_city",
}
"""Configuration -> the series of lr.json whose recipe it states."""

UPSTREAM_GROUPS = {
    "decay": "decay",
    "no_decay": "no_decay",
    "decay_x10": "head_decay",
    "no_decay_x10": "head_no_decay",
    "all": "decay",
    # our loss has no parameter: upstream's only decays
    "detail_fuse_kernel": None,
}

FUSE_KERNEL = "(detail loss) fuse_kernel"

# measured on the original classes: parameters, and 1e9 multiply-accumulates at 512x1024
COUNTS = {
    "bisenetv1": (13_425_721, 29.58),
    "bisenetv1_2020": (13_392_384, None),
    "bisenetv1_diss": (13_300_416, None),
    "bisenetv1_fp16_2020": (13_392_384, None),
    "bisenetv1_2019": (31_619_552, None),
    "bisenetv2": (5_231_487, 24.60),
    "bisenetv2_2020": (3_645_935, None),
    "stdc1": (12_048_928, 16.86),
    "stdc2": (16_079_392, 23.46),
    "bisestdc": (12_904_768, 50.79),
    "bisestdc2": (13_357_280, 74.20),
}
FROZEN = {"stdc1": 13_248, "stdc2": 19_392, "bisestdc": 14_208}
"""Numbers of the backbone's BatchNorm, which upstream's optimizer never gets."""


class Built:
    """A network with what it returns for one small batch in training."""

    def __init__(self, side: Any, name: str, options: Mapping[str, bool]) -> None:
        side.backend.set_default_dtype("float32")
        self.model = side.models.build_model(name, classes=CLASSES, options=options)
        side.backend.disable_dropout(self.model)
        image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
        self.model.train()
        with side.backend.no_grad():
            self.outputs = self.model(side.backend.to_tensor(image))


@pytest.fixture(scope="module")
def built(side: Any) -> Callable[..., Built]:
    """Build a network, as published or with options, the first time that it is asked for."""
    networks: dict[tuple[object, ...], Built] = {}

    def get(name: str, options: Mapping[str, bool] | None = None) -> Built:
        key = (name, *sorted((options or {}).items()))
        if key not in networks:
            networks[key] = Built(side, name, options or {})
        return networks[key]

    return get


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def config(path: Path) -> Config:
    return load_config(path)


def test_every_network_has_a_configuration(side: Any) -> None:
    assert {load_config(path).model.name for path in CONFIGS} == set(side.models.MODELS)
    assert set(MODEL_SOURCES) == set(side.models.MODELS)


def test_the_loss_takes_what_the_network_returns(
    side: Any, config: Config, built: Callable[..., Built]
) -> None:
    network = built(config.model.name, config.model.options)
    assert list(network.outputs) == list(network.model.heads)
    assert set(config.loss.head_weights) <= set(network.model.heads)
    loss = side.losses.build_loss(
        config.loss, classes=config.model.classes, ignore_index=config.data.ignore_index
    )
    label = np.random.default_rng(1).integers(0, 11, (2, 32, 32))
    label[:, :8] = config.data.ignore_index
    terms = loss(network.outputs, side.backend.to_tensor(label))
    values = {name: float(side.backend.to_numpy(term)) for name, term in terms.items()}
    assert all(math.isfinite(value) and value > 0 for value in values.values()), values
    parts = {name: value for name, value in values.items() if name != "total"}
    weights = {name: config.loss.head_weights.get(name.split("_")[0], 1.0) for name in parts}
    total = sum(weights[name] * value for name, value in parts.items())
    assert values["total"] == pytest.approx(total, rel=1e-5)


def test_every_parameter_has_the_groups_options(
    side: Any, config: Config, built: Callable[..., Built]
) -> None:
    model = built(config.model.name, config.model.options).model
    recipe = config.optimizer
    optimizer, _ = side.optim.build_optimizer(model, optimizer=recipe, schedule=config.schedule)
    groups = side.optim.parameter_groups(optimizer, model)
    options = side.optim.group_options(optimizer)
    left_out = set(getattr(model, "ungrouped", ()))
    parameters = side.backend.trainable_parameters(model)
    assert set(groups) == set(parameters) - left_out
    for name, group in groups.items():
        is_head = name.partition(".")[0] in model.head_modules
        is_decayed = len(parameters[name].shape) > 1 or recipe.decay_norm_and_bias
        found = options[group]
        assert found["lr_mult"] == pytest.approx(recipe.head_lr_mult if is_head else 1.0)
        assert found["weight_decay"] == (recipe.weight_decay if is_decayed else 0.0)
        assert (found["momentum"], found["nesterov"]) == (0.9, False)


@pytest.mark.parametrize("stem", GROUPS)
def test_groups_are_upstreams(
    side: Any, stem: str, built: Callable[..., Built], golden: Path
) -> None:
    expected = json.loads((golden / "param_groups.json").read_text())[GROUPS[stem]]
    config = load_config(CONFIGS[0].parent / f"{stem}.yml")
    model = built(config.model.name, config.model.options).model
    assert config.optimizer.base_lr == expected["base_lr"]
    optimizer, _ = side.optim.build_optimizer(
        model, optimizer=config.optimizer, schedule=config.schedule
    )
    options = side.optim.group_options(optimizer)
    groups = side.optim.parameter_groups(optimizer, model)
    found = {
        name: (round(options[group]["lr_mult"], 12), options[group]["weight_decay"])
        for name, group in groups.items()
    }
    assert found == {
        name: (row["lr_mult"], row["weight_decay"])
        for name, row in expected["params"].items()
        if name != FUSE_KERNEL
    }
    every = set(side.backend.trainable_parameters(model))
    assert every - set(groups) == set(expected["in_no_group_hence_never_updated"])


def test_the_mixed_recipe_decays_everything_equally(side: Any, built: Callable[..., Built]) -> None:
    config = load_config(CONFIGS[0].parent / "bisenetv2_cityscapes_1024x1024_160k.yml")
    optimizer, _ = side.optim.build_optimizer(
        built("bisenetv2").model, optimizer=config.optimizer, schedule=config.schedule
    )
    for options in side.optim.group_options(optimizer).values():
        assert (options["lr_mult"], options["weight_decay"]) == (1.0, 5e-4)


@pytest.mark.parametrize("stem", SERIES)
def test_rates_are_upstreams(
    side: Any, stem: str, built: Callable[..., Built], golden: Path
) -> None:
    series = json.loads((golden / "lr.json").read_text())["series"][SERIES[stem]]
    config = load_config(CONFIGS[0].parent / f"{stem}.yml")
    assert config.schedule.max_iters == series["steps"]
    model = built(config.model.name, config.model.options).model
    optimizer, scheduler = side.optim.build_optimizer(
        model, optimizer=config.optimizer, schedule=config.schedule
    )
    start = side.optim.learning_rates(optimizer)
    wanted = {
        iteration: {
            group: rate
            for name, rate in zip(series["groups"], rates, strict=True)
            if (group := UPSTREAM_GROUPS[name]) is not None
        }
        for iteration, rates in zip(series["iterations"], series["lr"], strict=True)
    }
    assert set(wanted[0]) <= set(start)
    # the first rates as the optimizer has them, after real steps; no parameter has a gradient
    for iteration in range(3):
        found = side.optim.learning_rates(optimizer)
        for group, rate in wanted[iteration].items():
            assert found[group] == pytest.approx(rate, rel=1e-12, abs=0), (iteration, group)
        optimizer.step()
        scheduler.step()
    for iteration, rates in wanted.items():
        factor = lr_factor(iteration, config.schedule) / lr_factor(0, config.schedule)
        for group, rate in rates.items():
            assert start[group] * factor == pytest.approx(rate, rel=1e-12, abs=0), (
                iteration,
                group,
            )


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_upstreams(side: Any, name: str, built: Callable[..., Built]) -> None:
    parameters, gmacs = COUNTS[name]
    row = model_row(side, name, built(name).model)
    assert row.parameters == parameters
    if name != "bisestdc2":
        assert row.trainable == parameters - FROZEN.get(name, 0)
    if gmacs is not None:
        assert row.gmacs == pytest.approx(gmacs, abs=0.005)
    assert row.heads[0] == "main"


def test_counts_at_another_size(side: Any, built: Callable[..., Built]) -> None:
    # measured on the original class at 768x1536
    assert model_row(
        side, "stdc1", built("stdc1").model, size_hw=(768, 1536)
    ).gmacs == pytest.approx(37.94, abs=0.005)
