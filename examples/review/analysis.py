"""Everything that is computed of a document and of a collection, as JSON-able records.

The parts can be called alone, so that each can run in a worker process of its own. No part reads a file, the
network, the clock or the environment; the same text gives the same record in every process.
"""

from collections.abc import Collection, Mapping
from typing import TypedDict

from examples.review.duplicates import Duplicate, Place, across, near_duplicates
from examples.review.keywords import (
    Keyword,
    Pair,
    Phrase,
    Similarity,
    key_phrases,
    keywords,
    keywords_by_document,
    similarity,
)
from examples.review.readability import Readability, Vocabulary, readability, vocabulary
from examples.review.repeats import Repeat, repeated_passages
from examples.review.structure import BrokenLink, Heading, OpenEnd, Structure, structure
from examples.review.text import tokens

__all__ = [
    "Analysis",
    "BrokenLink",
    "Comparison",
    "Duplicate",
    "Heading",
    "Keyword",
    "OpenEnd",
    "Pair",
    "Phrase",
    "Place",
    "Readability",
    "Repeat",
    "Similarity",
    "Structure",
    "Vocabulary",
    "across",
    "analyse",
    "compare",
    "key_phrases",
    "keywords",
    "keywords_by_document",
    "near_duplicates",
    "readability",
    "repeated_passages",
    "similarity",
    "structure",
    "vocabulary",
]


class Analysis(TypedDict):
    """All that is computed of one document by itself."""

    path: str
    words: int
    keywords: list[Keyword]
    phrases: list[Phrase]
    readability: Readability
    vocabulary: Vocabulary
    structure: Structure
    duplicates: list[Duplicate]
    repeats: list[Repeat]


class Comparison(TypedDict):
    """All that is computed of the documents together. `keywords`: by path, what tells each from the others."""

    keywords: dict[str, list[Keyword]]
    similarity: Similarity
    duplicates: list[Duplicate]
    repeats: list[Repeat]


def analyse(text: str, path: str = "", files: Collection[str] | None = None) -> Analysis:
    """Compute everything of one document; `path` and `files` as for `structure`."""
    return Analysis(
        path=path,
        words=len(tokens(text)),
        keywords=keywords(text),
        phrases=key_phrases(text),
        readability=readability(text),
        vocabulary=vocabulary(text),
        structure=structure(text, path, files),
        duplicates=near_duplicates({path: text}),
        repeats=repeated_passages({path: text}),
    )


def compare(texts: Mapping[str, str]) -> Comparison:
    """Compare documents, given as path to text: keywords, similarity, and what stands in more than one of them."""
    repeats = repeated_passages(texts, limit=50)
    return Comparison(
        keywords=keywords_by_document(texts),
        similarity=similarity(texts),
        duplicates=across(near_duplicates(texts)),
        repeats=[found for found in repeats if len({place["path"] for place in found["places"]}) > 1][:10],
    )
