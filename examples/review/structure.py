"""The structure of a Markdown or reST document: headings, links, code blocks, open ends, broken links."""

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import TypedDict
from urllib.parse import unquote, urlsplit

from examples.review.text import code_blocks, excerpt

_ATX = re.compile(r"\s{0,3}(#{1,6})\s+(\S.*)$")
_UNDERLINE = re.compile(r"([=\-~^\"'*+#.:_])\1{2,}\s*$")
# The text of a link may hold escapes and an image (a badge); the repeats are bounded against hostile texts.
_LINK_TEXT = r"(?:[^\[\]\\]|\\.|!\[[^\[\]]{0,200}\]\([^()\s]{0,300}\)){0,300}"
_INLINE_LINK = re.compile(
    rf"(!?)\[({_LINK_TEXT})\]\(\s*<?([^()\s<>]{{1,500}})>?(?:\s+[\"'][^\"'\n]{{0,200}}[\"'])?\s*\)"
)
_REFERENCE = re.compile(r"\s{0,3}\[([^\[\]^]{1,200})\]:\s+<?([^\s<>]{1,500})>?")
_REST_LINK = re.compile(r"`[^`<>\n]{0,300}<([^`<>\s]{1,500})>`__?")
_REST_TARGET = re.compile(r"\s*\.\. _[^:\n]{1,200}:\s+(\S{1,500})\s*$")
_REST_IMAGE = re.compile(r"\s*\.\. (?:image|figure)::\s+(\S{1,500})\s*$")
_BARE_URL = re.compile(r"(?<![\w(<\"'])https?://[^\s<>)\]\"'`]+")
_ANCHOR_TAG = re.compile(r"<a\s[^<>]{0,200}\b(?:id|name)\s*=\s*[\"']([^\"'<>]{1,200})[\"']", re.IGNORECASE)
_OPEN_END = re.compile(r"\b(TODO|FIXME|XXX|TBD|TBC)\b")
_INLINE_CODE = re.compile(r"(`{1,2})(?!`)([^`\n]{1,500})\1(?!`)")


class Heading(TypedDict):
    """A heading: its level from 1, its text without markup, its line from 1."""

    level: int
    text: str
    line: int


class Link(TypedDict):
    """A link as written, what kind it is (external, relative, anchor), and its line from 1."""

    target: str
    kind: str
    line: int


class BrokenLink(TypedDict):
    """A link that leads nowhere, its line from 1, and why."""

    target: str
    line: int
    reason: str


class OpenEnd(TypedDict):
    """A line from 1 that says it is unfinished (TODO, TBD, FIXME, XXX)."""

    line: int
    text: str


class Structure(TypedDict):
    """What a document is made of. `languages`: code blocks by language. `skipped_levels`: lines of headings
    more than one level below the heading before them."""

    headings: list[Heading]
    skipped_levels: list[int]
    links: dict[str, int]
    images: int
    code_blocks: int
    code_lines: int
    languages: dict[str, int]
    open_ends: list[OpenEnd]
    broken_links: list[BrokenLink]


def structure(text: str, path: str = "", files: Collection[str] | None = None) -> Structure:
    """The structure of the document at `path`, and its broken links.

    `files` are the paths, relative to the folder and with forward slashes, of all files there are (documents or
    not); relative links are checked against it, and not at all where it is None or the link leaves the folder.
    Anchors are checked inside the document. External links are counted, never fetched.
    """
    lines = text.split("\n")
    blocks = code_blocks(lines)
    code = {index for block in blocks for index in range(block.first, block.last + 1)}
    headed = list(_headings(lines, code))
    linked = list(_links(lines, code))
    counts = Counter(link["kind"] for link, _ in linked)
    open_ends = [(n, line) for n, line in enumerate(lines, 1) if n - 1 not in code and _is_open_end(line)]
    return Structure(
        headings=headed,
        skipped_levels=_skipped(headed),
        links={kind: counts[kind] for kind in ("external", "relative", "anchor")},
        images=sum(image for _, image in linked),
        code_blocks=len(blocks),
        code_lines=sum(block.last - block.first + 1 for block in blocks),
        languages=dict(sorted(Counter(block.language or "unnamed" for block in blocks).items())),
        open_ends=[OpenEnd(line=n, text=excerpt(line, 120)) for n, line in open_ends],
        broken_links=list(_broken([link for link, _ in linked], path, files, _anchors(headed, text))),
    )


