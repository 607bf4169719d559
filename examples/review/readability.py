"""How hard a text is to read, and how rich its vocabulary is. The Flesch figures hold for English."""

import re
from collections import Counter
from statistics import fmean, median
from typing import TypedDict

from examples.review.text import Lines, Span, excerpt, prose, sentences, tokens

_VOWELS = re.compile(r"[aeiouy]+")
_PARTS = re.compile(r"[^\W\d_]+")


class LongSentence(TypedDict):
    """A sentence that may want splitting: its length in words, its line from 1, and its beginning."""

    words: int
    line: int
    text: str


class Readability(TypedDict):
    """Sentence lengths in words, and the Flesch figures; those are None for a text without a sentence."""

    sentences: int
    words: int
    mean_sentence: float
    median_sentence: float
    syllables_per_word: float
    reading_ease: float | None
    grade: float | None
    level: str
    longest: list[LongSentence]


class Vocabulary(TypedDict):
    """Words, distinct words, words used once, and distinct words per word: in all, and over any 100 words."""

    words: int
    distinct: int
    once: int
    type_token_ratio: float
    moving_ratio: float
    yule_k: float
    mean_word_length: float


def readability(text: str, *, long_sentence: int = 30, limit: int = 3) -> Readability:
    """Flesch reading ease (100 easy, 0 hard) and grade, and the longest sentences over `long_sentence` words."""
    plain = prose(text, tables=False)
    lines = Lines(text)
    spans: list[tuple[Span, int]] = []
    syllables = 0
    for span in sentences(text):
        found = tokens(plain[span.start : span.end])
        spans.append((span, len(found)))
        syllables += sum(map(syllable_count, found))
    lengths = [length for _, length in spans]
    total = sum(lengths)
    if not total:
        return _unreadable()
    per_sentence, per_word = total / len(lengths), syllables / total
    ease = 206.835 - 1.015 * per_sentence - 84.6 * per_word
    longest = sorted((s for s in spans if s[1] > long_sentence), key=lambda s: (-s[1], s[0].start))
    return Readability(
        sentences=len(lengths),
        words=total,
        mean_sentence=round(fmean(lengths), 2),
        median_sentence=float(median(lengths)),
        syllables_per_word=round(per_word, 3),
        reading_ease=round(ease, 1),
        grade=round(0.39 * per_sentence + 11.8 * per_word - 15.59, 1),
        level=_level(ease),
        longest=[
            LongSentence(words=n, line=lines.number(span.start), text=excerpt(plain[span.start : span.end]))
            for span, n in longest[:limit]
        ],
    )


def vocabulary(text: str, *, window: int = 100) -> Vocabulary:
    """Vocabulary richness of the prose. The moving ratio, over `window` words, does not fall with length."""
    found = tokens(prose(text))
    counts = Counter(found)
    total = len(found)
    if not total:
        return Vocabulary(
            words=0, distinct=0, once=0, type_token_ratio=0.0, moving_ratio=0.0, yule_k=0.0, mean_word_length=0.0
        )
    squares = sum(n * n for n in counts.values())
    return Vocabulary(
        words=total,
        distinct=len(counts),
        once=sum(1 for n in counts.values() if n == 1),
        type_token_ratio=round(len(counts) / total, 4),
        moving_ratio=round(_moving_ratio(found, window), 4),
        yule_k=round(1e4 * (squares - total) / (total * total), 2),
        mean_word_length=round(fmean(map(len, found)), 2),
    )


def syllable_count(word: str) -> int:
    """The syllables of an English word, by its groups of vowels; at least one."""
    return sum(map(_syllables, _PARTS.findall(word.lower()))) or 1


def _syllables(part: str) -> int:
    groups = len(_VOWELS.findall(part))
    silent = (part.endswith("e") and not part.endswith(("le", "ee"))) or (
        part.endswith("ed") and not part.endswith(("ted", "ded"))
    )
    return max(1, groups - (silent and groups > 1))


def _moving_ratio(found: list[str], window: int) -> float:
    if len(found) <= window:
        return len(set(found)) / len(found)
    counts = Counter(found[:window])
    ratios = [len(counts)]
    for leaving, entering in zip(found, found[window:], strict=False):
        counts[entering] += 1
        counts[leaving] -= 1
        if not counts[leaving]:
            del counts[leaving]
        ratios.append(len(counts))
    return fmean(ratios) / window


def _level(ease: float) -> str:
    for least, name in ((70, "easy"), (60, "plain"), (50, "fairly difficult"), (30, "difficult")):
        if ease >= least:
            return name
    return "very difficult"


def _unreadable() -> Readability:
    return Readability(
        sentences=0,
        words=0,
        mean_sentence=0.0,
        median_sentence=0.0,
        syllables_per_word=0.0,
        reading_ease=None,
        grade=None,
        level="no prose",
        longest=[],
    )
