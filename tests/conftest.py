"""Shared by all tests: where the reference material is, and which framework this process tests.

One framework per pytest process. ``pytest tests`` runs the framework-free tests;
``pytest tests/sides --side torch`` and ``--side paddle`` run the tests that are written once
against the mirrored interface, each in a process of its own.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# the same examples on every run: what is red must be red again when someone looks
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--side", choices=["torch", "paddle"], help="framework that tests/sides use")


def _folder_from(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: the reference material is not on this machine")
    folder = Path(value)
    assert folder.is_dir(), f"{variable}={value} is not a folder"
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of outputs of the original public implementations (BISENET_GOLDEN)."""
    return _folder_from("BISENET_GOLDEN")


@pytest.fixture(scope="session")
def published_keys() -> Path:
    """Folder of state-dict names and shapes of the published checkpoints (BISENET_KEYS)."""
    return _folder_from("BISENET_KEYS")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with camvid/ and face_parsing/ (BISENET_DATA)."""
    return _folder_from("BISENET_DATA")
