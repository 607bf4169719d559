import json

from hypothesis import given, settings
from hypothesis import strategies as st

from examples.review.analysis import analyse, compare
from examples.review.findings import findings
from examples.review.layout import clean, code, embedded, inline, text_table, width
from examples.review.report import DocumentReview, document_section, render_report, timing_table
from examples.review.structure import structure
from examples.review.timing import Timing, most_at_once

PARAGRAPH = (
    "The worker saves what changed, broadcasts the reply to every hub it sits in, stores the result in Redis under "
    "the identity of the call, and only then acknowledges the message to the broker."
)
TEXTS = {
    "docs/a.md": f"# Alpha\n\n{PARAGRAPH}\n\nSee [the rest](missing.md).\n\n## Again\n\n{PARAGRAPH}\n\nTODO: say\n",
    "docs/b.md": f"# Beta\n\nShort words here.\n\n{PARAGRAPH}\n",
    "docs/c.md": "# Gamma\n\nThis one is about rivers, boats, and the sea.\n",
}


def review(path: str, **parts: object) -> DocumentReview:
    text = TEXTS[path]
    title = text.split("\n")[0].lstrip("# ")
    return {**analyse(text, path, TEXTS), "title": title, **parts}  # type: ignore[typeddict-item]


def test_the_report_of_a_folder() -> None:
    reviews = [
        review("docs/b.md", summary="Beta in short.", failures={"critique": "the model | timed out"}),
        review("docs/a.md", summary="# Alpha\nAlpha in short.", critique="- weak", questions=["Why?", "For whom?"]),
        review("docs/c.md"),
    ]
    notices = [{"path": "x.png", "name": "binary", "detail": "9 bytes that are no text"}]
    # What the report reads has come as JSON from the workers.
    reviews, comparison = json.loads(json.dumps([reviews, compare(TEXTS)]))
    report = render_report(reviews, comparison, title="Review of docs", notices=notices)  # type: ignore[arg-type]
    headings = [line for line in report.split("\n") if line.startswith(("# ", "## "))]
    assert headings == [
        "# Review of docs",
        "## What to fix first",
        "## Across the documents",
        "## 1. Alpha",
        "## 2. Beta",
        "## 3. Gamma",
        "## Files not read, or not in full",
    ]
    assert "| [1. Alpha](#1-alpha) | `docs/a.md` |" in report
    assert "- `docs/a.md`, line 5: the link `missing.md` is broken (no file docs/missing.md)" in report
    assert "- lines 3 and 9: the same paragraph, 34 words: “The worker saves" in report
    assert "`docs/a.md` line 3, `docs/a.md` line 9 and `docs/b.md` line 5: the same, 34 words" in report
    assert "line 11: unfinished: `TODO: say`" in report
    assert "1. Why?\n2. For whom?" in report
    assert "**Alpha**\nAlpha in short." in report
    assert "- critique: the model \\| timed out" in report
    assert "- `x.png`: binary, 9 bytes that are no text" in report


def test_every_link_of_the_report_to_itself_leads_somewhere() -> None:
    texts = {**TEXTS, "d.md": "# `odd` *title* [x](y) & | more!\n\nWords."}
    reviews: list[DocumentReview] = [
        {"path": path, "title": text.split("\n")[0][2:], "words": 3} for path, text in texts.items()
    ]
    made = structure(render_report(reviews))
    assert made["links"]["anchor"] == 4
    assert made["broken_links"] == []


def test_a_review_without_any_part_still_makes_a_section() -> None:
    section = document_section({"path": "a.md", "title": "A", "words": 1, "failures": {"summary": "refused"}})
    assert section == "## A\n\n`a.md` · 1 word\n\n### Not done\n\n- summary: refused"


def test_an_empty_report() -> None:
    assert render_report([]) == "# Review\n\n0 documents, 0 words.\n"


