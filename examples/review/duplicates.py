"""Paragraphs that say nearly the same, inside a document and across documents.

MinHash finds the candidates: the share of equal numbers in two signatures estimates the Jaccard similarity of two
paragraphs' shingles, and banding finds alike signatures without comparing every pair. Each candidate is then
verified exactly, so the figures reported are true similarities, not estimates.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple, TypedDict

from examples.review.text import Lines, excerpt, passages, tokens

_SHINGLE = 3  # words
_BANDS = 32
_ROWS = 4  # a pair with similarity s shares a band with probability 1 - (1 - s**4)**32: 0.98 at 0.6
_PRIME = (1 << 61) - 1
# A bucket of more leaders than this is boilerplate; comparing with its first ones is enough.
_BUCKET = 50

_random = random.Random(20)  # fixed, so that every process computes the same signatures
_FUNCTIONS = [(_random.randrange(1, _PRIME), _random.randrange(_PRIME)) for _ in range(_BANDS * _ROWS)]


class Place(TypedDict):
    """Where a passage stands: its document, its first line from 1, and its length in words."""

    path: str
    line: int
    words: int


class Duplicate(TypedDict):
    """A passage and its near copies. `similarity`: the lowest Jaccard similarity, in [0, 1], of a copy to the first."""

    similarity: float
    text: str
    places: list[Place]


class _Passage(NamedTuple):
    place: Place
    text: str
    shingles: frozenset[int]


def near_duplicates(texts: Mapping[str, str], *, threshold: float = 0.6, min_words: int = 12) -> list[Duplicate]:
    """Groups of paragraphs of at least `min_words` words whose similarity is at least `threshold`, longest first.

    `texts` maps each document's path to its text; with one document it finds the duplicates inside it. A paragraph
    joins the first earlier paragraph that it resembles, so every member of a group has been verified against the
    group's first.
    """
    groups: dict[int, list[tuple[float, _Passage]]] = {}
    leaders: list[_Passage] = []
    buckets: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    same: dict[frozenset[int], int] = {}
    for passage in _passages(texts, min_words):
        leader = same.get(passage.shingles)
        if leader is not None:
            groups.setdefault(leader, []).append((jaccard(leaders[leader].shingles, passage.shingles), passage))
            continue
        keys = _band_keys(signature(passage.shingles))
        leader, alike = _closest(passage, leaders, {i for key in keys for i in buckets[key]}, threshold)
        if leader is None:
            leader = len(leaders)
            leaders.append(passage)
            for key in keys:
                if len(buckets[key]) < _BUCKET:
                    buckets[key].append(leader)
        else:
            groups.setdefault(leader, []).append((alike, passage))
        same[passage.shingles] = leader
    found = [_duplicate(leaders[leader], members) for leader, members in groups.items()]
    return sorted(found, key=lambda d: (-d["places"][0]["words"] * len(d["places"]), *_key(d["places"][0])))


def across(duplicates: list[Duplicate]) -> list[Duplicate]:
    """Of these duplicates, those that stand in more than one document."""
    return [found for found in duplicates if len({place["path"] for place in found["places"]}) > 1]


def shingles(text: str, size: int = _SHINGLE) -> frozenset[int]:
    """The hashes of every `size` consecutive words; a shorter text is one shingle, and no words are none."""
    found = tokens(text)
    if not found:
        return frozenset()
    spans = range(max(1, len(found) - size + 1))
    # Not hash(): it differs from process to process, and the workers must agree.
    return frozenset(_hash(" ".join(found[i : i + size])) for i in spans)


def jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    """The share of shingles that two sets have in common, in [0, 1]; two empty sets are alike."""
    if not left and not right:
        return 1.0
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def signature(shingled: frozenset[int]) -> list[int]:
    """The MinHash signature: under each hash function, the smallest hash of any shingle."""
    if not shingled:
        return [_PRIME] * len(_FUNCTIONS)
    return [min([(a * shingle + b) % _PRIME for shingle in shingled]) for a, b in _FUNCTIONS]


def _hash(shingle: str) -> int:
    return int.from_bytes(blake2b(shingle.encode("utf-8", "surrogatepass"), digest_size=7).digest())


def _band_keys(signed: list[int]) -> list[tuple[int, int]]:
    return [(band, hash(tuple(signed[band * _ROWS : (band + 1) * _ROWS]))) for band in range(_BANDS)]


def _closest(
    passage: _Passage, leaders: list[_Passage], candidates: set[int], threshold: float
) -> tuple[int | None, float]:
    best: int | None = None
    best_alike = 0.0
    for candidate in sorted(candidates):
        alike = jaccard(leaders[candidate].shingles, passage.shingles)
        if alike >= threshold and alike > best_alike:
            best, best_alike = candidate, alike
    return best, best_alike


def _passages(texts: Mapping[str, str], min_words: int) -> Iterator[_Passage]:
    for path in sorted(texts):
        text = texts[path]
        lines = Lines(text)
        for span in passages(text):
            passage = text[span.start : span.end]
            length = len(tokens(passage))
            if length >= min_words:
                place = Place(path=path, line=lines.number(span.start), words=length)
                yield _Passage(place, passage, shingles(passage))


def _duplicate(leader: _Passage, members: list[tuple[float, _Passage]]) -> Duplicate:
    return Duplicate(
        similarity=round(min(alike for alike, _ in members), 4),
        text=excerpt(leader.text),
        places=[leader.place, *(passage.place for _, passage in members)],
    )


def _key(place: Place) -> tuple[str, int]:
    return place["path"], place["line"]
