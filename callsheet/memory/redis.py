"""RedisMemory: a memory that is kept under an agent's id, for everyone who knows the id."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from callsheet.errors import UsageError
from callsheet.memory.compaction import Policy
from callsheet.memory.inmemory import InMemoryMemory

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])
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


def _place() -> Kept:
    if not _kept:
        raise UsageError("Nothing is there to keep memories: import callsheet, not callsheet.memory alone.")
    return _kept[0]


def _where_it_is_kept(method: Method, changes: bool = True) -> Method:
    """A method of InMemoryMemory, of a memory with an id carried out where that is kept."""
    @functools.wraps(method)
    async def there(self: "RedisMemory", *args: Any, **kwargs: Any) -> Any:
        if not self.agent_id:
            return await method(self, *args, **kwargs)
        do = _place().change if changes else _place().look
        return await do(self.agent_id, self.path, lambda kept: method(kept, *args, **kwargs))

    return cast(Method, there)


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

    add = _where_it_is_kept(InMemoryMemory.add)
    delete = _where_it_is_kept(InMemoryMemory.delete)
    delete_by_mark = _where_it_is_kept(InMemoryMemory.delete_by_mark)
    get_memory = _where_it_is_kept(InMemoryMemory.get_memory, changes=False)
    size = _where_it_is_kept(InMemoryMemory.size, changes=False)
    clear = _where_it_is_kept(InMemoryMemory.clear)
    update_messages_mark = _where_it_is_kept(InMemoryMemory.update_messages_mark)
    update_compressed_summary = _where_it_is_kept(InMemoryMemory.update_compressed_summary)

    async def compact(self, *, refused: bool = False) -> bool:
        """As InMemoryMemory."""
        if not self.agent_id:
            return await super().compact(refused=refused)

        async def work(kept: InMemoryMemory) -> bool:
            kept.compaction = self.compaction
            return await kept.compact(refused=refused)

        return await _place().change(self.agent_id, self.path, work)
