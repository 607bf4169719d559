"""What logs and Flower show of a call: its agent, its arguments and its reply; short, and without secrets.

Celery's messages and events carry these texts beside the data (`argsrepr`, `kwargsrepr`, a result's repr).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from callsheet.errors import CallsheetError
from callsheet.messages.printable import printable
from callsheet.resources.payloads import REF
from callsheet.settings import Settings, get_settings
from callsheet.settings.secrets import HIDDEN, NONE, Secrets, names_a_secret, remembered, shortened, without_keys

_LONGEST = 200  # characters of all arguments, or of a reply
_LONGEST_TEXT = 80  # of one text
_READ = 200  # characters of a text that are looked at, so that no secret is cut before it is known as one
_MOST = 3  # items of a list or a dictionary


def shown(label: str, values: Sequence[Any], kwargs: Any = None, settings: Settings | None = None) -> dict[str, str]:
    """A call's name and arguments, as options of Celery's `apply_async`: Reviewer, `alice ← user: "Summarize …"`."""
    kind, _, name = label.partition("(")
    secrets = _secrets(settings)
    values = [value for value in values if value is not None]
    given = _joined((_value(value, secrets) for value in values), len(values))
    named = "{}" if not kwargs else _value(kwargs, secrets)
    name = _text(name.removesuffix(")"), secrets)
    text = f"{name} ← {given}" if name and given else name or given
    return {"shadow": kind or "callsheet.reply", "argsrepr": _cut(text, _LONGEST), "kwargsrepr": _cut(named, _LONGEST)}


class Reply:
    """A reply on its way from the task to Celery: JSON data that shows itself short in logs and events."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data

    def __json__(self) -> Any:
        """The data, for kombu."""
        return self.data

    def __repr__(self) -> str:
        return _cut(_value(self.data, _secrets(None)), _LONGEST)


def hidden(text: Any) -> Any:
    """The text of an error, shortened and without secrets; what is no text as it is."""
    return without_keys(shortened(text), _secrets(None)) if isinstance(text, str) else text


def _secrets(settings: Settings | None) -> Secrets:
    try:
        return remembered(settings or get_settings())
    except CallsheetError:  # settings that are wrong hold no secrets that are in use
        return NONE


def _value(value: Any, secrets: Secrets, depth: int = 0) -> str:
    if isinstance(value, str):
        return f'"{_text(value, secrets)}"'
    if isinstance(value, Mapping):
        return _mapping(value, secrets, depth)
    if isinstance(value, Sequence):
        inner = "…" if depth > _MOST else _joined((_value(item, secrets, depth + 1) for item in value), len(value))
        return f"[{inner}]"
    return _text(str(value), secrets)


def _mapping(value: Mapping[str, Any], secrets: Secrets, depth: int) -> str:
    if isinstance(message := value.get("$msg"), Mapping):
        return f"{_text(str(message.get('name')), secrets)}: {_content(message.get('content'), secrets)}"
    if REF in value:
        return f"({value.get('size', 0):,} bytes, stored apart)"
    if "$seq" in value:
        return _value(value["$seq"]["input"], secrets, depth)
    if "$error" in value and isinstance(value["$error"], Mapping):
        return f"a failure ({_text(str(value['$error'].get('exc_type')), secrets)})"
    if "$new" in value or "$bytes" in value:
        return _text(str(value.get("$new", "bytes")).rpartition(":")[2], secrets)
    if depth > _MOST:
        return "{…}"
    pairs = (f"{_text(str(key), secrets)}: "
             + (HIDDEN if names_a_secret(str(key)) else _value(item, secrets, depth + 1))
             for key, item in value.items())
    return "{" + _joined(pairs, len(value)) + "}"


def _content(content: Any, secrets: Secrets) -> str:
    """The content of a message: its text, and the kinds of its other blocks."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return _value(content, secrets)
    return _joined(_blocks(content, secrets), len(content), " ")


def _blocks(content: Sequence[Any], secrets: Secrets) -> Iterator[str]:
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text":
            yield _value(block.get("text"), secrets)
        else:
            name = block.get("name") if isinstance(block, Mapping) else None
            yield _text(f"[{kind or 'block'}{f' {name}' if name else ''}]", secrets)


def _joined(parts: Iterable[str], count: int, between: str = ", ") -> str:
    first = [part for part, _ in zip(parts, range(_MOST), strict=False)]
    more = f"{between}… {count - _MOST:,} more" if count > _MOST else ""
    return between.join(first) + more


def _text(text: str, secrets: Secrets) -> str:
    """A text on one line, without secrets, cut."""
    read = text[:_READ]
    line = printable(" ".join(without_keys(read, secrets).split()))
    return f"{line[:_LONGEST_TEXT]}…" if len(line) > _LONGEST_TEXT or len(text) > _READ else line


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"
