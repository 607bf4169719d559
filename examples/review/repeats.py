"""The longest word-for-word repeats of a text or of several, wherever paragraphs begin and end, by suffix array."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypedDict

from examples.review.duplicates import Place
from examples.review.text import Lines, Word, excerpt, words


class Repeat(TypedDict):
    """A run of `words` words that stands at each of `places`, word for word (case and punctuation aside)."""

    words: int
    text: str
    places: list[Place]


class _Run(NamedTuple):
    """Candidate: the suffixes at ranks `rank - 1` and `rank` share `length` words that do not overlap."""

    length: int
    rank: int


class _Corpus:
    """The words of all texts as one row of numbers, with a number of its own between documents."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.paths = sorted(texts)
        self.lines = {path: Lines(texts[path]) for path in self.paths}
        self.words: list[tuple[str, Word] | None] = []
        for path in self.paths:
            self.words += [(path, word) for word in words(texts[path])]
            self.words.append(None)
        vocabulary = sorted({entry[1].text for entry in self.words if entry is not None})
        number = {word: index for index, word in enumerate(vocabulary)}
        # Each separator is unique, so no repeat can run across the end of a document.
        self.numbers = [
            number[entry[1].text] if entry is not None else len(number) + index
            for index, entry in enumerate(self.words)
        ]

    def repeat(self, starts: list[int], length: int) -> Repeat:
        """The record of the repeat of `length` words at these positions."""
        path, first = self._word(starts[0])
        _, last = self._word(starts[0] + length - 1)
        text = excerpt(self.texts[path][first.start : last.end])
        return Repeat(words=length, text=text, places=[self._place(start, length) for start in starts])

    def _place(self, start: int, length: int) -> Place:
        path, word = self._word(start)
        return Place(path=path, line=self.lines[path].number(word.start), words=length)

    def _word(self, position: int) -> tuple[str, Word]:
        entry = self.words[position]
        assert entry is not None, "a repeat never holds a separator"
        return entry


def repeated_passages(texts: Mapping[str, str], *, min_words: int = 12, limit: int = 10) -> list[Repeat]:
    """The longest passages of at least `min_words` words that stand twice or more, longest first, none inside another.

    `texts` maps each document's path to its text. A refrain shorter than `min_words` is none, however often it is
    sung in a row. Cost grows as n log² n in the words of all texts together: about
    a second for 200 KB.
    """
    corpus = _Corpus(texts)
    order, ranks = suffix_array(corpus.numbers)
    common = common_prefixes(corpus.numbers, order, ranks)
    taken = bytearray(len(corpus.numbers))
    found: list[Repeat] = []
    for run in _runs(order, common, min_words):
        first = order[run.rank]
        # Longer runs come first, so a run that touches a taken one overlaps it at one of its ends.
        if taken[first] or taken[first + run.length - 1]:
            continue
        starts = list(_places(order, common, run))
        for start in starts:
            taken[start : start + run.length] = b"\x01" * run.length
        found.append(corpus.repeat(starts, run.length))
        if len(found) == limit:
            break
    return found


def suffix_array(numbers: list[int]) -> tuple[list[int], list[int]]:
    """The suffixes of `numbers` in order, and the rank of each, by prefix doubling."""
    size = len(numbers)
    ranks = list(numbers)
    order = sorted(range(size), key=ranks.__getitem__)
    width = 1
    while True:
        ceiling = max(ranks, default=0) + 2
        # One number for the rank of a suffix and the rank of the suffix `width` further on; the end ranks lowest.
        keys = [rank * ceiling + 1 + later for rank, later in zip(ranks, ranks[width:], strict=False)]
        keys += [rank * ceiling for rank in ranks[max(0, size - width) :]]
        order.sort(key=keys.__getitem__)
        rank = -1
        previous = -1
        for position in order:
            if keys[position] != previous:
                rank, previous = rank + 1, keys[position]
            ranks[position] = rank
        width *= 2
        if rank >= size - 1 or width >= 2 * size:
            return order, ranks


def common_prefixes(numbers: list[int], order: list[int], ranks: list[int]) -> list[int]:
    """How many numbers the suffixes at ranks r - 1 and r share, for each r (Kasai's algorithm); 0 for the first."""
    size = len(numbers)
    common = [0] * size
    shared = 0
    for position in range(size):
        rank = ranks[position]
        if rank == 0:
            shared = 0
            continue
        other = order[rank - 1]
        while (
            position + shared < size and other + shared < size and numbers[position + shared] == numbers[other + shared]
        ):
            shared += 1
        common[rank] = shared
        shared = max(0, shared - 1)
    return common


def _runs(order: list[int], common: list[int], min_words: int) -> list[_Run]:
    runs = []
    for rank in range(1, len(order)):
        # Two suffixes of one stretch ("la la la la") overlap; only what lies between their starts is a repeat.
        length = min(common[rank], abs(order[rank] - order[rank - 1]))
        if length >= max(1, min_words):
            runs.append(_Run(length, rank))
    runs.sort(key=lambda run: (-run.length, min(order[run.rank], order[run.rank - 1])))
    return runs


def _places(order: list[int], common: list[int], run: _Run) -> Iterator[int]:
    low = run.rank
    while common[low] >= run.length:
        low -= 1
    high = run.rank
    while high + 1 < len(order) and common[high + 1] >= run.length:
        high += 1
    end = -1
    for start in sorted(order[low : high + 1]):
        if start >= end:
            yield start
            end = start + run.length
