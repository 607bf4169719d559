"""Sentences, headings and words of prose and Markdown."""

import re
from collections.abc import Iterator

_FENCE = re.compile(r"\s*(```|~~~)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.+?)\s*#*\s*$")
_UNDERLINE = re.compile(r"\s*(=+|-+)\s*$")
_APART = re.compile(r"\s*(?:[-*_]\s*){3,}$|\s*\||\s*</?[\w][^<>]*>\s*$")  # rules, table rows, lines of one tag
_ITEM = re.compile(r"\s*(?:[-*+•–]|\d{1,3}[.)])\s+(?=\S)|\s*>+\s?")  # list items and quotes
_SPEAKER = re.compile(r"[A-Z][\w .'-]{0,30}:\s")

_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[”’」』）]*\s*")
_SHORT = (
    "mr mrs ms dr prof st vs etc e.g i.e eg ie cf fig no vol al approx ca inc ltd co corp dept est gen gov jr sr "
    "u.s u.k a.m p.m jan feb mar apr jun jul aug sep sept oct nov dec pp ed eds resp")
_ABBREVIATIONS = frozenset(_SHORT.split())

_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W_]+(?:['’-][^\W_]+)*")
_COMMON = """
a about above after again against all also although am among an and any are as at be because been before being below
between both but by can cannot could did do does doing down during each either etc even every few for from further
get gets got had has have having he her here hers him his how however i if in into is it its itself just may me might
more most much must my neither no nor not now of off often on once one only onto or other our ours out over own per
rather same shall she should since so some still such than that the their theirs them then there these they this those
though through thus to too under until up upon us use used using very was we well were what when where whether which
while who whom whose why will with within without would yet you your yours
"""
_STOP = frozenset(_COMMON.split())


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order, each with its white space made single spaces.

    Code blocks, tables, rules and headings are no sentences. Each list item and each line of a quote or of a
    transcript begins a new one.
    """
    return [sentence for block, heading in _blocks(text) if not heading for sentence in _split(block)]


def headings(text: str) -> list[str]:
    """The Markdown headings, without their marks."""
    return [block for block, heading in _blocks(text) if heading]


def words(text: str) -> list[str]:
    """What the text is about: its words in lower case, endings cut, without those that every text has."""
    return [stem(word) for word in surfaces(text) if carries(word)]


def surfaces(text: str) -> list[str]:
    """The words as they stand."""
    return _WORD.findall(text)


def carries(word: str) -> bool:
    """Whether a word says what a text is about."""
    low = word.lower().replace("’", "'")
    return low not in _STOP and low.partition("'")[0] not in _STOP and (len(low) > 1 or not low.isascii())


def stem(word: str) -> str:
    """A word without its commonest English endings, so that "limits" and "limited" are alike."""
    low = word.lower()
    for ending in ("ings", "ing", "edly", "ed", "ies", "es", "s"):
        if low.endswith(ending) and len(low) - len(ending) >= 4:
            return low[:-len(ending)]
    return low


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Stretches of running text, and whether each is a heading."""
    lines = re.split(r"\r\n|\r|\n", text)
    code = _fenced(lines)
    current: list[str] = []
    for number, line in enumerate(lines):
        heading = None if number in code else _HEADING.match(line)
        if len(current) == 1 and _UNDERLINE.match(line) and number not in code:
            yield _joined(current), True
            current = []
            continue
        item = _ITEM.match(line)
        apart = number in code or heading or not line.strip() or _APART.match(line)
        if (apart or item or _SPEAKER.match(line)) and current:
            yield _joined(current), False
            current = []
        if heading:
            yield _joined([heading[1]]), True
        elif not apart:
            current.append(line[item.end():] if item else line)
    if current:
        yield _joined(current), False


def _fenced(lines: list[str]) -> set[int]:
    """Numbers of the lines of closed code blocks; a fence that nothing closes hides nothing."""
    marks = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    pairs = zip(marks[::2], marks[1::2], strict=False)
    return {number for start, end in pairs for number in range(start, end + 1)}


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _split(block: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(block):
        if match.end() < len(block) and _ends(block, start, match):
            yield block[start:match.end()].strip()
            start = match.end()
    rest = block[start:].strip()
    if _WORD.search(rest):
        yield rest


def _ends(block: str, start: int, match: re.Match[str]) -> bool:
    """Whether a sentence ends here, and not an abbreviation, an initial or a quoted exclamation."""
    if not _WORD.search(block, start, match.end()):
        return False
    if match[0][0] in "。！？":
        return True
    if block[match.end()].islower():
        return False
    if match[0][0] != "." or match[0].startswith(".."):
        return True
    last = block[max(start, match.start() - 24):match.start()].rpartition(" ")[2].lstrip("(\"'“‘[")
    return not (last.lower() in _ABBREVIATIONS or (len(last) == 1 and last.isupper() and last != "I"))
