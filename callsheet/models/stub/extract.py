"""What a prompt asks for and what a text says, by counting: its central sentences, key terms, doubts and questions.

A sentence is central when its words are those that the text returns to: its TF-IDF vector lies near the sum of
all of them. What a sentence chosen before already said counts less. Pure functions.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["summary", "keywords", "questions", "title", "concerns", "judgement"]

_KINDS: dict[Kind, str] = {
    "judgement": r"judg\w*|compar\w*|scor(?:e|es|ing)|rat(?:e|es|ing)\b|rank\w*|evaluat\w*|grade\w*|"
                 r"which (?:\w+ )?is better",
    "concerns": r"risks?\b|open questions?|critici[sz]\w*|critique\w*|critic\b|weakness\w*|concerns?\b|objections?|"
                r"problems?\b|what (?:is|could go) wrong|doubts?\b|devil's advocate|sceptic\w*|skeptic\w*",
    "questions": r"questions?\b",
    "keywords": r"key ?-?(?:terms?|words?|phrases?|concepts?)|tags?\b|topics?\b",
    "title": r"titles?\b|headlines?\b",
    "summary": r"summar\w*|condens\w*|shorten\w*|sentences?\b|bullet|key points?|main points?|tl;?dr|digest|abstract",
}
_KIND = {kind: re.compile(rf"\b(?:{pattern})", re.IGNORECASE) for kind, pattern in _KINDS.items()}
_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
            "ten": 10, "twelve": 12}
_COUNT = re.compile(
    rf"\b(\d{{1,3}}|{'|'.join(_NUMBERS)}|a single|single)[ -](?:[a-z-]+ ){{0,2}}?(?:sentences?|bullets?|points?|"
    r"key ?(?:terms?|words?|phrases?|points?)|terms?|words? list|tags?|topics?|questions?|risks?|items?|lines?|"
    r"problems?|issues?|concerns?|objections?|weaknesses)\b", re.IGNORECASE)
_WORDS = re.compile(r"\b(?:under|at most|no more than|max(?:imum)?(?: of)?|within|fewer than|less than|up to|in)\s+"
                    r"(\d{1,5})\s+words\b", re.IGNORECASE)
_ORDER = re.compile(
    r"\W*(?:(?:please|now|then|kindly|can you|could you|would you|your task is to|i want you to|in)\b[\s,]*)*"
    r"(?:summar|list|extract|give|write|name|judge|rate|score|compare|rank|critici|critique|find|identify|evaluate|"
    r"review|assess|suggest|propose|ask|generate|condense|shorten|tell|turn|reduce|describe|what|which|pick|choose|"
    r"draft|make|raise|point out|produce|create|tl;?dr|keywords|key terms|title|\d+ |one |two |three |four |five )",
    re.IGNORECASE)
_DEFAULT_COUNT: dict[Kind, int] = {"summary": 3, "keywords": 8, "questions": 3, "title": 1, "concerns": 3,
                                   "judgement": 1}
_FENCE = re.compile(r"\s*(```|~~~)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.+?)\s*#*\s*$")
_UNDERLINE = re.compile(r"\s*(=+|-+)\s*$")
_APART = re.compile(r"\s*(?:[-*_]\s*){3,}$|\s*\||\s*</?[\w][^<>]*>\s*$")  # rules, table rows, lines of one tag
_ITEM = re.compile(r"\s*(?:[-*+•–]|\d{1,3}[.)])\s+(?=\S)|\s*>+\s?")  # list items and quotes
_SPEAKER = re.compile(r"[A-Z][\w .'-]{0,30}:\s")

_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[”’」』）]*\s*")
_SHORT = (
    "mr mrs ms dr prof st vs etc e.g i.e eg ie cf fig no vol al approx ca inc ltd co corp dept est gen gov jr sr "
    "u.s u.k a.m p.m jan feb mar apr jun jul aug sep sept oct nov dec pp ed eds resp")
_ABBREVIATIONS = frozenset(_SHORT.split())

_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W_]+(?:['’-][^\W_]+)*")
_COMMON = """
a about above after again against all also although am among an and any are as at be because been before being below
between both but by can cannot could did do does doing down during each either etc even every few for from further
get gets got had has have having he her here hers him his how however i if in into is it its itself just may me might
more most much must my neither no nor not now of off often on once one only onto or other our ours out over own per
rather same shall she should since so some still such than that the their theirs them then there these they this those
though through thus to too under until up upon us use used using very was we well were what when where whether which
while who whom whose why will with within without would yet you your yours
"""
_STOP = frozenset(_COMMON.split())
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

MOST = 50
"""Sentences or terms that an answer has at most, whatever was asked."""


@dataclass(frozen=True)
class Task:
    """What to do with a text."""

    kind: Kind = "summary"
    count: int = 3  # sentences or terms
    bullets: bool = False  # as a list
    max_words: int | None = None  # of the whole answer, or None


def understand(system: str, prompt: str, before: str = "") -> tuple[Task, str]:
    """The task, and the text to do it to.

    Args:
        system: the system prompt; counts where the prompt gives no order.
        prompt: the last message: an order, a text, or both.
        before: earlier messages, the text if the prompt is nothing but an order.
    """
    order, text = _divide(prompt)
    if not text.strip():
        text = before if before.strip() else prompt
    kind = _kind(order) or _kind(system) or "summary"
    said = order if _kind(order) else f"{order}\n{system}"
    count = _COUNT.search(said) or _COUNT.search(system)
    words = _WORDS.search(said) or _WORDS.search(system)
    return Task(
        kind=kind,
        count=_number(count[1]) if count else _DEFAULT_COUNT[kind],
        bullets=bool(re.search(r"\bbullets?\b|\blist\b", said, re.IGNORECASE)) and kind != "title",
        max_words=max(1, int(words[1])) if words else None,
    ), text


def kind_of(hint: str) -> Kind | None:
    """The kind of thing that a field's name or description asks for."""
    return _kind(re.sub(r"[_\W]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", hint)))


