"""Changes after which no check of parity could see a difference, each with the reason.

A row is matched by text, never by a line number. One that matches no mutant is an error of the
audit, and so is one whose mutant is caught: its reason would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.source_audit.mutants import Mutant


@dataclass(frozen=True)
class Equivalent:
    """One row: which mutants change nothing that could be observed."""

    file: str
    """Shell pattern of the file."""
    scope: str
    """Shell pattern of the function or class."""
    code: str
    """Shell pattern of the line, without indentation; brackets stand for themselves."""
    change: str
    """Shell pattern of the change, "old -> new"; brackets stand for themselves."""
    reason: str

    def covers(self, mutant: Mutant) -> bool:
        """Tell whether the row is for this mutant."""
        return (
            fnmatchcase(mutant.file, self.file)
            and fnmatchcase(mutant.scope, self.scope)
            and fnmatchcase(mutant.code, _literal(self.code))
            and fnmatchcase(mutant.change, _literal(self.change))
        )


def _literal(pattern: str) -> str:
    """Take away the special meaning of a bracket: code is full of them."""
    return pattern.replace("[", "[[]")


def _own_defaults(file: str, code: str, callee: str, *options: str) -> list[Equivalent]:
    """Return rows for options that are written out with the value that the callee has anyway."""
    return [
        Equivalent(
            file,
            "*",
            code,
            f"*{option} -> (nothing)",
            f"{option} is {callee}'s own default: the program is the same without it",
        )
        for option in options
    ]


_UNUSED = "every call of the networks names it: the default is only for new ones"
_COARSEST = (
    "an edge that the coarsest scale alone sees is 0.1 after the fusion, which is not above 0.1; "
    "where another scale sees one, it decides: as in the original, the coarsest changes nothing"
)
_WHOLE = (
    "the Laplacian of labels is a whole number, and what is fused is 0, 0.1, or 0.3 and more: "
    "every threshold from 0.1 to 0.3 divides them in the same way"
)
_WEIGHT = "a scale's weight counts only in being above the threshold of 0.1 or not"

EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent("layers.py", "Conv*.__init__", "kernel_size: int = 3,", "*", _UNUSED),
    Equivalent("layers.py", "Conv*.__init__", "stride: int = 1,", "*", _UNUSED),
    Equivalent("layers.py", "Conv*.__init__", "padding: int = 1,", "*", _UNUSED),
    *_own_defaults(
        "models/bisenetv1.py", "*conv_block(*", "the block",
        "kernel_size=3", "stride=1", "padding=1",
    ),
    *_own_defaults(
        "models/bisenetv[12]*.py", "*ConvBNReLU(*", "the block",
        "kernel_size=3", "stride=1", "padding=1",
    ),
    *_own_defaults(
        "models/*stdc*.py", "*ConvABNReLU(*", "the block", "kernel_size=3", "padding=1"
    ),
    *_own_defaults("models/bisenetv2.py", "*conv3x3(*", "conv3x3", "stride=1"),
    *_own_defaults("models/*.py", "*nn.Conv2D(*", "Paddle", "stride=1", "bias_attr=True"),
    *_own_defaults(
        "models/resnet.py", "out_channels, out_channels, kernel_size=3, *", "Paddle", "stride=1"
    ),
    *_own_defaults("models/*.py", "*nn.MaxPool2D(*", "Paddle", "ceil_mode=False"),
    *_own_defaults("models/bisenetv1_2019.py", "*resize_bilinear(*", "it", "align_corners=False"),
    *_own_defaults("*.py", "*F.pad(*", "Paddle", "mode=\"constant\"", "value=0.0"),
    *_own_defaults("layers.py", "*F.interpolate(*", "Paddle", "mode=\"nearest\""),
    *_own_defaults("layers.py", "align_corners=align_corners,", "Paddle", "align_mode=0"),
    *_own_defaults("norm.py", "epsilon=eps,", "Paddle", "data_format=\"NCHW\""),
    Equivalent(
        "norm.py", "BatchNorm2d.__init__", "super().__init__(channels, momentum=0.9,*",
        "*0.9*",
        "the layer's attribute is for its readers: forward moves the buffers by 0.9 itself",
    ),
    Equivalent(
        "models/stdcnet.py", "STDCNet.__init__", "self.relu = nn.ReLU()", "ReLU -> Sigmoid",
        "part of the classifier, which no segmentation network applies, and without weights",
    ),
    Equivalent(
        "losses.py", "count_pixels", "counts = [*", "| -> &",
        "this count decides only whether the labels are looked at again, which are right",
    ),
    Equivalent(
        "losses.py", "count_pixels", "valid, expected, hard = *", "to_numpy(*",
        "one transfer from the device in place of three: the numbers are the same",
    ),
    Equivalent(
        "evaluate.py", "Scorer._logits", "if 2 * N * h * w > self.max_pixels:",
        "*not (2 * N * h * w > self.max_pixels)",
        "one pass or two for the picture and its mirror image: a bound on memory only",
    ),
    Equivalent("detail_loss.py", "", "STRIDES = (1, 2, 4)", "4 -> *", _COARSEST),
    Equivalent("detail_loss.py", "", "THRESHOLD = 0.1", "0.1 -> 0.11", _WHOLE),
    Equivalent("detail_loss.py", "", "THRESHOLD = 0.1", "0.1 -> 0.2", _WHOLE),
    Equivalent("detail_loss.py", "*", "fusion = *", "0.1 -> 0.0", _COARSEST),
    Equivalent("detail_loss.py", "*", "fusion = *", "0.6 -> 0.66", _WEIGHT),
    Equivalent("detail_loss.py", "*", "fusion = *", "0.6 -> 1.2", _WEIGHT),
    Equivalent("detail_loss.py", "*", "fusion = *", "0.3 -> 0.33", _WEIGHT),
    Equivalent("detail_loss.py", "*", "fusion = *", "0.3 -> 0.6", _WEIGHT),
    Equivalent("detail_loss.py", "*", "for scale in (1, 2):", "2 -> 1", _COARSEST),
    Equivalent("detail_loss.py", "*", "for scale in (1, 2):", "2 -> 0", _COARSEST),
    Equivalent(
        "evaluate.py", "Scorer._groups", "size = *", "*",
        "how many windows go through the network at once is a bound on memory only",
    ),
)  # fmt: skip


def row_for(mutant: Mutant, rows: Sequence[Equivalent] = EQUIVALENT) -> Equivalent | None:
    """Return the row that covers a mutant, if there is one."""
    return next((row for row in rows if row.covers(mutant)), None)


def unmatched(
    mutants: Sequence[Mutant], rows: Sequence[Equivalent] = EQUIVALENT
) -> list[Equivalent]:
    """Return the rows that cover no mutant of all there are."""
    return [row for row in rows if not any(row.covers(mutant) for mutant in mutants)]
