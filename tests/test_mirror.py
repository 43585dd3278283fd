"""The two sides differ in spelling only.

Both files of a pair are parsed, names are resolved through the imports, Paddle's spelling is
turned into Torch's by the tables below, and the syntax trees must then be equal, symbol by symbol
and in the same order. Docstrings and comments are not compared.

A real difference belongs in a file of FREE (only its public signatures are compared) or, with
a reason, in EXEMPT; the arguments of an exempt function are still compared.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FREE = (
    "amp.py",
    "backend.py",
    "checkpoints.py",
    "distributed.py",
    "loading.py",
    "optimizer_state.py",
    "runtime.py",
)
"""Free to differ inside: only the signatures of public functions are compared."""

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
METHODS = {"named_sublayers": "named_modules", "clear_grad": "zero_grad", "astype": "to"}
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


EXEMPT = (
    *(
        Exemption("norm.py", symbol, reason)
        for symbol, reason in {
            "BatchNorm2d": "Paddle's deviations are mended around its kernel",
            "_batch_norm": "the mending, for both of Paddle's BatchNorm layers",
            "InPlaceABN": "Paddle's deviations are mended around its kernel",
            "leaky_relu": "Paddle's kernel has another slope at 0, and a float32 one in 2.6",
        }.items()
    ),
    *(
        Exemption("layers.py", symbol, reason)
        for symbol, reason in {
            "AvgPool2d": "Paddle's gradient keeps 1 / window as float32, also in float64",
            "resize_bilinear": "Paddle's kernel keeps its ratio as float32, also in float64",
            "_ratio_fits_kernel": "asked by Paddle's resize_bilinear",
            "interpolation_matrix": "used by Paddle's resize_bilinear in float64",
        }.items()
    ),
    *(
        Exemption("sync_norm.py", symbol, reason)
        for symbol, reason in {
            "_Normalise": "Paddle returns gradients of tensors only, and saves by a call",
            "_normalise": "Torch's Function is not typed",
            "SyncBatchNorm2d": "other names of the buffers; Torch counts batches",
            "SyncInPlaceABN": "other names of the buffers; Paddle 2.6 rounds a number it adds",
            "move_running": "Paddle writes in place by a function, Torch by a method",
        }.items()
    ),
    *(
        Exemption("optim.py", symbol, reason)
        for symbol, reason in {
            "build_optimizer": "Paddle's group rate multiplies the schedule's, Torch's is absolute",
            "learning_rates": "read back from the optimizer's own, different, bookkeeping",
            "parameter_groups": "read back from the optimizer's own, different, bookkeeping",
            "group_options": "read back from the optimizer's own, different, bookkeeping",
            "momentum_buffers": "read back from the optimizer's own, different, bookkeeping",
            "adopt_kernel_constants": "Paddle's own constants; only Torch has to adopt them",
        }.items()
    ),
)


# ---- the checker ------------------------------------------------------------------------------
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


def _signatures(source: str) -> list[tuple[str, str]]:
    """Public functions of a file, in order: name, arguments with their annotations."""
    return [
        (name, _text(node.args))
        for name, node in _symbols(source).items()
        if isinstance(node, ast.FunctionDef) and not name.startswith("_") and "." not in name
    ]


def _files(side: str) -> set[str]:
    folder = ROOT / f"for_{side}"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")} - set(FREE)


def _read(side: str, file: str) -> str:
    return (ROOT / f"for_{side}" / file).read_text(encoding="utf-8")


# ---- the mirror -------------------------------------------------------------------------------
FILES = sorted(_files("torch") | _files("paddle"))


@pytest.mark.parametrize("file", FILES)
def test_both_sides_are_equal(file: str) -> None:
    for side in ("torch", "paddle"):
        assert file in _files(side), f"for_{side}/{file} is missing"
    found = differences(file, _read("torch", file), _read("paddle", file), EXEMPT)
    assert not found, "\n\n".join(found)


def test_models_are_among_the_mirrored_files() -> None:
    assert {"layers.py", "models/__init__.py", "models/bisenetv1.py"} <= set(FILES)


@pytest.mark.parametrize("file", FREE)
def test_free_files_offer_the_same_functions(file: str) -> None:
    torch, paddle = (_signatures(_read(side, file)) for side in ("torch", "paddle"))
    assert torch == paddle
    assert torch


@pytest.mark.parametrize("row", EXEMPT, ids=lambda row: f"{row.file}:{row.symbol}")
def test_exemption_is_needed(row: Exemption) -> None:
    others = tuple(other for other in EXEMPT if other != row)
    found = differences(row.file, _read("torch", row.file), _read("paddle", row.file), others)
    about = [text for text in found if text.startswith(f"{row.file}: {row.symbol}")]
    assert about, f"{row.file}: {row.symbol} is the same on both sides now; remove its row"


# ---- the checker checks -----------------------------------------------------------------------
TORCH = '''
"""Module."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from for_torch.layers import pad

