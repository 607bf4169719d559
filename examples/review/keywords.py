"""What a text is about: its telling words (tf-idf), its key phrases (RAKE), and how alike documents are."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TypedDict

from examples.review.text import is_term, prose, tokens, words

# A phrase longer than this is a sentence without stop words, not a phrase.
_LONGEST_PHRASE = 4


class Keyword(TypedDict):
    """A word, how often it occurs, and its weight: 1.0 for the most telling word of the document."""

    word: str
    count: int
    score: float


class Phrase(TypedDict):
    """A phrase, how often it occurs, and its RAKE score: higher the longer the phrases its words appear in."""

    phrase: str
    count: int
    score: float


class Pair(TypedDict):
    """Two documents, their similarity in [0, 1], and the shared words that weigh most in it."""

    left: str
    right: str
    similarity: float
    shared: list[str]


class Similarity(TypedDict):
    """`matrix[i][j]` is the cosine similarity, in [0, 1], of documents `paths[i]` and `paths[j]`."""

    paths: list[str]
    matrix: list[list[float]]
    pairs: list[Pair]


def term_counts(text: str) -> Counter[str]:
    """How often each term stands in the prose of a text; stop words are left out."""
    return Counter(filter(is_term, tokens(prose(text))))


def keywords(text: str, others: Iterable[str] = (), limit: int = 12) -> list[Keyword]:
    """The words that tell this text from `others`, best first; without others, its most frequent terms."""
    return _ranked(term_counts(text), [term_counts(other) for other in others], limit)


def keywords_by_document(texts: Mapping[str, str], limit: int = 12) -> dict[str, list[Keyword]]:
    """`keywords` of every document against all the rest: path to text in, path to keywords out."""
    counts = {path: term_counts(text) for path, text in texts.items()}
    rarity = _rarity(counts.values())
    return {path: _weigh(count, rarity, limit) for path, count in counts.items()}


def key_phrases(text: str, limit: int = 12) -> list[Phrase]:
    """Phrases of two words and more by RAKE (rapid automatic keyword extraction), best first.

    Candidates are runs of terms unbroken by a stop word or punctuation. A word scores its degree (the lengths of
    the candidates it stands in) over its frequency; a phrase scores the sum of its words, and a phrase said often
    is worth more, by the square root of its count.
    """
    candidates = Counter(_candidates(prose(text)))
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for phrase, count in candidates.items():
        for word in phrase:
            frequency[word] += count
            degree[word] += count * len(phrase)
    scored = [
        Phrase(
            phrase=" ".join(phrase),
            count=count,
            score=round(sum(degree[w] / frequency[w] for w in phrase) * math.sqrt(count), 3),
        )
        for phrase, count in candidates.items()
        if len(phrase) > 1
    ]
    # A phrase said once ranks below every phrase that recurs: RAKE alone favours long accidents.
    scored.sort(key=lambda p: (p["count"] == 1, -p["score"], p["phrase"]))
    return scored[:limit]


def similarity(texts: Mapping[str, str], *, at_least: float = 0.3, limit: int = 20) -> Similarity:
    """Cosine similarity over tf-idf of all documents, and the pairs that are `at_least` so alike, closest first."""
    paths = sorted(texts)
    counts = [term_counts(texts[path]) for path in paths]
    rarity = _rarity(counts)
    vectors = [_unit({term: _tf(n) * rarity[term] for term, n in count.items()}) for count in counts]
    matrix = [[1.0 if i == j else 0.0 for j in range(len(paths))] for i in range(len(paths))]
    pairs = []
    for i, j in combinations(range(len(paths)), 2):
        # Rounding must not make equal documents less than equal, nor two empty ones unlike.
        alike = 1.0 if counts[i] == counts[j] else _cosine(vectors[i], vectors[j])
        matrix[i][j] = matrix[j][i] = alike
        if alike >= at_least:
            shared = _shared(vectors[i], vectors[j])
            pairs.append(Pair(left=paths[i], right=paths[j], similarity=alike, shared=shared))
    pairs.sort(key=lambda p: (-p["similarity"], p["left"], p["right"]))
    return Similarity(paths=paths, matrix=matrix, pairs=pairs[:limit])


def _ranked(count: Counter[str], others: list[Counter[str]], limit: int) -> list[Keyword]:
    return _weigh(count, _rarity([count, *others]), limit)


def _rarity(counts: Iterable[Counter[str]]) -> dict[str, float]:
    """Smoothed inverse document frequency of every term, always above zero."""
    documents = 0
    frequency: Counter[str] = Counter()
    for count in counts:
        documents += 1
        frequency.update(count.keys())
    return {term: math.log((1 + documents) / (1 + n)) + 1 for term, n in frequency.items()}


def _tf(count: int) -> float:
    # Sublinear: the tenth mention of a word says less than the second.
    return 1 + math.log(count)


def _weigh(count: Counter[str], rarity: Mapping[str, float], limit: int) -> list[Keyword]:
    # Keywords weigh by plain frequency: a word said forty times is what the document is about.
    weights = {term: n * rarity[term] for term, n in count.items()}
    best = sorted(weights, key=lambda term: (-weights[term], term))[:limit]
    top = weights[best[0]] if best else 1.0
    return [Keyword(word=term, count=count[term], score=round(weights[term] / top, 4)) for term in best]


def _unit(vector: dict[str, float]) -> dict[str, float]:
    length = math.sqrt(math.fsum(weight * weight for weight in vector.values()))
    return {term: weight / length for term, weight in vector.items()} if length else {}


def _cosine(left: dict[str, float], right: dict[str, float]) -> float:
    total = math.fsum(left[term] * right[term] for term in left.keys() & right.keys())
    return round(min(1.0, max(0.0, total)), 4)


def _shared(left: dict[str, float], right: dict[str, float], limit: int = 5) -> list[str]:
    common = left.keys() & right.keys()
    return sorted(common, key=lambda term: (-left[term] * right[term], term))[:limit]


def _candidates(text: str) -> Iterable[tuple[str, ...]]:
    runs: defaultdict[int, list[str]] = defaultdict(list)
    run = 0
    end = 0
    for word in words(text):
        gap = text[end : word.start]
        end = word.end
        # Only a space, or one line's end, holds a phrase together.
        if not re.fullmatch(r"[ \t]*\n?[ \t]*", gap):
            run += 1
        if is_term(word.text):
            runs[run].append(word.text)
        else:
            run += 1
    return (tuple(found) for found in runs.values() if len(found) <= _LONGEST_PHRASE)
