"""Words, sentences, passages and code blocks of a text, each with its place in it.

Everything that drops a part of a text (markup, code, tables) replaces it with spaces of the same length, so an
offset found in the remainder is an offset in the original and can be given to a reader as a line number.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

# Scripts written without spaces: each character counts as a word.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}][^\W{_CJK}]*(?:['’\-][^\W{_CJK}]+)*")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_RULE = re.compile(r"\s*[-=~^\"'`*+#_.:|]{3,}\s*$")
_TABLE = re.compile(r"\s*(?:\|.*\||\+[-=+]{3,})\s*$")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([\w+#.-]*)")
_DIRECTIVE = re.compile(r"\s*\.\. ([\w-]+)::\s*(\S*)")
_CODE_DIRECTIVES = frozenset({"code", "code-block", "sourcecode", "literalinclude", "prompt"})
# The repeats are bounded so that a hostile text (200 KB of "<!--") cannot make matching quadratic.
_MARKUP = re.compile(
    r"<!--(?:[^<]|<(?!!--)){0,2000}?-->"
    r"|</?[a-zA-Z][^<>]{0,500}>"
    r"|(?<=\])\([^()\s]{1,500}(?:\s+\"[^\"\n]{0,200}\")?\)"
    r"|https?://[^\s<>)\]]+"
    r"|:[a-z:]{1,40}:(?=`)"
)
# Possessive, and only from the first mark of a run: a long row of dots must not be scanned from each dot.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_`]{0,4}(?=\s)|[。！？]+[」』”]?")
_ABBREVIATIONS = frozenset({"e.g.", "i.e.", "vs.", "cf.", "dr.", "mr.", "mrs.", "ms.", "fig.", "al."})

_STOPWORDS = """
a about above after again against all also although am an and any are aren't as at be because been before being
below between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each eg
either else etc even ever every false few for from further get gets give given had has have having he her here hers
him his how however i i'm ie if in into is isn't it it's its itself just let like made make makes many may me might
more most much must my need needs neither never no none nor not now of off on once one only onto or other our ours
out over own per quite rather s same see set shall she should since so some still such t take takes than that that's
the their theirs them then there there's these they this those though three through thus to too true two under until
up upon us use used uses using very via vs was way we well were what what's when where whether which while who whom
whose why will with within without won't would yet you your yours
"""
STOPWORDS = frozenset(_STOPWORDS.split())


class Word(NamedTuple):
    """One word as compared (`text`, case-folded) and where it stands (`start`, `end`, offsets in characters)."""

    text: str
    start: int
    end: int


class Span(NamedTuple):
    """A stretch of a text: offsets in characters, `end` exclusive."""

    start: int
    end: int


class CodeBlock(NamedTuple):
    """A fenced or literal code block: its language ("" if unnamed) and its lines, counted from 0, both included."""

    language: str
    first: int
    last: int


class Lines:
    """Line numbers, counted from 1, of offsets in `text`."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def number(self, offset: int) -> int:
        """The number of the line that holds the character at `offset`."""
        return bisect_right(self._starts, offset)


def words(text: str) -> list[Word]:
    """The words of a text in order. Numbers are not words; identifiers (`max_tokens`) are one word."""
    return [Word(_fold(m.group()), m.start(), m.end()) for m in _WORD.finditer(text)]


def tokens(text: str) -> list[str]:
    """The words of a text as compared, without their places."""
    return [_fold(token) for token in _WORD.findall(text)]


def is_term(token: str) -> bool:
    """Whether a word says something about the subject: no stop word, and longer than two Latin letters."""
    return token not in STOPWORDS and (len(token) > 2 or not token.isascii())


def prose(text: str, *, tables: bool = True) -> str:
    """The text with code blocks, tags, link targets and URLs (and tables, if not `tables`) turned to spaces."""
    lines = text.split("\n")
    for block in code_blocks(lines):
        for index in range(block.first, block.last + 1):
            lines[index] = " " * len(lines[index])
    for index, line in enumerate(lines):
        if (not tables and _TABLE.match(line)) or _RULE.match(line):
            lines[index] = " " * len(line)
    return _MARKUP.sub(_blank, "\n".join(lines))


