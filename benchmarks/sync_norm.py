"""A training step with plain BatchNorm against one with synchronised BatchNorm, two processes.

    python benchmarks/sync_norm.py --framework paddle
    python benchmarks/sync_norm.py --framework torch --size 240 320 --batch 4

Starts itself twice over gloo, on the CPU, with one thread each. A step is forward, loss, backward
and the averaging of the gradients. Each round takes both networks, in changing order; on a shared
machine only ratios within a round mean something, and of those the ratio of CPU time, in which the
waiting of one process for the other is not counted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.config import load_config  # noqa: E402

KINDS = ("plain", "synchronised")


def environment(framework: str, rank: int, ports: list[int]) -> dict[str, str]:
    """Return what a launcher would set for one of two processes."""
    if framework == "torch":
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(ports[0]),
        }
    else:
        endpoints = [f"127.0.0.1:{port}" for port in ports[1:]]
        own = {
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": "2",
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            "PADDLE_MASTER": f"127.0.0.1:{ports[0]}",
        }
    return {**os.environ, "OMP_NUM_THREADS": "1", **own}


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start_ranks(framework: str) -> int:
    """Run this program as two ranks; return the exit code of the worse one."""
    ports = free_ports(3)
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env=environment(framework, rank, ports))
        for rank in range(2)
    ]
    return max(abs(rank.wait()) for rank in ranks)


def steps(framework: str, config_path: Path, images: int, size: list[int]) -> dict[str, Any]:
    """Return one training step for each kind of BatchNorm."""
    names = ("backend", "distributed", "losses", "models", "sync_norm")
    side = {name: importlib.import_module(f"for_{framework}.{name}") for name in names}
    backend, distributed = side["backend"], side["distributed"]
    backend.set_threads(1)
    distributed.initialise("cpu")
    config = load_config(config_path)
    rng = np.random.default_rng(distributed.rank())
    x = backend.to_tensor(rng.standard_normal((images, 3, *size), np.float32))
    label = backend.to_tensor(rng.integers(0, config.model.classes, (images, *size)))
    criterion = side["losses"].build_loss(
        config.loss, classes=config.model.classes, ignore_index=config.data.ignore_index
    )

    def build(kind: str) -> Callable[[], None]:
        backend.seed_everything(0)
        model = side["models"].build_model(
            config.model.name, classes=config.model.classes, options=config.model.options
        )
        model.train()
        if kind == "synchronised":
            side["sync_norm"].convert_sync_batchnorm(model)
        distributed.broadcast_parameters(model)

        def step() -> None:
            criterion(model(x), label)["total"].backward()
            distributed.average_gradients(model)
            model.clear_gradients() if framework == "paddle" else model.zero_grad()

        return step

    return {kind: build(kind) for kind in KINDS} | {"distributed": distributed}


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Return the CPU time of this process and the clock time of one call."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Synchronised against plain BatchNorm.")
    parser.add_argument("--framework", choices=("paddle", "torch"), required=True)
    default = ROOT / "configs" / "bisenetv1_cityscapes.yml"
    parser.add_argument("--config", type=Path, default=default)
    parser.add_argument("--size", type=int, nargs=2, default=[240, 320], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=4, help="images per process (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds measured (default 5)")
    chosen = parser.parse_args()
    if {"RANK", "PADDLE_TRAINER_ID"}.isdisjoint(os.environ):
        return start_ranks(chosen.framework)
    work = steps(chosen.framework, chosen.config, chosen.batch, chosen.size)
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(chosen.rounds + 1):
        order = KINDS if number % 2 else KINDS[::-1]
        rounds.append({kind: seconds(work[kind]) for kind in order})
    # the first round warms up
    del rounds[0]
    if work["distributed"].is_main():
        h, w = chosen.size
        print(f"{chosen.framework}, {chosen.batch} images of {h} x {w} per process, rank 0 of 2")
        for column, name in enumerate(("CPU time", "clock")):
            both = [statistics.median(found[kind][column] for found in rounds) for kind in KINDS]
            ratios = [found[KINDS[1]][column] / found[KINDS[0]][column] for found in rounds]
            print(
                f"{name:8s} plain {both[0]:.3f} s, synchronised {both[1]:.3f} s; ratio: median "
                f"{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
            )
    work["distributed"].finalise()
    return 0


if __name__ == "__main__":
    sys.exit(main())
