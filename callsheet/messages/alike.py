"""Numbers that were chosen to have one hash: a set or a dictionary of some thousands of them takes minutes to build.

Python's hashes of texts are salted, those of numbers are not.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any

MOST = 20
"""Different values with one hash that are taken."""

_NUMBER = re.compile(r"[-+.\deE_]{1,4300}")


def share_a_hash(values: Collection[Any]) -> bool:
    """Whether more than MOST of these, all of them different, have one hash."""
    return len(values) > MOST and max(Counter(map(hash, values)).values()) > MOST


def numbers_share_a_hash(data: Any) -> bool:
    """Whether numbers, or texts of numbers, that stand together in JSON data would collide in a set or as keys."""
    todo = [data]
    while todo:
        part = todo.pop()
        if isinstance(part, (list, dict)):
            if isinstance(part, dict):
                todo += part.values()
            else:
                todo += (item for item in part if isinstance(item, (list, dict)))
            if len(part) > MOST and share_a_hash(_numbers(part)):
                return True
    return False


def _numbers(part: Iterable[Any]) -> list[Any]:
    found: dict[str, Any] = {}
    for item in part:
        if isinstance(item, str) and _NUMBER.fullmatch(item):
            with suppress(InvalidOperation):
                found[item] = Decimal(item)
        elif type(item) in (int, float):
            found[repr(item)] = item
    return [value for value in found.values() if value == value]  # noqa: PLR0124 - no NaN
