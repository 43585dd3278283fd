"""Freed memory stays in the process: fewer page faults, seen in a process of its own."""

import platform

import pytest
from programs import run_program

PROGRAM = """
import resource, sys
import numpy as np
from common.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        arrays = [np.ones(3 << 20, np.uint8), np.ones(2 << 20, np.uint8)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_pages_are_not_asked_for_again() -> None:
    faults = {mode: int(run_program(PROGRAM, mode)) for mode in ("keep", "default")}
    assert faults["keep"] < 100
    assert faults["default"] > 10 * faults["keep"] + 1000
