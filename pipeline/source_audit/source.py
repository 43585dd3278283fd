"""A source file with exact positions: spans of nodes and of the tokens between them."""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Span = tuple[int, int]
"""(first, last + 1) byte of the file."""


@dataclass(frozen=True)
class Token:
    """A token and where it stands."""

    text: str
    span: Span


class Source:
    """A parsed file.

    Args:
        name: path below the package, with slashes.
        text: its content.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.data = text.encode("utf-8")
        self.tree = ast.parse(text)
        self.lines = self.data.splitlines(keepends=True)
        starts = [0]
        for line in self.lines:
            starts.append(starts[-1] + len(line))
        self._starts = starts

    @classmethod
    def read(cls, package: Path, name: str) -> Source:
        """Read ``package/name``."""
        return cls(name, (package / name).read_text(encoding="utf-8"))

    def span(self, node: ast.AST) -> Span:
        """Return the bytes of an expression or a statement."""
        first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
        if first is None or last is None:
            raise TypeError(f"{type(node).__name__} has no place of its own in the source")
        start, end = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", 0)
        # ast counts columns in bytes of UTF-8
        return self._starts[first - 1] + start, self._starts[last - 1] + end

    def text(self, span: Span) -> str:
        """Return what stands there."""
        return self.data[span[0] : span[1]].decode("utf-8")

    def line_number(self, offset: int) -> int:
        """Return the 1-based line of a byte."""
        return next(i for i, start in enumerate(self._starts) if start > offset)

    def line(self, number: int) -> str:
        """Return a line's text without its indentation and end."""
        return self.lines[number - 1].decode("utf-8").strip()

    def column(self, offset: int) -> int:
        """Return how far from the start of its line's text a byte is."""
        raw = self.lines[self.line_number(offset) - 1]
        indentation = len(raw) - len(raw.lstrip())
        return offset - self._starts[self.line_number(offset) - 1] - indentation

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """All tokens but comments and line ends, in order."""
        found: list[Token] = []
        skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT}
        for token in tokenize.generate_tokens(io.StringIO(self.data.decode("utf-8")).readline):
            if token.type not in skipped and token.string:
                found.append(Token(token.string, self._token_span(token)))
        return tuple(found)

    def _token_span(self, token: tokenize.TokenInfo) -> Span:
        ends: list[int] = []
        for number, column in (token.start, token.end):
            # tokenize counts columns in characters
            line = self.lines[number - 1].decode("utf-8") if number <= len(self.lines) else ""
            ends.append(self._starts[number - 1] + len(line[:column].encode("utf-8")))
        return ends[0], ends[1]

    def between(self, first: int, last: int) -> list[Token]:
        """Return the tokens that lie wholly between two bytes."""
        return [t for t in self.tokens if t.span[0] >= first and t.span[1] <= last]

    def operator_span(self, first: int, last: int, words: str) -> Span:
        """Return where an operator of one or two words ("+", "not in") stands between two bytes."""
        wanted = words.split()
        tokens = self.between(first, last)
        for position in range(len(tokens)):
            run = tokens[position : position + len(wanted)]
            if [token.text for token in run] == wanted:
                return run[0].span[0], run[-1].span[1]
        raise ValueError(f"{self.name}: no {words!r} between bytes {first} and {last}")
