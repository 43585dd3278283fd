"""Figures by matplotlib, imported only when one is drawn, without its global state (pyplot)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError
from common.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(what: str, size_inches: tuple[float, float]) -> Figure:
    """Return an empty figure whose parts keep out of each other's way.

    Args:
        what: what is to be drawn, for the message: "the training curve needs ...".
        size_inches: (width, height).

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"{what} needs matplotlib ({error}); `pip install matplotlib`") from None
    return Figure(figsize=size_inches, layout="constrained")


def write_figure(path: Path, figure: Figure, *, dpi: int = 100) -> None:
    """Write a figure as PNG, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=dpi)
