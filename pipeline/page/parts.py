"""What several sections of a page share: numbers, badges, figures and tables of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.evidence import Line, Number
from pipeline.page.html import Child, Markup, details, element, joined, table
from pipeline.steps import BOTH

SYMBOLS: Mapping[str, tuple[str, str]] = {
    "PASS": ("✓", "pass"),
    "PASS with waivers": ("✓*", "warn"),
    "WAIVED": ("✓*", "warn"),
    "NOT RUN": ("-", "warn"),
    "VACUOUS": ("∅", "fail"),
    "MISSING": ("?", "fail"),
    "ERROR": ("!", "fail"),
    "FAIL": ("✗", "fail"),
}
"""Verdict -> symbol, style: never told by colour alone."""


PASSING = ("PASS", "PASS with waivers")
"""Verdicts of steps and runs that are accepted."""
ABSENT = "-"
"""What stands where there is no number."""


def badge(verdict: str) -> Markup:
    """Return a verdict as a symbol and a word."""
    symbol, style = SYMBOLS.get(verdict, ("?", "fail"))
    hidden = element("span", symbol, aria_hidden="true")
    return element("span", hidden, f" {verdict}", class_=f"badge {style}")


def value(number: Number | int) -> float | None:
    """Return what is drawn for a saved number: infinite ones are texts, missing ones None."""
    if number is None:
        return None
    return float(number)


def shown(number: Number | int, *, digits: int = 3) -> str:
    """Return a number as it stands in a table, with so many digits."""
    if number is None:
        return ABSENT
    if isinstance(number, str | int):
        return str(number)
    if not number:
        return "0"
    if 1e-2 <= abs(number) < 10**digits:
        return f"{number:.{digits}g}"
    # 1.20e-07 says no more than 1.2e-7
    mantissa, _, exponent = f"{number:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def share(line: Line) -> float:
    """Return how much of its bound a tensor uses; more than one is a failure."""
    relative, bound = value(line.relative), value(line.bound)
    if relative is None or math.isnan(relative):
        return math.inf
    if not bound:
        return math.inf if relative else 0.0
    return relative / bound


def facts_list(facts: Sequence[tuple[str, Child]]) -> Markup:
    """Return names with what they stand for."""
    pairs = [joined([element("dt", name), element("dd", text)]) for name, text in facts]
    return element("dl", pairs, class_="facts")


def figure(chart: Markup, caption: str) -> Markup:
    """Return a chart with its caption."""
    return element("figure", chart, element("figcaption", caption))


def figures(charts: Sequence[Markup], numbers: Child) -> Markup:
    """Return charts beside one another, and the numbers of them all below."""
    return Markup(element("div", *charts, class_="figures") + element("div", numbers))


TENSOR_HEAD = (
    "tensor",
    "verdict",
    "float64 difference",
    "float64 bound",
    "float32 difference",
    "float32 bound",
    "rounding floor",
    "Paddle/Torch rounding",
    "note",
)


def tensor_table(tensors: Mapping[str, Mapping[str, Line]], *, caption: str) -> Markup:
    """Return the numbers of tensors, one row each, folded away."""
    rows = [_tensor_row(key, lines) for key, lines in tensors.items()]
    # a column that is empty throughout says nothing, nor does one of PASS alone
    kept = [
        column
        for column in range(len(TENSOR_HEAD))
        if column == 0 or any(row[column] not in ("", ABSENT, "PASS") for row in rows)
    ]
    head = [TENSOR_HEAD[column] for column in kept]
    text = [place for place, column in enumerate(kept) if TENSOR_HEAD[column] == "note"]
    body = [[row[column] for column in kept] for row in rows]
    passing = all(row[1] == "PASS" for row in rows)
    title = f"{caption}: {len(rows)} tensors in numbers{', all PASS' if passing else ''}"
    return details(title, table(head, body, caption=caption, text=text))


def _tensor_row(key: str, lines: Mapping[str, Line]) -> list[str]:
    wide, narrow = (lines.get(dtype) for dtype in BOTH)
    # what passes need not shout in three hundred rows
    words = [f"{dtype} {line.verdict}" for dtype, line in lines.items() if line.verdict != "PASS"]
    notes = [line.detail for line in lines.values() if line.detail]
    return [
        key,
        ", ".join(words) or "PASS",
        *_pair(wide),
        *_pair(narrow),
        shown(narrow.floor) if narrow else ABSENT,
        shown(narrow.ratio) if narrow else ABSENT,
        "; ".join(dict.fromkeys(notes)),
    ]


def _pair(line: Line | None) -> tuple[str, str]:
    if line is None:
        return ABSENT, ABSENT
    return shown(line.relative), shown(line.bound)
