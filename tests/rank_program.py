"""What the ranks of the distributed tests run: python rank_program.py SIDE TASK OUT [OPTION=VALUE].

Started with the environment of a launcher or without one. Imports one framework.
"""

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.config import load_config  # noqa: E402
from fake_data.tensors import fixed_batch  # noqa: E402
from pipeline.cases import Case, build, build_loss, short_schedule  # noqa: E402

MODULES = ("backend", "norm", "models", "losses", "optim", "distributed", "sync_norm")
HW = (32, 32)


def main() -> None:
    name, task, out, *rest = sys.argv[1:]
    options = dict(text.split("=", 1) for text in rest)
    modules = {m: importlib.import_module(f"for_{name}.{m}") for m in MODULES}
    side = SimpleNamespace(name=name, **modules)
    side.backend.set_threads(1)
    side.distributed.initialise("cpu", timeout_s=float(options.get("timeout_s", 60)))
    arrays = TASKS[task](side, options)
    np.savez(Path(out) / f"{task}_{name}_{side.distributed.rank()}.npz", **arrays)
    side.distributed.finalise()
    left = [name for name in thread_names() if "gloo" in name]
    # Torch's would outlive Python's shutdown, and abort it now and then; Paddle's hold nothing
    if name == "torch" and left:
        sys.exit(f"threads are left after finalise: {left}")


def thread_names() -> list[str]:
    tasks = Path("/proc/self/task")
    return [(task / "comm").read_text().strip() for task in tasks.iterdir()]


