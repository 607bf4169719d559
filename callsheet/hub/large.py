"""Large messages of hubs: stored once under their hash, as other large payloads are; the log holds a reference."""

import json
from collections.abc import Sequence
from dataclasses import replace

from callsheet.hub.records import Entry
from callsheet.hub.wire import gap
from callsheet.resources.payloads import REF, Blobs, apart
from callsheet.resources.redis import async_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

_BEGINNING = f'{{"{REF}":'


def parted(texts: Sequence[str], settings: Settings) -> tuple[list[str], Blobs]:
    """Texts as they go into a log, and what has to be stored before."""
    blobs: Blobs = {}
    given = []
    for text in texts:
        if len(text) > settings.payload_inline_max:
            ref, more = apart(text.encode())
            blobs |= more
            text = json.dumps(ref, separators=(",", ":"))  # noqa: PLW2901
        given.append(text)
    return given, blobs


def any_large(entries: Sequence[Entry]) -> bool:
    """Whether there are references among them."""
    return any(entry.text.startswith(_BEGINNING) for entry in entries)


async def filled(hub: str, entries: Sequence[Entry], settings: Settings) -> list[Entry]:
    """Entries with their large messages; one that is no longer stored becomes a message that says so."""
    large = {entry.id: json.loads(entry.text)[REF] for entry in entries if entry.text.startswith(_BEGINNING)}
    if not large:
        return list(entries)
    digests, keys = list(set(large.values())), Keys(settings.key_prefix)
    with translated(settings):
        texts = await async_client(settings).mget([keys.payload(digest) for digest in digests])
    found = {digest: text.decode() for digest, text in zip(digests, texts, strict=True) if text is not None}
    return [entry if entry.id not in large else replace(entry, text=_text(hub, entry, found.get(large[entry.id])))
            for entry in entries]


def _text(hub: str, entry: Entry, text: str | None) -> str:
    return json.dumps(gap(hub, entry.number, entry.number).to_dict()) if text is None else text
