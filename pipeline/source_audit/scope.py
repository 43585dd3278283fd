"""What is never changed, by rule: documentation, annotations, imports, reports of errors.

A parity check runs both sides on right inputs. What a program says about wrong ones is for its
tests; a change there says nothing about the port.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SILENT_CALLS = frozenset({"warn", "debug", "info", "warning", "error", "log"})
"""Last names of calls that only tell somebody something."""

TYPE_CALLS = frozenset({"cast", "TypeVar", "Literal", "get_args"})
"""Calls and subscripts that are for the type checker."""

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Place:
    """A node that may be changed, and what stands around it."""

    node: ast.AST
    parent: ast.AST
    statement: ast.stmt
    """The innermost statement that the node is part of, or is."""
    scope: str
    """Qualified name of the function or class, empty for the module."""


def last_name(node: ast.AST) -> str:
    """Return the last part of a dotted name, or an empty text."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def raising_functions(trees: Iterable[ast.Module]) -> frozenset[str]:
    """Return the names of functions that only look at their arguments and raise."""
    return frozenset(
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, Function) and _only_raises(node)
    )


def _only_raises(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    inside = [node for statement in function.body for node in ast.walk(statement)]
    acts = any(
        (isinstance(node, ast.Return) and node.value is not None)
        or isinstance(node, (ast.Yield, ast.YieldFrom, ast.AugAssign, ast.Delete, ast.With))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or (isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store))
        for node in inside
    )
    return not acts and any(isinstance(node, ast.Raise) for node in inside)


def places(tree: ast.Module, *, checks: frozenset[str] = frozenset()) -> Iterator[Place]:
    """Yield every node that may be changed, in the order of the source.

    Args:
        tree: a module.
        checks: names of functions that only raise errors; calls of them are left alone.
    """
    yield from _Walk(checks).of_body(tree, tree.body, scope="")


class _Walk:
    def __init__(self, checks: frozenset[str]) -> None:
        self.checks = checks

    def of_body(self, parent: ast.AST, body: list[ast.stmt], scope: str) -> Iterator[Place]:
        for statement in body:
            if not self._is_left_out(statement):
                yield from self._statement(statement, parent, scope)

    def _is_left_out(self, statement: ast.stmt) -> bool:
        if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.Pass)):
            return True
        if isinstance(statement, ast.Expr):
            return self._is_silent(statement.value)
        if isinstance(statement, ast.If):
            only_raises = all(isinstance(inner, ast.Raise) for inner in statement.body)
            return (only_raises and not statement.orelse) or last_name(
                statement.test
            ) == "TYPE_CHECKING"
        if isinstance(statement, Function):
            return statement.name in self.checks and _only_raises(statement)
        return _is_declaration(statement)

    def _is_silent(self, value: ast.expr) -> bool:
        """Tell whether an expression statement is documentation, a check or a message."""
        if isinstance(value, ast.Constant):
            return True
        if not isinstance(value, ast.Call):
            return False
        name = last_name(value.func)
        return name in self.checks or name in SILENT_CALLS

    def _statement(self, statement: ast.stmt, parent: ast.AST, scope: str) -> Iterator[Place]:
        yield Place(statement, parent, statement, scope)
        inner = scope
        if isinstance(statement, (*Function, ast.ClassDef)):
            inner = f"{scope}.{statement.name}" if scope else statement.name
        for name, value in ast.iter_fields(statement):
            if name in ("annotation", "returns", "bases", "decorator_list", "type_params"):
                continue
            if name in ("body", "orelse", "finalbody"):
                yield from self.of_body(statement, value, inner)
            elif name == "handlers":
                continue
            else:
                yield from self._expressions(value, statement, statement, inner)

    def _expressions(
        self, value: Any, parent: ast.AST, statement: ast.stmt, scope: str
    ) -> Iterator[Place]:
        if isinstance(value, list):
            items: list[Any] = value
            for item in items:
                yield from self._expressions(item, parent, statement, scope)
        elif isinstance(value, ast.AST) and not _is_for_types(value):
            yield Place(value, parent, statement, scope)
            if isinstance(value, ast.JoinedStr):
                # before Python 3.12 the parts of an f-string have no places of their own
                return
            for name, child in ast.iter_fields(value):
                if name != "annotation":
                    yield from self._expressions(child, value, statement, scope)


def _is_declaration(statement: ast.stmt) -> bool:
    """Tell whether a statement only names a type or what is public."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None or last_name(statement.annotation) == "TypeAlias"
    if not isinstance(statement, ast.Assign):
        return False
    public = any(last_name(target) in ("__all__", "__slots__") for target in statement.targets)
    return public or _is_for_types(statement.value) or _is_union_of_types(statement.value)


def _is_union_of_types(value: ast.expr) -> bool:
    """Tell whether an expression is an alias such as ``Callable[[int], None]``."""
    return isinstance(value, ast.Subscript) and last_name(value.value)[:1].isupper()


def _is_for_types(value: ast.AST) -> bool:
    if isinstance(value, ast.Subscript):
        return last_name(value.value) in TYPE_CALLS
    return isinstance(value, ast.Call) and last_name(value.func) in TYPE_CALLS - {"cast"}
