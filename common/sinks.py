"""Where numbers and pictures of a training may be shown besides its log: VisualDL, TensorBoard.

Both packages are optional and imported only when asked for. VisualDL's LogWriter is used as its
documentation has it (add_scalar, add_image with HWC); TensorBoard's files are written by
tensorboardX, which needs no framework.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError


class Sink(Protocol):
    """Shows scalars and pictures by name and iteration."""

    def scalar(self, name: str, value: float, iteration: int) -> None:
        """Show one number."""
        ...

    def image(self, name: str, hwc_uint8: NDArray[np.uint8], iteration: int) -> None:
        """Show one picture, (H, W, 3) uint8, RGB."""
        ...

    def close(self) -> None:
        """Write out everything."""
        ...


def open_sinks(folder: Path, *, use_vdl: bool, use_tensorboard: bool) -> list[Sink]:
    """Open the asked-for sinks, in ``folder/vdl`` and ``folder/tensorboard``.

    Raises:
        InputError: a package is not installed, naming the command that installs it, or its folder
            cannot be written.
    """
    asked: list[type[_VisualDL | _TensorBoard]] = []
    if use_vdl:
        asked.append(_VisualDL)
    if use_tensorboard:
        asked.append(_TensorBoard)
    return [kind(folder) for kind in asked]


class _VisualDL:
    def __init__(self, folder: Path) -> None:
        package = _imported("visualdl", option="--use_vdl")
        self._writer: Any = package.LogWriter(logdir=str(_made(folder / "vdl")))

    def scalar(self, name: str, value: float, iteration: int) -> None:
        self._writer.add_scalar(tag=name, value=value, step=iteration)

    def image(self, name: str, hwc_uint8: NDArray[np.uint8], iteration: int) -> None:
        _check_picture(hwc_uint8)
        self._writer.add_image(tag=name, img=hwc_uint8, step=iteration, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        package = _imported("tensorboardX", option="--use_tensorboard")
        self._writer: Any = package.SummaryWriter(logdir=str(_made(folder / "tensorboard")))

    def scalar(self, name: str, value: float, iteration: int) -> None:
        self._writer.add_scalar(name, value, global_step=iteration)

    def image(self, name: str, hwc_uint8: NDArray[np.uint8], iteration: int) -> None:
        _check_picture(hwc_uint8)
        self._writer.add_image(name, hwc_uint8, global_step=iteration, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def _imported(package: str, *, option: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{option}: the package {package} cannot be imported ({error}); install it with "
            f"`pip install {package}`, or leave the option out"
        ) from None


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); choose another --save_dir"
        ) from None
    return folder


def _check_picture(picture: NDArray[np.uint8]) -> None:
    # both packages scale or clip other types without a word
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"the picture is {picture.dtype} of shape {picture.shape}; expected uint8 (H, W, 3)"
        )
