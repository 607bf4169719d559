"""How many messages wait on the queues."""

from collections.abc import Iterable
from typing import Any

STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""What follows a queue's name in the names of kombu's lists, one for each priority."""

UNACKED = "unacked"
"""kombu's hash of the messages that workers hold."""


def backlogs(queues: Iterable[str], client: Any) -> dict[str, int]:
    """The messages that wait, by queue; one trip.

    Args:
        queues: their names.
        client: of Redis.
    """
    names = list(dict.fromkeys(queues))
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            for step in STEPS:
                pipe.llen(name + step)
        lengths = pipe.execute()
    width = len(STEPS)
    return {name: int(sum(lengths[width * number:width * (number + 1)])) for number, name in enumerate(names)}


def in_words(count: int) -> str:
    """So many of them."""
    return "1 message waits" if count == 1 else f"{count:,} messages wait"
