"""What may be a queue's name."""

import re

LONGEST = 200  # characters

_ALLOWED = re.compile(r"[\w.:@/+-]+")


def wrong_with_name(name: str) -> str:
    """What is wrong with a queue's name, in words; "" if nothing is.

    A space or a comma would end the name in `-Q` and in CALLSHEET_QUEUES, a glob character makes `redis-cli` and
    monitoring look at other keys, and kombu keeps priorities apart with control characters.
    """
    shown = repr(name if len(name) <= LONGEST else f"{name[:40]}…")
    if not name:
        return "a queue's name is needed, and '' is none"
    if len(name) > LONGEST:
        return f"{shown} cannot be a queue's name: it has {len(name):,} characters, and {LONGEST} are allowed"
    if not _ALLOWED.fullmatch(name):
        bad = " ".join(dict.fromkeys(repr(ch) for ch in name if not _ALLOWED.fullmatch(ch)))
        return f"{shown} cannot be a queue's name because of {bad}: letters, digits and . _ : @ / + - are allowed"
    return ""
