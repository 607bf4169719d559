"""Messages in a hub's log, those that stand for missing ones, and what may be a hub's name."""

import functools
import json
from copy import deepcopy
from typing import Any

from callsheet.errors import HubMissing, MessageError, PayloadTooLarge, UsageError
from callsheet.hub.records import GONE, Entry, News, number_of
from callsheet.messages import Msg
from callsheet.messages.secrecy import refuse_known

HUB = "hub"
"""Key in the metadata of a message that says what is missing."""

_MOST_CACHED = 8192  # characters of a message
_LONGEST = 150  # characters of a hub's name
_RESERVED = "/*?[]\\"  # that mean something in the channels of kombu's fanout exchanges


def written(msg: Msg, most: int) -> str:
    """A message as others may see it, without its thinking, as JSON text.

    Raises:
        PayloadTooLarge: it takes more.
        MessageError: it was changed after it was checked, and is not JSON any more.
    """
    data = msg.to_dict()
    if isinstance(msg.content, list):
        data["content"] = [block for block in msg.content if block["type"] != "thinking"]
    try:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as exc:
        raise MessageError(f"The message from {msg.name!r} is not JSON ({exc}): give text, numbers, lists and "
                           "dictionaries of them.") from exc
    refuse_known(text, f"The message from {msg.name!r}")
    if len(text) > most:
        raise PayloadTooLarge(f"A message of {len(text):,} bytes for a hub; the limit is {most:,}. Send a reference (a "
                              "path, an address) in its place, or raise CALLSHEET_PAYLOAD_MAX.")
    return text


def said(reply: Any, most: int) -> list[str]:
    """What others hear of a reply: its messages, as JSON texts, but for those that are nothing but thinking."""
    given = [reply] if isinstance(reply, Msg) else reply or []
    return [written(msg, most) for msg in given
            if isinstance(msg.content, str) or not msg.content or msg.get_content_blocks(
                ["text", "image", "audio", "video", "tool_use", "tool_result"])]


def read(entry: Entry) -> Msg:
    """The message of an entry."""
    return Msg.from_dict(json.loads(entry.text))


def read_by_many(entry: Entry) -> Msg:
    """The message of an entry that other members of its hub read here too."""
    return read(entry) if len(entry.text) > _MOST_CACHED else deepcopy(_parsed(entry.text))


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> Msg:
    return Msg.from_dict(json.loads(text))


def gap(hub: str, first: int | None, last: int | None) -> Msg:
    """The message that stands for those that are no longer kept.

    Args:
        hub: its name.
        first: number of the first of them; None where nobody knows.
        last: of the last.
    """
    if first is None or last is None:
        return Msg(HUB, f"[What was said in the hub {hub!r} since is no longer kept.]", "user",
                   {HUB: {"name": hub, "missing": None}})
    count = last - first + 1
    which = f"message {first} of the hub {hub!r} is" if count == 1 else (
        f"{count} messages of the hub {hub!r}, numbers {first} to {last}, are")
    return Msg(HUB, f"[Missing here: {which} no longer kept.]", "user",
               {HUB: {"name": hub, "missing": count, "first": first, "last": last}})


def missing_of(news: News) -> tuple[str, Msg] | None:
    """What an agent has missed of a hub's log, which was cut: up to which entry's id, and the message that says so."""
    if news.upto == GONE:
        return GONE, gap(news.hub, None, None)
    heard = number_of(news.cursor)
    if news.first:
        first = number_of(news.first)
        before = f"{news.first.partition('-')[0]}-{first - 1}"
        return (before, gap(news.hub, heard + 1, first - 1)) if first > heard + 1 else None
    upto = number_of(news.upto)
    return (news.upto, gap(news.hub, heard + 1, upto)) if upto > heard else None


def missing(name: str) -> HubMissing:
    """No hub of this name is open."""
    return HubMissing(f"No hub {name!r} is open here: it was never opened, was closed, or was not used for "
                      "CALLSHEET_HUB_EXPIRES seconds. MsgHub.open(name) opens one; `callsheet hub list` shows those "
                      "there are.")


def differs(name: str, opened: bool) -> str:
    """Why a hub is not joined."""
    return (f"The hub {name!r} is open with enable_auto_broadcast={opened}, and cannot be joined with {not opened}. "
            "Give the same, or another name, or join it as it is with MsgHub.open(name).")


def checked_name(name: Any) -> str:
    """`name`, if a hub may have it."""
    if not isinstance(name, str):
        raise UsageError(f"The hub's name {name!r} is no text.")
    if not 0 < len(name) <= _LONGEST or not name.isprintable() or name != name.strip() or set(name) & set(_RESERVED):
        raise UsageError(f"The hub's name {name[:_LONGEST]!r} cannot be used: 1 to {_LONGEST} characters, none of "
                         f"{' '.join(_RESERVED)}, no line breaks, and no space at its ends, are needed, e.g. "
                         "\"debate-7\".")
    return name
