"""What a writer should look at, drawn from the computed records, in plain sentences with line numbers."""

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

from examples.review.duplicates import Duplicate, Place
from examples.review.keywords import Keyword, Phrase
from examples.review.layout import code, inline
from examples.review.readability import Readability, Vocabulary
from examples.review.repeats import Repeat
from examples.review.structure import Structure


class DocumentReview(TypedDict):
    """All that was found of one document. What is missing was not asked for, or failed: `failures` says why, by part
    (such as "critique"). `summary` and `critique` are Markdown as a model wrote it."""

    path: str
    title: str
    words: int
    summary: NotRequired[str]
    critique: NotRequired[str]
    questions: NotRequired[list[str]]
    keywords: NotRequired[list[Keyword]]
    phrases: NotRequired[list[Phrase]]
    readability: NotRequired[Readability]
    vocabulary: NotRequired[Vocabulary]
    structure: NotRequired[Structure]
    duplicates: NotRequired[list[Duplicate]]
    repeats: NotRequired[list[Repeat]]
    failures: NotRequired[dict[str, str]]


class Finding(NamedTuple):
    """Something to fix: how much it matters (0 most), the line it is at, what it is, in Markdown, and how many words
    it would save or change."""

    weight: int
    line: int
    text: str
    size: int = 0


def findings(review: DocumentReview) -> list[Finding]:
    """What to fix in a document, the weightiest first."""
    found = [*_structural(review), *_repeated(review), *_long(review)]
    return sorted(found)


def without_known(repeats: Sequence[Repeat], duplicates: Sequence[Duplicate]) -> list[Repeat]:
    """The repeats that are not just a duplicated paragraph once more."""
    known = [{(p["path"], p["line"]) for p in found["places"]} for found in duplicates]
    return [r for r in repeats if not any({(p["path"], p["line"]) for p in r["places"]} <= places for places in known)]


def places(found: Sequence[Place], *, with_path: bool, limit: int = 6) -> str:
    """Where something stands: "lines 3 and 40", or with paths "`a.md` line 3 and `b.md` line 40"."""
    shown = [f"{code(p['path'])} line {p['line']}" if with_path else str(p["line"]) for p in found[:limit]]
    if len(found) > limit:
        shown.append(f"{len(found) - limit} more")
    listed = ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else shown[0]
    return listed if with_path else f"lines {listed}"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage; only what is equal is 100%."""
    return "100%" if share >= 1 else f"{min(99, round(share * 100))}%"


def _structural(review: DocumentReview) -> list[Finding]:
    if "structure" not in review:
        return []
    made = review["structure"]
    found = [
        Finding(0, b["line"], f"line {b['line']}: the link {code(b['target'])} is broken ({inline(b['reason'])})")
        for b in made["broken_links"]
    ]
    found += [Finding(2, o["line"], f"line {o['line']}: unfinished: {code(o['text'])}") for o in made["open_ends"]]
    found += [Finding(4, n, f"line {n}: this heading skips a level") for n in made["skipped_levels"]]
    return found


def _repeated(review: DocumentReview) -> list[Finding]:
    duplicates = review.get("duplicates", [])
    found = []
    for double in duplicates:
        where = double["places"]
        alike = (
            "the same paragraph" if double["similarity"] >= 1 else f"paragraphs {percent(double['similarity'])} alike"
        )
        text = f"{places(where, with_path=False)}: {alike}, {where[0]['words']} words: “{inline(double['text'])}”"
        found.append(Finding(1, where[0]["line"], text, where[0]["words"] * (len(where) - 1)))
    for repeat in without_known(review.get("repeats", []), duplicates):
        where = repeat["places"]
        text = f"{places(where, with_path=False)}: the same {repeat['words']} words: “{inline(repeat['text'])}”"
        found.append(Finding(1, where[0]["line"], text, where[0]["words"] * (len(where) - 1)))
    return found


def _long(review: DocumentReview) -> list[Finding]:
    if "readability" not in review:
        return []
    return [
        Finding(3, s["line"], f"line {s['line']}: a sentence of {s['words']} words: “{inline(s['text'])}”")
        for s in review["readability"]["longest"]
    ]
