"""The trainer of one process: accumulation, clipping, averaging, checkpoints, what stops it."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.checkpoint_store import Checkpoint
from common.config import Config
from common.errors import ConfigError
from common.stopping import MAX_SKIPPED, NotFiniteError
from common.weights import read_weights

CLASSES, SIZE = 5, (32, 64)


@pytest.fixture(scope="module")
def train(side: Any) -> Any:
    names = ("trainer", "amp", "ema")
    # more threads than cores that are free make small kernels wait for each other
    side.backend.set_threads(1)
    modules = {name: importlib.import_module(f"for_{side.name}.{name}") for name in names}
    return SimpleNamespace(**modules)


def config(**changes: Any) -> Config:
    """BiSeNetV2, which has dropout, without void pixels, decay or hard examples."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": "bisenetv2", "classes": CLASSES},
        "data": {
            **{"dataset": "list", "root": "nowhere", "crop_hw": SIZE, "batch_size": 2},
            **{"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
        },
        "loss": {"ohem": "none"},
        "optimizer": {"base_lr": 0.01, "weight_decay": 0.0},
        "schedule": {"max_iters": 10},
        "train": {"precision": "float64", "seed": 3},
    }
    for section, values in changes.items():
        sections[section] = {**sections[section], **values}
    return Config.model_validate(sections)


def batch(side: Any, seed: int, *, images: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(images, 3, *SIZE)).astype(np.float32)
    label = rng.integers(0, CLASSES, size=(images, *SIZE))
    names = [f"street{seed}_{number}" for number in range(images)]
    to_tensor = side.backend.to_tensor
    return {"image": to_tensor(image), "label": to_tensor(label), "name": names}


def joined(side: Any, *parts: dict[str, Any]) -> dict[str, Any]:
    arrays = {
        key: np.concatenate([side.backend.to_numpy(part[key]) for part in parts])
        for key in ("image", "label")
    }
    names = [name for part in parts for name in part["name"]]
    return {**{key: side.backend.to_tensor(a) for key, a in arrays.items()}, "name": names}


def weights(side: Any, trainer: Any) -> dict[str, NDArray[Any]]:
    return side.backend.state_arrays(trainer.model)


