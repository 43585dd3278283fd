"""From two records to failure cases: what is taken, in which order, and with which arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explained import Array, relations
from programs import ROOT

from common.config import Config, load_config
from common.datasets import Sample
from common.sampling import SampleKey, sample_rng
from common.schedule import lr_factor
from common.transforms import train_transform
from fake_data import rules
from pipeline import step_cases_data
from pipeline.cases import short_schedule
from pipeline.data_probe import small_data
from pipeline.explain.batch import explain_batch
from pipeline.explain.data import explain_sample
from pipeline.explain.loss import explain_logits_gradient, explain_loss
from pipeline.explain.metric import explain_metric
from pipeline.explain.optimizer import Sgd, explain_momentum, explain_update
from pipeline.explain.pixel_loss import Rule, pixels_of, weights_of
from pipeline.explain.schedule import explain_option, explain_series
from pipeline.failure import FailureCase, Hint, read_case, write_case
from pipeline.faults import FAULTS
from pipeline.given import (
    every_other_negative,
    gradient_at,
    gradient_by_rule,
    logits_by_head,
)
from pipeline.judge import Result, compare_float64, judge
from pipeline.records import Record
from pipeline.step_cases import step_cases
from pipeline.steps import step_named

IGNORE = 255
EXPLAIN = {
    "loss": explain_loss,
    "logits_gradient": explain_logits_gradient,
    "update": explain_update,
    "momentum": explain_momentum,
    "series": explain_series,
    "option": explain_option,
    "sample": explain_sample,
    "batch": explain_batch,
    "metric": explain_metric,
}
Arrays = dict[str, Array]


@pytest.fixture(scope="module")
def config() -> Config:
    loaded = load_config(ROOT / "configs/bisenetv1_cityscapes.yml")
    schedule = loaded.schedule.model_copy(update={"max_iters": 60, "warmup_iters": 10})
    return loaded.model_copy(update={"schedule": schedule})


def meta(side: str, weights: str) -> dict[str, Any]:
    same = dict.fromkeys(("config", "inputs", "data", "seed"), "x")
    return {"side": side, "frameworks": [side], "weights": weights, **same}


def judged(
    step: str,
    reference: Arrays,
    actual: Arrays,
    *,
    dtype: str = "float64",
    weights: str = "by rule",
) -> tuple[Result, tuple[Record, Record]]:
    pair = tuple(
        Record(arrays, {**meta(side, weights), "dtype": dtype})
        for side, arrays in (("torch", reference), ("paddle", actual))
    )
    rows = compare_float64(step_named(step), [reference, actual], ignore_index=IGNORE)
    return judge(step_named(step), dtype, pair, rows), (pair[0], pair[1])


def cases_of(
    step: str,
    reference: Arrays,
    actual: Arrays,
    config: Config,
    inputs: Mapping[str, Array] | None = None,
    **options: str,
) -> list[FailureCase]:
    result, pair = judged(step, reference, actual, **options)
    return step_cases(result, pair, inputs or {}, config)


def hints_of(case: FailureCase, folder: Path) -> list[Hint]:
    """Explain the case as it comes back from the disk."""
    write_case(folder / "01", case)
    return EXPLAIN[case.kind](read_case(folder / "01"))


def test_a_passing_step_and_other_steps_have_no_cases(config: Config) -> None:
    arrays = {"lr/decay": np.arange(1.0, 4.0)}
    assert cases_of("lr_schedule", arrays, arrays, config) == []
    assert cases_of("forward", {"eval/layer/x": np.ones(3)}, {}, config) == []


# --- loss ----------------------------------------------------------------------------------------

HEADS = ("main", "aux16", "aux32")


def loss_inputs() -> Arrays:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 5, (2, 8, 8))
    label[:, :2] = IGNORE
    logits = rng.standard_normal((2, 5, 8, 8))
    return {
        "all_void/logits": logits,
        "all_void/label": np.full_like(label, IGNORE),
        "mixed/logits": logits + 1.0,
        "mixed/label": label,
    }


def loss_record(
    inputs: Arrays,
    config: Config,
    *,
    void_is_class: bool = False,
    weights: Mapping[str, float] | None = None,
) -> Arrays:
    rule = Rule.of(config.loss.model_dump())
    arrays: Arrays = {}
    for name in ("all_void", "mixed"):
        label = inputs[f"{name}/label"]
        arrays[f"{name}/label"] = label
        total, gradients = 0.0, {}
        terms: dict[str, float] = {}
        for head, logits in logits_by_head(inputs[f"{name}/logits"], HEADS).items():
            seen = label * (label != IGNORE) if void_is_class else label
            pixels = pixels_of(logits, seen, ignore_index=IGNORE)
            chosen = weights_of(pixels, rule)
            terms[head] = float(pixels.losses @ chosen)
            factor = (weights or {}).get(head, 1.0)
            total += factor * terms[head]
            gradients[f"{name}/grad/{head}"] = factor * pixels.gradient(chosen)
        for term, value in {"total": total, **terms}.items():
            arrays[f"{name}/loss/{term}"] = np.asarray(value)
        arrays |= gradients
    return arrays


def test_of_a_wrong_criterion_each_term_is_a_case(config: Config, tmp_path: Path) -> None:
    inputs = loss_inputs()
    right = loss_record(inputs, config)
    wrong = loss_record(inputs, config, void_is_class=True)
    cases = cases_of("loss", right, wrong, config, inputs)
    # the totals and gradients follow from the terms
    assert [case.key for case in cases] == [f"mixed/loss/{head}" for head in HEADS]
    assert cases[1].where == "term aux16, labels mixed"
    assert cases[1].arrays["logits/aux16"].shape == (2, 5, 8, 8)
    assert "logits/main" not in cases[1].arrays
    for case in cases:
        assert relations(hints_of(case, tmp_path))[:1] == ["ignore-index"]


def test_a_wrong_weight_is_a_case_of_the_total_and_of_the_gradient(
    config: Config, tmp_path: Path
) -> None:
    inputs = loss_inputs()
    right = loss_record(inputs, config)
    wrong = loss_record(inputs, config, weights={"aux32": 0.5})
    cases = cases_of("loss", right, wrong, config, inputs)
    assert [case.key for case in cases] == ["mixed/loss/total", "mixed/grad/aux32"]
    assert "elsewhere/all_void/main/reference" in cases[0].arrays
    for case in cases:
        assert relations(hints_of(case, tmp_path))[:1] == ["term-weight"]


def test_what_the_recipe_does_not_reach_is_no_case(config: Config, tmp_path: Path) -> None:
    inputs = loss_inputs()
    other = {"rule/n_min/host/mixed/loss/main": np.asarray(1.0), "detail/x/mixed/loss": np.ones(1)}
    right = loss_record(inputs, config) | other
    wrong = loss_record(inputs, config, weights={"aux32": 0.5}) | {k: 2 * other[k] for k in other}
    cases = cases_of("loss", right, wrong, config, inputs)
    assert [case.key for case in cases] == ["mixed/loss/total", "mixed/grad/aux32"]
    assert relations(hints_of(cases[0], tmp_path))[:1] == ["term-weight"]
    rates = {"options/other/decay/lr_mult": np.asarray(2.0), "options/dropout/x/p": np.asarray(0.1)}
    right = schedule_record(config) | rates
    wrong = schedule_record(config, shift=1) | {k: 2 * rates[k] for k in rates}
    cases = cases_of("lr_schedule", right, wrong, config)
    assert cases
    assert all(case.kind == "series" for case in cases)


def test_swapped_gradients_bring_the_other_heads_along(config: Config, tmp_path: Path) -> None:
    inputs = loss_inputs()
    right = loss_record(inputs, config)
    wrong = dict(right)
    for name in ("all_void", "mixed"):
        one, other = f"{name}/grad/aux16", f"{name}/grad/aux32"
        wrong[one], wrong[other] = right[other], right[one]
    cases = cases_of("loss", right, wrong, config, inputs)
    assert [case.name for case in cases] == ["aux16", "aux32"]
    assert relations(hints_of(cases[0], tmp_path))[:1] == ["swapped-heads"]


# --- optimizer -----------------------------------------------------------------------------------

SHAPES = {
    "cp.conv.weight": (400, 20, 3, 3),
    "cp.abn.weight": (12,),
    "cp.bn.bias": (12,),
    "ffm.conv.weight": (6, 4, 1, 1),
    "ffm.bn.weight": (6,),
}
GROUPS = {
    "cp.conv.weight": ("decay", 1.0, 5e-4),
    "cp.abn.weight": ("no_decay", 1.0, 0.0),
    "cp.bn.bias": ("no_decay", 1.0, 0.0),
    "ffm.conv.weight": ("head_decay", 10.0, 5e-4),
    "ffm.bn.weight": ("head_no_decay", 10.0, 0.0),
}


def start(name: str, scale: float = 1.0) -> Array:
    weight = scale * rules.weight(name, SHAPES[name])
    return every_other_negative(weight) if "abn" in name else weight


def optimizer_record(config: Config, *, scale: float = 1.0, **wrong: Any) -> Arrays:
    schedule = short_schedule(config, 6)
    arrays: Arrays = {}
    for count in (1, 5):
        moved: Arrays = {}
        momenta: Arrays = {}
        for name, (_, mult, decay) in GROUPS.items():
            before = start(name, scale)
            drawn = gradient_by_rule(name, before)
            options = {
                "momentum": float(np.float32(0.9)),
                "weight_decay": float(np.float32(decay)),
            } | wrong
            rates = [config.optimizer.base_lr * mult * lr_factor(i, schedule) for i in range(count)]
            gradients = [gradient_at(drawn, i + 1) for i in range(count)]
            state = Sgd(**options).run(before, gradients, rates)
            arrays[f"step{count}/param/{name}"] = state.weight
            moved[f"moved/step{count}/{name}"] = np.abs(state.weight - before).max()
            momenta[f"step{count}/momentum/{name}"] = state.momentum
        arrays |= {k: np.asarray(v) for k, v in moved.items()} | momenta
    return arrays


def test_of_a_wrong_update_each_group_has_a_case(config: Config, tmp_path: Path) -> None:
    right = optimizer_record(config)
    wrong = optimizer_record(config, nesterov=True)
    cases = cases_of("optimizer", right, wrong, config)
    assert [case.key for case in cases] == [
        f"step1/param/{name}"
        for name in ("cp.conv.weight", "cp.abn.weight", "ffm.conv.weight", "ffm.bn.weight")
    ]
    assert [case.settings["group"]["name"] for case in cases] == [
        *("decay", "no_decay", "head_decay", "head_no_decay")
    ]
    assert cases[2].where == "parameter ffm.conv.weight (group head_decay) after step 1"
    np.testing.assert_array_equal(cases[1].arrays["before"], start("cp.abn.weight"))
    for case in cases:
        assert relations(hints_of(case, tmp_path))[:1] == ["nesterov"]


def test_what_only_later_steps_show_is_a_case_of_the_last(config: Config, tmp_path: Path) -> None:
    right = optimizer_record(config)
    wrong = optimizer_record(config, momentum=0.8)
    cases = cases_of("optimizer", right, wrong, config)
    assert {case.key.split("/")[0] for case in cases} == {"step5"}
    assert cases[-1].kind == "momentum"
    for case in cases:
        hints = hints_of(case, tmp_path)
        assert relations(hints)[:1] == ["momentum"]
        assert "momentum 0.8 instead of 0.9" in hints[0].text


def test_of_a_large_parameter_the_element_that_differs_is_kept(config: Config) -> None:
    right = optimizer_record(config)
    wrong = {key: array.copy() for key, array in right.items()}
    name = "step1/param/cp.conv.weight"
    wrong[name][7, 3, 1, 2] += 0.5
    case = cases_of("optimizer", right, wrong, config)[0]
    size = case.arrays["reference"].size
    assert size < right[name].size
    assert case.settings["elements"] == f"{size} of {right[name].size}"
    assert np.abs(case.arrays["actual"] - case.arrays["reference"]).max() == pytest.approx(0.5)


def test_weights_that_are_no_rule_are_found_from_the_first_step(
    config: Config, tmp_path: Path
) -> None:
    right = optimizer_record(config, scale=1.5)
    wrong = optimizer_record(config, scale=1.5, momentum=0.8)
    cases = cases_of("optimizer", right, wrong, config, weights="sha256 of a file")
    assert cases[0].settings["group"]["name"] == "decay"
    assert relations(hints_of(cases[0], tmp_path))[:1] == ["momentum"]


def test_parameters_that_changed_places_are_told(config: Config, tmp_path: Path) -> None:
    right = optimizer_record(config)
    wrong = dict(right)
    one, other = "step1/param/cp.abn.weight", "step1/param/cp.bn.bias"
    wrong[one], wrong[other] = right[other], right[one]
    case = cases_of("optimizer", right, wrong, config)[0]
    assert case.name == "cp.abn.weight"
    assert relations(hints_of(case, tmp_path)) == ["swapped-parameters"]


# --- schedule ------------------------------------------------------------------------------------


def schedule_record(config: Config, shift: int = 0) -> Arrays:
    arrays: Arrays = {}
    table = {"decay": (1.0, 5e-4), "no_decay": (1.0, 0.0), "head_decay": (10.0, 5e-4)}
    for name, (mult, _) in table.items():
        arrays[f"lr/{name}"] = np.array(
            [0.01 * mult * lr_factor(i + shift, config.schedule) for i in range(60)]
        )
    for name, (mult, decay) in table.items():
        options = {"lr_mult": mult, "weight_decay": decay, "momentum": 0.9, "nesterov": 0.0}
        arrays |= {f"options/{name}/{key}": np.asarray(value) for key, value in options.items()}
    return arrays | {
        "group/ffm.w": np.array("head_decay"),
        "group/ffm.v": np.array("head_decay"),
        "group/cp.w": np.array("decay"),
    }


def test_groups_options_and_series_come_in_this_order(config: Config, tmp_path: Path) -> None:
    right, wrong = schedule_record(config), schedule_record(config, shift=1)
    wrong["group/ffm.w"] = wrong["group/ffm.v"] = np.array("decay")
    wrong["options/head_decay/lr_mult"] = np.asarray(1.0)
    cases = cases_of("lr_schedule", right, wrong, config)
    assert [case.key for case in cases] == [
        "group/ffm.w",
        "options/head_decay/lr_mult",
        "lr/decay",
    ]
    assert cases[0].where == "group of parameter ffm.w and 1 more"
    assert cases[2].where == "rate of group decay from iteration 0 on and 2 more"
    found = [relations(hints_of(case, tmp_path))[0] for case in cases]
    assert found == ["parameter-group", "lr-multiplier", "lr-shifted"]


def test_a_group_that_the_reference_leaves_empty_is_known(config: Config, tmp_path: Path) -> None:
    right = schedule_record(config)
    wrong = {**right, "group/ffm.w": np.array("head_no_decay")}
    (case,) = cases_of("lr_schedule", right, wrong, config)
    assert relations(hints_of(case, tmp_path)) == ["parameter-group"]


# --- metric --------------------------------------------------------------------------------------


def test_averages_of_a_wrong_matrix_are_no_cases(config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "few/prediction": rng.integers(0, 19, (1, 8, 8)),
        "few/label": rng.integers(0, 19, (1, 8, 8)),
        "few/repeats": np.asarray(3),
    }
    matrix = np.zeros((20, 19), np.int64)
    np.add.at(matrix, (inputs["few/label"].ravel(), inputs["few/prediction"].ravel()), 3)
    right = {"few/matrix": matrix, "few/miou_skip": np.asarray(0.4)}
    turned = np.concatenate([matrix[:-1].T, matrix[-1:]])
    wrong = {"few/matrix": turned, "few/miou_skip": np.asarray(0.5)}
    cases = cases_of("metric", right, wrong, config, inputs)
    assert [case.key for case in cases] == ["few/matrix"]
    assert cases[0].settings["repeats"] == 3
    assert relations(hints_of(cases[0], tmp_path)) == ["transposed-matrix"]


# --- data ----------------------------------------------------------------------------------------


def traced(config: Config, *, epoch: int) -> Arrays:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)
    label = rng.integers(0, 19, (64, 96)).astype(np.uint8)
    arrays: Arrays = {}
    draws = sample_rng(config.verify.seed, key=SampleKey(epoch, 0))
    transform = train_transform(small_data(config).model_copy(update={"flip_probability": 1.0}))
    stages = [("read", image, label), *transform.trace(image, label, draws)]
    for position, (name, picture, labels) in enumerate(stages):
        where = f"train/epoch{epoch}/sample0/{position}_{name}"
        arrays |= {f"{where}/image": picture, f"{where}/label": labels}
    return arrays


def test_a_sample_is_shown_where_it_first_differs(config: Config, tmp_path: Path) -> None:
    right = traced(config, epoch=0) | traced(config, epoch=1)
    wrong = dict(right)
    for epoch in (0, 1):
        where = f"train/epoch{epoch}/sample0"
        stages = list(dict.fromkeys(k.split("/")[3] for k in right if k.startswith(where)))
        position = next(i for i, name in enumerate(stages) if name.endswith("flip"))
        unflipped = right[f"{where}/{stages[position - 1]}/label"]
        for stage in stages[position:]:
            wrong[f"{where}/{stage}/label"] = unflipped.astype(
                right[f"{where}/{stage}/label"].dtype
            )
    cases = cases_of("data", right, wrong, config, dtype="float32")
    assert [case.where for case in cases] == ["label of sample 0 (train, epoch 0) after flip"]
    assert cases[0].settings["read_hw"] == [64, 96]
    assert cases[0].settings["data"]["root"] == "."
    assert relations(hints_of(cases[0], tmp_path)) == ["flip"]


def test_batches_are_shown_with_the_names_of_the_data_set(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [f"a/{i}" for i in range(5)]
    samples = [Sample(Path("x"), Path("y"), name) for name in names]
    monkeypatch.setattr(step_cases_data, "load_samples", lambda *_: samples)
    key = "train_loader/world2/rank{}/workers1/names"
    rows = [[names[i] for i in (0, 2, 4)], [names[i] for i in (1, 3, 0)]]
    right = {key.format(0): np.array([rows[0]]), key.format(1): np.array([rows[1]])}
    wrong = {key.format(0): np.array([rows[1]]), key.format(1): np.array([rows[0]])}
    cases = cases_of("data", right, wrong, config, dtype="float32")
    assert len(cases) == 1
    assert cases[0].where == "names of the train batches of rank 0 of 2, from batch 0 on"
    assert cases[0].arrays["names"].tolist() == names
    assert relations(hints_of(cases[0], tmp_path)) == ["swapped-ranks"]


def test_a_step_has_five_cases_at_most(config: Config) -> None:
    right = schedule_record(config)
    factors = iter(range(2, 20))
    wrong = {
        key: a * next(factors) if a.ndim == 0 and a.dtype.kind == "f" else a
        for key, a in right.items()
    }
    assert len(cases_of("lr_schedule", right, wrong, config)) == 5


EXPLAINED_STEPS = ("data", "metric", "loss", "lr_schedule", "optimizer")


def test_every_fault_of_these_steps_says_what_explains_it() -> None:
    told = (ROOT / "docs/explanations.md").read_text(encoding="utf-8")
    for fault in FAULTS:
        if fault.step in EXPLAINED_STEPS:
            assert fault.why is not None, fault.name
            assert f"`{fault.why}`" in told, f"{fault.name}: {fault.why}"
