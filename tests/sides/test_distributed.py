"""Two processes over gloo: sums, gradients, synchronised norms, training, lost ranks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import Ended, run_alone, run_launched, run_ranks
from numpy.typing import NDArray
from rank_program import LABELS, LAYER_STATE, LAYERS, NATIVE_SHAPE, layer_input, layer_shape

from common.errors import InputError
from common.rank_watch import EXIT_RANK_LOST

Arrays = dict[str, NDArray[Any]]
WORLD = {"torch": "WORLD_SIZE", "paddle": "PADDLE_TRAINERS_NUM"}
FIRST_NEEDED = {"torch": "RANK", "paddle": "PADDLE_TRAINER_ID"}


def _worked(*processes: Ended) -> None:
    for process in processes:
        assert process.code == 0, process.output


def _result(out: Path, task: str, side: Any, rank: int) -> Arrays:
    return dict(np.load(out / f"{task}_{side.name}_{rank}.npz"))


def _of_two(side: Any, task: str, out: Path, *options: str) -> tuple[Arrays, Arrays]:
    _worked(*run_ranks(side.name, task, out, *options))
    return _result(out, task, side, 0), _result(out, task, side, 1)


# ---- one process ------------------------------------------------------------------------------
def test_one_process_needs_nothing(side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORLD[side.name], raising=False)
    distributed = side.distributed
    distributed.initialise("cpu")
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    distributed.barrier()
    tensor = side.backend.to_tensor(np.array([1.0, 2.0]))
    total = distributed.all_reduce_sum(tensor)
    total *= 2
    assert side.backend.to_numpy(tensor).tolist() == [1.0, 2.0]
    assert side.backend.to_numpy(total).tolist() == [2.0, 4.0]
    array = np.array([3, 4])
    assert distributed.all_reduce_array(array).tolist() == [3, 4]
    layer = side.norm.InPlaceABN(2)
    side.backend.set_gradients(layer, {"bias": np.array([1.0, 2.0], np.float32)})
    distributed.broadcast_parameters(layer)
    distributed.average_gradients(layer)
    (gradient,) = side.backend.gradients(layer).values()
    assert gradient.tolist() == [1.0, 2.0]
    distributed.finalise()


def test_a_launchers_environment_must_be_whole(side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORLD[side.name], "2")
    monkeypatch.delenv(FIRST_NEEDED[side.name], raising=False)
    with pytest.raises(InputError, match=f"{FIRST_NEEDED[side.name]} is not; start the job with"):
        side.distributed.initialise("cpu")
    assert side.distributed.world_size() == 1


def test_an_array_that_cannot_be_added_up_is_refused(side: Any) -> None:
    with pytest.raises(InputError, match="cannot add up bool"):
        side.distributed.all_reduce_array(np.array([True]))


def test_conversion_keeps_every_object(side: Any) -> None:
    layers = side.norm.nn
    norm, inplace = side.norm.BatchNorm2d(2), side.norm.InPlaceABN(2)
    model = layers.Sequential(norm, layers.ReLU(), inplace)
    before = {id(t) for t in side.backend.trainable_parameters(model).values()}
    names = list(model.state_dict())
    assert side.sync_norm.convert_sync_batchnorm(model) == 2
    assert isinstance(norm, side.sync_norm.SyncBatchNorm2d)
    assert isinstance(inplace, side.sync_norm.SyncInPlaceABN)
    assert {id(t) for t in side.backend.trainable_parameters(model).values()} == before
    assert list(model.state_dict()) == names
    assert side.backend.layers_of(model, side.norm.BatchNorm2d) == ["0"]
    assert side.backend.layers_of(model, side.norm.InPlaceABN) == ["2"]
    # a second time nothing is left to do
    assert side.sync_norm.convert_sync_batchnorm(model) == 0


def test_a_foreign_batch_norm_is_refused(side: Any) -> None:
    nn = side.norm.nn
    foreign = nn.BatchNorm2D(2) if side.name == "paddle" else nn.BatchNorm2d(2)
    with pytest.raises(InputError, match="cannot be synchronised over ranks"):
        side.sync_norm.convert_sync_batchnorm(nn.Sequential(foreign))


@pytest.mark.parametrize(
    ("kind", "device", "sync_bn", "expected"),
    [
        ("BatchNorm2d", "cpu", True, "SyncBatchNorm2d"),
        ("BatchNorm2d", "cpu", "own", "SyncBatchNorm2d"),
        ("BatchNorm2d", "gpu", True, "NativeSyncBatchNorm2d"),
        ("BatchNorm2d", "gpu", "own", "SyncBatchNorm2d"),
        ("InPlaceABN", "cpu", True, "SyncInPlaceABN"),
        ("InPlaceABN", "gpu", True, "SyncInPlaceABN"),
        ("InPlaceABN", "gpu", "own", "SyncInPlaceABN"),
        ("BatchNorm2d", "gpu", False, None),
        ("InPlaceABN", "cpu", False, None),
        ("Sequential", "gpu", True, None),
        # what is converted already
        ("SyncBatchNorm2d", "cpu", True, None),
        ("SyncBatchNorm2d", "gpu", True, None),
        ("NativeSyncBatchNorm2d", "gpu", True, None),
    ],
)
def test_which_layer_is_chosen(
    side: Any, kind: str, device: str, sync_bn: bool | str, expected: str | None
) -> None:
    modules = (side.norm, side.sync_norm, side.norm.nn)
    of = next(getattr(module, kind) for module in modules if hasattr(module, kind))
    found = side.sync_norm.synchronised(of, device=device, sync_bn=sync_bn)
    assert found is (None if expected is None else getattr(side.sync_norm, expected))


def test_conversion_for_a_gpu_keeps_names_and_constants(side: Any) -> None:
    nn = side.norm.nn
    norm, inplace = side.norm.BatchNorm2d(2), side.norm.InPlaceABN(2)
    model = nn.Sequential(norm, inplace)
    names, constants = list(model.state_dict()), dict(vars(norm))
    assert side.sync_norm.convert_sync_batchnorm(model, device="gpu") == 2
    assert type(norm) is side.sync_norm.NativeSyncBatchNorm2d
    assert type(inplace) is side.sync_norm.SyncInPlaceABN
    assert list(model.state_dict()) == names
    assert {key: vars(norm)[key] for key in constants} == constants
    assert side.sync_norm.convert_sync_batchnorm(model, device="gpu") == 0


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_converted_layers_alone_are_the_plain_ones(side: Any, device: str) -> None:
    x = side.backend.to_tensor(np.random.default_rng(0).standard_normal((2, 2, 3, 3), np.float32))
    found = []
    for converted in (False, True):
        model = side.norm.nn.Sequential(side.norm.BatchNorm2d(2), side.norm.InPlaceABN(2))
        model.train()
        if converted:
            side.sync_norm.convert_sync_batchnorm(model, device=device)
        out = side.backend.to_numpy(model(x))
        state = side.backend.state_arrays(model).values()
        model.eval()
        found.append([out, *state, side.backend.to_numpy(model(x))])
    for plain, synchronised in zip(*found, strict=True):
        np.testing.assert_array_equal(synchronised, plain)


# ---- sums and gradients -----------------------------------------------------------------------
def test_sums_over_two_ranks(side: Any, tmp_path: Path) -> None:
    ranks = _of_two(side, "sums", tmp_path)
    expected = {
        "sum/float16": [30000.0, 3.0],
        "sum/float32": [0.75, 3.0],
        "sum/float64": [0.1 + 0.2, 3.0],
        "sum/int64": [2**40 + 3, -2],
        "array/int64": [[3, 2**21]],
        "array/float32": [[3, 2**21]],
        "array/float64": [[3, 2**21]],
        "broadcast/weight": [1.0] * 3,
        "broadcast/bias": [1.0] * 3,
        "broadcast/running_mean": [1.0] * 3,
        "broadcast/running_var": [1.0] * 3,
    }
    for limit in (1, 2**20):
        # a gradient of one rank counts as zero on the other; one of none stays absent
        expected |= {
            f"{limit}/0.weight": [1.5, 4.0],
            f"{limit}/0.bias": [0.5, 0.125],
            f"{limit}/1.bias": [4.0, -4.0],
        }
    for rank, found in enumerate(ranks):
        kept = {key: found.pop(key) for key in list(found) if "kept" in key}
        assert kept["kept/float64"].tolist() == ([0.1, 1.0], [0.2, 2.0])[rank]
        assert kept["array_kept/int64"].tolist() == [[rank + 1, 2**20]]
        assert set(found) == set(expected)
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values, err_msg=key)
            if "/" in key and key.split("/")[0] in ("sum", "array"):
                assert found[key].dtype.name == key.split("/")[1]


def test_the_step_is_that_of_the_mean_of_the_ranks_means(side: Any, tmp_path: Path) -> None:
    ranks = _of_two(side, "means", tmp_path)
    # equal logits: probability 1/2, so class 0's gradient is -1/2 per valid pixel of class 0
    mean_of_means = 0.5 * (-0.5) + 0.5 * 0.5
    valid = [sum(label != 255 for label in labels) for labels in LABELS]
    assert valid == [4, 1]
    whole_batch = (4 * -0.5 + 1 * 0.5) / 5
    assert whole_batch == pytest.approx(-0.3)
    for found in ranks:
        np.testing.assert_allclose(found["bias"], [mean_of_means, -mean_of_means], atol=1e-15)


# ---- the layers, by the formula of the whole batch ----------------------------------------------
def _expected(name: str) -> Arrays:
    """The whole batch by the textbook, in float64."""
    x, cotangent = layer_input(layer_shape(name))
    axes, shape = (0, 2, 3), (1, 3, 1, 1)
    sign = np.ones(3) if name in ("plain", "single") else np.sign(LAYER_STATE["weight"])
    weight = LAYER_STATE["weight"]
    scale = weight if name in ("plain", "single") else np.abs(weight) + 1e-5
    mean, variance = x.mean(axes), x.var(axes)
    count = x.size / 3
    inverse = (1 / np.sqrt(variance + 1e-5)).reshape(shape)
    normal = (x - mean.reshape(shape)) * inverse
    before = normal * scale.reshape(shape) + LAYER_STATE["bias"].reshape(shape)
    slope = np.where(before > 0, 1.0, 0.01) if name == "inplace" else np.ones_like(before)
    dy = cotangent * slope
    centred = dy - dy.mean(axes, keepdims=True)
    centred = centred - normal * (dy * normal).mean(axes, keepdims=True)
    state = {
        "running_mean": 0.9 * LAYER_STATE["running_mean"] + 0.1 * mean,
        "running_var": 0.9 * LAYER_STATE["running_var"] + 0.1 * variance * count / (count - 1),
    }
    inverse_eval = 1 / np.sqrt(state["running_var"].reshape(shape) + 1e-5)
    normal_eval = (x - state["running_mean"].reshape(shape)) * inverse_eval
    after = normal_eval * scale.reshape(shape) + LAYER_STATE["bias"].reshape(shape)
    return {
        "y": before * slope,
        "dx": centred * inverse * scale.reshape(shape),
        "dweight": (dy * normal).sum(axes) * sign,
        "dbias": dy.sum(axes),
        "eval": np.where(after > 0, after, 0.01 * after) if name == "inplace" else after,
        "weight": weight,
        "bias": LAYER_STATE["bias"],
        **state,
    }


def test_layers_over_two_ranks_are_the_whole_batch(side: Any, tmp_path: Path) -> None:
    ranks = _of_two(side, "layers", tmp_path)
    for dtype, bound in (("float64", 1e-14), ("float32", 2e-6)):
        for name in LAYERS:
            for key, expected in _expected(name).items():
                parts = [rank[f"{dtype}/{name}/{key}"] for rank in ranks]
                assert parts[0].dtype == dtype
                if key in ("y", "dx", "eval"):
                    found = np.concatenate(parts)
                elif key in ("dweight", "dbias"):
                    # each rank's own part; average_gradients puts them together
                    found = parts[0] + parts[1]
                else:
                    np.testing.assert_array_equal(parts[0], parts[1])
                    found = parts[0]
                # a sum is as exact as its terms: those of these two are of size 1
                values = math.prod(layer_shape(name)) // 3
                terms = values if key in ("dweight", "dbias") else 1
                worst = np.abs(found - expected).max()
                limit = bound * max(np.abs(expected).max(), terms)
                assert worst <= limit, f"{dtype}/{name}/{key}: {worst}"


def test_paddles_own_layer_moves_the_running_variance_as_ours(side: Any, tmp_path: Path) -> None:
    if side.name == "torch":
        pytest.skip("Torch's layer refuses tensors on a CPU, and has the convention by itself")
    ranks = _of_two(side, "native", tmp_path)
    x, _ = layer_input(NATIVE_SHAPE)
    count = x.size // 3
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    normal = (x - mean.reshape(1, 3, 1, 1)) / np.sqrt(variance + 1e-5).reshape(1, 3, 1, 1)
    expected = {
        "y": normal * LAYER_STATE["weight"].reshape(1, 3, 1, 1)
        + LAYER_STATE["bias"].reshape(1, 3, 1, 1),
        **LAYER_STATE,
        "running_mean": 0.9 * LAYER_STATE["running_mean"] + 0.1 * mean,
        "running_var": 0.9 * LAYER_STATE["running_var"] + 0.1 * variance * count / (count - 1),
    }
    assert set(ranks[0]) == set(expected)
    for key, value in expected.items():
        parts = [rank[key] for rank in ranks]
        found = np.concatenate(parts) if key == "y" else parts[0]
        np.testing.assert_allclose(found, value, rtol=0, atol=3e-6, err_msg=key)


# ---- training -----------------------------------------------------------------------------------
# InPlaceABN; ten parameters that never get a gradient
@pytest.mark.parametrize("config", ["bisenetv1_2020_cityscapes", "bisenetv1_2019_cityscapes"])
def test_a_step_of_two_is_a_step_of_one(side: Any, tmp_path: Path, config: str) -> None:
    options = (f"config={config}", "iterations=2")
    _worked(run_alone(side.name, "train", tmp_path, *options))
    alone = _result(tmp_path, "train", side, 0)
    first, second = _of_two(side, "train", tmp_path, *options)
    assert set(alone) == set(first) == set(second)
    for key, reference in alone.items():
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
        worst = np.abs(first[key] - reference).max()
        assert worst <= 1e-12 * np.abs(reference).max(), f"{key}: {worst}"


# ---- ranks that die or hang ---------------------------------------------------------------------
TRAIN = ("train", "config=bisenetv1_cityscapes")


def _lost(side: Any, out: Path, task: str, *options: str) -> tuple[Ended, Ended]:
    first, second = run_ranks(side.name, task, out, "timeout_s=3600", *options)
    return first, second


@pytest.mark.parametrize(("bad_rank", "task"), [(0, ("loop",)), (1, TRAIN)])
def test_a_killed_rank_ends_the_other(
    side: Any, tmp_path: Path, bad_rank: int, task: tuple[str, ...]
) -> None:
    name, *options = task
    ranks = _lost(side, tmp_path, name, *options, "bad=die", f"bad_rank={bad_rank}")
    killed, other = ranks[bad_rank], ranks[1 - bad_rank]
    assert killed.code == -9
    assert other.code == EXIT_RANK_LOST, other.output
    assert f"rank {bad_rank} has ended before the job did" in other.output
    assert other.at - killed.at < 20


def test_a_killed_rank_ends_the_launchers_job(side: Any, tmp_path: Path) -> None:
    done = run_launched(side.name, "loop", tmp_path, "bad=die", "timeout_s=3600")
    assert done.code not in (0, None)
    # who is told by: the launcher or the other rank, whichever is faster
    assert "SIGKILL" in done.output or "code -9" in done.output or "rank 1 has ended" in done.output


def test_a_rank_that_fails_says_why_and_ends_the_other(side: Any, tmp_path: Path) -> None:
    other, failed = _lost(side, tmp_path, "loop", "bad=raise")
    assert failed.code == 1
    assert "this rank cannot go on" in failed.output
    assert other.code == EXIT_RANK_LOST
    assert "rank 1 has ended before the job did" in other.output


def test_a_hanging_rank_ends_both(side: Any, tmp_path: Path) -> None:
    for rank in _lost(side, tmp_path, "loop", "bad=sleep", "sleep_s=3600", "timeout_s=8"):
        assert rank.code == EXIT_RANK_LOST, rank.output
        assert "rank 1 hangs: the others have been waiting" in rank.output
