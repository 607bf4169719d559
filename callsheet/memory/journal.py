"""The log of a memory: changes as JSON data, and what they add up to.

{"m": message, "k": [marks]}      a message was added ("k" only where it has marks)
{"del": [positions]}              messages were forgotten
{"marks": [[position, [marks]]]}  marks were changed
{"set": [[message, [marks]]]}     this is the content from here on
{"compact": [[message, [marks]]], "drop": [positions]}   likewise; the rest of the content was summarised

Positions are those in the content before the change.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from callsheet.errors import CallsheetError, StateMismatch
from callsheet.messages import Msg

Content = list[tuple[Msg, list[str]]]
Change = dict[str, Any]


def added(msg: Msg, marks: list[str]) -> Change:
    """The change that a message was added."""
    return {"m": msg.to_dict(), "k": marks} if marks else {"m": msg.to_dict()}


def written(content: Iterable[tuple[Msg, list[str]]]) -> list[list[Any]]:
    """Content as JSON data."""
    return [[msg.to_dict(), marks] for msg, marks in content]


def read(data: Any) -> Content:
    """The content that `written` gave, or a list of messages' data."""
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise StateMismatch(f"The content of a memory is a list of messages, not {type(data).__name__}.")
    found: Content = []
    for number, item in enumerate(data):
        pair = isinstance(item, (list, tuple)) and len(item) == 2
        found.append((_message(item[0] if pair else item, number), list(item[1]) if pair else []))
    return found


def _message(data: Any, number: int) -> Msg:
    try:
        return Msg.from_dict(data)
    except CallsheetError as exc:
        raise StateMismatch(f"Entry {number + 1} of a stored memory is not a message: {exc} Something else has written "
                            "to it; export it, correct the entry, and import it.") from exc


def apply(content: Content, change: Change, number: int = 0) -> Content:
    """The content after a change; `content` itself may be changed.

    Raises:
        StateMismatch: it is no change that this version knows.
    """
    if not isinstance(change, dict):
        change = {"m": change}
    if "m" in change:
        content.append((_message(change["m"], number), list(change.get("k", ()))))
    elif "del" in change:
        gone = set(change["del"])
        content = [entry for position, entry in enumerate(content) if position not in gone]
    elif "marks" in change:
        for position, marks in change["marks"]:
            content[position] = (content[position][0], list(marks))
    elif "set" in change or "compact" in change:
        content = read(change["set"] if "set" in change else change["compact"])
    else:
        raise StateMismatch(f"A stored memory has a change that is not known here ({', '.join(change)}). It was "
                            "written by a newer version of Callsheet: update this one.")
    return content


def original(changes: Iterable[Change]) -> Content:
    """The content as if nothing had been summarised."""
    everything: list[tuple[Msg, list[str]] | None] = []
    places: list[int] = []  # of what is in the content, in `everything`
    for number, change in enumerate(changes):
        if "compact" in change or "del" in change:
            gone = set(change["drop"] if "compact" in change else change["del"])
            for position in gone if "del" in change else ():
                everything[places[position]] = None
            places = [place for position, place in enumerate(places) if position not in gone]
        elif "marks" in change:
            for position, marks in change["marks"]:
                entry = everything[places[position]]
                assert entry is not None
                everything[places[position]] = (entry[0], list(marks))
        else:
            if "set" in change:
                everything, places = [], []
            new = apply([], change, number)
            places.extend(range(len(everything), len(everything) + len(new)))
            everything.extend(new)
    return [entry for entry in everything if entry is not None]
