"""Charts as inline SVG: dots, ticks and lines over linear or logarithmic axes, and paired bars."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.page.html import Markup, element

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, BOTTOM = 52, 8, 34
LEGEND_ROW = 15
CHARACTER = 6.0
"""Width of a character of the charts' type, roughly."""

Point = tuple[float, float | None]
Kind = Literal["dots", "ticks", "line", "dashed", "limit", "bad"]


@dataclass(frozen=True)
class Series:
    """Values of one kind."""

    label: str
    points: Sequence[Point]
    """(x, y); without a y it is left out. Infinite ones stand at the upper edge."""
    colour: str
    """A class of the style sheet: torch, paddle, bound, floor, bad."""
    kind: Kind


@dataclass(frozen=True)
class Mark:
    """A place on the x axis."""

    x: float
    text: str
    colour: str = "axis"


@dataclass(frozen=True)
class Chart:
    """What is drawn."""

    title: str
    description: str
    """What there is to see, for those who do not see it."""
    series: Sequence[Series]
    x_label: str
    y_label: str
    log: bool = False
    marks: Sequence[Mark] = field(default_factory=tuple[Mark, ...])


@dataclass(frozen=True)
class _Axes:
    """From values to places."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool
    top: float
    zero: bool = False
    """The lower edge of a logarithmic axis stands for zero."""

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log:
            # zero has no place on a logarithmic axis: the lower edge stands for it
            value = math.log10(value) if 0 < value < math.inf else (low if value <= 0 else high)
        share = (min(max(value, low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - self.top)


def line_chart(chart: Chart) -> Markup:
    """Return a chart as SVG, with a title and a description in words."""
    shown = [series for series in chart.series if series.points]
    entries, rows = _legend(shown)
    axes = _axes(chart, shown, top=8 + LEGEND_ROW * (rows + bool(chart.marks)))
    content = [
        *_grid(axes, chart),
        *(_drawn(series, axes) for series in shown),
        *(_marked(mark, axes) for mark in chart.marks),
        *entries,
    ]
    return _svg(chart.title, chart.description, content, HEIGHT)


def _svg(title: str, description: str, content: Sequence[Markup], height: float) -> Markup:
    # of the title, so that the same logs make the same page
    number = zlib.crc32(title.encode())
    names = f"c{number:x}t", f"c{number:x}d"
    return element(
        "svg",
        element("title", title, id=names[0]),
        element("desc", description, id=names[1]),
        *content,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_labelledby=" ".join(names),
    )


def _axes(chart: Chart, shown: Sequence[Series], *, top: float) -> _Axes:
    xs = [x for series in shown for x, _ in series.points] or [0.0]
    ys = [y for s in shown for _, y in s.points if y is not None and math.isfinite(y)]
    x_range = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    if chart.log:
        positive = [math.log10(y) for y in ys if y > 0] or [-1.0]
        # one decade more below: the place of what is exactly zero
        zero = any(y == 0 for y in ys)
        low = math.floor(min(positive)) - zero
        return _Axes(x_range, (low, max(math.ceil(max(positive)), low + 1)), True, top, zero)
    low, high = min(ys, default=0.0), max(ys, default=1.0)
    low = 0.0 if 0 <= low < 0.6 * high else low
    return _Axes(x_range, (low, high if high > low else low + 1), False, top)


def _y_ticks(axes: _Axes) -> list[tuple[float, str]]:
    low, high = axes.y_range
    if not axes.log:
        step = _nice((high - low) / 6)
        first = math.ceil(low / step - 1e-9)
        values = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
        return [(value, f"{value:.4g}") for value in values]
    step = max(1, math.ceil((high - low) / 7))
    ticks = [(10.0**n, f"1e{n}") for n in range(int(high), int(low), -step)]
    # the lowest one may be too near to the edge, which is named in any case
    kept = [tick for tick in ticks if math.log10(tick[0]) - low > step / 2]
    return [*kept, (10.0**low, "0" if axes.zero else f"1e{int(low)}")]


def _nice(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, not below the given step."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _grid(axes: _Axes, chart: Chart) -> list[Markup]:
    parts: list[Markup] = []
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines: list[str] = []
    for value, text in _y_ticks(axes):
        y = axes.y(value)
        lines.append(f"M{LEFT} {y:.1f}H{right}")
        parts.append(element("text", text, x=LEFT - 4, y=f"{y + 4:.1f}", text_anchor="end"))
    parts.insert(0, element("path", class_="grid", d="".join(lines)))
    parts.append(element("path", class_="axis", d=f"M{LEFT} {axes.top:g}V{bottom}H{right}"))
    low, high = axes.x_range
    step = max(1.0, _nice((high - low) / 5))
    for n in range(math.ceil(low / step), math.floor(high / step) + 1):
        x = axes.x(n * step)
        text = f"{n * step:g}"
        parts.append(element("text", text, x=f"{x:.1f}", y=bottom + 13, text_anchor="middle"))
    middle = (LEFT + right) / 2
    label = element("text", chart.x_label, x=f"{middle:g}", y=HEIGHT - 5, text_anchor="middle")
    turned = f"translate(10 {(axes.top + bottom) / 2:.0f}) rotate(-90)"
    return [*parts, label, element("text", chart.y_label, transform=turned, text_anchor="middle")]


def _drawn(series: Series, axes: _Axes) -> Markup:
    places = [(axes.x(x), axes.y(y)) for x, y in series.points if y is not None and y == y]
    if series.kind == "dots":
        path = _steps(places, "h0", width=0)
    elif series.kind == "ticks":
        path = _steps([(x - 1, y) for x, y in places], "h2", width=2)
    elif series.kind == "bad":
        path = "".join(f"M{x - 3:.1f} {y - 3:.1f}l6 6m-6 0l6-6" for x, y in places)
    else:
        path = _polyline(places)
    if series.kind == "limit" and places:
        path += f"V{HEIGHT - BOTTOM}H{places[0][0]:.1f}Z"
    kind = "line dashed" if series.kind == "dashed" else series.kind
    return element("path", class_=f"{kind} {series.colour}", d=path)


def _polyline(places: Sequence[tuple[float, float]]) -> str:
    """Return a path through the places, without those in the middle of a level stretch."""
    rounded = [(f"{x:.1f}", f"{y:.1f}") for x, y in places]
    kept = [
        place
        for number, place in enumerate(rounded)
        if not 0 < number < len(rounded) - 1
        or not rounded[number - 1][1] == place[1] == rounded[number + 1][1]
    ]
    return f"M{'L'.join(' '.join(place) for place in kept)}" if kept else ""


def _steps(places: Sequence[tuple[float, float]], pen: str, *, width: int) -> str:
    """Return a path of moves from one place to the next, each drawn by a short stroke.

    Moves are relative and rounded without adding up: shorter than places for thousands of dots.
    """
    parts: list[str] = []
    at = [0, 0]
    for place in places:
        # in tenths of a unit
        to = [round(10 * place[0]), round(place[1]) * 10]
        moved = [f"{(to[axis] - at[axis]) / 10:g}" for axis in (0, 1)]
        parts.append(f"m{moved[0]} {moved[1]}{pen}".replace(" -", "-"))
        at = [to[0] + 10 * width, to[1]]
    return "".join(parts)


def _marked(mark: Mark, axes: _Axes) -> Markup:
    x = axes.x(mark.x)
    late = x > (LEFT + WIDTH) / 2
    line = element(
        "path", class_=f"{mark.colour} dashed", d=f"M{x:.1f} {axes.top:g}V{HEIGHT - BOTTOM}"
    )
    return Markup(
        line
        + element(
            "text",
            mark.text,
            x=f"{x + (-4 if late else 4):.1f}",
            y=f"{axes.top - 5:g}",
            text_anchor="end" if late else "start",
        )
    )


def _legend(shown: Sequence[Series]) -> tuple[list[Markup], int]:
    """Return the legend's elements and how many rows they take."""
    parts: list[Markup] = []
    x, row = float(LEFT), 0
    for series in shown:
        width = 24 + CHARACTER * len(series.label)
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, row = float(LEFT), row + 1
        y = 8 + LEGEND_ROW * row
        path = {
            "dots": f"M{x + 8:.0f} {y}h0",
            "bad": f"M{x + 5:.0f} {y - 3}l6 6m-6 0l6-6",
            "ticks": f"M{x + 6:.0f} {y}h4",
            "limit": f"M{x + 2:.0f} {y - 4}h13v8h-13Z",
        }.get(series.kind, f"M{x + 1:.0f} {y}h15")
        kind = "line dashed" if series.kind == "dashed" else series.kind
        parts.append(element("path", class_=f"{kind} {series.colour}", d=path))
        parts.append(element("text", series.label, x=f"{x + 19:.0f}", y=y + 4))
        x += width + 8
    return parts, row + 1 if shown else 0


