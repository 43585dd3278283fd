"""Tests written once for both sides: ``side`` is the package for_torch or for_paddle."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.record import MODULES as RECORDED

MODULES = (*RECORDED, "distributed", "sync_norm")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:  # noqa: ARG001
    return True if config.getoption("--side") is None else None


@pytest.fixture(scope="session")
def side(request: pytest.FixtureRequest) -> Any:
    """The modules of one side: side.name, side.backend, side.models, side.losses, ..."""
    name = request.config.getoption("--side")
    package = f"for_{name}"
    modules = {m: importlib.import_module(f"{package}.{m}") for m in MODULES}
    return SimpleNamespace(name=name, **modules)


@pytest.fixture(autouse=True)
def _default_dtype_is_restored(side: Any) -> Iterator[None]:
    yield
    side.backend.set_default_dtype("float32")
