"""How far the members of hubs are behind what was said there."""

import json
from dataclasses import dataclass
from typing import Any

from callsheet.settings.keys import Keys

MOST_HUBS = 20
"""Hubs that are looked at, those used last."""

MOST_MEMBERS = 200
"""Members of a hub that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLag:
    """One hub.

    Attributes:
        name: of the hub.
        members: that it has.
        messages: that were said in it.
        behind: messages that the member furthest behind has yet to hear.
        used: unix time of its last use, about.
    """

    name: str
    members: int
    messages: int
    behind: int
    used: float


def hub_lags(client: Any, keys: Keys, most: int = MOST_HUBS) -> list[HubLag]:
    """The hubs used last, in four trips to Redis however many there are; blocks."""
    listed = client.zrevrange(keys.hubs(), 0, most - 1, withscores=True)
    with client.pipeline(transaction=False) as pipe:
        for name, _ in listed:
            pipe.hmget(keys.hub(name.decode(errors="replace")), "seq", "members", "closed")
        facts = pipe.execute()
    hubs = [(name.decode(errors="replace"), used / 1000, int(seq or 0), members.decode())
            for (name, used), (seq, members, closed) in zip(listed, facts, strict=True) if members and not closed]
    with client.pipeline(transaction=False) as pipe:
        for *_, members in hubs:
            pipe.hlen(members)
            pipe.hscan(members, count=MOST_MEMBERS)
        answers = pipe.execute()
    found = []
    with client.pipeline(transaction=False) as pipe:
        for number, (name, used, seq, _) in enumerate(hubs):
            seats = [json.loads(text) for text in list(answers[2 * number + 1][1].values())[:MOST_MEMBERS]]
            for seat in seats:
                pipe.hget(seat["seats"], seat["seat"])
            found.append((name, used, seq, answers[2 * number], len(seats)))
        cursors = iter(pipe.execute())
    lags = []
    for name, used, seq, members, count in found:
        heard = [_sequence(text) for text in (next(cursors) for _ in range(count)) if text]
        lags.append(HubLag(name=name, members=members, messages=seq, used=used,
                           behind=max(0, seq - min(heard, default=seq))))
    return lags


def _sequence(text: bytes) -> int:
    """The number of the last message that a seat has heard."""
    return int(str(json.loads(text)["c"]).rpartition("-")[2] or 0)
