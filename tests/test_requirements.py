"""The sets of pinned packages fit each other."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pins(name: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_the_gpu_set_is_the_one_that_is_verified() -> None:
    gpu, verified = pins("requirements-gpu.txt"), pins("requirements-paddle-2.6.2.txt")
    assert gpu.pop("paddlepaddle-gpu") == verified["paddlepaddle"] == "2.6.2"
    assert {name: verified[name] for name in gpu} == gpu


@pytest.mark.parametrize("package", ["torch", "reprod_log", "pytest", "hypothesis"])
def test_both_verified_sets_have_the_same_reference_and_tools(package: str) -> None:
    assert pins("requirements.txt")[package] == pins("requirements-paddle-2.6.2.txt")[package]