def code_blocks(lines: list[str]) -> list[CodeBlock]:
    """The code blocks among `lines`: Markdown fences, and the literal blocks and code directives of reST."""
    found = []
    index = 0
    while index < len(lines):
        block = _fenced(lines, index) or _literal(lines, index)
        if block is not None:
            found.append(block)
            index = block.last
        index += 1
    return found


def passages(text: str) -> list[Span]:
    """The paragraphs of a text: runs of lines between blank lines, headings set apart."""
    return list(_blocks(text, split_items=False))


def sentences(text: str) -> list[Span]:
    """The sentences of the text's prose. A heading and each list item end a sentence, with or without a full stop."""
    plain = prose(text, tables=False)
    found = []
    for block in _blocks(plain, split_items=True):
        start = block.start
        for match in _SENTENCE_END.finditer(plain, block.start, block.end):
            if _ends_sentence(plain, match):
                found.append(Span(start, match.end()))
                start = match.end()
        if start < block.end:
            found.append(Span(start, block.end))
    return [span for span in found if _WORD.search(plain, span.start, span.end)]


def excerpt(text: str, limit: int = 240) -> str:
    """The text on one line, without the mark of a list item, cut at `limit` characters."""
    item = _LIST_ITEM.match(text)
    line = " ".join(text[item.end() if item else 0 :].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _fold(token: str) -> str:
    if token.isascii():
        return token.lower()
    return unicodedata.normalize("NFKC", token).casefold().replace("’", "'")


def _blank(match: re.Match[str]) -> str:
    return "".join("\n" if char == "\n" else " " for char in match.group())


def _fenced(lines: list[str], first: int) -> CodeBlock | None:
    opening = _FENCE.match(lines[first])
    if opening is None or "`" in lines[first][opening.end() :]:  # ```code``` on one line is inline code
        return None
    fence = opening[1]
    for index in range(first + 1, len(lines)):
        line = lines[index].strip()
        if len(line) >= len(fence) and not line.strip(fence[0]):
            return CodeBlock(opening[2], first, index)
    return CodeBlock(opening[2], first, len(lines) - 1)


def _literal(lines: list[str], first: int) -> CodeBlock | None:
    line = lines[first]
    directive = _DIRECTIVE.match(line)
    if directive is None and not line.rstrip().endswith("::"):
        return None
    if directive is not None and directive[1] not in _CODE_DIRECTIVES:
        return None
    margin = len(line) - len(line.lstrip())
    last = first
    for index in range(first + 1, len(lines)):
        following = lines[index]
        if following.strip():
            if len(following) - len(following.lstrip()) <= margin:
                break
            last = index
    if last == first:
        return None
    # The line that introduces a literal block is prose; a directive is not.
    return CodeBlock(directive[2], first, last) if directive else CodeBlock("", first + 1, last)


def _blocks(text: str, *, split_items: bool) -> Iterator[Span]:
    start: int | None = None
    offset = end = 0
    for line in text.split("\n"):
        heading = _HEADING.match(line) is not None
        breaks = heading or (split_items and _LIST_ITEM.match(line) is not None)
        if start is not None and (breaks or not line.strip()):
            yield Span(start, end)
            start = None
        if line.strip():
            start = offset + len(line) - len(line.lstrip()) if start is None else start
            end = offset + len(line.rstrip())
            if heading:
                yield Span(start, end)
                start = None
        offset += len(line) + 1
    if start is not None:
        yield Span(start, end)


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    if match.group()[0] in "。！？":
        return True
    before = text[max(0, match.start() - 12) : match.end()].split()
    if before and before[-1].lower().strip("(\"'") in _ABBREVIATIONS:
        return False
    after = text[match.end() : match.end() + 80].lstrip()
    return not after or not after[0].islower()
