"""Kernels and threads of Paddle's CPU builds, chosen before they are loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.cpu_kernels import choose_mkl_kernels, read_cpuinfo, share_cores, usable_cores

AVX2 = "fpu sse4_2 fma avx avx2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"


def cpuinfo(vendor: str, flags: str) -> str:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\nbogomips\t: 4800\n"
    return one + "\n" + one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (cpuinfo("AuthenticAMD", AVX512), "7"),
        (cpuinfo("AuthenticAMD", AVX512.replace(" avx512vl", "")), "5"),
        (cpuinfo("AuthenticAMD", AVX2), "5"),
        (cpuinfo("AuthenticAMD", AVX2.replace("fma ", "")), None),
        (cpuinfo("GenuineIntel", AVX512), None),
        ("vendor_id: AuthenticAMD\n", None),
        ("", None),
    ],
)
def test_kernels_are_those_the_processor_has(text: str, expected: str | None) -> None:
    environment: dict[str, str] = {}
    choose_mkl_kernels(environment, text)
    assert environment.get("MKL_DEBUG_CPU_TYPE") == expected


def test_the_users_choice_of_kernels_stays() -> None:
    environment = {"MKL_DEBUG_CPU_TYPE": "4"}
    choose_mkl_kernels(environment, cpuinfo("AuthenticAMD", AVX512))
    assert environment == {"MKL_DEBUG_CPU_TYPE": "4"}


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, "8"),
        ({"PADDLE_TRAINERS_NUM": "4"}, "2"),
        ({"PADDLE_TRAINERS_NUM": "16", "PADDLE_LOCAL_SIZE": "4"}, "2"),
        ({"PADDLE_TRAINERS_NUM": "16"}, "1"),
        ({"PADDLE_TRAINERS_NUM": "many"}, "8"),
        ({"PADDLE_TRAINERS_NUM": "0"}, "8"),
        ({"OMP_NUM_THREADS": "3"}, "3"),
    ],
)
def test_cores_are_shared_among_the_processes(environment: dict[str, str], threads: str) -> None:
    share_cores(environment, cores=8)
    assert environment["OMP_NUM_THREADS"] == threads


def test_cores_are_those_this_process_may_use() -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_the_paddle_side_chooses_before_paddle_is_loaded() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MKL_DEBUG_CPU_TYPE"}
    program = (
        "import os, sys, for_paddle;"
        "assert 'paddle' not in sys.modules;"
        "print(os.environ.get('MKL_DEBUG_CPU_TYPE'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    expected: dict[str, str] = {}
    choose_mkl_kernels(expected, read_cpuinfo())
    assert done.stdout.strip() == str(expected.get("MKL_DEBUG_CPU_TYPE"))