LIMIT = 3

class Block(nn.Module):
    """A block."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, kernel_size=3, stride=stride, bias=False)
        nn.init.normal_(self.conv.weight, mean=0.0, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return F.interpolate(torch.cat([x, self.conv(pad(x))], dim=1), scale_factor=2)

def first(model: nn.Module) -> str:
    return next(iter(model.named_modules()))[0]
'''
PADDLE = '''
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F
from for_paddle.layers import pad

LIMIT = 3

class Block(nn.Layer):
    """Another text."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2D(channels, 8, kernel_size=3, stride=stride, bias_attr=False)
        nn.initializer.Normal(mean=0.0, std=0.1)(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(
            paddle.concat([x, self.conv(pad(x))], axis=1), scale_factor=2, align_mode=0
        )

def first(model: nn.Layer) -> str:
    return next(iter(model.named_sublayers()))[0]
'''


def test_spelling_alone_is_no_difference() -> None:
    assert differences("x.py", TORCH, PADDLE) == []


@pytest.mark.parametrize(
    ("old", "new", "symbol"),
    [
        ("LIMIT = 3", "LIMIT = 4", "LIMIT"),
        ("kernel_size=3", "kernel_size=5", "Block.__init__"),
        ("bias_attr=False", "bias_attr=True", "Block.__init__"),
        (", bias_attr=False", "", "Block.__init__"),
        ("std=0.1", "std=0.2", "Block.__init__"),
        ("stride: int = 1", "stride: int = 2", "Block.__init__"),
        ("channels: int, *,", "channels: int,", "Block.__init__"),
        ("self.conv = ", "self.convolution = ", "Block.__init__"),
        ("nn.Conv2D", "nn.Conv1D", "Block.__init__"),
        ("nn.Layer):\n", "nn.ReLU):\n", "Block"),
        ("axis=1", "axis=-1", "Block.forward"),
        ("align_mode=0", "align_mode=1", "Block.forward"),
        ("[x, self.conv(pad(x))]", "[self.conv(pad(x)), x]", "Block.forward"),
        ("for_paddle.layers import pad", "for_paddle.other import pad", "Block.forward"),
        ("def forward", "def run", "Block.forward"),
        ("def first", "def last", "first"),
        ("-> str", "-> int", "first"),
    ],
)
def test_a_change_on_one_side_is_told(old: str, new: str, symbol: str) -> None:
    assert PADDLE.count(old) >= 1
    found = differences("x.py", TORCH, PADDLE.replace(old, new, 1))
    assert any(text.startswith(f"x.py: {symbol} differs") for text in found), found


def test_the_snippets_of_both_sides_are_shown() -> None:
    (text,) = differences("x.py", TORCH, PADDLE.replace("LIMIT = 3", "LIMIT = 4"))
    assert (
        text
        == "x.py: LIMIT differs\n--- torch\nLIMIT = 3\n--- paddle, in Torch's spelling\nLIMIT = 4"
    )


@pytest.mark.parametrize(
    ("argument", "same"), [(", exclusive=False", True), (", exclusive=True", False), ("", False)]
)
def test_an_argument_that_says_the_opposite_is_turned(argument: str, same: bool) -> None:
    torch = "from torch import nn\nPOOL = nn.AvgPool2d(3, count_include_pad=True)"
    paddle = f"from paddle import nn\nPOOL = nn.AvgPool2D(3{argument})"
    assert (differences("x.py", torch, paddle) == []) == same


def test_the_order_counts() -> None:
    imports, constant, rest = PADDLE.partition("LIMIT = 3\n")
    (text,) = differences("x.py", TORCH, imports + rest + constant)
    assert text.startswith("x.py: order of symbols")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("models/bisenetv1.py", "padding=3", "padding=2"),
        ("models/bisenetv1.py", "scale=16", "scale=8"),
        ("models/bisenetv1.py", "[spatial, context]", "[context, spatial]"),
        ("models/resnet.py", "stride=2", "stride=1"),
        ("models/bisenetv2.py", "groups=groups,", "groups=1,"),
        ("layers.py", 'mode="nearest"', 'mode="bilinear"'),
        ("layers.py", "axis=[2, 3]", "axis=[2]"),
    ],
)
def test_a_change_in_the_real_files_is_told(file: str, old: str, new: str) -> None:
    source = _read("paddle", file)
    assert old in source
    assert differences(file, _read("torch", file), source.replace(old, new, 1), EXEMPT)


def test_arguments_of_an_exempt_function_are_compared() -> None:
    row = (Exemption("x.py", "Block", "test"),)
    changed = PADDLE.replace("self.conv(pad(x))", "x")
    assert differences("x.py", TORCH, changed, row) == []
    renamed = PADDLE.replace("def forward(self, x:", "def forward(self, image:")
    assert len(differences("x.py", TORCH, renamed, row)) == 1
