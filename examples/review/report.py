"""The report of a review: one Markdown page for a person to read. Pure: records in, text out."""

from collections.abc import Sequence

from examples.review.analysis import Comparison
from examples.review.documents import Notice
from examples.review.findings import DocumentReview, Finding, findings, percent, places, without_known
from examples.review.layout import code, embedded, inline, markdown_table
from examples.review.structure import anchor
from examples.review.timing import Timing, timing_summary, timing_table

__all__ = ["DocumentReview", "Timing", "document_section", "render_report", "timing_summary", "timing_table"]

# A matrix wider than this no longer fits a page; the list of pairs says the same.
_MATRIX = 8


def render_report(
    reviews: Sequence[DocumentReview],
    comparison: Comparison | None = None,
    *,
    title: str = "Review",
    notices: Sequence[Notice] = (),
) -> str:
    """The whole report: an overview, what to fix first, what stands in several documents, and each document.

    Where `comparison` has keywords of a document, they stand in its section instead of those in its review.
    """
    ordered = sorted((_told_apart(review, comparison) for review in reviews), key=lambda review: review["path"])
    total = sum(review["words"] for review in ordered)
    headings = [f"{number}. {inline(review['title'])}" for number, review in enumerate(ordered, 1)]
    parts = [
        f"# {inline(title)}",
        f"{_count(len(ordered), 'document')}, {_count(total, 'word')}.",
        _overview(ordered, headings) if ordered else "",
        _first_to_fix(ordered),
        _together(comparison) if comparison is not None else "",
        *(document_section(review, heading) for review, heading in zip(ordered, headings, strict=True)),
        _noticed(notices),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _told_apart(review: DocumentReview, comparison: Comparison | None) -> DocumentReview:
    """The review with the keywords that tell its document from the others, where those are known."""
    if comparison is None or review["path"] not in comparison["keywords"]:
        return review
    return {**review, "keywords": comparison["keywords"][review["path"]]}


def document_section(review: DocumentReview, heading: str = "") -> str:
    """The section of one document, under `heading` (Markdown; its title, if none is given)."""
    found = findings(review)
    questions = [embedded(question).replace("\n", "\n   ") for question in review.get("questions", [])]
    parts = [
        f"## {heading or inline(review['title'])}",
        _facts(review),
        _about(review),
        _headed("Summary", embedded(review.get("summary", ""))),
        _headed("Critique", embedded(review.get("critique", ""))),
        _headed("Open questions", "\n".join(f"{n}. {question}" for n, question in enumerate(questions, 1))),
        _headed("To fix", _bullets([finding.text for finding in found], limit=15)),
        _headed("Not done", _bullets([f"{part}: {inline(why)}" for part, why in _failures(review)])),
    ]
    return "\n\n".join(part for part in parts if part)


def _overview(reviews: Sequence[DocumentReview], headings: Sequence[str]) -> str:
    rows = []
    for review, heading in zip(reviews, headings, strict=True):
        ease = review["readability"]["reading_ease"] if "readability" in review else None
        broken = review["structure"]["broken_links"] if "structure" in review else None
        rows.append(
            [
                f"[{heading}](#{anchor(heading)})",
                code(review["path"]),
                f"{review['words']:,}",
                "–" if ease is None else f"{ease:.0f}",
                "–" if broken is None else str(len(broken)),
                str(len(review["duplicates"])) if "duplicates" in review else "–",
                str(len(review["questions"])) if "questions" in review else "–",
                str(len(review.get("failures", {}))),
            ]
        )
    header = ["Document", "File", "Words", "Reading ease", "Broken links", "Duplicates", "Questions", "Not done"]
    if not any(review.get("failures") for review in reviews):
        header, rows = header[:-1], [row[:-1] for row in rows]
    note = "Reading ease is Flesch's: 100 is easy, 60 plain English, below 30 very difficult."
    return markdown_table(header, rows, right=range(2, len(header))) + "\n\n" + note


def _first_to_fix(reviews: Sequence[DocumentReview], limit: int = 10) -> str:
    every: list[tuple[Finding, str]] = [(found, review["path"]) for review in reviews for found in findings(review)]
    # Long sentences and heading levels are for the writer of the one document.
    urgent = sorted(
        (entry for entry in every if entry[0].weight < 3), key=lambda e: (e[0].weight, -e[0].size, e[1], e[0].line)
    )
    lines = [f"{code(path)}, {found.text}" for found, path in urgent]
    return f"## What to fix first\n\n{_bullets(lines, limit)}" if lines else ""


def _together(comparison: Comparison) -> str:
    parts = ["## Across the documents"]
    doubles = [
        f"{places(d['places'], with_path=True)}: {_alike(d['similarity'])}, {d['places'][0]['words']} words: "
        f"“{inline(d['text'])}”"
        for d in comparison["duplicates"]
    ]
    parts.append(_headed("Said in more than one document", _bullets(doubles, limit=10)))
    repeats = [
        f"{places(r['places'], with_path=True)}: {r['words']} words: “{inline(r['text'])}”"
        for r in without_known(comparison["repeats"], comparison["duplicates"])
    ]
    parts.append(_headed("Repeated word for word", _bullets(repeats, limit=10)))
    pairs = [
        [code(p["left"]), code(p["right"]), percent(p["similarity"]), inline(", ".join(p["shared"]))]
        for p in comparison["similarity"]["pairs"]
    ]
    alike = markdown_table(["One", "Other", "Similarity", "Shared words"], pairs[:10], right=[2]) if pairs else ""
    parts.append(_headed("Closest in subject", alike))
    parts.append(_headed("Similarity of all documents", _matrix(comparison)))
    parts = [part for part in parts if part]
    if len(parts) == 1:
        parts.append("Nothing is said twice, and no two documents are about the same.")
    return "\n\n".join(parts)


def _matrix(comparison: Comparison) -> str:
    paths = comparison["similarity"]["paths"]
    if not 2 < len(paths) <= _MATRIX:
        return ""
    rows = [
        [f"{number}. {code(path)}", *(percent(share) for share in shares)]
        for number, (path, shares) in enumerate(zip(paths, comparison["similarity"]["matrix"], strict=True), 1)
    ]
    header = ["", *map(str, range(1, len(paths) + 1))]
    return markdown_table(header, rows, right=range(1, len(header)))


def _facts(review: DocumentReview) -> str:
    facts = [code(review["path"]), _count(review["words"], "word")]
    if "readability" in review and review["readability"]["reading_ease"] is not None:
        read = review["readability"]
        facts.append(f"{read['level']} to read (Flesch {read['reading_ease']:.0f}, grade {read['grade']:.0f})")
        facts.append(f"{read['mean_sentence']:.0f} words a sentence")
    if "vocabulary" in review:
        facts.append(f"{review['vocabulary']['distinct']:,} distinct words")
    if "structure" in review:
        made = review["structure"]
        facts += [_count(len(made["headings"]), "heading"), _count(sum(made["links"].values()), "link")]
        facts.append(_count(made["code_blocks"], "code block"))
    return " · ".join(facts)


def _about(review: DocumentReview) -> str:
    keywords = ", ".join(f"{inline(k['word'])} ({k['count']})" for k in review.get("keywords", []))
    phrases = ", ".join(inline(p["phrase"]) for p in review.get("phrases", [])[:8])
    lines = [f"**About:** {keywords}" if keywords else "", f"**Phrases:** {phrases}" if phrases else ""]
    return "\n\n".join(line for line in lines if line)


def _failures(review: DocumentReview) -> list[tuple[str, str]]:
    return sorted(review.get("failures", {}).items())


def _noticed(notices: Sequence[Notice]) -> str:
    lines = [f"{code(notice['path'])}: {notice['name']}, {inline(notice['detail'])}" for notice in notices]
    return f"## Files not read, or not in full\n\n{_bullets(lines, limit=30)}" if lines else ""


def _alike(similarity: float) -> str:
    return "the same" if similarity >= 1 else f"{percent(similarity)} alike"


def _headed(heading: str, body: str) -> str:
    return f"### {heading}\n\n{body}" if body else ""


def _bullets(lines: Sequence[str], limit: int = 0) -> str:
    shown = list(lines[:limit] if limit else lines)
    if len(shown) < len(lines):
        shown.append(f"and {len(lines) - len(shown):,} more")
    return "\n".join(f"- {line}" for line in shown)


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"
