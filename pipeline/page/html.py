"""HTML written by functions: whatever is text is escaped, so no tensor's name can break a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape as _escape

VOID = ("br", "img", "meta", "link", "hr")
"""Elements without content."""
OPEN_ENDED = ("td", "th", "tr", "li", "dt", "dd")
"""Elements whose end HTML lets one leave out: a page has thousands of cells."""


_PLAIN = re.compile(r"[A-Za-z0-9.#_-]+")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Sequence[str] | None
"""Text to be escaped, Markup as it is, several of both, or nothing."""


def escaped(text: str) -> Markup:
    """Return a text as HTML; Markup is returned as it is."""
    return text if isinstance(text, Markup) else Markup(_escape(text, quote=True))


def joined(children: Iterable[Child]) -> Markup:
    """Return children as HTML, one after the other."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, str):
            parts.append(escaped(child))
        elif child is not None:
            parts.append(joined(child))
    return Markup("".join(parts))


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: its content.
        attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None and False are
            left out, True stands without a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        word = key.rstrip("_").replace("_", "-")
        words.append(word if value is True else f"{word}={_quoted(str(value))}")
    start = f"<{' '.join(words)}>"
    if name in VOID:
        return Markup(start)
    end = "" if name in OPEN_ENDED else f"</{name}>"
    return Markup(f"{start}{joined(children)}{end}")


def _quoted(text: str) -> str:
    # a page has thousands of one-word attributes, which need no quotes
    return text if _PLAIN.fullmatch(text) else f'"{escaped(text)}"'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    caption: str,
    text: Sequence[int] = (),
) -> Markup:
    """Return a table in a region of its own, which alone may scroll sideways.

    Args:
        head: titles of the columns.
        rows: cells; the first of each row is its heading.
        caption: what the table shows.
        text: columns of words, not of numbers.
    """
    words = (0, *text)
    titles = [
        element("th", title, scope="col", class_=None if column in words else "r")
        for column, title in enumerate(head)
    ]
    body = [element("tr", _cells(row, text)) for row in rows]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", titles)),
        element("tbody", body),
    )
    # a region that scrolls must be reachable by keyboard
    return element(
        "div", content, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {caption}"
    )


def _cells(row: Sequence[Child], text: Sequence[int]) -> list[Markup]:
    cells = [element("th", row[0], scope="row")]
    return cells + [
        element("td", cell, class_="w" if column in text else None)
        for column, cell in enumerate(row[1:], start=1)
    ]


def details(summary: Child, *content: Child, opened: bool = False) -> Markup:
    """Return content that is folded away until asked for."""
    return element("details", element("summary", summary), *content, open=opened)


def section(identity: str, title: str, *content: Child) -> Markup:
    """Return a section with its heading."""
    heading = element("h2", title, id=f"{identity}-title")
    return element("section", heading, *content, id=identity, aria_labelledby=f"{identity}-title")


def paragraph(*content: Child, class_: str | None = None) -> Markup:
    """Return a paragraph."""
    return element("p", *content, class_=class_)


def document(title: str, *, style: str, body: Child) -> Markup:
    """Return a whole page that loads nothing from anywhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="color-scheme", content="light dark"),
        # an empty icon, or a browser asks the server for one
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    skip = element("a", "Skip to the verdict", href="#main", class_="skip")
    page = element("html", head, element("body", skip, body), lang="en")
    return Markup(f"<!doctype html>\n{page}\n")