def test_findings_are_in_order_of_weight() -> None:
    found = findings(review("docs/a.md"))
    assert [finding.weight for finding in found] == sorted(finding.weight for finding in found)
    assert "missing.md" in found[0].text
    # The repeated paragraph is one finding, not a duplicate and a repeat.
    assert sum(finding.text.startswith("lines 3 and 9") for finding in found) == 1


def test_model_text_stays_in_its_place() -> None:
    assert embedded("# Top #\ntext\n---\n```py\n# a comment\n") == "**Top**\ntext\n```py\n# a comment\n```"
    assert embedded("```\nx\n```") == "```\nx\n```"
    assert embedded("a\x1b[2Jb") == "a[2Jb"


def test_inline_text_cannot_leave_its_cell() -> None:
    assert inline("a | b\n<script> [x](y)") == "a \\| b \\<script> \\[x\\](y)"
    assert code("a `b` c") == "``a `b` c``"
    assert code("`") == "`` ` ``"


ROWS: list[Timing] = [
    {"agent": "Keywords", "queue": "cpu", "worker": "cpu@host", "pid": 31, "started": 100.5, "waited": 0.4, "ran": 2.0},
    {"agent": "Summary", "queue": "io", "worker": "io@host", "pid": 7, "started": 100.0, "waited": 0.01, "ran": 12.25},
    {"agent": "Critique", "queue": "io", "worker": "io@host", "pid": 7, "started": 100.1, "waited": 0.0, "ran": 1.0},
]


def test_the_timing_table() -> None:
    assert timing_table(ROWS) == (
        "agent     queue  worker    pid  started  waited      ran\n"
        "--------  -----  --------  ---  -------  ------  -------\n"
        "Summary   io     io@host     7  +0.00 s  0.01 s  12.25 s\n"
        "Critique  io     io@host     7  +0.10 s  0.00 s   1.00 s\n"
        "Keywords  cpu    cpu@host   31  +0.50 s  0.40 s   2.00 s\n"
        "\n"
        "cpu: 1 call in 1 process, at most 1 at the same time; 2.00 s of work done in 2.00 s\n"
        "io: 2 calls in 1 process, at most 2 at the same time; 13.25 s of work done in 12.25 s"
    )


def test_the_timing_table_shows_documents_where_there_are_any() -> None:
    table = timing_table([{**ROWS[0], "subject": "日本.md"}, ROWS[1]])
    header, _, first, second = table.split("\n")[:4]
    assert header.split()[:2] == ["agent", "document"]
    assert width(first) == width(second) == width(header)
    assert timing_table([]) == "No calls were made."


def test_calls_one_after_the_other_do_not_overlap() -> None:
    one, other = {**ROWS[0], "started": 1.0, "ran": 2.0}, {**ROWS[0], "started": 3.0, "ran": 1.0}
    assert most_at_once([one, other]) == 1  # type: ignore[list-item]
    assert most_at_once([one, one, other]) == 2  # type: ignore[list-item]


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_any_text_in_a_review_renders(title: str, summary: str, why: str, questions: list[str]) -> None:
    record: DocumentReview = {
        "path": title,
        "title": title,
        "words": 0,
        "summary": summary,
        "questions": questions,
        "failures": {"critique": why},
    }
    report = render_report([record])
    assert report == clean(report).replace("\r", "")
    # Nothing that is put in makes a section of its own.
    assert sum(line.startswith("## ") for line in report.split("\n")) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_columns_are_aligned_whatever_they_hold(rows: list[tuple[str, str]]) -> None:
    lines = text_table(["one", "two"], rows, right=[1]).split("\n")
    assert len(lines) == len(rows) + 2
    # The last column is right-aligned: where it holds something, lines are equally wide.
    filled = [line for line, row in zip(lines[2:], rows, strict=True) if clean(row[1]).split()]
    assert {width(line) for line in [*lines[:2], *filled]} == {width(lines[0])}
