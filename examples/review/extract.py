"""The readable text of a file: Markdown, reST and plain text as they are, HTML and Python turned to Markdown.

The text of a Python file is its docstrings, each on the lines where it stands, so line numbers hold in the source.
"""

import ast
import codecs
import re
import textwrap
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser

KINDS = {
    ".md": "Markdown",
    ".markdown": "Markdown",
    ".rst": "reST",
    ".txt": "text",
    ".html": "HTML",
    ".htm": "HTML",
    ".py": "Python docstrings",
}

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BLOCKS = frozenset(
    ["p", "div", "section", "article", "main", "ul", "ol", "table", "tr", "blockquote", "br", "dl", "dt", "dd"]
)
_SILENT = frozenset(["script", "style", "title", "nav", "template", "svg"])

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def decode(raw: bytes) -> tuple[str, bool]:
    """The text of a file's bytes, and whether some had to be replaced; UTF-8 unless a byte order mark says else."""
    encoding = "utf-8"
    for mark, name in _BOMS:
        if raw.startswith(mark):
            raw, encoding = raw[len(mark) :], name
            break
    text = raw.decode(encoding, "replace")
    # Replaced on purpose is not damage: the writer may have typed U+FFFD, so decode strictly to be sure.
    damaged = "\ufffd" in text and not _decodes(raw, encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n"), damaged


def is_binary(raw: bytes) -> bool:
    """Whether the first bytes of a file are no text: a NUL, without a mark of an encoding that has them."""
    return b"\0" in raw[:8192] and not any(raw.startswith(mark) for mark, _ in _BOMS)


def readable(suffix: str, source: str) -> str:
    """The text of a file of this kind (a key of KINDS) that is written for people."""
    if suffix in {".html", ".htm"}:
        return html_text(source)
    return python_text(source) if suffix == ".py" else source


def html_text(source: str) -> str:
    """HTML as Markdown: headings, links, list items, code blocks and the text of the rest."""
    reader = _HtmlReader()
    try:
        reader.feed(source)
        reader.close()
    except AssertionError:  # how html.parser gives up on a malformed "<![...": the tags alone then come out
        return re.sub(r"<[^<>]{0,500}>", " ", source)
    return re.sub(r"\n{3,}", "\n\n", "".join(reader.parts)).strip() + "\n"


def python_text(source: str) -> str:
    """The docstrings of a Python file on their own lines, each under its function or class as a heading.

    Source that does not parse is returned as it is.
    """
    with warnings.catch_warnings():
        # The reviewed file's own bad escapes are not this program's.
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return source
    out = [""] * (source.count("\n") + 1)
    for node, depth in _documented(tree):
        if not isinstance(node, ast.Module):
            out[node.lineno - 1] = f"{'#' * min(depth + 1, 6)} {node.name}"
        literal = node.body[0]
        for line, text in enumerate(_docstring(node), literal.lineno - 1):
            # Escapes can give a docstring more lines than its source has; those have no line of their own.
            if line < (literal.end_lineno or literal.lineno):
                out[line] = text
    return "\n".join(out)


def _documented(tree: ast.Module) -> Iterator[tuple[_Documented, int]]:
    """The module, classes and functions that have a docstring, and how deep each stands."""
    stack: list[tuple[ast.AST, int]] = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        inner = depth
        if isinstance(node, _Documented):
            inner += 1
            if ast.get_docstring(node, clean=False) is not None:
                yield node, depth
        stack += [(child, inner) for child in ast.iter_child_nodes(node)]


def _docstring(node: _Documented) -> list[str]:
    first, newline, rest = (ast.get_docstring(node, clean=False) or "").partition("\n")
    return (first.lstrip() + newline + textwrap.dedent(rest)).split("\n")


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


class _HtmlReader(HTMLParser):
    """Writes what it reads as Markdown into `parts`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0
        self._verbatim = 0
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a heading, a link, a list item, a code block or a paragraph."""
        if tag in _SILENT:
            self._silent += 1
        elif tag == "body":
            self._silent = 0  # whatever the head left open
        elif tag == "a":
            self._links.append(dict(attrs).get("href") or "")
            self._write("[" if self._links[-1] else "")
        elif tag == "pre":
            self._verbatim += 1
            self._write("\n\n```\n")
        elif tag == "li":
            self._write("\n- ")
        elif re.fullmatch("h[1-6]", tag):
            self._write("\n\n" + "#" * int(tag[1]) + " ")
        elif tag in _BLOCKS:
            self._write("\n\n")

    def handle_endtag(self, tag: str) -> None:
        """End what `handle_starttag` began."""
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag == "a" and self._links:
            target = self._links.pop()
            self._write(f"]({target})" if target else "")
        elif tag == "pre" and self._verbatim:
            self._verbatim -= 1
            self._write("\n```\n\n")
        elif tag in _BLOCKS or re.fullmatch("h[1-6]", tag):
            self._write("\n\n")

    def handle_data(self, data: str) -> None:
        """Text, with its white space as written only inside a code block."""
        self._write(data if self._verbatim else re.sub(r"\s+", " ", data))

    def _write(self, text: str) -> None:
        if text and not self._silent:
            self.parts.append(text)
