"""Starts tests/rank_program.py: alone, as two processes, or by the framework's own launcher."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent / "rank_program.py"
LAUNCHERS = {"torch": "torch.distributed.run", "paddle": "paddle.distributed.launch"}
LIMIT_S = 600
"""Seconds until it is given up: a machine that is busy otherwise is not a failure."""


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    at: float
    """When it was seen to have ended, on the monotonic clock."""


def _environment(extra: dict[str, str]) -> dict[str, str]:
    # one thread each: the tests share few cores; no launcher's variables from outside
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PADDLE_", "MASTER_"))}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONWARNINGS": "ignore::UserWarning",
        **extra,
    }


def _rank_environment(side: str, rank: int, world: int, ports: Sequence[int]) -> dict[str, str]:
    if side == "torch":
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(ports[0]),
        }
    endpoints = [f"127.0.0.1:{port}" for port in ports[1:]]
    return {
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": str(world),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_MASTER": f"127.0.0.1:{ports[0]}",
    }


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start(
    side: str,
    task: str,
    out: Path,
    *options: str,
    rank: int = 0,
    ports: Sequence[int] = (),
    program: Path = PROGRAM,
) -> subprocess.Popen[str]:
    """Start one process; with ports, as one rank of two."""
    extra = _rank_environment(side, rank, len(ports) - 1, ports) if ports else {}
    return subprocess.Popen(
        [sys.executable, str(program), side, task, str(out), *options],
        env=_environment(extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    return Ended(process.returncode, output, time.monotonic())


def run_alone(side: str, task: str, out: Path, *options: str) -> Ended:
    return ended(start(side, task, out, *options))


def run_ranks(
    side: str, task: str, out: Path, *options: str, world: int = 2, program: Path = PROGRAM
) -> list[Ended]:
    """Run without a launcher, with the variables that one would set."""
    ports = free_ports(world + 1)
    running = [
        start(side, task, out, *options, rank=rank, ports=ports, program=program)
        for rank in range(world)
    ]
    try:
        with ThreadPoolExecutor(world) as pool:
            return list(pool.map(ended, running))
    finally:
        for process in running:
            process.kill()


def run_launched(side: str, task: str, out: Path, *options: str) -> Ended:
    """Run two processes by the framework's launcher; Paddle's writes one log per rank."""
    command = [sys.executable, "-m", LAUNCHERS[side], "--nproc_per_node", "2"]
    if side == "paddle":
        command += ["--log_dir", str(out / "launcher")]
    else:
        command += ["--standalone"]
    done = subprocess.run(
        [*command, str(PROGRAM), side, task, str(out), *options],
        env=_environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    logs = sorted((out / "launcher").glob("workerlog.*"))
    return Ended(
        done.returncode, done.stdout + "".join(log.read_text() for log in logs), time.monotonic()
    )