def headings(text: str) -> list[Heading]:
    """The headings of a document, outside its code blocks."""
    lines = text.split("\n")
    code = {index for block in code_blocks(lines) for index in range(block.first, block.last + 1)}
    return list(_headings(lines, code))


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading: lower case, spaces to hyphens, punctuation dropped."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _headings(lines: list[str], code: set[int]) -> Iterator[Heading]:
    levels: list[str] = []
    for index, line in enumerate(lines):
        if index in code:
            continue
        if match := _ATX.match(line):
            yield Heading(level=len(match[1]), text=_plain(match[2].rstrip().rstrip("#")), line=index + 1)
        elif style := _underlined(lines, index, code):
            # As in reST, the order in which the underlines first appear is their level.
            if style not in levels:
                levels.append(style)
            yield Heading(level=levels.index(style) + 1, text=_plain(line), line=index + 1)


def _underlined(lines: list[str], index: int, code: set[int]) -> str:
    """The character that underlines this line as a heading, or nothing."""
    line = lines[index].rstrip()
    if not line or index + 1 >= len(lines) or index + 1 in code or line.startswith((" ", "|", "-", ">")):
        return ""
    match = _UNDERLINE.match(lines[index + 1])
    overlined = index > 0 and _UNDERLINE.match(lines[index - 1]) is not None
    if match is None or _UNDERLINE.match(line) or (index > 0 and lines[index - 1].strip() and not overlined):
        return ""
    # A rule much shorter than the line is a rule; Markdown would also take it, but writers seldom mean it.
    return match[1] if len(match[0].rstrip()) >= min(len(line), 40) - 2 else ""


def _plain(text: str) -> str:
    text = re.sub(r"!?(?<!\\)\[([^\[\]]*)\]\([^()]*\)", r"\1", text)
    return text.replace("`", "").replace("**", "").strip()


def _links(lines: list[str], code: set[int]) -> Iterator[tuple[Link, bool]]:
    """Every link with its place, and whether it is an image."""
    for index, line in enumerate(lines):
        if index in code:
            continue
        for target, image in _line_links(line):
            yield Link(target=target, kind=_kind(target), line=index + 1), image


def _line_links(line: str) -> Iterator[tuple[str, bool]]:
    for pattern, image in ((_REST_IMAGE, True), (_REST_TARGET, False)):
        if match := pattern.match(line):
            yield match[1], image
            return
    if match := _REFERENCE.match(line):
        yield match[2], False
        return
    for match in _REST_LINK.finditer(line):
        yield match[1], False
    # What is written as code shows how a link looks; it is none.
    line = _INLINE_CODE.sub(lambda m: " " * len(m.group()), line)
    for match in _INLINE_LINK.finditer(line):
        yield match[3], bool(match[1])
        for inner in _INLINE_LINK.finditer(match[2]):
            yield inner[3], bool(inner[1])
    for match in _BARE_URL.finditer(_INLINE_LINK.sub("", line)):
        yield match[0].rstrip(".,;:!?"), False


def _kind(target: str) -> str:
    if target.startswith("#"):
        return "anchor"
    return "external" if re.match(r"[a-zA-Z][a-zA-Z0-9+.\-]*:|//", target) else "relative"


def _skipped(headed: list[Heading]) -> list[int]:
    return [below["line"] for above, below in pairwise(headed) if below["level"] > above["level"] + 1]


def _is_open_end(line: str) -> bool:
    return _OPEN_END.search(_INLINE_CODE.sub("", line)) is not None


def _anchors(headed: list[Heading], text: str) -> set[str]:
    found = {name.lower() for name in _ANCHOR_TAG.findall(text)}
    counts: Counter[str] = Counter()
    for heading in headed:
        name = anchor(heading["text"])
        found.add(f"{name}-{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return found


def _broken(links: list[Link], path: str, files: Collection[str] | None, anchors: set[str]) -> Iterator[BrokenLink]:
    known = _with_folders(files) if files is not None else None
    for link in links:
        reason = ""
        if link["kind"] == "anchor":
            name = unquote(link["target"][1:]).lower()
            reason = "" if name in anchors or name in {"", "top"} else "no such heading"
        elif link["kind"] == "relative" and known is not None:
            place = _resolve(link["target"], path)
            reason = "" if place is None or place in known else f"no file {place}"
        if reason:
            yield BrokenLink(target=link["target"], line=link["line"], reason=reason)


def _resolve(target: str, path: str) -> str | None:
    """The place in the folder that a link leads to; None for one that leaves the folder and cannot be checked."""
    try:
        written = unquote(urlsplit(target).path)
    except ValueError:  # such as an unclosed IPv6 bracket
        return target
    base = "" if written.startswith("/") else posixpath.dirname(path)
    place = posixpath.normpath(posixpath.join(base, written.lstrip("/"))) if written else path
    return None if place == ".." or place.startswith("../") else place


def _with_folders(files: Collection[str]) -> set[str]:
    known = {"."}
    for name in files:
        place = name
        while place and place not in known:
            known.add(place)
            place = posixpath.dirname(place)
    return known