def _kind(text: str) -> Kind | None:
    """The kind that is mentioned first."""
    found = [(match.start(), number, kind) for number, (kind, pattern) in enumerate(_KIND.items())
             if (match := pattern.search(text))]
    return min(found)[2] if found else None


def _number(text: str) -> int:
    low = text.lower()
    number = int(low) if low.isdecimal() else _NUMBERS.get(low, 1)
    return min(max(number, 1), MOST)


def _divide(prompt: str) -> tuple[str, str]:
    """A prompt's order and its text; either may be ""."""
    paragraphs = re.split(r"\n\s*\n", prompt.strip())
    head, tail = paragraphs[0], paragraphs[-1]
    if len(paragraphs) > 1 and _is_order(head):
        return head, "\n\n".join(paragraphs[1:])
    if len(paragraphs) > 1 and _is_order(tail):
        return tail, "\n\n".join(paragraphs[:-1])
    inline = re.match(r"([^:\n]{1,300}):\s+(?=\S)", prompt.strip())
    if inline and _is_order(inline[1]):
        return inline[1], prompt.strip()[inline.end():]
    if len(paragraphs) == 1 and _is_order(head) and len(head.split()) <= 40:
        return head, ""
    return "", prompt


def _is_order(paragraph: str) -> bool:
    short = len(paragraph) <= 400
    return short and bool(_ORDER.match(paragraph)) and (_kind(paragraph) is not None or paragraph.rstrip()[-1:] == ":")


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order, each with its white space made single spaces.

    Code blocks, tables, rules and headings are no sentences. Each list item and each line of a quote or of a
    transcript begins a new one.
    """
    return [sentence for block, heading in _blocks(text) if not heading for sentence in _split(block)]


def headings(text: str) -> list[str]:
    """The Markdown headings, without their marks."""
    return [block for block, heading in _blocks(text) if heading]


def words(text: str) -> list[str]:
    """What the text is about: its words in lower case, endings cut, without those that every text has."""
    return [stem(word) for word in surfaces(text) if carries(word)]


def surfaces(text: str) -> list[str]:
    """The words as they stand."""
    return _WORD.findall(text)


def carries(word: str) -> bool:
    """Whether a word says what a text is about."""
    low = word.lower().replace("’", "'")
    return low not in _STOP and low.partition("'")[0] not in _STOP and (len(low) > 1 or not low.isascii())


def stem(word: str) -> str:
    """A word without its commonest English endings, so that "limits" and "limited" are alike."""
    low = word.lower()
    for ending in ("ings", "ing", "edly", "ed", "ies", "es", "s"):
        if low.endswith(ending) and len(low) - len(ending) >= 4:
            return low[:-len(ending)]
    return low


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Stretches of running text, and whether each is a heading."""
    lines = re.split(r"\r\n|\r|\n", text)
    code = _fenced(lines)
    current: list[str] = []
    for number, line in enumerate(lines):
        heading = None if number in code else _HEADING.match(line)
        if len(current) == 1 and _UNDERLINE.match(line) and number not in code:
            yield _joined(current), True
            current = []
            continue
        item = _ITEM.match(line)
        apart = number in code or heading or not line.strip() or _APART.match(line)
        if (apart or item or _SPEAKER.match(line)) and current:
            yield _joined(current), False
            current = []
        if heading:
            yield _joined([heading[1]]), True
        elif not apart:
            current.append(line[item.end():] if item else line)
    if current:
        yield _joined(current), False


def _fenced(lines: list[str]) -> set[int]:
    """Numbers of the lines of closed code blocks; a fence that nothing closes hides nothing."""
    marks = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    pairs = zip(marks[::2], marks[1::2], strict=False)
    return {number for start, end in pairs for number in range(start, end + 1)}


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _split(block: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(block):
        if match.end() < len(block) and _ends(block, start, match):
            yield block[start:match.end()].strip()
            start = match.end()
    rest = block[start:].strip()
    if _WORD.search(rest):
        yield rest


def _ends(block: str, start: int, match: re.Match[str]) -> bool:
    """Whether a sentence ends here, and not an abbreviation, an initial or a quoted exclamation."""
    if not _WORD.search(block, start, match.end()):
        return False
    if match[0][0] in "。！？":
        return True
    if block[match.end()].islower():
        return False
    if match[0][0] != "." or match[0].startswith(".."):
        return True
    last = block[max(start, match.start() - 24):match.start()].rpartition(" ")[2].lstrip("(\"'“‘[")
    return not (last.lower() in _ABBREVIATIONS or (len(last) == 1 and last.isupper() and last != "I"))


@dataclass(frozen=True)
class Rating:
    """Marks of a text, computed from it."""

    score: float  # 0 to 10, the mean of the others times ten
    coverage: float  # share of the key terms of everything compared that it has, 0 to 1
    variety: float  # share of its words that are not repetitions, 0 to 1
    clarity: float  # 1 for sentences of about 18 words; falls to 0 with the distance


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
