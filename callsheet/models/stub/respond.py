"""The stub model's answers: what a prompt asks for, found in its text."""

import math
from dataclasses import dataclass, replace
from typing import Any

from callsheet.models.stub import extract
from callsheet.models.stub.extract import Kind, Task, kind_of, sentences, understand

_NOTHING = "There is no text to work on."


def answer(messages: list[dict[str, Any]], schema: dict[str, Any] | None = None) -> Any:
    """The answer to a conversation: text, or data that fits `schema` where one is given.

    Args:
        messages: of the chat completions API; the last one is worked on.
        schema: JSON schema of an object.
    """
    task, text = understand(*_parts(messages))
    return fill(schema, text, task) if schema is not None else write(task, text)


def write(task: Task, text: str) -> str:
    """The answer as text."""
    items = items_of(task.kind, text, task.count)
    if not items:
        return "The text names no risks or open questions." if task.kind == "concerns" and sentences(text) else _NOTHING
    if task.max_words is not None:
        items = _within(items, task.max_words)
    if task.bullets:
        return "\n".join(f"- {item}" for item in items)
    return ("\n" if task.kind in ("questions", "judgement") else ", " if task.kind == "keywords" else " ").join(items)


def items_of(kind: Kind, text: str, count: int) -> list[str]:
    """The parts of an answer of one kind, at most `count` where they are counted."""
    match kind:
        case "keywords":
            return extract.keywords(text, count)
        case "questions":
            return extract.questions(text, count)
        case "concerns":
            return extract.concerns(text, count)
        case "title":
            return [found] if (found := extract.title(text)) else []
        case "judgement":
            return _judgement(text) if sentences(text) else []
        case _:
            return extract.summarise(text, count)


def fill(schema: dict[str, Any], text: str, task: Task) -> Any:
    """Data that fits a JSON schema, as far as it is simple, made of the text.

    A field's name and description say what goes into it, as a prompt's words would.
    """
    return _Filler(schema.get("$defs") or schema.get("definitions") or {}, text, task).value(schema, "", 0)


def _parts(messages: list[dict[str, Any]]) -> tuple[str, str, str]:
    """System prompt, last message, and what came before it."""
    said = [(msg.get("role") in ("system", "developer"), flat(msg.get("content"))) for msg in messages]
    system = "\n".join(text for instructs, text in said if instructs)
    rest = [text for instructs, text in said if not instructs and text.strip()]
    return system, rest[-1] if rest else "", "\n\n".join(rest[:-1])


def flat(content: Any) -> str:
    """The text of a message's content."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _judgement(text: str) -> list[str]:
    marks = extract.compare(text)
    lines = [f"{label}: {mark.score}/10 (coverage {mark.coverage}, variety {mark.variety}, clarity {mark.clarity})"
             for label, mark in marks]
    if len(marks) > 1:
        best = max(marks, key=lambda pair: pair[1].score)
        lines.append(f"Best: {best[0]}")
    return lines


def _within(items: list[str], limit: int) -> list[str]:
    """As many items as have `limit` words together; the first is cut if it alone has more."""
    kept: list[str] = []
    left = limit
    for item in items:
        length = len(item.split())
        if length > left:
            break
        kept.append(item)
        left -= length
    return kept or [" ".join(items[0].split()[:limit]) + "…"]


@dataclass(frozen=True)
class _Filler:
    """Fills one schema from one text."""

    definitions: dict[str, Any]
    text: str
    task: Task

    def value(self, schema: Any, hint: str, depth: int) -> Any:
        """A value that fits `schema`; None where it nests deeper than 12."""
        if not isinstance(schema, dict) or depth > 12:
            return None
        if "$ref" in schema:
            return self.value(self.definitions.get(str(schema["$ref"]).rpartition("/")[2]), hint, depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choice(schema["enum"])
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                options = [option for option in schema[key] if option.get("type") != "null"]
                return self.value(options[0] if options else None, hint, depth + 1)
        # The field's own name says more than its description, and that more than the field around it.
        hint = f"{schema.get('description') or ''} {hint}" if schema.get("type") == "array" else hint
        return self._typed(schema, hint, depth)

    def _typed(self, schema: dict[str, Any], hint: str, depth: int) -> Any:
        kinds = schema.get("type") or ("object" if "properties" in schema else "string")
        kind = next((one for one in kinds if one != "null"), "null") if isinstance(kinds, list) else kinds
        match kind:
            case "object":
                return {name: self.value(part, f"{name} {_described(part)}", depth + 1)
                        for name, part in (schema.get("properties") or {}).items()}
            case "array":
                return self._list(schema, hint, depth)
            case "integer" | "number":
                return self._number(schema, hint, kind)
            case "boolean":
                return bool(extract.concerns(self.text, 1))
            case "null":
                return None
            case _:
                return self._string(schema, hint)

    def _list(self, schema: dict[str, Any], hint: str, depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        most = max(least, int(schema.get("maxItems", max(self.task.count, least))))
        items = schema.get("items") or {"type": "string"}
        found = items_of(kind_of(hint) or self.task.kind, self.text, most)[:most]
        found += [""] * (least - len(found))
        if isinstance(items, dict) and items.get("type") == "string" and not items.get("enum"):
            return found
        # Each element of another form is made of its own stretch of the text.
        return [_Filler(self.definitions, part, self.task).value(items, hint, depth + 1) for part in found]

    def _number(self, schema: dict[str, Any], hint: str, kind: str) -> int | float:
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        counted = any(word in hint.lower() for word in ("count", "number", "how many", "length"))
        if counted:
            value: float = len(sentences(self.text))
        elif low is not None and high is not None:
            value = low + (high - low) * extract.rate(self.text).score / 10
        else:
            value = extract.rate(self.text).score
        step = 1 if kind == "integer" else 1e-6
        if low is not None:
            value = max(value, low + (step if "exclusiveMinimum" in schema else 0))
        if high is not None:
            value = min(value, high - (step if "exclusiveMaximum" in schema else 0))
        return math.floor(value) if kind == "integer" else round(value, 6)

    def _string(self, schema: dict[str, Any], hint: str) -> str:
        text = write(replace(self.task, kind=kind_of(hint) or self.task.kind, bullets=False), self.text)
        most = schema.get("maxLength")
        text = text if most is None else text[:int(most)]
        return text.ljust(int(schema.get("minLength", 0)), ".")

    def _choice(self, options: list[Any]) -> Any:
        """The option that the text names most often, the first among equals."""
        low = self.text.lower()
        return max(options, key=lambda option: low.count(str(option).lower()) if str(option) else 0)


def _described(schema: Any) -> str:
    return str(schema.get("description") or "") if isinstance(schema, dict) else ""
