"""The command line of an evaluation, the same for both frameworks and under their launchers."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from common.config import Config, load_config
from common.errors import InputError
from common.protocols import PROTOCOLS, Protocol, StartSize, changed, configured

Framework = Literal["paddle", "torch"]
Device = Literal["cpu", "gpu"]

GPU_PIXELS, CPU_PIXELS = 2**23, 2**18
"""Input pixels of one forward pass, as far as more than one picture goes into it: eight windows of
1024 x 1024. On a CPU larger batches gain next to nothing and need more memory."""


@dataclass(frozen=True)
class EvalSettings:
    """One evaluation as asked for."""

    config_path: Path
    config: Config
    """With all options applied."""
    weights: Path
    protocol: Protocol
    out: Path
    framework: Framework = "paddle"
    device: Device = "cpu"
    batch_size: int = 1
    max_pixels: int = CPU_PIXELS
    worst: int = 10
    """Pictures that are drawn, the worst first."""
    command: str = ""


def parse_settings(arguments: Sequence[str]) -> EvalSettings:
    """Return what a command line asks for.

    Args:
        arguments: without the program's name.

    Raises:
        InputError: the configuration, or an option, is wrong.
        SystemExit: (2) an unknown option, (0) --help.
    """
    words = _parser().parse_args(arguments)
    overrides = [] if words.data is None else [f"data.root={words.data}"]
    overrides += [] if words.workers is None else [f"data.workers={words.workers}"]
    config = load_config(words.config, overrides=[*overrides, *words.set])
    for option in ("batch_size", "max_pixels"):
        value = getattr(words, option)
        if value is not None and value < 1:
            raise InputError(f"--{option} {value}: expected at least 1")
    if words.worst < 0:
        raise InputError(f"--worst {words.worst}: expected 0 or more pictures")
    pixels = GPU_PIXELS if words.device == "gpu" else CPU_PIXELS
    return EvalSettings(
        config_path=words.config,
        config=config,
        weights=words.weights,
        protocol=_protocol(config, words),
        out=words.out or Path("output") / "eval" / words.config.stem,
        framework=cast("Framework", words.framework),
        device=cast("Device", words.device),
        batch_size=words.batch_size,
        max_pixels=words.max_pixels or pixels,
        worst=words.worst,
        command=_command_line(arguments),
    )


def _command_line(arguments: Sequence[str]) -> str:
    """Return the command for the log, without the folders of this machine."""
    parts = (word.rpartition("=") for word in arguments)
    words = (f"{key}{sign}{Path(v).name if v.startswith('/') else v}" for key, sign, v in parts)
    return shlex.join(["tools/eval.py", *words])


def _protocol(config: Config, words: argparse.Namespace) -> Protocol:
    rule = config.eval
    base = configured(words.mode or rule.protocol, crop_hw=rule.crop_hw, short_side=rule.short_side)
    return changed(
        base,
        scales=None if words.scales is None else tuple(words.scales),
        flip=words.flip,
        crop_hw=None if words.crop is None else tuple(words.crop),
        stride_rate=words.stride,
        overlap=words.overlap,
        start=None if words.short_side is None else StartSize(short_side=words.short_side),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bisenet eval", description="Evaluate weights on a validation set."
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="Configuration file (YAML).")
    add(
        "--weights",
        type=Path,
        required=True,
        help="Weights: .safetensors, .pdparams, or .pth (torch).",
    )
    add(
        *("--side", "--framework"),
        dest="framework",
        choices=["paddle", "torch"],
        default="paddle",
        help="Default: paddle.",
    )
    add("--mode", choices=list(PROTOCOLS), help="Protocol; default: eval.protocol of the config.")
    add("--scales", type=float, nargs="+", metavar="S", help="Scales, in place of the protocol's.")
    add("--flip", action=argparse.BooleanOptionalAction, help="Add the mirror image's scores.")
    add("--crop", type=int, nargs=2, metavar=("H", "W"), help="Sliding window in pixels.")
    add("--stride", type=float, metavar="RATE", help="Distance of windows / window, 0..1.")
    add("--overlap", choices=["sum", "mean"], help="Scores where windows overlap; default: sum.")
    add("--short_side", type=int, metavar="PIXELS", help="Bring the shorter side to this first.")
    add("--data", type=Path, help="Folder of the data, in place of data.root.")
    add("--workers", type=int, help="Loader processes, in place of data.workers.")
    add("--device", choices=["cpu", "gpu"], default="cpu", help="Default: cpu.")
    add("--batch_size", type=int, default=1, help="Pictures of one size at a time; default: 1.")
    add("--max_pixels", type=int, help="Input pixels of one forward pass at most.")
    add("--worst", type=int, default=10, help="Worst pictures that are drawn; default: 10.")
    add("--out", type=Path, help="Output folder; default: output/eval/<config name>.")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Replace any key of the configuration, as eval.absent=zero; may be repeated.",
    )
    return parser