BAR, GROUP = 8, 24
NAMES = 112


def paired_bars(
    title: str, description: str, rows: Sequence[tuple[str, float | None, float | None]]
) -> Markup:
    """Return horizontal bars of shares from 0 on, Torch's above Paddle's.

    Args:
        title: of the chart.
        description: of the chart.
        rows: (name, Torch's, Paddle's); None where there is no value.
    """
    height = 22 + GROUP * len(rows) + 18
    right = WIDTH - 14
    largest = max((one for _, *pair in rows for one in pair if one is not None), default=1.0)
    full = next((edge for edge in (0.1, 0.25, 0.5) if largest <= edge), 1.0)
    parts: list[Markup] = []
    for place, (name, colour) in enumerate((("Torch", "torch"), ("Paddle", "paddle"))):
        x = NAMES + 80 * place
        parts.append(element("rect", class_=colour, x=x, y=4, width=12, height=BAR))
        parts.append(element("text", name, x=x + 16, y=12))
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x = NAMES + share * (right - NAMES)
        parts.append(element("path", class_="grid", d=f"M{x:.1f} 20V{height - 16}"))
        label = f"{share * full:g}"
        text = element("text", label, x=f"{x:.1f}", y=height - 4, text_anchor="middle")
        parts.append(text)
    for number, (name, *values) in enumerate(rows):
        y = 22 + GROUP * number
        parts.append(element("text", name, x=NAMES - 5, y=y + 13, text_anchor="end"))
        for offset, (value, colour) in enumerate(zip(values, ("torch", "paddle"), strict=True)):
            if value is not None:
                width = f"{max(value, 0) / full * (right - NAMES):.1f}"
                top = y + 2 + offset * BAR
                parts.append(
                    element("rect", class_=colour, x=NAMES, y=top, width=width, height=BAR)
                )
        if all(value is None for value in values):
            parts.append(element("text", "absent", x=NAMES + 4, y=y + 13))
    return _svg(title, description, parts, height)
