"""Results of calls, and the parts that they are of chords, as they are stored.

On the asyncio pool they are gathered: what ends in one turn of the loop is stored in one trip to Redis.
"""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from callsheet.resources.redis import async_client
from callsheet.resources.scripts import Script
from callsheet.settings import Settings, get_settings
from callsheet.settings.keys import Keys

SETTLE = Script(Path(__file__).parent / "settle.lua")
_MOST = 500  # entries in one trip
_MOST_BYTES = 1024 * 1024  # in one trip, if it has more than one entry


@dataclass(frozen=True, slots=True)
class Part:
    """A call's part of a chord, for `settle.lua`.

    Attributes:
        text: what the chord's body gets of the call, encoded.
        keys: of the chord.
        args: the rest of what the script wants to know of a part.
    """

    text: str | bytes
    keys: list[bytes]
    args: list[str | int]


@dataclass(frozen=True, slots=True)
class Entry:
    """What one call leaves behind, stored in one step.

    Attributes:
        key: of its result.
        value: its result, encoded; "" stores none.
        expires: seconds that the result is kept; None for ever.
        part: of a chord, if it is one.
    """

    key: bytes
    value: str | bytes
    expires: int | None = None
    part: Part | None = None

    @property
    def size(self) -> int:
        """Characters or bytes, about."""
        return len(self.value) + (len(self.part.text) if self.part else 0)


def _command(entries: list[Entry]) -> tuple[list[str | bytes], list[Any]]:
    keys: list[str | bytes] = [Keys(get_settings().key_prefix).revoked()]
    args: list[Any] = []
    for entry in entries:
        part = entry.part
        keys.append(entry.key)
        args += (entry.value, entry.expires or "", part.text if part else "")
        if part:
            keys += part.keys
            args += part.args
    return keys, args


def write(client: Any, entry: Entry) -> Any:
    """Store one entry now and return the script's answer for it.

    Raises:
        RedisError: Redis did not take it.
    """
    answer = SETTLE.run(client, *_command([entry]))[0]
    if isinstance(answer, ResponseError):
        raise answer
    return answer


class GatheredWrites:
    """Stores entries in batches; on the process's loop.

    While one batch is under way the next one gathers, so that the more calls end, the fewer trips each costs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: list[tuple[Entry, asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None

    def write(self, entry: Entry) -> asyncio.Future[Any]:
        """Store an entry. The future gives the script's answer for it, or raises the RedisError if it is not taken."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((entry, future))
        if self._writing is None or self._writing.done():  # cancelled before it began, as a loop ended
            self._writing = loop.create_task(self._write_all(), name="callsheet-results")
        return future

    def _next_batch(self) -> list[tuple[Entry, asyncio.Future[Any]]]:
        count, size = 0, 0
        for entry, _ in self._waiting[:_MOST]:
            size += entry.size
            if count and size > _MOST_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch = self._next_batch()
                answers: list[Any]
                try:
                    keys, args = _command([entry for entry, _ in batch])
                    answers = await SETTLE.arun(async_client(self._settings), keys, args)
                except asyncio.CancelledError:  # the loop ends
                    for _, future in [*batch, *self._waiting]:
                        future.cancel()
                    raise
                except Exception as exc:  # whatever it is, those who wait for this batch must hear of it
                    answers = [exc] * len(batch)
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, BaseException):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._writing = None


_writes: dict[tuple[int, str], GatheredWrites] = {}


def gathered_writes() -> GatheredWrites:
    """This process's writer, for the address in its settings."""
    settings = get_settings()
    key = (os.getpid(), settings.redis_url.get_secret_value())
    if key not in _writes:
        _writes[key] = GatheredWrites(settings)
    return _writes[key]
