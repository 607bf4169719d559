"""Extraction: what it finds in real paragraphs, and its bounds on any text."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callsheet.models.stub import extract
from callsheet.models.stub.extract import Task, headings, kind_of, sentences, understand, words
from callsheet.models.stub.respond import answer, fill

BRIDGE = """\
# The bridge at Øresund

The Øresund bridge joins Denmark and Sweden by road and rail. It was opened on 1 July 2000 by Queen Margrethe II and
King Carl XVI Gustaf. The bridge is nearly 8 km long, i.e. the longest combined road and rail bridge in Europe. Dr.
Rotne, its architect, won the I.A.B.S.E. prize in 2002. "Is it worth the toll?" asked many commuters. Traffic over the
bridge grew slowly at first. However, road traffic may double if housing in Malmö stays cheap! Freight trains could be
delayed, because the railway has only two tracks. In 2017 about 7.5 million vehicles crossed the bridge.

## Costs

- The bridge cost 19.6 billion kroner. The tunnel is not included.
- Users repay it with the toll; the debt should be gone by 2050.

| year | vehicles |
|------|----------|
| 2017 | 7.5 |

```python
print("Not a sentence. Nor this.")
```

1. TODO: check the figures for 2023.
> A quoted line.
> Another quoted line.
"""


def test_sentences_of_markdown() -> None:
    assert headings(BRIDGE) == ["The bridge at Øresund", "Costs"]
    assert sentences(BRIDGE) == [
        "The Øresund bridge joins Denmark and Sweden by road and rail.",
        "It was opened on 1 July 2000 by Queen Margrethe II and King Carl XVI Gustaf.",
        "The bridge is nearly 8 km long, i.e. the longest combined road and rail bridge in Europe.",
        "Dr. Rotne, its architect, won the I.A.B.S.E. prize in 2002.",
        '"Is it worth the toll?" asked many commuters.',
        "Traffic over the bridge grew slowly at first.",
        "However, road traffic may double if housing in Malmö stays cheap!",
        "Freight trains could be delayed, because the railway has only two tracks.",
        "In 2017 about 7.5 million vehicles crossed the bridge.",
        "The bridge cost 19.6 billion kroner.",
        "The tunnel is not included.",
        "Users repay it with the toll; the debt should be gone by 2050.",
        "TODO: check the figures for 2023.",
        "A quoted line.",
        "Another quoted line.",
    ]


@pytest.mark.parametrize(("text", "expected"), [
    ("", []), ("  \n\t\n", []), ("...!?", []), ("no end", ["no end"]),
    ("A title\n=======\nText here.", ["Text here."]),
    ("Alice: hello there\nBob: hello to you", ["Alice: hello there", "Bob: hello to you"]),
    ("東京は日本の首都です。人口は多い。", ["東京は日本の首都です。", "人口は多い。"]),
    ("He left... and came back. She, J. Smith, stayed.", ["He left... and came back.", "She, J. Smith, stayed."]),
    ("```\nnever closed. Really.", ["``` never closed.", "Really."]),
    ("<history>\nOne. Two.\n</history>", ["One.", "Two."]),
])
def test_sentences_of_odd_texts(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_a_summary_says_what_the_text_is_about() -> None:
    got = extract.summarise(BRIDGE, 3)
    assert len(got) == 3 and "The Øresund bridge joins Denmark and Sweden by road and rail." in got
    assert sum("bridge" in sentence for sentence in got) >= 2
    order = [sentences(BRIDGE).index(sentence) for sentence in got]
    assert order == sorted(order)
    assert got == extract.summarise(BRIDGE, 3)
    assert extract.summarise(BRIDGE, 0) == [] and len(extract.summarise(BRIDGE, 99)) == 15


def test_key_terms() -> None:
    got = extract.keywords(BRIDGE, 5)
    assert "bridge" in [term.lower() for term in got] and len(got) == 5
    assert extract.keywords("Rate limits. The rate limits hold. Rate limits!", 1)[0].lower() == "rate limits"


def test_concerns_questions_title() -> None:
    got = extract.concerns(BRIDGE, 3)
    assert "However, road traffic may double if housing in Malmö stays cheap!" in got
    assert "TODO: check the figures for 2023." in extract.concerns(BRIDGE, 9)
    assert extract.concerns("We met at noon. TO-DO: ask the mayor. We left at two.", 3) == ["TO-DO: ask the mayor."]
    assert not any("1 July 2000" in sentence for sentence in extract.concerns(BRIDGE, 9))
    assert all(question.endswith("?") for question in extract.questions(BRIDGE, 4))
    assert extract.title(BRIDGE) == "The bridge at Øresund"
    assert extract.title("Bees dance. Bees tell each other with a dance where the flowers are.")


def test_a_fuller_summary_gets_the_better_mark() -> None:
    both = (BRIDGE.partition("##")[0] + "\n\nSummary A: The bridge joins Denmark and Sweden by road and rail, and "
            "traffic over the bridge grew slowly.\n\nSummary B: It it it it it.")
    marks = dict(extract.compare(both))
    assert marks["Summary A"].score > marks["Summary B"].score
    assert answer([{"role": "user", "content": "Compare the summaries.\n\n" + both}]).endswith("Best: Summary A") or \
        "Summary A: " in answer([{"role": "user", "content": "Compare the summaries.\n\n" + both}])


@pytest.mark.parametrize(("system", "prompt", "task", "text"), [
    ("", "Summarise the text in two sentences:\n\nA. B.", Task("summary", 2), "A. B."),
    ("", "Please give me 5 bullet points\n\nBody text.", Task("summary", 5, True), "Body text."),
    ("", "List the 4 key terms: alpha beta", Task("keywords", 4, True), "alpha beta"),
    ("", "Long text here.\n\nNow write a title for it.", Task("title", 1), "Long text here."),
    ("You are a critic. Name three risks.", "Some plan.", Task("concerns", 3), "Some plan."),
    ("You summarise in one sentence. Keep the key terms.", "Some plan.", Task("summary", 1), "Some plan."),
    ("You judge summaries.", "A: x\n\nB: y", Task("judgement", 1), "A: x\n\nB: y"),
    ("", "Raise open questions about this.\n\nPlan.", Task("concerns", 3), "Plan."),
    ("", "Summarise in at most 30 words:\n\nText.", Task("summary", 3, False, 30), "Text."),
    ("", "The risk report lists problems.", Task("summary", 3), "The risk report lists problems."),
    ("Answer in 2 sentences.", "Summarise this:\n\nText.", Task("summary", 2), "Text."),
])
def test_orders_are_understood(system: str, prompt: str, task: Task, text: str) -> None:
    assert understand(system, prompt) == (task, text)


def test_an_order_alone_works_on_what_was_said_before() -> None:
    got = answer([{"role": "user", "content": BRIDGE}, {"role": "assistant", "content": "Noted."},
                  {"role": "user", "content": "Summarise it in one sentence."}])
    assert got in sentences(BRIDGE)


def test_answers_keep_to_the_form_asked_for() -> None:
    def ask(order: str) -> str:
        return str(answer([{"role": "system", "content": "You help."},
                           {"role": "user", "content": [{"type": "text", "text": f"{order}\n\n{BRIDGE}"}]}]))

    assert len(ask("Summarise in 4 bullet points.").splitlines()) == 4
    assert ask("Summarise in 4 bullet points.").startswith("- ")
    assert len(ask("Give 6 keywords.").split(", ")) == 6
    assert len(ask("Summarise in at most 12 words.").split()) <= 12
    assert "/10" in ask("Rate this text.")
    assert answer([{"role": "user", "content": ""}]) == "There is no text to work on."
    calm = answer([{"role": "user", "content": "List the risks.\n\nThe sky is blue. Grass is green."}])
    assert calm == "The text names no risks or open questions."


def test_schemas_are_filled() -> None:
    schema: dict[str, Any] = {
        "type": "object", "$defs": {"Point": {"type": "object", "properties": {"text": {"type": "string"}}}},
        "properties": {
            "title": {"type": "string", "maxLength": 10}, "summary": {"type": "string"},
            "key_terms": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4},
            "risks": {"type": "array", "items": {"type": "string"}},
            "score": {"type": "integer", "minimum": 1, "maximum": 5}, "share": {"type": "number", "maximum": 1},
            "sentence_count": {"type": "integer"}, "doubtful": {"type": "boolean"},
            "country": {"enum": ["Norway", "Sweden"]}, "kind": {"const": "report"},
            "point": {"$ref": "#/$defs/Point"}, "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
            "points": {"type": "array", "items": {"$ref": "#/$defs/Point"}, "minItems": 2},
        }}
    got = fill(schema, BRIDGE, Task())
    json.dumps(got)
    assert list(got) == list(schema["properties"])
    assert got["title"] == "The bridge" and got["summary"] == " ".join(extract.summarise(BRIDGE, 3))
    assert 2 <= len(got["key_terms"]) <= 4 and got["risks"] == extract.concerns(BRIDGE, 3)
    assert 1 <= got["score"] <= 5 and isinstance(got["score"], int) and got["share"] <= 1
    assert (got["sentence_count"], got["doubtful"], got["country"], got["kind"]) == (15, True, "Sweden", "report")
    assert got["point"]["text"] and got["maybe"]
    assert [point["text"] for point in got["points"]] == extract.summarise(BRIDGE, 3)


def test_a_schema_that_contains_itself_ends() -> None:
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/Node"}}}
    json.dumps(fill({"$ref": "#/$defs/Node", "$defs": {"Node": node}}, "A text.", Task()))


def test_a_book_takes_seconds_at_most() -> None:
    book = "\n\n".join(f"Chapter {n} tells of whales and ships. The sea was {n} fathoms deep." for n in range(5000))
    begun = time.process_time()
    assert len(extract.summarise(book, 10)) == 10
    assert time.process_time() - begun < 5


def test_hints() -> None:
    assert kind_of("openQuestions") == "concerns" and kind_of("key_terms") == "keywords" and kind_of("x") is None
    assert words("The limits limited us.") == ["limit", "limit"]


TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(
    ["Rain fell. ", "Why? ", "e.g. this ", "\n\n", "\n- ", "# ", "> ", "```\n", "It may fail! ", "Mr. X ", "|a|", "。"]
)).map("".join))


@given(TEXTS, st.integers(-1, 8))
@settings(deadline=None)
def test_what_is_extracted_stands_in_the_text(text: str, count: int) -> None:
    plain = " ".join(text.split())
    for found in (extract.summarise(text, count), extract.concerns(text, count)):
        assert len(found) <= max(count, 0)
        assert all(sentence and sentence in plain for sentence in found)
    assert all(sentence in plain for sentence in sentences(text))
    terms = extract.keywords(text, max(count, 0))
    assert len(terms) <= max(count, 0) and all(term in text for term in terms)
    assert len(extract.questions(text, count)) <= max(count, 0)


@given(TEXTS, TEXTS)
@settings(deadline=None)
def test_any_text_gets_an_answer_and_always_the_same(system: str, text: str) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    got = answer(messages)
    assert isinstance(got, str) and got and got == answer(messages)
    assert 0 <= extract.rate(text).score <= 10
    assert all(0 <= mark.score <= 10 for _, mark in extract.compare(text))
