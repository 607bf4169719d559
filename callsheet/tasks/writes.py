"""Results of calls, and the parts that they are of chords, as they are stored.

On the asyncio pool they are gathered: what ends in one turn of the loop is stored in one trip to Redis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from callsheet.resources.gathering import Gathering
from callsheet.resources.loops import PerLoop
from callsheet.resources.redis import Script, async_client
from callsheet.settings import Settings, get_settings
from callsheet.settings.keys import Keys

SETTLE = Script(Path(__file__).parent / "settle.lua")
_MOST = 500  # entries in one trip
_MOST_BYTES = 1024 * 1024  # in one trip, if it has more than one entry


@dataclass(frozen=True, slots=True)
class Part:
    """A call's part of a chord, for `settle.lua`."""

    text: str | bytes  # what the chord's body gets of the call, encoded
    keys: list[bytes]  # of the chord
    args: list[str | int]  # the rest of what the script wants to know of a part


@dataclass(frozen=True, slots=True)
class Entry:
    """What one call leaves behind, stored in one step."""

    key: bytes  # of its result
    value: str | bytes  # its result, encoded; "" stores none
    expires: int | None = None  # seconds that the result is kept; None for ever
    part: Part | None = None  # of a chord, if it is one

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
    """Store one entry now and return the script's answer for it."""
    answer = SETTLE.run(client, *_command([entry]))[0]
    if isinstance(answer, ResponseError):
        raise answer
    return answer


def _fitting(entries: Sequence[Entry]) -> int:
    size = 0
    for count, entry in enumerate(entries[:_MOST]):
        size += entry.size
        if count and size > _MOST_BYTES:
            return count
    return min(len(entries), _MOST)


async def _write_all(settings: Settings, entries: list[Entry]) -> list[Any]:
    answers: list[Any] = await SETTLE.arun(async_client(settings), *_command(entries))
    return answers


_writes: PerLoop[Gathering[Entry]] = PerLoop()


def gathered_writes() -> Gathering[Entry]:
    """The running loop's writer, for the address in its settings.

    The more calls end while one trip is under way, the fewer trips each costs. What it is asked to store gives the
    script's answer, or the RedisError where it is not taken.
    """
    settings = get_settings()
    return _writes.get(settings.redis_url.get_secret_value(), lambda: Gathering(
        partial(_write_all, settings), _fitting, "callsheet-results"))
