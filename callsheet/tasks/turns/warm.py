"""Agents with state that a process keeps ready between their turns."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from callsheet.agents import AgentBase
from callsheet.tasks.turns.binding import Binding

_AGENT = 20_000  # bytes that an agent takes without its state, about
_ENTRY = 2_000  # bytes that a message takes beside its text, about


@dataclass
class Warm:
    """An agent between two turns.

    Attributes:
        spec: what it was built of, as it travelled.
        binding: to its state.
        version: of the state.
        attributes: as they were before any turn, without those that are state.
    """

    spec: Any
    binding: Binding
    version: int
    attributes: dict[str, Any]

    @property
    def agent(self) -> AgentBase:
        """The agent."""
        return self.binding.agent

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return _AGENT + self.binding.entries * _ENTRY + 2 * self.binding.size

    def restore(self) -> None:
        """Undo what replies set on the agent beside its state, as if it was built anew."""
        here, state = vars(self.agent), vars(self.agent).get("_registered", {})
        for name in [name for name in here if name not in self.attributes and name not in state]:
            del here[name]
        here.update(self.attributes)


def attributes_of(agent: AgentBase) -> dict[str, Any]:
    """An agent's attributes without those that are state."""
    state = vars(agent).get("_registered", {})
    return {name: value for name, value in vars(agent).items() if name not in state}


class WarmAgents:
    """The agents kept, the least recently used first. One thread."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Warm] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, agent_id: object) -> bool:
        return agent_id in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def take(self, agent_id: str, spec: Any) -> Warm | None:
        """The agent of this id, if it was built of `spec`; it is no longer kept here."""
        found = self._kept.pop(agent_id, None)
        if found is None:
            return None
        self.size -= found.size
        return found if found.spec == spec else None

    def keep(self, agent_id: str, warm: Warm) -> None:
        """Keep an agent, and let others go where there is no place for all."""
        before = self._kept.pop(agent_id, None)
        if before is not None:
            self.size -= before.size
        if not self.most or warm.size > self._most_bytes:
            return
        self._kept[agent_id] = warm
        self.size += warm.size
        while len(self._kept) > self.most or self.size > self._most_bytes:
            _, gone = self._kept.popitem(last=False)
            self.size -= gone.size
