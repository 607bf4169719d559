import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.review.analysis import (
    across,
    analyse,
    compare,
    key_phrases,
    keywords,
    keywords_by_document,
    near_duplicates,
    readability,
    repeated_passages,
    similarity,
    structure,
    vocabulary,
)
from examples.review.documents import read_folder
from examples.review.duplicates import jaccard, shingles, signature
from examples.review.readability import syllable_count
from examples.review.repeats import common_prefixes, suffix_array
from examples.review.structure import anchor
from examples.review.text import Lines, code_blocks, passages, prose, sentences, tokens, words

REPOSITORY = Path(__file__).parent.parent
TEXTS = read_folder(REPOSITORY, only=["examples/review/*.py", "callsheet/errors.py"]).texts()

PLANTED = (
    "Every night the keeper climbs the ninety steps of the lighthouse, trims the wick, winds the clockwork that turns "
    "the lens, and writes the weather in a ledger nobody has read for forty years."
)
EDITED = PLANTED.replace("ninety", "hundred").replace("nobody", "no one")

# Words and marks that analyses look for, as well as any Unicode.
anything = st.text() | st.text(st.sampled_from(list("ab A.!?\n\t#`~-=|[](){}<>:*_/\\'\"“…。漢字é\u0301\ud800")))
documents = st.dictionaries(st.text(max_size=5), anything, max_size=4)
quick = settings(max_examples=50, deadline=None)


def spoken(text: str) -> list[str]:
    return [text[span.start : span.end] for span in sentences(text)]


class TestText:
    def test_words_fold_case_and_keep_identifiers(self) -> None:
        assert tokens("Don’t set MAX_tokens=3 in utf-8, Straße!") == [
            "don't",
            "set",
            "max_tokens",
            "in",
            "utf-8",
            "strasse",
        ]
        assert tokens("漢字 and 仮名") == ["漢", "字", "and", "仮", "名"]

    def test_sentences_end_where_a_reader_ends_them(self) -> None:
        text = "# A heading\nOne, e.g. this. Two!\nIt costs 3.5 s. (Really?) Yes\n\n- an item\n- another. ok\n\n|a|b|\n"
        assert spoken(text) == [
            "# A heading",
            "One, e.g. this.",
            " Two!",
            "\nIt costs 3.5 s.",
            " (Really?)",
            " Yes",
            "- an item",
            "- another. ok",
        ]

    def test_code_is_no_prose_in_markdown_and_rest(self) -> None:
        text = "a\n```py\nb\n```\nc::\n\n    d\n\ne\n\n.. code-block:: sh\n\n   f\n\n.. note::\n\n   g\n\n~~~\nh"
        assert tokens(prose(text)) == ["a", "c", "e", "note", "g"]
        assert [block.language for block in code_blocks(text.split("\n"))] == ["py", "", "sh", ""]

    def test_markup_and_addresses_are_no_prose(self) -> None:
        text = "See [the guide](docs/guide.md) at https://example.org/x <b>now</b> <!-- hidden\nwords -->"
        assert tokens(prose(text)) == ["see", "the", "guide", "at", "now"]

    @quick
    @given(anything)
    def test_places_hold_in_the_original(self, text: str) -> None:
        plain = prose(text, tables=False)
        assert len(plain) == len(text)
        assert [i for i, c in enumerate(plain) if c == "\n"] == [i for i, c in enumerate(text) if c == "\n"]
        assert all(a.end <= b.start for a, b in pairwise(words(text)))
        for spans in (passages(text), sentences(text)):
            assert all(span.start < span.end <= len(text) for span in spans)
            assert all(a.end <= b.start for a, b in pairwise(spans))
        lines = Lines(text)
        assert all(lines.number(i) == text.count("\n", 0, i) + 1 for i in range(len(text)))