def train(side: Any, options: dict[str, str]) -> dict[str, Any]:
    """Train this rank's part of fixed batches; return all weights, buffers and momentum."""
    iterations = int(options.get("iterations", 20))
    config = load_config(
        ROOT / "configs" / f"{options['config']}.yml",
        overrides=(f"verify.train_base_lr={options.get('lr', 2e-4)}",),
    )
    case = Case(config, "float64", {})
    world, rank = side.distributed.world_size(), side.distributed.rank()
    model = build(side, case)
    model.train()
    if rank > 0:
        # the others start from something else, as with random weights they would
        own = side.backend.state_arrays(model)
        side.backend.load_arrays(model, {name: array + 0.25 for name, array in own.items()})
    if options.get("sync", "yes") == "yes":
        side.sync_norm.convert_sync_batchnorm(model)
    side.distributed.broadcast_parameters(model)
    loss = build_loss(side, Case(plain_loss(config), "float64", {}))
    optimizer, scheduler = side.optim.build_optimizer(
        model,
        optimizer=config.optimizer.model_copy(update={"base_lr": config.verify.train_base_lr}),
        schedule=short_schedule(config, iterations, warmup=5),
    )
    side.optim.adopt_kernel_constants(optimizer)
    totals: list[float] = []
    for iteration in range(iterations):
        misbehave(side, options, iteration)
        images, labels = batch(config, iteration, int(options.get("batch", 8)))
        part = slice(rank * len(images) // world, (rank + 1) * len(images) // world)
        outputs = model(side.backend.to_tensor(images[part]))
        total = loss(outputs, side.backend.to_tensor(labels[part]))["total"]
        total.backward()
        side.distributed.average_gradients(model)
        optimizer.step()
        scheduler.step()
        optimizer.clear_grad() if side.name == "paddle" else optimizer.zero_grad()
        mean = side.distributed.all_reduce_sum(total)
        totals.append(float(side.backend.to_numpy(mean)) / world)
    momentum = side.optim.momentum_buffers(optimizer, model)
    return {
        "loss": np.array(totals),
        **{f"state/{n}": array for n, array in side.backend.state_arrays(model).items()},
        **{f"momentum/{n}": array for n, array in momentum.items()},
    }


def plain_loss(config: Any) -> Any:
    """Return the configuration with plain cross entropy: a mean over pixels splits by images."""
    return config.model_copy(update={"loss": config.loss.model_copy(update={"ohem": "none"})})


def batch(config: Any, iteration: int, size: int) -> tuple[Any, Any]:
    """Return a batch without void: every image has as many pixels in the mean."""
    images, labels = fixed_batch(iteration, size, *HW, config.model.classes)
    return images, np.where(labels == config.data.ignore_index, 0, labels)


def misbehave(side: Any, options: dict[str, str], iteration: int) -> None:
    """Die, stop or fall asleep on rank 1, or on the rank that is asked for, where asked to."""
    if iteration != 2 or side.distributed.rank() != int(options.get("bad_rank", 1)):
        return
    if options.get("bad") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif options.get("bad") == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif options.get("bad") == "sleep":
        time.sleep(float(options["sleep_s"]))
    elif options.get("bad") == "raise":
        raise ValueError("this rank cannot go on")


def sums(side: Any, _options: dict[str, str]) -> dict[str, Any]:
    """Call every function of the distributed module once; return what came back on this rank."""
    distributed, rank = side.distributed, side.distributed.rank()
    found: dict[str, Any] = {}
    for dtype, values in SUMMANDS.items():
        tensor = side.backend.to_tensor(np.array(values[rank], dtype))
        found[f"sum/{dtype}"] = side.backend.to_numpy(distributed.all_reduce_sum(tensor))
        found[f"kept/{dtype}"] = side.backend.to_numpy(tensor)
    for dtype in ("int64", "float32", "float64"):
        array = np.array([[rank + 1, 2**20]], dtype)
        found[f"array/{dtype}"] = distributed.all_reduce_array(array)
        found[f"array_kept/{dtype}"] = array
    side.backend.set_default_dtype("float64")
    model = side.norm.InPlaceABN(3)
    side.backend.load_arrays(model, {n: np.full(3, rank + 1.0) for n in NORM_STATE})
    distributed.broadcast_parameters(model)
    found |= {f"broadcast/{n}": a for n, a in side.backend.state_arrays(model).items()}
    distributed.barrier()
    # in buckets of one parameter each, and all in one
    for limit in (1, 2**20):
        distributed.BUCKET_BYTES = limit
        found |= {f"{limit}/{n}": a for n, a in averaged(side, rank).items()}
    return found


SUMMANDS = {
    "float16": ([60000.0, 1.0], [-30000.0, 2.0]),
    "float32": ([0.5, 1.0], [0.25, 2.0]),
    "float64": ([0.1, 1.0], [0.2, 2.0]),
    "int64": ([2**40, -1], [3, -1]),
}
NORM_STATE = ("weight", "bias", "running_mean", "running_var")


def averaged(side: Any, rank: int) -> dict[str, Any]:
    """Average gradients that both ranks have, one has, and none has."""
    model = side.norm.nn.Sequential(side.norm.InPlaceABN(2), side.norm.InPlaceABN(2))
    own = {"0.weight": np.array([1.0 + rank, 4.0]), "0.bias": np.array([0.5, 0.25 * rank])}
    if rank == 1:
        own["1.bias"] = np.array([8.0, -8.0])
    side.backend.set_gradients(model, own)
    side.distributed.average_gradients(model)
    return side.backend.gradients(model)


def layers(side: Any, _options: dict[str, str]) -> dict[str, Any]:
    """Run synchronised layers over an uneven split, forward and backward, in two dtypes."""
    rank = side.distributed.rank()
    found: dict[str, Any] = {}
    for dtype in ("float64", "float32"):
        side.backend.set_default_dtype(dtype)
        for name, layer in sync_layers(side).items():
            whole, cotangent = layer_input(layer_shape(name))
            part = slice(0, 3) if rank == 0 else slice(3, None)
            x = side.backend.leaf_tensor(whole[part].astype(dtype))
            y = layer(x)
            (y * side.backend.to_tensor(cotangent[part].astype(dtype))).sum().backward()
            arrays = {"y": side.backend.to_numpy(y), "dx": side.backend.to_numpy(x.grad)}
            own = {f"d{n}": a for n, a in side.backend.gradients(layer).items()}
            state = side.backend.state_arrays(layer)
            layer.eval()
            arrays["eval"] = side.backend.to_numpy(layer(x))
            found |= {f"{dtype}/{name}/{n}": a for n, a in (arrays | own | state).items()}
    return found


def native(side: Any, _options: dict[str, str]) -> dict[str, Any]:
    """Run Paddle's own synchronised layer over a stand-in for its kernel, which is GPU only."""
    paddle = importlib.import_module("paddle")
    paddle._C_ops.sync_batch_norm_ = stand_in(side, paddle)
    rank = side.distributed.rank()
    layer = side.norm.BatchNorm2d(3)
    model = side.norm.nn.Sequential(layer)
    model.train()
    assert side.sync_norm.convert_sync_batchnorm(model, device="gpu") == 1
    assert type(layer) is side.sync_norm.NativeSyncBatchNorm2d
    side.backend.load_arrays(layer, LAYER_STATE)
    whole, _ = layer_input(NATIVE_SHAPE)
    part = whole[3 * rank : 3 * rank + 3]
    y = layer(side.backend.to_tensor(part.astype("float32")))
    return {"y": side.backend.to_numpy(y), **side.backend.state_arrays(layer)}


def stand_in(side: Any, paddle: Any) -> Any:
    """What paddle.nn.SyncBatchNorm is documented to do, forward, in training."""

    def kernel(
        x: Any, mean: Any, variance: Any, weight: Any, bias: Any, *options: Any
    ) -> tuple[Any, ...]:
        is_test, momentum, eps, layout, use_global_stats, trainable_statistics = options
        assert (is_test, layout, use_global_stats) == (False, "NCHW", False)
        assert trainable_statistics is False
        axes, shape = [0, 2, 3], [1, -1, 1, 1]
        moments = paddle.stack([x.mean(axis=axes), (x * x).mean(axis=axes)])
        moments = side.distributed.all_reduce_sum(moments) / side.distributed.world_size()
        found, biased = moments[0], moments[1] - moments[0] * moments[0]
        paddle.assign(momentum * mean + (1 - momentum) * found, output=mean)
        paddle.assign(momentum * variance + (1 - momentum) * biased, output=variance)
        normal = (x - found.reshape(shape)) / paddle.sqrt(biased + eps).reshape(shape)
        return (normal * weight.reshape(shape) + bias.reshape(shape), mean, variance)

    return kernel


NATIVE_SHAPE = (6, 3, 1, 2)
"""Few values, so that n / (n - 1) shows."""
LAYERS = ("plain", "single", "inplace", "identity")


def layer_shape(name: str) -> tuple[int, ...]:
    # "single": on rank 1 one value per channel, which that rank alone could not normalise
    return (4, 3, 1, 1) if name == "single" else (5, 3, 4, 6)


def sync_layers(side: Any) -> dict[str, Any]:
    """Return one converted layer per name of LAYERS, weights by hand."""
    built = {
        "plain": side.norm.BatchNorm2d(3),
        "single": side.norm.BatchNorm2d(3),
        "inplace": side.norm.InPlaceABN(3),
        "identity": side.norm.InPlaceABN(3, activation="identity"),
    }
    model = side.norm.nn.Sequential(*built.values())
    model.train()
    assert side.sync_norm.convert_sync_batchnorm(model) == len(built)
    for layer in built.values():
        side.backend.load_arrays(layer, LAYER_STATE)
    return built


LAYER_STATE = {
    "weight": np.array([1.5, -0.5, 0.25]),
    "bias": np.array([0.5, 0.0, -1.0]),
    "running_mean": np.array([0.0, 1.0, -1.0]),
    "running_var": np.array([1.0, 2.0, 0.5]),
}


def layer_input(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the whole batch and the gradient at the output, both with a mean far from zero."""
    rng = np.random.default_rng(len(shape) * shape[0])
    return 3 + rng.standard_normal(shape), 1 + rng.standard_normal(shape)


def means(side: Any, _options: dict[str, str]) -> dict[str, Any]:
    """Average the gradients of a loss of which the ranks see different numbers of valid pixels."""
    side.backend.set_default_dtype("float64")
    rank = side.distributed.rank()
    model = side.norm.InPlaceABN(2)
    logits = side.backend.trainable_parameters(model)["bias"].reshape([1, 2, 1, 1])
    loss = side.losses.CrossEntropy(ignore_index=255)
    labels = np.array(LABELS[rank]).reshape(1, 1, -1)
    maps = logits + side.backend.to_tensor(np.zeros((1, 2, 1, labels.size)))
    loss(maps, side.backend.to_tensor(labels)).backward()
    side.distributed.average_gradients(model)
    return side.backend.gradients(model)


def loop(side: Any, options: dict[str, str]) -> dict[str, Any]:
    """Average gradients a few times: all of a training that the other ranks see."""
    layer = side.norm.InPlaceABN(2)
    for iteration in range(5):
        misbehave(side, options, iteration)
        side.backend.set_gradients(layer, {"bias": np.ones(2, np.float32)})
        side.distributed.average_gradients(layer)
    return side.backend.gradients(layer)


LABELS = ((0, 0, 0, 0), (1, 255, 255, 255))
"""Per rank: four valid pixels of class 0; one of class 1."""

TASKS = {
    "train": train,
    "sums": sums,
    "layers": layers,
    "native": native,
    "means": means,
    "loop": loop,
}

if __name__ == "__main__":
    main()
