"""Numbers that were chosen to have one hash: a set or a dictionary of some thousands of them takes minutes to build.

Python's hashes of texts are salted, those of numbers are not.
"""

import re
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any

MOST = 20
"""Different values with one hash that are taken."""

_NUMBER = re.compile(r"\s*[-+.\deE_]{1,4300}\s*")
_DIGITS = 15
_DEEP = 3  # tuples in tuples, or frozen objects, whose numbers make one hash


def share_a_hash(values: Collection[Any]) -> bool:
    """Whether more than MOST of these, all of them different, have one hash."""
    return len(values) > MOST and max(Counter(map(hash, values)).values()) > MOST


def numbers_share_a_hash(data: Any) -> bool:
    """Whether numbers, texts of numbers, or lists or objects of them, that stand together in JSON data would collide.

    As items of a set or keys of a dictionary, once a class has made tuples and the like of them.
    """
    todo = [data] if _chosen(data) > MOST else []
    while todo:
        part = todo.pop()
        inner = part.values() if isinstance(part, dict) else part
        todo += (item for item in inner if isinstance(item, (list, dict))) if isinstance(part, (list, dict)) else ()
        if isinstance(part, (list, dict)) and len(part) > MOST:
            found = {repr(key): key for item in part if (key := _key(item)) is not None}
            if share_a_hash(found.values()):
                return True
    return False


def _chosen(data: Any) -> int:
    """How many numbers there are of so many digits that their hashes, or those of tuples of them, can be chosen."""
    todo, found = [data], 0
    while todo:
        part = todo.pop()
        if isinstance(part, (list, dict)):
            todo += part if isinstance(part, list) else [*part.values(), *(part if len(part) > MOST else ())]
        elif isinstance(part, str):
            found += len(part) > _DIGITS and _NUMBER.fullmatch(part) is not None
        elif part is not None:
            found += abs(part) >= 10**_DIGITS
    return found


def _key(item: Any, deep: int = _DEEP) -> Any:
    """What has the hash that an item would have; None where that cannot be chosen."""
    if isinstance(item, (list, dict)):
        parts = item.values() if isinstance(item, dict) else item
        keys = tuple(_key(part, deep - 1) for part in parts) if deep else ()
        return keys if any(key is not None for key in keys) else None
    if isinstance(item, str):
        with suppress(InvalidOperation):
            return Decimal(item) if _NUMBER.fullmatch(item) else None
        return None
    if type(item) not in (int, float) or item != item:  # noqa: PLR0124 - no NaN
        return None
    item = -1 if item == -2 else item  # -1 and -2 have one hash, and so have all tuples of them
    return int(item) if type(item) is float and item.is_integer() else item
