"""Where a broker keeps its messages, the scripts that move them, and what a message says of its deliveries.

The lists and the `unacked` hash and index are stock kombu's. Ours are beside them: a zset, tag -> when its lease ends;
a zset and a hash of what is to start later; and sets of the ids of messages that were published, which expire.
"""

import json
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callsheet.resources.redis import Script
from callsheet.tasks.base import LOST
from callsheet.workers.broker.reading import UNREADABLE
from callsheet.workers.broker.stock import json as kombu_json

_HERE = Path(__file__).parent
_ENTRIES = _HERE / "entries.lua"
BEGIN = Script(_HERE / "begin.lua")
PUBLISH = Script(_HERE / "publish.lua")
CLAIM = Script(_HERE / "claim.lua")
RENEW = Script(_HERE / "renew.lua")
EXPIRED = Script(_HERE / "expired.lua")
GIVE_BACK = Script(_HERE / "giveback.lua")
PUT_AWAY = Script(_HERE / "putaway.lua", _ENTRIES)
BRING_BACK = Script(_HERE / "bringback.lua", _ENTRIES)
REVOKE = Script(_HERE / "revoke.lua", _ENTRIES)

#: Header: how often the message has been delivered, this time included.
DELIVERIES = "deliveries"
#: Header of a message under delivery whose workers were lost before: how its call runs, by itself or with others such.
BEGUN = "begun"
ALONE, BESIDE = "alone", "beside"
#: Header: its call kills its workers, and is given up.
POISONED = "poisoned"
#: Header: the task was revoked while its message was put away.
REVOKED = "revoked"

_MOST_COUNTED = 1_000_000  # what headers say is anybody's number


@dataclass(frozen=True)
class Layout:
    """Names of keys, all with the global prefix."""

    prefix: str  # before every key
    unacked: str  # hash, tag -> JSON list of message, exchange and routing key
    index: str  # zset, tag -> when it was delivered or last renewed
    leases: str  # zset, tag -> when it may be given to another worker; tags of stock workers are not in it
    sep: str  # between a queue's name and a priority step
    steps: tuple[int, ...]  # of priority, the first to be delivered first

    @classmethod
    def of(cls, channel: Any) -> "Layout":
        """As a kombu channel has it."""
        prefix = channel.global_keyprefix
        return cls(prefix, prefix + channel.unacked_key, prefix + channel.unacked_index_key,
                   f"{prefix}{channel.unacked_key}_lease", channel.sep, tuple(channel.priority_steps))

    @property
    def registry(self) -> list[str]:
        """The keys that a message under delivery is in."""
        return [self.unacked, self.index, self.leases]

    @property
    def later(self) -> list[str]:
        """The keys that a message which is to start later is in: zset, task id -> when it goes back; hash of them."""
        return [f"{self.unacked}_later", f"{self.unacked}_later_messages"]

    @property
    def taken(self) -> str:
        """What the names of the sets begin with that remember which messages were published."""
        return f"{self.unacked}_taken:"

    def list_of(self, queue: str, step: int) -> str:
        """The list of a queue's messages of one priority step."""
        return f"{self.prefix}{queue}{self.sep}{step}" if step else self.prefix + queue

    def list_for(self, queue: str, payload: Any) -> str:
        """The list that a message belongs on."""
        try:
            priority = max(0, min(9, int(payload["properties"]["priority"])))
        except (TypeError, ValueError, KeyError, OverflowError):
            priority = 0
        return self.list_of(queue, self.steps[bisect(self.steps, priority) - 1])

    @staticmethod
    def rest(queue: str) -> str:
        """What follows a message of this queue in the unacked hash: the default exchange leads back to the queue."""
        return f',"",{json.dumps(queue)}]'


@dataclass(slots=True)
class Delivery:
    """A message under delivery."""

    tag: str  # of this delivery, and of no other
    queue: str  # that it came from
    payload: dict[str, Any]  # the message, with the tag as its delivery tag
    first_tag: Any  # the delivery tag that its publisher gave it
    raw: bytes | None = None  # its text, of one that is to be refused: the payload does not have all of it

    @classmethod
    def of(cls, tag: str, queue: str, payload: dict[str, Any], text: bytes) -> "Delivery":
        """A message as it was read off its list, and its text; counts this delivery."""
        properties, headers = payload["properties"], payload["headers"]
        delivery = cls(tag, queue, payload, properties["delivery_tag"], text if UNREADABLE in headers else None)
        properties["delivery_tag"] = tag
        headers[DELIVERIES] = _deliveries(headers) + 1
        headers.setdefault(LOST, 0)
        return delivery

    def text(self, headers: Any = None) -> str | bytes:
        """The message to put back, or with other headers; it says that it was delivered before, where kombu says it."""
        if self.raw is not None:
            return self.raw
        properties = {**self.payload["properties"], "delivery_tag": self.first_tag}
        properties["delivery_info"] = {**properties["delivery_info"], "redelivered": True}
        headers = {**(headers or self.payload["headers"]), "redelivered": True}
        text: str = kombu_json.dumps({**self.payload, "headers": headers, "properties": properties})
        return text


def _count(headers: dict[str, Any], name: str) -> int:
    found = headers.get(name)
    return max(0, min(found, _MOST_COUNTED)) if isinstance(found, int) else 0


def _deliveries(headers: dict[str, Any]) -> int:
    # A stock worker that gives a message back does not count.
    return max(_count(headers, DELIVERIES), 1 if headers.get("redelivered") else 0)


def suspected(headers: dict[str, Any], limit: int) -> bool:
    """Whether a message has lost so many workers that one more is the last."""
    return _count(headers, LOST) >= limit - 1


def mark_lost(headers: dict[str, Any], limit: int) -> None:
    """Have a message, as it is in the unacked hash, say that the worker that held it was lost.

    Args:
        headers: of the message.
        limit: lost workers after which its call is given up, where it is known that it was this one; where it is not,
            twice as many.
    """
    headers[DELIVERIES] = _deliveries(headers) + 1
    begun = headers.pop(BEGUN, "")
    if begun or not suspected(headers, limit):  # else it had not begun
        headers[LOST] = _count(headers, LOST) + 1
    if begun and headers[LOST] >= (limit if begun == ALONE else 2 * limit):
        headers[POISONED] = True
