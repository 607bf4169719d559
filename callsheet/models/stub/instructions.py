"""What a prompt asks for, as far as plain patterns tell."""

import re
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
MOST = 50
"""Sentences or terms that an answer has at most, whatever was asked."""


@dataclass(frozen=True)
class Task:
    """What to do with a text.

    Attributes:
        count: sentences or terms.
        bullets: as a list.
        max_words: of the whole answer, or None.
    """

    kind: Kind = "summary"
    count: int = 3
    bullets: bool = False
    max_words: int | None = None


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
