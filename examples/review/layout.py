"""Laying out text: Markdown that stays within its place in a larger document, and columns for a terminal."""

import re
import unicodedata
from collections.abc import Sequence

from examples.review.text import code_blocks

# Control characters move the cursor of the terminal that shows them; lone surrogates cannot be written as UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_RULE = re.compile(r"\s*(?:-{2,}|={2,}|\*{3,}|_{3,})\s*$")


def clean(text: str) -> str:
    """The text without characters that could disturb a terminal or could not be written to a file."""
    return _UNPRINTABLE.sub("", text)


def inline(text: str) -> str:
    """The text on one line, with nothing in it that Markdown would take for a link, a tag or a table cell's end."""
    return re.sub(r"([|<\[\]*`\\])", r"\\\1", " ".join(clean(text).split()))


def code(text: str) -> str:
    """The text as inline code, whatever backticks it holds."""
    line = " ".join(clean(text).split())
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def embedded(text: str) -> str:
    """Markdown that a model wrote, fit to stand inside a section: its headings made bold, its open fences closed."""
    lines = clean(text).strip().split("\n")
    blocks = code_blocks(lines)
    verbatim = {index for block in blocks for index in range(block.first, block.last + 1)}
    out = []
    for index, line in enumerate(lines):
        heading = _HEADING.match(line)
        if index in verbatim:
            out.append(line)
        elif heading is not None:
            out.append(f"**{heading[1].replace('**', '')}**" if heading[1] else "")
        elif not _RULE.match(line):  # a rule would end the section, or make a heading of the line above
            out.append(line)
    if blocks and blocks[-1].last == len(lines) - 1:
        fence = re.match(r"\s*(`{3,}|~{3,})", lines[blocks[-1].first])
        if fence is not None and lines[-1].strip() != fence[1]:
            out.append(fence[1])
    return "\n".join(out).strip()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table of cells that are Markdown already; the columns numbered in `right` are right-aligned."""
    marks = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, marks, *rows))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table aligned for a terminal with a monospaced font, two spaces between columns."""
    cells = [[" ".join(clean(cell).split()) for cell in row] for row in (header, *rows)]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * size for size in widths])
    return "\n".join(
        "  ".join(_padded(cell, widths[column], column in right) for column, cell in enumerate(row)).rstrip()
        for row in cells
    )


def width(text: str) -> int:
    """How many columns of a terminal the text fills: two for wide (East Asian) characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(char) or char in "\u200b\u200d\ufe0f"
        else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _padded(cell: str, size: int, right: bool) -> str:
    space = " " * (size - width(cell))
    return space + cell if right else cell + space
