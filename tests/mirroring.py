"""Compares two source files after Paddle's spelling is turned into Torch's.

Both are parsed, names are resolved through the imports, Paddle's spelling is turned into Torch's by
the tables below, and the syntax trees must then be equal, symbol by symbol and in the same order.
Docstrings and comments are not compared.
"""

import ast
from dataclasses import dataclass

# ---- spelling: Paddle -> Torch ----------------------------------------------------------------
# a dotted name not listed keeps its path: paddle.nn.ReLU is torch.nn.ReLU
NAMES = {
    "paddle.nn.Layer": "torch.nn.Module",
    "paddle.nn.LayerList": "torch.nn.ModuleList",
    "paddle.nn.Conv2D": "torch.nn.Conv2d",
    "paddle.nn.AvgPool2D": "torch.nn.AvgPool2d",
    "paddle.nn.BatchNorm2D": "torch.nn.BatchNorm2d",
    "paddle.nn.MaxPool2D": "torch.nn.MaxPool2d",
    "paddle.concat": "torch.cat",
    "paddle.io.BatchSampler": "torch.utils.data.BatchSampler",
    "paddle.io.DataLoader": "torch.utils.data.DataLoader",
    "paddle.io.Dataset": "torch.utils.data.Dataset",
    "paddle.nn.initializer.Normal": "torch.nn.init.normal_",
    "paddle.nn.initializer.Uniform": "torch.nn.init.uniform_",
    "paddle.nn.initializer.Constant": "torch.nn.init.constant_",
    "paddle.optimizer.Momentum": "torch.optim.SGD",
    "paddle.optimizer.lr.LambdaDecay": "torch.optim.lr_scheduler.LambdaLR",
}
# astype: Paddle 2.6's Tensor.to changes the tensor it is called on
METHODS = {
    "named_sublayers": "named_modules",
    "clear_grad": "zero_grad",
    "astype": "to",
    "register_forward_post_hook": "register_forward_hook",
}
KEYWORDS = {"axis": "dim", "bias_attr": "bias"}
# arguments that Torch does not have because it can do nothing else: (function, keyword) -> value
IMPLIED = {
    ("torch.nn.functional.interpolate", "align_mode"): 0,
    ("torch.nn.functional.cross_entropy", "dim"): 1,
}
# arguments that say the opposite: (function, Paddle's keyword) -> Torch's keyword
OPPOSITE = {("torch.nn.AvgPool2d", "exclusive"): "count_include_pad"}
# Paddle's initialisers are objects: initializer.Normal(...)(tensor) is init.normal_(tensor, ...)
CURRIED = "torch.nn.init."


@dataclass(frozen=True)
class Exemption:
    file: str
    symbol: str
    reason: str


class _Speller(ast.NodeTransformer):
    """Resolve imported names to dotted paths in Torch's spelling; drop docstrings and imports."""

    def __init__(self, tree: ast.Module) -> None:
        self.imported: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.partition(".")[0]
                    self.imported[alias.asname or root] = alias.name if alias.asname else root
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_Import(self, node: ast.Import) -> None:
        """Drop it: what is used is compared where it is used."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Drop it, too."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.imported:
            return node
        return ast.Name(_canonical(self.imported[node.id]), node.ctx)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        dotted = self._dotted(node)
        if dotted is not None:
            return ast.Name(_canonical(dotted), node.ctx)
        node.value = self.visit(node.value)
        node.attr = METHODS.get(node.attr, node.attr)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        inner = node.func
        if isinstance(inner, ast.Call) and _name(inner.func).startswith(CURRIED):
            node = ast.Call(inner.func, [*node.args, *inner.args], inner.keywords)
        for keyword in node.keywords:
            keyword.arg = KEYWORDS.get(keyword.arg or "", keyword.arg)
            opposite = OPPOSITE.get((_name(node.func), keyword.arg or ""))
            if opposite is not None and isinstance(keyword.value, ast.Constant):
                keyword.arg, keyword.value = opposite, ast.Constant(not keyword.value.value)
        node.keywords = [k for k in node.keywords if not _implied(_name(node.func), k)]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._dotted(node.value)
            return None if owner is None else f"{owner}.{node.attr}"
        return None


def _canonical(dotted: str) -> str:
    if dotted in NAMES:
        return NAMES[dotted]
    for paddle, torch in (("paddle", "torch"), ("for_paddle", "for_torch")):
        if dotted == paddle or dotted.startswith(f"{paddle}."):
            return torch + dotted.removeprefix(paddle)
    return dotted


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _implied(function: str, keyword: ast.keyword) -> bool:
    key = (function, keyword.arg or "")
    return key in IMPLIED and ast.unparse(keyword.value) == repr(IMPLIED[key])


def _symbols(source: str) -> dict[str, ast.AST]:
    """Symbol -> normalised tree, in order; a class is split into its header and its members."""
    tree = ast.parse(source)
    found: dict[str, ast.AST] = {}
    for node in _Speller(tree).visit(tree).body:
        name = _symbol_name(node)
        if not isinstance(node, ast.ClassDef):
            found[name] = node
            continue
        for member in node.body:
            found[f"{name}.{_symbol_name(member)}"] = member
        header = ast.ClassDef(node.name, node.bases, node.keywords, [], node.decorator_list)
        found[name] = header
    return found


def _symbol_name(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    return ast.unparse(targets[0])


def _arguments(node: ast.AST | None) -> str | None:
    """A function's arguments without annotations, None for anything else."""
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = ast.parse(ast.unparse(node)).body[0]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    assert isinstance(arguments, ast.FunctionDef)
    return ast.unparse(arguments.args)


def _text(node: ast.AST | None) -> str:
    return "(absent)" if node is None else ast.unparse(ast.fix_missing_locations(node))


def differences(
    file: str, torch_source: str, paddle_source: str, exempt: tuple[Exemption, ...] = ()
) -> list[str]:
    """One text per difference: file, symbol and both snippets in Torch's spelling."""
    torch, paddle = _symbols(torch_source), _symbols(paddle_source)
    excused = {row.symbol for row in exempt if row.file == file}
    found: list[str] = []
    for symbol in dict.fromkeys([*torch, *paddle]):
        ours, theirs = torch.get(symbol), paddle.get(symbol)
        if symbol in excused or symbol.partition(".")[0] in excused:
            public = not symbol.rpartition(".")[2].startswith("_") and None not in (ours, theirs)
            same = not public or _arguments(ours) == _arguments(theirs)
        else:
            same = _text(ours) == _text(theirs)
        if not same:
            found.append(
                f"{file}: {symbol} differs\n--- torch\n{_text(ours)}\n--- paddle, in Torch's "
                f"spelling\n{_text(theirs)}"
            )
    orders = [
        [s for s in side if s.partition(".")[0] not in excused and s in torch and s in paddle]
        for side in (torch, paddle)
    ]
    if orders[0] != orders[1]:
        found.append(f"{file}: order of symbols\n--- torch\n{orders[0]}\n--- paddle\n{orders[1]}")
    return found


def signatures(source: str) -> list[tuple[str, str]]:
    """Public functions of a file, in order: name, arguments with their annotations."""
    return [
        (name, _text(node.args))
        for name, node in _symbols(source).items()
        if isinstance(node, ast.FunctionDef) and not name.startswith("_") and "." not in name
    ]
