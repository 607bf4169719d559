"""JSON by pydantic's reader, which takes a third of the time of the standard library's; and bounds of what it says."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic_core import from_json

#: How deep JSON from outside may be nested: what is read here can be written again, and pickled for a process.
DEEPEST = 400
_MOST_ALIKE = 20
_LARGE = 10**15  # numbers from here on can be chosen to have one hash
_NUMBER = re.compile(r"\s*[-+.\deE_]{16,4300}\s*")


def loads(text: str | bytes) -> Any:
    """What JSON says; the standard library's reader is asked where pydantic's gives up, such as over half a character.

    Raises:
        ValueError: it is no JSON, or nested more than DEEPEST deep.
    """
    try:
        return from_json(text)  # which gives up at a depth of 200
    except ValueError:
        pass
    try:
        found = json.loads(text)
    except RecursionError:
        raise too_deep() from None
    if deeper(found, DEEPEST):
        raise too_deep()
    return found


def readable(text: str | bytes) -> Any:
    """What JSON says; None where it is none, as of what others may have written among many."""
    try:
        return loads(text)
    except ValueError:
        return None


def too_deep() -> ValueError:
    """The error over data that is nested too deep."""
    return ValueError(f"it is nested more than {DEEPEST} deep")


def deeper(data: Any, most: int) -> bool:
    """Whether lists and dictionaries in `data` are nested more than `most` deep."""
    level = [data]
    for _ in range(most + 1):
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return False
        level = [item for node in level for item in (node.values() if isinstance(node, dict) else node)]
    return True


def share_a_hash(values: Iterable[Any]) -> bool:
    """Whether so many of these, all of them different, have one hash that a set of more would take minutes to build."""
    return max(Counter(map(hash, values)).values(), default=0) > _MOST_ALIKE


def numbers_share_a_hash(data: Any) -> bool:
    """Whether numbers do, or texts of numbers, wherever they stand in JSON data; hashes of other texts are salted."""
    todo, found = [data], dict[str, Any]()
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            todo += (*part, *part.values())
        elif isinstance(part, list):
            todo += part
        elif isinstance(part, str):
            if len(part) > 15 and _NUMBER.fullmatch(part):
                with suppress(InvalidOperation):
                    found[part] = Decimal(part)
        elif part is not None and abs(part) >= _LARGE:
            found[repr(part)] = part
    return share_a_hash(found.values())
