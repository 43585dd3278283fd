"""The changes: each operator looks at one node and says what could stand there instead.

Each changes the text of its node and nothing else, so that the line stays readable.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.source_audit.scope import Function, Place, last_name
from pipeline.source_audit.source import Source, Span


@dataclass(frozen=True)
class Change:
    """One replacement of a piece of text."""

    operator: str
    """Kind of change: "arithmetic", "constant", ..."""
    span: Span
    text: str
    """What takes the place."""


Operator = Callable[[Source, Place], Iterator[Change]]

ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}

STRINGS: dict[str, str] = {
    "bilinear": "nearest",
    "nearest": "bilinear",
    "mean": "sum",
    "sum": "mean",
    "constant": "replicate",
    "NCHW": "NHWC",
    "float32": "float64",
    "float64": "float32",
    "batch_norm": "inplace_abn",
    "inplace_abn": "batch_norm",
    "leaky_relu": "identity",
    "identity": "leaky_relu",
    "2020": "current",
    "current": "2020",
    "valid_fraction": "pixel_fraction",
    "pixel_fraction": "valid_fraction",
    "min_kept": "none",
    "train": "val",
    "val": "train",
}
"""Options of the frameworks and of this project, and another value of each."""

TWINS: tuple[tuple[str, str], ...] = (
    ("min", "max"),
    ("minimum", "maximum"),
    ("sum", "mean"),
    ("floor", "ceil"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("argmax", "argmin"),
    ("any", "all"),
    ("exp", "log"),
    ("relu", "sigmoid"),
    ("ReLU", "Sigmoid"),
    ("MaxPool2D", "AvgPool2D"),
    ("abs", "square"),
    ("float32", "float64"),
)
_TWIN_OF = {one: other for pair in TWINS for one, other in (pair, pair[::-1])}

COMMUTATIVE = frozenset({"min", "max", "minimum", "maximum"})

UNWRAPPED_METHODS = frozenset({"astype", "reshape", "unsqueeze", "squeeze"})
"""Methods with arguments that are left out as well as those without."""


def arithmetic(source: Source, place: Place) -> Iterator[Change]:
    """``a + b`` -> ``a - b``, ``a += b`` -> ``a -= b``, ..."""
    node = place.node
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text(node):
        old, new = ARITHMETIC[type(node.op)]
        gap = source.span(node.left)[1], source.span(node.right)[0]
        yield Change("arithmetic", source.operator_span(*gap, old), new)
    if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        old, new = ARITHMETIC[type(node.op)]
        gap = source.span(node.target)[1], source.span(node.value)[0]
        yield Change("arithmetic", source.operator_span(*gap, f"{old}="), f"{new}=")


def comparison(source: Source, place: Place) -> Iterator[Change]:
    """``a < b`` -> ``a <= b``, ``a == b`` -> ``a != b``, ``is`` -> ``is not``, ..."""
    node = place.node
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            old, new = COMPARISONS[type(op)]
            gap = source.span(left)[1], source.span(right)[0]
            yield Change("comparison", source.operator_span(*gap, old), new)


def boolean(source: Source, place: Place) -> Iterator[Change]:
    """``a and b`` -> ``a or b`` and the other way round."""
    node = place.node
    if isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            gap = source.span(left)[1], source.span(right)[0]
            yield Change("boolean", source.operator_span(*gap, old), new)


def constant(source: Source, place: Place) -> Iterator[Change]:
    """A number, truth value, default of None, or text option -> another one."""
    node = place.node
    if not isinstance(node, ast.Constant):
        return
    span = source.span(node)
    for text in _other_values(node.value, place):
        yield Change("constant", span, text)


def _other_values(value: Any, place: Place) -> list[str]:
    if isinstance(value, bool):
        return [repr(not value)]
    if isinstance(value, int):
        wanted = [value + 1, value - 1, 2 * value, 0]
        return [str(n) for n in dict.fromkeys(wanted) if n != value]
    if isinstance(value, float):
        wanted = [value * 1.1, value * 2, 0.0] if value else [1.0]
        # ten digits: 0.1 * 1.1 is not to be written as 0.11000000000000001
        return [repr(float(f"{number:.10g}")) for number in wanted]
    if value is None:
        # as a default or an option; elsewhere None is what things are compared with
        return ["0"] if isinstance(place.parent, (ast.arguments, ast.keyword)) else []
    if isinstance(value, str):
        return _other_text(value, place)
    return []


def _other_text(value: str, place: Place) -> list[str]:
    if isinstance(place.parent, ast.Call) and last_name(place.parent.func) == "cast":
        return []
    if value in STRINGS:
        return [repr(STRINGS[value]).replace("'", '"')]
    # names of heads, layers, keys: another name; longer texts are messages
    return [f'"{value}_"'] if value.isidentifier() else []


def swapped_arguments(source: Source, place: Place) -> Iterator[Change]:
    """``f(a, b)`` -> ``f(b, a)``, each pair of neighbours."""
    node = place.node
    if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
        return
    if last_name(node.func) in COMMUTATIVE:
        return
    for one, other in zip(node.args, node.args[1:], strict=False):
        first, second = source.span(one), source.span(other)
        if source.text(first) != source.text(second):
            between = source.text((first[1], second[0]))
            text = f"{source.text(second)}{between}{source.text(first)}"
            yield Change("swapped arguments", (first[0], second[1]), text)


def dropped_keyword(source: Source, place: Place) -> Iterator[Change]:
    """``f(a, b=1)`` -> ``f(a)``."""
    node = place.node
    if not isinstance(node, ast.Call):
        return
    pieces = sorted(source.span(item) for item in [*node.args, *node.keywords])
    for keyword in node.keywords:
        if keyword.arg is None:
            continue
        span = source.span(keyword)
        position = pieces.index(span)
        if position:
            span = (pieces[position - 1][1], span[1])
        elif len(pieces) > 1:
            span = (span[0], pieces[1][0])
        yield Change("dropped argument", span, "")


def deleted_statement(source: Source, place: Place) -> Iterator[Change]:
    """A call or an assignment -> ``pass``."""
    node = place.node
    if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign)):
        # of a module's or class's constants the names would only be missing: a crash
        if isinstance(place.parent, (ast.Module, ast.ClassDef)) and not isinstance(node, ast.Expr):
            return
        yield Change("deleted statement", source.span(node), "pass")


def inverted_condition(source: Source, place: Place) -> Iterator[Change]:
    """``if a:`` -> ``if not (a):``; equality is inverted by comparison already."""
    node = place.node
    tests: Sequence[ast.expr] = ()
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        tests = (node.test,)
    elif isinstance(node, ast.comprehension):
        tests = node.ifs
    for test in tests:
        single = isinstance(test, ast.Compare) and len(test.ops) == 1
        if single and isinstance(test.ops[0], (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):  # type: ignore[attr-defined]
            continue
        span = source.span(test)
        yield Change("inverted condition", span, f"not ({source.text(span)})")


def removed_call(source: Source, place: Place) -> Iterator[Change]:
    """``-x`` -> ``x``, ``f(x)`` -> ``x``, ``x.f()`` -> ``x``."""
    node = place.node
    inner: ast.expr | None = None
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        inner = node.operand
    elif isinstance(node, ast.Call) and not isinstance(place.parent, ast.Expr):
        inner = _argument_alone(node)
    if inner is not None:
        text = source.text(source.span(inner))
        if isinstance(inner, (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.GeneratorExp)):
            text = text if isinstance(inner, ast.GeneratorExp) else f"({text})"
        yield Change("removed call", source.span(node), text)


def _argument_alone(node: ast.Call) -> ast.expr | None:
    """Return what a function or method is applied to, if it is one thing; classes are not left."""
    name = last_name(node.func)
    if not name or name.startswith("__") or name.lstrip("_")[:1].isupper():
        return None
    if isinstance(node.func, ast.Attribute) and not node.keywords:
        alone = not node.args or name in UNWRAPPED_METHODS
        if alone and not _is_module(node.func.value):
            return node.func.value
    if len(node.args) == 1 and not isinstance(node.args[0], (ast.Starred, ast.GeneratorExp)):
        return node.args[0]
    return None


def _is_module(node: ast.expr) -> bool:
    """Tell whether a name is a framework's module, or super()."""
    if isinstance(node, ast.Call):
        return last_name(node.func) == "super"
    return last_name(node) in {"np", "paddle", "nn", "F", "math", "device", "initializer", "iou"}


def twin_name(source: Source, place: Place) -> Iterator[Change]:
    """``min`` -> ``max``, ``np.zeros`` -> ``np.ones``, ..."""
    node = place.node
    if isinstance(node, ast.Attribute) and node.attr in _TWIN_OF:
        end = source.span(node)[1]
        yield Change("twin", (end - len(node.attr), end), _TWIN_OF[node.attr])
    called = isinstance(place.parent, ast.Call) and node is place.parent.func
    if isinstance(node, ast.Name) and node.id in _TWIN_OF and called:
        yield Change("twin", source.span(node), _TWIN_OF[node.id])


OPERATORS: tuple[Operator, ...] = (
    arithmetic,
    comparison,
    boolean,
    constant,
    swapped_arguments,
    dropped_keyword,
    deleted_statement,
    inverted_condition,
    removed_call,
    twin_name,
)


def changes(source: Source, place: Place) -> Iterator[Change]:
    """Yield every change of one place."""
    if isinstance(place.node, Function):
        return
    for operator in OPERATORS:
        yield from operator(source, place)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )
