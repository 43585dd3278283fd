"""The changes: each operator on a few lines, exact places, what is left alone, ids."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from common.provenance import ROOT
from pipeline.source_audit.mutants import (
    Mutant,
    all_mutants,
    changed_text,
    mutants_of,
    sampled,
    write_mutated,
)
from pipeline.source_audit.scope import raising_functions
from pipeline.source_audit.source import Source


def changes(text: str) -> set[tuple[str, str]]:
    """Return (operator, changed text) of every mutant of a source."""
    source = Source("a.py", text)
    return {(m.operator, changed_text(source, m.span, m.new)) for m in mutants_of(source)}


def changed(text: str, operator: str) -> set[str]:
    return {changed for kind, changed in changes(text) if kind == operator}


@pytest.mark.parametrize(
    ("operator", "text", "expected"),
    [
        ("arithmetic", "x = a + b\n", {"x = a - b\n"}),
        ("arithmetic", "x = (a * b)  # a * b\n", {"x = (a / b)  # a * b\n"}),
        ("arithmetic", "x //= 2\n", {"x *= 2\n"}),
        ("arithmetic", "x = (\n    a\n    - b  # why\n)\n", {"x = (\n    a\n    + b  # why\n)\n"}),
        ("comparison", "x = a < b <= c\n", {"x = a <= b <= c\n", "x = a < b < c\n"}),
        ("comparison", "x = a is not  b\n", {"x = a is  b\n"}),
        ("comparison", "x = a not in b\n", {"x = a in b\n"}),
        ("boolean", "x = a and b and c\n", {"x = a or b and c\n", "x = a and b or c\n"}),
        ("constant", "x = f(True)\n", {"x = f(False)\n"}),
        ("constant", "x = 3\n", {"x = 4\n", "x = 2\n", "x = 6\n", "x = 0\n"}),
        ("constant", "x = 0.1\n", {"x = 0.11\n", "x = 0.2\n", "x = 0.0\n"}),
        ("constant", "def f(a=None): return a is None\n", {"def f(a=0): return a is None\n"}),
        ("constant", 'f(mode="bilinear")\n', {'f(mode="nearest")\n'}),
        ("constant", 'd["main"]\n', {'d["main_"]\n'}),
        ("swapped arguments", "x = f(a, b, c)\n", {"x = f(b, a, c)\n", "x = f(a, c, b)\n"}),
        ("swapped arguments", "x = f(a, a)\n", set()),
        ("swapped arguments", "x = max(a, b)\n", set()),
        ("dropped argument", "x = f(a, b=1, c=2)\n", {"x = f(a, c=2)\n", "x = f(a, b=1)\n"}),
        ("dropped argument", "x = f(b=1, c=2)\n", {"x = f(c=2)\n", "x = f(b=1)\n"}),
        ("dropped argument", "x = f(b=1)\n", {"x = f()\n"}),
        ("deleted statement", "def f():\n    x = 1\n    g()\n", {
            "def f():\n    pass\n    g()\n", "def f():\n    x = 1\n    pass\n",
        }),
        ("inverted condition", "if a > 1:\n    x = 1\n", {"if not (a > 1):\n    x = 1\n"}),
        ("inverted condition", "if a == 1:\n    x = 1\n", set()),
        ("inverted condition", "x = [a for a in b if a]\n", {"x = [a for a in b if not (a)]\n"}),
        ("removed call", "x = -(a + b)\n", {"x = (a + b)\n"}),
        ("removed call", "x = F.relu(y)\n", {"x = y\n"}),
        ("removed call", "x = y.detach()\n", {"x = y\n"}),
        ("removed call", "x = Layer(y)\n", set()),
        ("twin", "x = min(a, b) + y.min()\n", {
            "x = max(a, b) + y.min()\n", "x = min(a, b) + y.max()\n",
        }),
        ("twin", "x = np.floor(y)\n", {"x = np.ceil(y)\n"}),
    ],
)  # fmt: skip
def test_operator(operator: str, text: str, expected: set[str]) -> None:
    assert changed(text, operator) == expected


def test_places_are_counted_in_bytes() -> None:
    assert changed("x = f('ü', 'é') + a\n", "arithmetic") == {"x = f('ü', 'é') - a\n"}


@pytest.mark.parametrize(
    "text",
    [
        '"""Two words."""\n',
        'def f():\n    """Return."""\n    return x\n',
        "import numpy as np\n",
        "x: int\n",
        "def f(a: Literal[1, 2]) -> tuple[int, 3]: return a\n",
        '__all__ = ("f", "g")\n',
        'Form = Literal["current", "2020"]\n',
        "Hook = Callable[[int, str], None]\n",
        'if a < 1:\n    raise ValueError(f"{a} + {b}")\n',
        "assert a + b\n",
        'warnings.warn("a", stacklevel=3)\n',
        'x = f"{a + 1} of {b}"\n',
        "def check(a):\n    n = a + 1\n    if n > 2:\n        raise ValueError(n)\n",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    found = mutants_of(Source("a.py", text), checks=frozenset({"check"}))
    assert [m for m in found if m.operator != "deleted statement" or "f" not in m.code] == []


def test_calls_of_checks_are_left_alone() -> None:
    text = "def check(a):\n    if a > 1:\n        raise ValueError\n\ndef f(a):\n    check(a)\n"
    checks = raising_functions([ast.parse(text)])
    assert checks == {"check"}
    assert mutants_of(Source("a.py", text), checks=checks) == []


def test_functions_that_do_more_are_no_checks() -> None:
    doing = "def f(a):\n    if a:\n        raise ValueError\n    self.x = a\n"
    returning = "def g(a):\n    if a:\n        raise ValueError\n    return a\n"
    assert raising_functions([ast.parse(doing), ast.parse(returning)]) == frozenset()


def ids(text: str) -> list[str]:
    return [mutant.id for mutant in mutants_of(Source("a.py", text))]


def test_ids_outlive_other_lines() -> None:
    function = "def f(a):\n    return a + 1\n"
    before = ids(function)
    assert len(set(before)) == len(before) == 3
    assert set(before) <= set(ids(f"import x\n\ny = 2\n\n\n{function}"))
    assert not set(before) & set(ids(function.replace("f(", "g(")))


def test_equal_lines_of_a_function_have_ids_of_their_own() -> None:
    found = ids("def f(a):\n    a = a + b\n    a = a + b\n")
    assert len(set(found)) == len(found)


def test_a_mutant_tells_where_it_is() -> None:
    text = "class A:\n    def f(self, x):\n        y = g(\n            x + 1,\n        )\n"
    mutant = next(m for m in mutants_of(Source("a.py", text)) if m.operator == "arithmetic")
    assert (mutant.scope, mutant.line, mutant.code) == ("A.f", 4, "x + 1,")
    assert mutant.change == "+ -> -"
    assert mutant.block == (3, 5)


def test_the_block_of_a_compound_statement_is_its_head() -> None:
    text = "def f(a=1):\n    if a > 2:\n        return 3\n"
    blocks = {m.old: m.block for m in mutants_of(Source("a.py", text)) if m.old in ("1", "2")}
    assert blocks == {"1": (1, 1), "2": (2, 2)}


@pytest.fixture(scope="module")
def real() -> list[Mutant]:
    return list(all_mutants(ROOT / "for_paddle", shared=[ROOT / "common"]))


def test_the_package_is_covered(real: list[Mutant]) -> None:
    assert len({mutant.id for mutant in real}) == len(real) > 4000
    files = {mutant.file for mutant in real}
    assert {"layers.py", "norm.py", "losses.py", "models/bisenetv2.py", "train.py"} <= files
    assert "amp.py" not in files


def test_mutants_are_python(real: list[Mutant]) -> None:
    for mutant in sampled(real, 120, seed=0):
        source = Source.read(ROOT / "for_paddle", mutant.file)
        text = changed_text(source, mutant.span, mutant.new)
        assert ast.dump(ast.parse(text)) != ast.dump(source.tree), mutant.title


def test_samples_depend_on_the_seed_alone(real: list[Mutant]) -> None:
    one = sampled(real, 50, seed=3)
    assert one == sampled(real, 50, seed=3) != sampled(real, 50, seed=4)
    assert len(set(one)) == 50
    assert sampled(real, None, seed=0) == real


def test_a_copy_differs_in_one_place(tmp_path: Path, real: list[Mutant]) -> None:
    package, mutant = ROOT / "for_paddle", real[100]
    folder = write_mutated(mutant, package=package, folder=tmp_path)
    changed_files = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.read_bytes() != (folder / "for_paddle" / path.relative_to(package)).read_bytes()
    ]
    assert changed_files == [mutant.file]
