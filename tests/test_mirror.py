"""The two sides differ in spelling only; tests/mirroring.py compares them.

A real difference belongs in a file of FREE (only its public signatures are compared) or, with
a reason, in EXEMPT; the arguments of an exempt function are still compared.
"""

from pathlib import Path

import pytest
from mirroring import Exemption, differences, signatures

ROOT = Path(__file__).resolve().parent.parent
FREE = (
    "amp.py",
    "backend.py",
    "checkpoints.py",
    "describe.py",
    "distributed.py",
    "loading.py",
    "models/own.py",
    "optimizer_state.py",
    "runtime.py",
)
"""Free to differ inside: only the signatures of public functions are compared."""
MKL_CHOICE = "common.cpu_kernels.choose_mkl_kernels(os.environ, common.cpu_kernels.read_cpuinfo())"
EXEMPT = tuple(
    Exemption(file, symbol, reason)
    for file, symbols in {
        "__init__.py": {
            MKL_CHOICE: "Paddle's CPU builds carry an MKL of 2019; Torch's chooses by itself",
        },
        "norm.py": {
            "BatchNorm2d": "Paddle's deviations are mended around its kernel",
            "_batch_norm": "the mending, for both of Paddle's BatchNorm layers",
            "InPlaceABN": "Paddle's deviations are mended around its kernel",
            "leaky_relu": "Paddle's kernel has another slope at 0, and a float32 one in 2.6",
        },
        "layers.py": {
            "AvgPool2d": "Paddle's gradient keeps 1 / window as float32, also in float64",
            "resize_bilinear": "Paddle's kernel keeps its ratio as float32, also in float64",
            "_ratio_fits_kernel": "asked by Paddle's resize_bilinear",
            "interpolation_matrix": "used by Paddle's resize_bilinear in float64",
        },
        "sync_norm.py": {
            "local_statistics": "each by the kernels that are the fastest of its framework",
            "_Normalise": "Paddle returns gradients of tensors only, and saves by a call",
            "_normalise": "Torch's Function is not typed",
            "_gradients": "Torch's kernel can be called, Paddle's by its autograd alone",
            "_affine": "Paddle's kernel keeps eps as float32, also in float64",
            "SyncBatchNorm2d": "other names of the buffers; Torch counts batches",
            "NativeSyncBatchNorm2d": "Paddle's is a kernel whose running variance is mended",
            "_native_kernel": "used by Paddle's NativeSyncBatchNorm2d",
            "_native_variance_is_biased": "used by Paddle's NativeSyncBatchNorm2d",
            "SyncInPlaceABN": "other names of the buffers; Paddle 2.6 rounds a number it adds",
            "move_running": "Paddle writes in place by a function, Torch by a method",
        },
        "optim.py": {
            "build_optimizer": "Paddle's group rate multiplies the schedule's, Torch's is absolute",
            "learning_rates": "read back from the optimizer's own, different, bookkeeping",
            "parameter_groups": "read back from the optimizer's own, different, bookkeeping",
            "group_options": "read back from the optimizer's own, different, bookkeeping",
            "momentum_buffers": "read back from the optimizer's own, different, bookkeeping",
            "adopt_kernel_constants": "Paddle's own constants; only Torch has to adopt them",
        },
    }.items()
    for symbol, reason in symbols.items()
)


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
    torch, paddle = (signatures(_read(side, file)) for side in ("torch", "paddle"))
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