def moved(side: Any, trainer: Any, batches: list[dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """Do one step; return its result and the change of each parameter, divided by its rate."""
    before = weights(side, trainer)
    groups = side.optim.parameter_groups(trainer.optimizer, trainer.model)
    result = trainer.step(batches)
    after = weights(side, trainer)
    changes = {
        name: (before[name] - after[name]) / result.rates[group] for name, group in groups.items()
    }
    return result, changes


def test_an_iteration_is_the_verified_one(side: Any, train: Any) -> None:
    # bisenet verify records train.train_step; what trains must do the same, bit for bit
    recipe = config(optimizer={"weight_decay": 5e-4}, schedule={"warmup_iters": 2})
    ours, theirs = (train.trainer.Trainer(recipe, device="cpu") for _ in range(2))
    for trainer in (ours, theirs):
        side.backend.disable_dropout(trainer.model)
    for seed in range(3):
        images = batch(side, seed)
        result = ours.step([images])
        terms = side.train.train_step(
            *(theirs.model, theirs.loss, theirs.optimizer, theirs.scheduler),
            image=theirs.image(images),
            label=images["label"],
        )
        assert result.terms == {name: float(term) for name, term in terms.items()}
    expected = weights(side, theirs)
    for name, array in weights(side, ours).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_accumulated_batches_equal_one_large_batch(side: Any, train: Any) -> None:
    first, second = batch(side, 1), batch(side, 2)
    ends = []
    for batches in ([first, second], [joined(side, first, second)]):
        trainer = train.trainer.Trainer(config(), device="cpu")
        # with BatchNorm as in an evaluation no picture depends on the others of its batch
        trainer.model.eval()
        result = trainer.step(batches)
        ends.append((result.terms["total"], weights(side, trainer)))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-12)
    for name, array in ends[0][1].items():
        np.testing.assert_allclose(array, ends[1][1][name], rtol=0, atol=1e-12, err_msg=name)


def test_running_statistics_move_once_per_accumulated_batch(side: Any, train: Any) -> None:
    same, ends = batch(side, 1), []
    for count in (1, 2):
        trainer = train.trainer.Trainer(config(), device="cpu")
        trainer.step([same] * count)
        ends.append(weights(side, trainer))
    names = [name for name in ends[0] if name.startswith("detail") and "running_mean" in name]
    assert names
    for name in names:
        # from 0: 0.1 m, then 0.9 * 0.1 m + 0.1 m = 0.19 m
        np.testing.assert_allclose(ends[1][name], 1.9 * ends[0][name], rtol=1e-6, atol=1e-12)


def test_clipping_limits_the_norm_of_all_gradients(side: Any, train: Any) -> None:
    def norm(changes: dict[str, Any]) -> float:
        return float(np.sqrt(sum((change**2).sum() for change in changes.values())))

    images = [batch(side, 1)]
    free, limit = train.trainer.Trainer(config(), device="cpu"), {"clip_norm": 0.5}
    clipped = train.trainer.Trainer(config(train=limit), device="cpu")
    result, whole = moved(side, free, images)
    assert result.grad_norm == pytest.approx(norm(whole), rel=1e-9)
    assert norm(whole) > 0.5
    result, part = moved(side, clipped, images)
    assert result.grad_norm == pytest.approx(norm(whole), rel=1e-9)
    assert norm(part) == pytest.approx(0.5, rel=1e-5)


def test_average_by_hand(side: Any, train: Any) -> None:
    def tensors(weight: float, running: float) -> dict[str, Any]:
        arrays = {"w": np.array([weight, -weight]), "running_mean": np.array([running])}
        return {name: side.backend.to_tensor(array) for name, array in arrays.items()}

    average = train.ema.WeightAverage(tensors(1.0, 8.0), decay=0.75)
    average.update(tensors(3.0, 0.0))
    average.update(tensors(5.0, 4.0))
    found = {name: side.backend.to_numpy(tensor) for name, tensor in average.tensors.items()}
    # 1 -> 0.75 + 0.25 * 3 = 1.5 -> 0.75 * 1.5 + 0.25 * 5 = 2.375; 8 -> 6 -> 4.5 + 1 = 5.5
    np.testing.assert_allclose(found["w"], [2.375, -2.375], rtol=1e-7)
    np.testing.assert_allclose(found["running_mean"], [5.5], rtol=1e-7)


def test_average_is_what_is_evaluated(side: Any, train: Any) -> None:
    trainer = train.trainer.Trainer(config(train={"ema_decay": 0.5}), device="cpu")
    before = weights(side, trainer)
    trainer.step([batch(side, 1)])
    after, evaluated = weights(side, trainer), trainer.evaluation_model()
    found, untouched = side.backend.state_arrays(evaluated), weights(side, trainer)
    assert not evaluated.training
    for name, array in found.items():
        half = (before[name] + after[name]) / 2
        np.testing.assert_allclose(array, half, rtol=0, atol=1e-7, err_msg=name)
        assert np.array_equal(untouched[name], after[name])


def saved(trainer: Any, folder: Path) -> Checkpoint:
    """Write a checkpoint as the store would have it read."""
    folder.mkdir()
    progress = trainer.progress(samples=0, epoch=0, stopping={}, evaluated=0)
    files = trainer.files()
    for name, write in files.items():
        write(folder / name)
    # through JSON, as a manifest goes
    meta = json.loads(json.dumps(progress.as_meta()))
    return Checkpoint(folder, trainer.iteration, {n: folder / n for n in files}, meta)


def restored(train: Any, recipe: Config, checkpoint: Checkpoint) -> Any:
    trainer = train.trainer.Trainer(recipe, device="cpu")
    progress = train.trainer.Progress.from_meta(checkpoint.meta, where="here")
    trainer.restore(checkpoint, progress)
    return trainer


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_resumed_is_never_interrupted(
    side: Any, train: Any, tmp_path: Path, precision: str
) -> None:
    recipe = config(
        train={"precision": precision, "accumulate": 2, "clip_norm": 1.0, "ema_decay": 0.9},
        schedule={"warmup_iters": 2},
        optimizer={"weight_decay": 5e-4},
    )
    groups = [[batch(side, 2 * i), batch(side, 2 * i + 1)] for i in range(3)]
    whole = train.trainer.Trainer(recipe, device="cpu")
    results = [whole.step(group) for group in groups]
    half = train.trainer.Trainer(recipe, device="cpu")
    half.step(groups[0])
    rest = restored(train, recipe, saved(half, tmp_path / "checkpoint"))
    assert rest.iteration == 1
    assert [rest.step(group) for group in groups[1:]] == results[1:]
    for ours, theirs in zip(_everything(side, rest), _everything(side, whole), strict=True):
        assert list(ours) == list(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _everything(side: Any, trainer: Any) -> list[dict[str, NDArray[Any]]]:
    momentum = side.optim.momentum_buffers(trainer.optimizer, trainer.model)
    return [weights(side, trainer), momentum, trainer.evaluated_arrays()]


def test_dropout_differs_between_iterations_and_not_between_runs(side: Any, train: Any) -> None:
    # the weights hardly move: what differs is what was dropped
    recipe, images = config(optimizer={"base_lr": 1e-12}), [batch(side, 1)]
    runs = [train.trainer.Trainer(recipe, device="cpu") for _ in range(2)]
    first, second = ([run.step(images).terms["total"] for _ in range(2)] for run in runs)
    assert first == second
    assert abs(first[0] - first[1]) > 1e-4


def test_checkpoint_holds_weights_that_other_commands_read(
    side: Any, train: Any, tmp_path: Path
) -> None:
    trainer = train.trainer.Trainer(config(), device="cpu")
    trainer.step([batch(side, 1)])
    checkpoint = saved(trainer, tmp_path / "checkpoint")
    found = read_weights(checkpoint.files["weights.safetensors"])
    expected = weights(side, trainer)
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not any(path.suffix in (".pkl", ".pdopt", ".pth") for path in checkpoint.files.values())


def test_a_loss_that_is_not_finite_stops(side: Any, train: Any) -> None:
    trainer = train.trainer.Trainer(config(), device="cpu")
    trainer.step([batch(side, 1)])
    arrays = weights(side, trainer)
    arrays["detail.S2.1.conv.weight"][0, 0, 0, 0] = np.nan
    side.backend.load_arrays(trainer.model, arrays)
    parameters = side.backend.trainable_parameters(trainer.model)
    before = {name: side.backend.to_numpy(tensor) for name, tensor in parameters.items()}
    with pytest.raises(NotFiniteError) as caught:
        trainer.step([batch(side, 7)])
    for part in ("iteration 2", "detail.S2.1.conv", "street7_0", "street7_1"):
        assert part in str(caught.value)
    for name, tensor in parameters.items():
        np.testing.assert_array_equal(side.backend.to_numpy(tensor), before[name], err_msg=name)


def test_a_bad_image_is_told_from_a_bad_layer(side: Any, train: Any) -> None:
    trainer = train.trainer.Trainer(config(train={"accumulate": 2}), device="cpu")
    bad = batch(side, 2)
    image = side.backend.to_numpy(bad["image"])
    image[1, 0, 3, 4] = np.inf
    bad["image"] = side.backend.to_tensor(image)
    with pytest.raises(NotFiniteError, match="the image itself") as caught:
        trainer.step([batch(side, 1), bad])
    assert "street2_1" in str(caught.value)
    assert "street1_0" not in str(caught.value)


def test_a_stop_is_passed_on(side: Any, train: Any) -> None:
    trainer = train.trainer.Trainer(config(), device="cpu")
    assert not trainer.step([batch(side, 1)]).stop
    assert trainer.step([batch(side, 1)], stop=True).stop
    assert trainer.iteration == 2


@pytest.mark.parametrize("level", ["amp_o1", "amp_o2"])
def test_mixed_precision_on_a_cpu(side: Any, train: Any, level: str) -> None:
    recipe = config(train={"precision": level})
    if side.name == "paddle":
        with pytest.raises(ConfigError, match="GPU only"):
            train.trainer.Trainer(recipe, device="cpu")
        return
    trainer, seen = train.trainer.Trainer(recipe, device="cpu"), {}

    def visit(name: str, output: Any) -> None:
        seen.setdefault(name, str(output.dtype))

    images = batch(side, 1)
    with side.backend.visit_outputs(trainer.model, visit):
        result = trainer.step([images])
    convolutions = {seen[name] for name in seen if name.endswith("conv")}
    assert len([name for name in seen if name.endswith("conv")]) > 30
    assert convolutions == {"torch.bfloat16"}
    for tensor in side.backend.trainable_parameters(trainer.model).values():
        assert str(tensor.dtype) == "torch.float32"
        assert tensor.grad is None or str(tensor.grad.dtype) == "torch.float32"
    plain = train.trainer.Trainer(config(train={"precision": "float32"}), device="cpu")
    # bfloat16 keeps 8 bits: 0.4 % per operation
    assert result.terms["main"] == pytest.approx(plain.step([images]).terms["main"], rel=0.03)
    assert result.terms["main"] != plain.step([images]).terms["main"]


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_why_paddle_is_refused_there(side: Any, level: str) -> None:
    """Not a wish but what was found; where this fails Paddle has learned it, and amp.py can."""
    if side.name != "paddle":
        pytest.skip("Torch has mixed precision on a CPU; only Paddle refuses it")
    paddle = importlib.import_module("paddle")
    x, weight = paddle.ones([1, 3, 4, 4]), paddle.ones([2, 3, 1, 1])
    conv2d = paddle.nn.functional.conv2d
    with (
        pytest.warns(UserWarning, match="makes no effect"),
        paddle.amp.auto_cast(level=level, dtype="bfloat16"),
    ):
        assert conv2d(x, weight).dtype == paddle.float32
    with pytest.raises(RuntimeError, match=r"conv2d.*is not registered"):
        conv2d(x.astype("bfloat16"), weight.astype("bfloat16"))


# ---- what is not finite, with everything else in order -------------------------------------------
def test_the_first_bad_layer_is_looked_for_with_the_same_dropout(
    side: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seen = train.trainer.Trainer(config(train={"accumulate": 2}), device="cpu"), []
    forward = trainer.amp.forward

    def recorded(image: Any) -> dict[str, Any]:
        outputs = forward(image)
        seen.append(side.backend.to_numpy(outputs["main"]))
        return outputs

    def first_bad_layer(_model: Any, run: Any, *, image: Any) -> tuple[int, str]:  # noqa: ARG001
        run()
        return 0, "looked for"

    monkeypatch.setattr(trainer.amp, "forward", recorded)
    monkeypatch.setattr(train.trainer, "first_bad_layer", first_bad_layer)
    _replace_loss(trainer, monkeypatch, lambda total: total * float("nan"))
    with pytest.raises(NotFiniteError, match="looked for"):
        trainer.step([batch(side, 1), batch(side, 2)])
    first, second, first_again, second_again = seen
    np.testing.assert_array_equal(first_again, first)
    np.testing.assert_array_equal(second_again, second)
    # and there is dropout: with the generator as it stands it is another one
    other = forward(trainer.image(batch(side, 1)))["main"]
    assert not np.array_equal(side.backend.to_numpy(other), first)


def _replace_loss(trainer: Any, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Put the mean of the logits in the place of the loss, changed."""

    def loss(logits: dict[str, Any], _label: Any) -> dict[str, Any]:
        return {"total": change(logits["main"].mean())}

    monkeypatch.setattr(trainer, "loss", loss)


def _with_an_endless_gradient(total: Any) -> Any:
    """Return 0; its gradient is inf * 0, which is NaN."""
    return (total * 0.0) ** 0.5


def test_a_gradient_that_is_not_finite_stops(
    side: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss alone would tell nothing: it is 0."""
    trainer = train.trainer.Trainer(config(), device="cpu")
    before = weights(side, trainer)
    parameters = side.backend.trainable_parameters(trainer.model)
    _replace_loss(trainer, monkeypatch, _with_an_endless_gradient)
    with pytest.raises(NotFiniteError, match="the gradient of iteration 1 is not finite") as caught:
        trainer.step([batch(side, 1)])
    assert "total 0" in str(caught.value)
    assert trainer.iteration == 0
    after = weights(side, trainer)
    for name in parameters:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_a_scaler_may_not_skip_for_ever(
    side: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler needs a GPU; here its part, to skip the step, is played."""
    trainer = train.trainer.Trainer(config(), device="cpu")
    trainer.step([batch(side, 1)])
    monkeypatch.setattr(trainer.amp, "scaled", True)
    monkeypatch.setattr(trainer.amp, "step", lambda: None)
    assert trainer.skipped.limit == MAX_SKIPPED
    trainer.skipped.limit = 2
    _replace_loss(trainer, monkeypatch, _with_an_endless_gradient)
    assert all(np.isnan(trainer.step([batch(side, 1)]).grad_norm) for _ in range(2))
    with pytest.raises(NotFiniteError, match="nor was it in the 2 steps before"):
        trainer.step([batch(side, 1)])
    assert trainer.iteration == 3
