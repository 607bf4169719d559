"""Large payloads of calls: what stands in their messages, and how it is read again."""

import json
from typing import Any

from callsheet.errors import PayloadExpired, PayloadTooLarge
from callsheet.resources.payloads import REF, apart
from callsheet.resources.redis import async_client, sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

_to_json = json.JSONEncoder(separators=(",", ":")).encode
_LEAST = 1024  # bytes; what is smaller stays in its message, whatever number of messages that is


def pack(data: Any, settings: Settings, what: str, copies: int = 1) -> tuple[Any, dict[str, bytes]]:
    """`data` as it goes into a message, and what has to be stored before the message is sent.

    Args:
        data: JSON data.
        settings: with the limits, in bytes of JSON text.
        what: what it is, for the error.
        copies: messages that carry it, as each of a chord's header carries the chord's body.

    Raises:
        PayloadTooLarge: names the size and the limit.
    """
    inline_max = min(settings.payload_inline_max, max(_LEAST, settings.payload_inline_max // copies))
    text = _to_json(data).encode()
    if len(text) > settings.payload_max:
        raise PayloadTooLarge(
            f"{what} is {len(text):,} bytes as JSON; the limit is {settings.payload_max:,}. Send a reference (a path, "
            "an address) in its place, split it, or raise CALLSHEET_PAYLOAD_MAX for callers and workers.")
    if len(text) <= inline_max:
        return data, {}
    return apart(text)


def refs(data: Any) -> set[str]:
    """The payloads that `data` refers to: itself, in a list of results, or in the state of a one-by-one fan-out."""
    if isinstance(data, dict):
        if REF in data:
            return {data[REF]}
        return refs(data["$seq"]["input"]) | refs(data["$seq"]["results"]) if "$seq" in data else set()
    if isinstance(data, list):
        return set().union(*[refs(item) for item in data if isinstance(item, (dict, list))])
    return set()


def fill(data: Any, found: dict[str, Any]) -> Any:
    """`data` with the payloads in their places."""
    if isinstance(data, dict):
        if REF in data:
            return found[data[REF]]
        if "$seq" in data:
            return {"$seq": {key: fill(item, found) for key, item in data["$seq"].items()}}
        return data
    return [fill(item, found) for item in data] if isinstance(data, list) else data


def load(data: Any, settings: Settings) -> Any:
    """`data` with the payloads that it refers to.

    Raises:
        PayloadExpired: one is no longer stored.
    """
    wanted = sorted(refs(data))
    if not wanted:
        return data
    with translated(settings):
        texts = sync_client(settings).mget([Keys(settings.key_prefix).payload(digest) for digest in wanted])
    return _filled(data, wanted, list(texts), settings)


async def load_async(data: Any, settings: Settings) -> Any:
    """As `load`; on the process's loop."""
    wanted = sorted(refs(data))
    if not wanted:
        return data
    with translated(settings):
        texts = await async_client(settings).mget([Keys(settings.key_prefix).payload(d) for d in wanted])
    return _filled(data, wanted, list(texts), settings)


def _filled(data: Any, wanted: list[str], texts: list[bytes | None], settings: Settings) -> Any:
    found = {}
    for digest, text in zip(wanted, texts, strict=True):
        if text is None:
            raise PayloadExpired(
                f"A large payload is no longer in Redis: it is kept for {settings.result_expires} s after its last "
                "use. Raise CALLSHEET_RESULT_EXPIRES if calls wait longer than that, and check that Redis does not "
                "evict keys (maxmemory-policy noeviction).")
        found[digest] = json.loads(text)
    return fill(data, found)