class TestKeywords:
    def test_what_others_share_tells_nothing(self) -> None:
        text = "broker queue queue pool pool"
        assert [k["word"] for k in keywords(text)] == ["pool", "queue", "broker"]
        assert keywords(text, ["pool party", "pool table"])[0]["word"] == "queue"
        assert keywords(text)[0] == {"word": "pool", "count": 2, "score": 1.0}

    def test_all_at_once_is_the_same_as_one_by_one(self) -> None:
        together = keywords_by_document(TEXTS)
        for path, text in TEXTS.items():
            assert together[path] == keywords(text, [other for name, other in TEXTS.items() if name != path])

    def test_a_phrase_that_recurs_comes_first(self) -> None:
        text = "The rate limit is one. A rate limit is shared. Rate\nlimit again; an utterly singular long thing."
        found = key_phrases(text)
        assert (found[0]["phrase"], found[0]["count"]) == ("rate limit", 3)
        assert found[1]["phrase"] == "utterly singular long thing"


class TestSimilarity:
    def test_identical_unlike_and_empty_documents(self) -> None:
        found = similarity({"a": "rivers and boats", "b": "rivers and boats", "c": "queues", "d": ""})
        assert found["paths"] == ["a", "b", "c", "d"]
        assert found["matrix"][0] == [1.0, 1.0, 0.0, 0.0]
        assert found["pairs"] == [{"left": "a", "right": "b", "similarity": 1.0, "shared": ["boats", "rivers"]}]

    @quick
    @given(documents)
    def test_symmetric_and_within_bounds(self, texts: dict[str, str]) -> None:
        matrix = similarity(texts)["matrix"]
        for i, row in enumerate(matrix):
            assert row[i] == 1.0
            for j, share in enumerate(row):
                assert 0.0 <= share <= 1.0
                assert share == matrix[j][i]

    @quick
    @given(anything)
    def test_a_copy_is_the_same(self, text: str) -> None:
        assert similarity({"a": text, "b": text})["matrix"][0][1] == 1.0


class TestReadability:
    def test_figures_by_hand(self) -> None:
        # 2 sentences, 6 words, 6 syllables: 206.835 - 1.015 * 3 - 84.6 * 1
        found = readability("The cat sat. The dog ran.")
        assert (found["sentences"], found["words"], found["mean_sentence"]) == (2, 6, 3.0)
        assert (found["reading_ease"], found["level"]) == (119.2, "easy")

    @pytest.mark.parametrize(
        ("word", "count"),
        [("cat", 1), ("table", 2), ("made", 1), ("started", 2), ("agreement", 3), ("q", 1), ("漢", 1)],
    )
    def test_syllables(self, word: str, count: int) -> None:
        assert syllable_count(word) == count

    def test_long_sentences_are_named_with_their_line(self) -> None:
        found = readability("Short.\n\n" + "word " * 40 + "end.\n")
        assert [(s["words"], s["line"]) for s in found["longest"]] == [(41, 3)]

    def test_a_text_of_code_alone_is_not_rated(self) -> None:
        found = readability("```\nx = 1\n```")
        assert (found["reading_ease"], found["level"]) == (None, "no prose")

    def test_vocabulary(self) -> None:
        found = vocabulary("one two two")
        assert (found["words"], found["distinct"], found["once"]) == (3, 2, 1)
        monotone, rich = vocabulary("same " * 500), vocabulary(" ".join(f"w{n}" for n in range(500)))
        assert monotone["moving_ratio"] == 0.01
        assert rich["moving_ratio"] == 1.0
        assert monotone["yule_k"] > rich["yule_k"] == 0.0


