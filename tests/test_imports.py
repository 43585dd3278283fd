"""Which framework each package loads, seen in a fresh interpreter.

common <- for_torch, for_paddle, pipeline, fake_data; the two sides never meet.
"""

import json
from functools import cache

import pytest
from programs import ROOT, run_program

OURS = ("common", "fake_data", "pipeline", "for_torch", "for_paddle")
WATCHED = ("torch", "paddle", *OURS)

PROGRAM = """
import importlib, json, sys, warnings
warnings.filterwarnings("ignore", message="No ccache found")
loaded = {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    loaded[name] = [top for top in sys.argv[1].split(",") if top in sys.modules]
print(json.dumps(loaded))
"""


def _modules(package: str) -> list[str]:
    names: list[str] = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@cache
def _loaded_after_imports(package: str) -> dict[str, set[str]]:
    """Module of the package -> what was loaded once it, and those before it, were imported."""
    printed = run_program(PROGRAM, ",".join(WATCHED), *_modules(package))
    rows: dict[str, list[str]] = json.loads(printed.splitlines()[-1])
    return {module: set(loaded) for module, loaded in rows.items()}


@pytest.mark.parametrize(
    ("package", "may_load"),
    [
        ("common", {"common"}),
        ("fake_data", {"fake_data", "common"}),
        # a recorder imports the one side that it is asked for, by name and only then
        ("pipeline", {"pipeline", "common", "fake_data"}),
        ("for_torch", {"for_torch", "common", "torch"}),
        ("for_paddle", {"for_paddle", "common", "paddle"}),
    ],
)
def test_package_loads_nothing_else(package: str, may_load: set[str]) -> None:
    modules = _modules(package)
    assert package in modules
    loaded = _loaded_after_imports(package)
    assert set(loaded) == set(modules)
    for module, tops in loaded.items():
        assert package in tops
        assert tops <= may_load, f"importing {module} loads {sorted(tops - may_load)}"


@pytest.mark.parametrize(
    ("package", "framework"), [("for_torch", "torch"), ("for_paddle", "paddle")]
)
def test_the_framework_is_really_seen(package: str, framework: str) -> None:
    assert framework in _loaded_after_imports(package)[f"{package}.backend"]
