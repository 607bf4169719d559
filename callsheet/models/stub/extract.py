"""What a text says, by counting: its central sentences, key terms, doubts and questions. Pure functions.

A sentence is central when its words are those that the text returns to: its TF-IDF vector lies near the sum of
all of them. What a sentence chosen before already said counts less.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

from callsheet.models.stub.text import carries, headings, sentences, stem, surfaces, words

_DOUBT = re.compile(
    r"\b(?:TO-?DO|FIX-?ME|TBD|XXX)\b|\?(?=\s|$)|\b(?i:may|might|could|perhaps|possibly|probably|unless|unclear|unknown|"
    r"unsure|uncertain|risks?|risky|danger\w*|problem\w*|issue|issues|concern\w*|fail|fails|failed|failing|failures?|"
    r"crash\w*|bugs?|broken|breaks?|limit|limits|limited|limitations?|however|although|cannot|can't|won't|lacks?|"
    r"missing|lost|loses?|lose|expensive|slow|slower|unsafe|insecure|vulnerab\w*|depends on|should|must not|worse|"
    r"wrong|errors?|threat\w*|delay\w*|shortage\w*|doubt\w*|assum\w+|not yet|open question)\b")
_PAIR = re.compile(r"(?=\b([^\W\d_]{2,} [^\W\d_]{2,})\b)")
_SECTION = re.compile(
    r"(?m)^[ \t]*(?:#{1,6}[ \t]+(.{1,80})|\**((?:Candidate|Option|Answer|Draft|Response|Summary|Version|Text|"
    r"Proposal|Reply|Agent)[ \t]+\w{1,20})\**[ \t]*[:.)]|\**([A-Z][\w .-]{0,30}?)\**:)[ \t]*")


@dataclass(frozen=True)
class Rating:
    """Marks of a text, computed from it.

    Attributes:
        score: 0 to 10, the mean of the others times ten.
        coverage: share of the key terms of everything compared that it has, 0 to 1.
        variety: share of its words that are not repetitions, 0 to 1.
        clarity: 1 for sentences of about 18 words; falls to 0 with the distance.
    """

    score: float
    coverage: float
    variety: float
    clarity: float


def summarise(text: str, count: int) -> list[str]:
    """At most `count` sentences of `text`, the most central ones, in the order they stand."""
    found = list(dict.fromkeys(sentences(text)))
    if len(found) <= count:
        return found[:max(count, 0)]
    chosen = _central(found, count)
    return [found[index] for index in sorted(chosen)]


def keywords(text: str, count: int) -> list[str]:
    """At most `count` key terms, words or pairs of words as they stand in `text`, the weightiest first."""
    forms: dict[str, Counter[str]] = {}
    for word in surfaces(text):
        if carries(word) and not word.isdigit():
            forms.setdefault(stem(word), Counter())[word] += 1
    weights = {key: sum(form.values()) * math.log(2 + len(key)) for key, form in forms.items()}
    pairs = Counter(pair for pair in _PAIR.findall(text) if all(carries(word) for word in pair.split(" ")))
    for pair, times in pairs.items():
        if times > 1:
            weights[pair] = times * 1.5 * math.log(2 + len(pair))
            forms[pair] = Counter([pair])
    terms: list[str] = []
    for key in sorted(weights, key=lambda key: (-weights[key], key)):
        term = forms[key].most_common(1)[0][0]
        if len(terms) < count and not any(term.lower() in have.lower() for have in terms):
            terms.append(term)
    return terms


def concerns(text: str, count: int) -> list[str]:
    """At most `count` sentences that voice doubt, risk, a problem or something left to do, in their order."""
    found = list(dict.fromkeys(sentences(text)))
    hits = {index: len(_DOUBT.findall(sentence)) for index, sentence in enumerate(found)}
    ranked = sorted((index for index in hits if hits[index]), key=lambda index: (-hits[index], index))
    return [found[index] for index in sorted(ranked[:max(count, 0)])]


def questions(text: str, count: int) -> list[str]:
    """At most `count` questions: those that the text asks, then ones about its key terms."""
    asked = [sentence for sentence in dict.fromkeys(sentences(text)) if sentence.rstrip("\"'”’)").endswith(("?", "？"))]
    terms = keywords(text, 2 * max(count, 0))
    made = [f"What does the text establish about {term}?" for term in terms[::2]]
    made += [f"How does {one} relate to {other}?" for one, other in zip(terms[::2], terms[1::2], strict=False)]
    return [*asked, *made][:max(count, 0)]


def title(text: str) -> str:
    """A heading of the text, or the beginning of its most central sentence; "" for no text."""
    for heading in headings(text):
        if words(heading):
            return heading
    best = summarise(text, 1)
    if not best:
        return ""
    parts = best[0].split(" ")
    return " ".join(parts[:10]).rstrip(".,;:!?") + ("…" if len(parts) > 10 else "")


def rate(text: str, terms: list[str] | None = None) -> Rating:
    """Marks for a text; `terms`: what it should cover, its own key terms without."""
    have = words(text)
    wanted = {stem(word) for term in (keywords(text, 10) if terms is None else terms) for word in surfaces(term)}
    coverage = len(wanted & set(have)) / len(wanted) if wanted else 0.0
    variety = len(set(have)) / len(have) if have else 0.0
    found = sentences(text)
    mean = sum(len(surfaces(sentence)) for sentence in found) / len(found) if found else 0.0
    clarity = max(0.0, 1 - abs(mean - 18) / 36) if found else 0.0
    score = round(10 * (coverage + variety + clarity) / 3, 1)
    return Rating(score, round(coverage, 2), round(variety, 2), round(clarity, 2))


def compare(text: str) -> list[tuple[str, Rating]]:
    """Marks for each part of `text` that a heading or a "Name:" begins, against the key terms of all of it."""
    terms = keywords(text, 12)
    return [(label, rate(part, terms)) for label, part in sections(text)]


def sections(text: str) -> list[tuple[str, str]]:
    """The parts that a heading or a label begins, each with its label; the whole as "text" if there are none."""
    marks = list(_SECTION.finditer(text))
    if not marks:
        return [("text", text)]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    parts = [(str(mark[1] or mark[2] or mark[3]).strip(), text[mark.end():end].strip())
             for mark, end in zip(marks, ends, strict=True)]
    return [part for part in parts if part[1]] or [("text", text)]


def _central(found: list[str], count: int) -> list[int]:
    """Indexes of the `count` most central sentences, the best first."""
    bags = [Counter(words(sentence)) for sentence in found]
    spread = Counter(word for bag in bags for word in bag)
    idf = {word: math.log(1 + len(bags) / times) for word, times in spread.items()}
    centre: Counter[str] = Counter()
    for bag in bags:
        for word, times in bag.items():
            centre[word] += times  # the centre counts plainly: what a text returns to is what it is about
    scores = []
    for index, bag in enumerate(bags):
        weight = sum(times * idf[word] * (centre[word] - 1) for word, times in bag.items())
        length = sum(bag.values())
        early = 1.15 if index < max(1, len(bags) // 10) else 1.0
        weighed = length + 6 + max(0, length - 20)  # a very long sentence is many in one
        scores.append(early * weight / weighed if length > 2 else 0.0)
    chosen: list[int] = []
    said: set[str] = set()
    # Only the best are weighed against what is chosen already: else a book would take minutes.
    ranked = sorted(range(len(found)), key=lambda index: (-scores[index], index))
    left = set(ranked[:3 * count + 100])
    while left and len(chosen) < count:
        def gain(index: int) -> tuple[float, int]:
            bag = bags[index]
            known = sum(1 for word in bag if word in said) / len(bag) if bag else 1.0
            return scores[index] * (1 - 0.6 * known), -index

        best = max(left, key=gain)
        left.discard(best)
        chosen.append(best)
        said.update(bags[best])
    return chosen