class TestDuplicates:
    def test_a_planted_paragraph_is_found_among_real_texts(self) -> None:
        paths = sorted(TEXTS)
        first, last = paths[0], paths[-1]
        texts = {**TEXTS, first: f"{TEXTS[first]}\n\n{PLANTED}\n", last: f"{EDITED}\n\n{TEXTS[last]}"}
        found = [d for d in across(near_duplicates(texts)) if "lighthouse" in d["text"]]
        assert len(found) == 1
        assert [(p["path"], p["line"]) for p in found[0]["places"]] == [
            (first, TEXTS[first].count("\n") + 3),
            (last, 1),
        ]
        assert found[0]["similarity"] == round(jaccard(shingles(PLANTED), shingles(EDITED)), 4)
        assert 0.6 < found[0]["similarity"] < 1

    def test_inside_one_document(self) -> None:
        found = near_duplicates({"a.md": f"{PLANTED}\n\nSomething else.\n\n{PLANTED.upper()}"})
        assert [(d["similarity"], [p["line"] for p in d["places"]]) for d in found] == [(1.0, [1, 5])]
        assert across(found) == []

    def test_every_member_reaches_the_threshold(self) -> None:
        rng = random.Random(5)
        base = [f"word{n}" for n in range(40)]
        copies = []
        for _ in range(60):
            copy = list(base)
            for _ in range(rng.randrange(6)):
                copy[rng.randrange(40)] = f"other{rng.randrange(99)}"
            copies.append(" ".join(copy))
        texts = {"a": "\n\n".join(copies)}
        for found in near_duplicates(texts, threshold=0.6):
            leader, *rest = (shingles(copies[p["line"] // 2]) for p in found["places"])
            alike = [jaccard(leader, other) for other in rest]
            assert min(alike) >= 0.6
            assert found["similarity"] == round(min(alike), 4)

    def test_signatures_estimate_similarity(self) -> None:
        left, right = shingles(PLANTED), shingles(EDITED)
        equal = sum(a == b for a, b in zip(signature(left), signature(right), strict=True)) / len(signature(left))
        assert equal == pytest.approx(jaccard(left, right), abs=0.15)

    @quick
    @given(anything, anything)
    def test_jaccard_is_symmetric_and_within_bounds(self, left: str, right: str) -> None:
        one, other = shingles(left), shingles(right)
        assert 0.0 <= jaccard(one, other) == jaccard(other, one) <= 1.0
        assert jaccard(one, one) == 1.0


class TestRepeats:
    @quick
    @given(st.lists(st.integers(0, 3), max_size=60))
    def test_the_suffix_array_is_that_of_sorting(self, numbers: list[int]) -> None:
        order, ranks = suffix_array(numbers)
        assert order == sorted(range(len(numbers)), key=lambda i: numbers[i:])
        assert [order[rank] for rank in ranks] == list(range(len(numbers)))
        for rank in range(1, len(order)):
            left, right = numbers[order[rank - 1] :], numbers[order[rank] :]
            shared = common_prefixes(numbers, order, ranks)[rank]
            assert left[:shared] == right[:shared]
            assert left[shared : shared + 1] != right[shared : shared + 1]

    def test_a_run_of_words_is_found_across_sentences_and_documents(self) -> None:
        run = "the lens turns. And the clockwork, wound by hand"
        texts = {"a": f"Here {run} alone.\n\nThere\n{run} too.", "b": f"# Title\n\nElsewhere {run.upper()}"}
        found = repeated_passages(texts, min_words=5)
        assert len(found) == 1
        assert found[0]["text"] == run
        assert found[0]["places"] == [
            {"path": "a", "line": 1, "words": 9},
            {"path": "a", "line": 4, "words": 9},
            {"path": "b", "line": 3, "words": 9},
        ]

    def test_a_repeat_never_overlaps_itself_nor_crosses_documents(self) -> None:
        assert repeated_passages({"a": "la " * 200}) == []
        found = repeated_passages({"a": (PLANTED + "\n") * 6})
        assert [(r["words"], [p["line"] for p in r["places"]]) for r in found] == [(34, [1, 2, 3, 4, 5, 6])]
        assert repeated_passages({"a": "one two", "b": "three one", "c": "two three one"}, min_words=3) == []

    @quick
    @given(st.lists(st.sampled_from("abc"), max_size=80), st.integers(1, 4))
    def test_what_is_reported_stands_at_each_place(self, letters: list[str], least: int) -> None:
        for found in repeated_passages({"x": "\n".join(letters)}, min_words=least):
            starts = [p["line"] - 1 for p in found["places"]]
            assert len(starts) >= 2
            assert found["words"] >= least
            assert all(b - a >= found["words"] for a, b in pairwise(starts))
            assert len({tuple(letters[s : s + found["words"]]) for s in starts}) == 1


MARKDOWN = """# One

[![badge](img/b.svg)](https://ci.example) and [other](other.md#part), [gone](../gone.md), [here](#two--three).
![logo](/logo.png "Logo") and `[not](a-link.md)`, [folder](docs/), [out](../../x), [nowhere](#nowhere).

### Two & Three

```python
# no heading, no [link](x.md)
```
[ref]: missing.txt
<a id="spot"></a> [spot](#spot) TODO: more, but not `TODO`
"""


class TestStructure:
    def test_markdown(self) -> None:
        files = ["a/one.md", "a/other.md", "a/img/b.svg", "logo.png", "a/docs/x.md"]
        found = structure(MARKDOWN, "a/one.md", files)
        assert [(h["level"], h["text"], h["line"]) for h in found["headings"]] == [(1, "One", 1), (3, "Two & Three", 6)]
        assert found["skipped_levels"] == [6]
        assert found["links"] == {"external": 1, "relative": 7, "anchor": 3}
        assert found["images"] == 2
        assert (found["code_blocks"], found["code_lines"], found["languages"]) == (1, 3, {"python": 1})
        assert [o["line"] for o in found["open_ends"]] == [12]
        assert [(b["target"], b["line"], b["reason"]) for b in found["broken_links"]] == [
            ("../gone.md", 3, "no file gone.md"),
            ("#nowhere", 4, "no such heading"),
            ("missing.txt", 11, "no file a/missing.txt"),
        ]

    def test_relative_links_are_not_checked_without_files(self) -> None:
        assert [b["target"] for b in structure(MARKDOWN)["broken_links"]] == ["#nowhere"]

    def test_rest(self) -> None:
        text = "=====\nTitle\n=====\n\nPart\n----\n\n`docs <guide.rst>`_ at https://a.example.\n\n"
        text += ".. image:: x.png\n.. _t: y.rst\n"
        found = structure(text, "r.rst", ["r.rst", "guide.rst"])
        assert [(h["level"], h["text"]) for h in found["headings"]] == [(1, "Title"), (2, "Part")]
        assert found["links"] == {"external": 1, "relative": 3, "anchor": 0}
        assert [b["target"] for b in found["broken_links"]] == ["x.png", "y.rst"]

    def test_a_table_or_rule_is_no_heading(self) -> None:
        assert structure("a | b\n--- | ---\n\nlong paragraph of text\n---\n")["headings"] == []

    def test_anchors_are_github_s(self) -> None:
        assert anchor("What's `new` in 2.0?") == "whats-new-in-20"


class TestAll:
    @settings(max_examples=60, deadline=None)
    @given(anything)
    def test_never_fails_and_survives_json(self, text: str) -> None:
        record = analyse(text, "a.md", ["a.md"])
        assert json.loads(json.dumps(record)) == record

    @quick
    @given(documents)
    def test_comparing_never_fails_and_survives_json(self, texts: dict[str, str]) -> None:
        record = compare(texts)
        assert json.loads(json.dumps(record)) == record

    @pytest.mark.parametrize("piece", ["<!--", ".", "[a](", "`", "a ", "::\n", "| ", "-", "'-a", "a\n\n", "![[", "_"])
    def test_hostile_repetition_costs_no_more_than_text(self, piece: str) -> None:
        # Quadratic behaviour at 60 KB would take minutes and hang the run.
        assert analyse(piece * (60_000 // len(piece)), "a.md", [])["path"] == "a.md"

    def test_every_process_computes_the_same(self) -> None:
        program = (
            "import json, sys; from examples.review.analysis import analyse, compare; t = sys.stdin.read();"
            "print(json.dumps([analyse(t), compare({'a': t, 'b': t})]))"
        )
        text = "\n\n".join([TEXTS["examples/review/text.py"], PLANTED, EDITED])
        outputs = {
            subprocess.run(
                [sys.executable, "-c", program],
                input=text,
                env={"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert outputs == {json.dumps([analyse(text), compare({"a": text, "b": text})]) + "\n"}
