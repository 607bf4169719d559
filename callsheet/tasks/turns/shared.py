"""Memories by their agent's id, for `RedisMemory`."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from callsheet.memory.inmemory import InMemoryMemory
from callsheet.memory.journal import Change, apply
from callsheet.memory.redis import provide_kept
from callsheet.settings import get_settings
from callsheet.tasks.turns.binding import in_order, refuse_large
from callsheet.tasks.turns.records import Claim, Granted
from callsheet.tasks.turns.redis import Store
from callsheet.tasks.turns.sessions import in_turn, on_loop, the_store

T = TypeVar("T")
_SUMMARY = "_compressed_summary"


def _memories(path: str, fields: dict[str, str], entries: list[tuple[str, str]]) -> dict[str, InMemoryMemory]:
    """All memories of a state, that at `path` among them; each knows its changes so far."""
    logs: dict[str, list[Change]] = {path: []}
    for of, text in entries:
        logs.setdefault(of, []).append(json.loads(text))
    found = {}
    for of, log in logs.items():
        memory = found[of] = InMemoryMemory()
        for number, change in enumerate(log):
            memory.content = apply(memory.content, change, number)
        memory._compressed_summary = json.loads(fields.get(f"{of}.{_SUMMARY}", '""'))

        async def so_far(log: list[Change] = log) -> list[Change]:
            return log

        memory.note_changes(so_far)
    return found


class Shared:
    """See Kept."""

    async def look(self, agent_id: str, path: str, work: Callable[[InMemoryMemory], Awaitable[T]]) -> T:
        """See Kept."""
        store = the_store()
        found = await on_loop(store, lambda: store.read(agent_id))
        memories = _memories(path, found.fields, found.entries) if found else _memories(path, {}, [])
        return await work(memories[path])

    async def change(self, agent_id: str, path: str, work: Callable[[InMemoryMemory], Awaitable[T]]) -> T:
        """See Kept."""
        async def done(store: Store, claim: Claim, granted: Granted) -> T:
            memories = _memories(path, granted.fields, granted.entries)
            memory = memories[path]
            before = memory._compressed_summary
            result = await work(memory)
            found = in_order({of: one.take_changes() for of, one in memories.items()}, memories)
            refuse_large("the agent", found.entries, get_settings().payload_max)
            summary = memory._compressed_summary
            fields = {f"{path}.{_SUMMARY}": json.dumps(summary)} if summary != before else {}
            await store.end(claim, granted.token, replace(found, fields=fields))
            return result

        return await in_turn(agent_id, "", "the agent", done)


provide_kept(Shared())
