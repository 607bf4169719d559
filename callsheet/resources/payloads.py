"""Large payloads: stored once in Redis under their hash, and kept for a time after their last use."""

import hashlib
from typing import Any

from callsheet.resources.redis import async_client, sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

REF = "$payload"
Blobs = dict[str, bytes]
_stored: set[tuple[str, str]] = set()  # (address, digest) of what this process has stored
_MOST_REMEMBERED = 4096


def apart(text: bytes) -> tuple[dict[str, Any], Blobs]:
    """What stands for a large JSON text, and what has to be stored."""
    digest = hashlib.sha256(text).hexdigest()
    return {REF: digest, "size": len(text)}, {digest: text}


def _known(blobs: Blobs, settings: Settings) -> set[str]:
    """Those that this process has stored before: to be looked for rather than sent again."""
    return {digest for digest in blobs if (settings.redis_address, digest) in _stored}


def _write(pipe: Any, blobs: Blobs, known: set[str], settings: Settings) -> None:
    keys, seconds = Keys(settings.key_prefix), settings.result_expires * 2
    for digest, text in blobs.items():
        if digest in known:
            pipe.expire(keys.payload(digest), seconds)
        else:
            pipe.set(keys.payload(digest), text, ex=seconds)


def _gone(blobs: Blobs, answers: list[Any], settings: Settings) -> Blobs:
    """Those that were taken for stored but are not there any more: expired, evicted, or Redis was emptied."""
    if len(_stored) > _MOST_REMEMBERED:
        _stored.clear()
    _stored.update((settings.redis_address, digest) for digest in blobs)
    return {digest: text for (digest, text), answer in zip(blobs.items(), answers, strict=True) if not answer}


def store(blobs: Blobs, settings: Settings) -> None:
    """Write payloads to Redis, or prolong those that are there."""
    known = _known(blobs, settings)
    while blobs:
        with translated(settings), sync_client(settings).pipeline(transaction=False) as pipe:
            _write(pipe, blobs, known, settings)
            blobs, known = _gone(blobs, pipe.execute(), settings), set()


async def store_async(blobs: Blobs, settings: Settings) -> None:
    """As `store`; on the process's loop."""
    known = _known(blobs, settings)
    while blobs:
        with translated(settings):
            async with async_client(settings).pipeline(transaction=False) as pipe:
                _write(pipe, blobs, known, settings)
                blobs, known = _gone(blobs, await pipe.execute(), settings), set()
