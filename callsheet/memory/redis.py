"""RedisMemory: a memory that is kept under an agent's id, for everyone who knows the id."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from callsheet.errors import UsageError
from callsheet.memory.compaction import Policy
from callsheet.memory.inmemory import InMemoryMemory
from callsheet.messages import Msg

T = TypeVar("T")
Work = Callable[[InMemoryMemory], Awaitable[T]]


class Kept(Protocol):
    """Where the memories of agents are kept; whoever keeps them says how to reach them."""

    async def look(self, agent_id: str, path: str, work: Work[T]) -> T:
        """Do something with a copy of the memory at `path` of the agent."""

    async def change(self, agent_id: str, path: str, work: Work[T]) -> T:
        """Do something with it in a turn of the agent, and keep what it changed."""


_kept: list[Kept] = []


def provide_kept(kept: Kept) -> None:
    """Say where memories are kept; called once by the layer above, at import."""
    _kept[:] = [kept]


class RedisMemory(InMemoryMemory):
    """The memory of an agent by the agent's id, read and changed where it is kept.

    Without an id it is its agent's own, as an InMemoryMemory is. With one it may be used in any process, and several
    agents may share it: `RedisMemory("team-notes")`. Each change then takes a turn of that id, for as long as it takes.

    Args:
        agent_id: whose memory; "" for that of the agent that has it.
        path: of the memory in that agent, if it has several, e.g. "notes".
        compaction: as of InMemoryMemory; of a memory with an id asked by `compact` only.
    """

    agent_id: str = ""

    def __init__(self, agent_id: str = "", path: str = "memory", compaction: Policy | None = None) -> None:
        super().__init__(compaction)
        self.agent_id, self.path = agent_id, path

    def has_state(self) -> bool:
        """Whether it is kept with its agent: where it has no id of its own."""
        return not self.agent_id

    async def _look(self, work: Work[T]) -> T:
        return await _place().look(self.agent_id, self.path, work)

    async def _change(self, work: Work[T]) -> T:
        return await _place().change(self.agent_id, self.path, work)

    async def add(self, memories: Msg | list[Msg] | None, marks: str | list[str] | None = None,
                  allow_duplicates: bool = False, **kwargs: Any) -> None:
        """As InMemoryMemory."""
        if not self.agent_id:
            return await super().add(memories, marks, allow_duplicates, **kwargs)
        return await self._change(lambda kept: kept.add(memories, marks, allow_duplicates))

    async def delete(self, msg_ids: str | int | Iterable[str | int], **kwargs: Any) -> int:
        """As InMemoryMemory."""
        if not self.agent_id:
            return await super().delete(msg_ids, **kwargs)
        return await self._change(lambda kept: kept.delete(msg_ids))

    async def delete_by_mark(self, mark: str | list[str], **kwargs: Any) -> int:
        """As InMemoryMemory."""
        if not self.agent_id:
            return await super().delete_by_mark(mark, **kwargs)
        return await self._change(lambda kept: kept.delete_by_mark(mark))

    async def get_memory(self, mark: str | None = None, exclude_mark: str | None = None,
                         prepend_summary: bool = True, *, original: bool = False, **kwargs: Any) -> list[Msg]:
        """As InMemoryMemory."""
        if not self.agent_id:
            return await super().get_memory(mark, exclude_mark, prepend_summary, original=original, **kwargs)
        return await self._look(lambda kept: kept.get_memory(mark, exclude_mark, prepend_summary, original=original))

    async def compact(self, *, refused: bool = False) -> bool:
        """As InMemoryMemory."""
        if not self.agent_id:
            return await super().compact(refused=refused)

        async def work(kept: InMemoryMemory) -> bool:
            kept.compaction = self.compaction
            return await kept.compact(refused=refused)

        return await self._change(work)

    async def size(self) -> int:
        """As InMemoryMemory."""
        return await self._look(lambda kept: kept.size()) if self.agent_id else await super().size()

    async def clear(self) -> None:
        """As InMemoryMemory."""
        await (self._change(lambda kept: kept.clear()) if self.agent_id else super().clear())

    async def update_messages_mark(self, new_mark: str | None, old_mark: str | None = None,
                                   msg_ids: list[str] | None = None) -> int:
        """As InMemoryMemory."""
        if not self.agent_id:
            return await super().update_messages_mark(new_mark, old_mark, msg_ids)
        return await self._change(lambda kept: kept.update_messages_mark(new_mark, old_mark, msg_ids))

    async def update_compressed_summary(self, summary: str) -> None:
        """As InMemoryMemory."""
        if self.agent_id:
            await self._change(lambda kept: kept.update_compressed_summary(summary))
        else:
            await super().update_compressed_summary(summary)


def _place() -> Kept:
    if not _kept:
        raise UsageError("Nothing is there to keep memories: import callsheet, not callsheet.memory alone.")
    return _kept[0]
