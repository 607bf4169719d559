"""An agent's state and the data that is kept of it: what a turn finds, and what it changed.

The state of an agent is spread over paths: "count" and "notes.lines" are registered attributes, "memory" is a memory
whose changes are kept one by one; a module that has a `state_dict` of its own is kept as a whole under its path.
Agents in attributes have their own states.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from callsheet.agents import AgentBase
from callsheet.errors import CallsheetError, CannotTravel, PayloadTooLarge, StateMismatch
from callsheet.memory.inmemory import InMemoryMemory
from callsheet.memory.journal import Change, apply, written
from callsheet.messages import StateModule
from callsheet.messages.state import to_json
from callsheet.tasks.turns.records import Changes, Granted, Stored

logger = logging.getLogger(__name__)

WHOLE = "*"
"""The path of an agent that has a `state_dict` of its own."""


class Binding:
    """An agent's state during its turns here.

    Args:
        agent: as its constructor left it.
        stored: gives the state as it is kept, with all changes.

    Attributes:
        size: bytes that the state takes, as JSON.
        entries: how many changes were read or written.
        rebound: whether the agent has other memories by now than its constructor gave it.
    """

    def __init__(self, agent: AgentBase, stored: Callable[[], Awaitable[Stored | None]]) -> None:
        self.agent, self._stored = agent, stored
        self.size = self.entries = 0
        self.rebound = False
        self._attributes: dict[str, tuple[StateModule, str]] = {}  # module and attribute, "" for the whole
        self._memories: dict[str, InMemoryMemory] = {}
        self._texts: dict[str, str] = {}
        self._fresh = True  # nothing is kept yet
        self._bind()

    def _bind(self) -> None:
        self._attributes, self._memories = {}, {}
        for path, module in _modules(self.agent):
            prefix = "" if module is self.agent else f"{path}."
            if isinstance(module, InMemoryMemory) and type(module).state_dict is InMemoryMemory.state_dict:
                self._memories[path] = module
            elif type(module).state_dict is not StateModule.state_dict:
                self._attributes[path] = (module, "")
                continue
            for name in module._registrations():
                self._attributes[prefix + name] = (module, name)

    def load(self, granted: Granted) -> None:
        """Take what is new of the state."""
        if granted.version:
            if self._fresh:
                for memory in self._memories.values():
                    memory.content = []
            self._fresh = False
        for path, text in granted.fields.items():
            if path in self._attributes and self._texts.get(path) != text:
                self._set(path, text)
            self._texts[path] = text
        for path, text in granted.entries:
            self.size += len(text)
            self.entries += 1
            if path in self._memories:
                memory = self._memories[path]
                memory.content = apply(memory.content, _parsed(text, path, self.agent), len(memory.content))
        for path, memory in self._memories.items():
            memory.note_changes(self._log(path, memory))

    def _log(self, path: str, memory: InMemoryMemory) -> Callable[[], Awaitable[list[Change]]]:
        """Gives all changes of a memory before those of this turn."""
        beginning = [*memory.content] if self._fresh else None

        async def log() -> list[Change]:
            if beginning is not None:
                return [{"set": written(beginning)}]
            stored = await self._stored()
            return [_parsed(text, path, self.agent) for of, text in stored.entries if of == path] if stored else []

        return log

    @property
    def keeps_nothing(self) -> bool:
        """Whether the agent has no state."""
        return not (self._attributes or self._memories)

    async def compact(self) -> None:
        """Have the memories' policies look. What one raises is logged: the reply is there."""
        for path, memory in self._memories.items():
            try:
                await memory.compact()
            except Exception:
                logger.exception("memory_not_compacted agent=%s id=%s path=%s", self.agent.label, self.agent.id, path)

    def _set(self, path: str, text: str) -> None:
        module, name = self._attributes[path]
        value = _parsed(text, path, self.agent)
        try:
            if not name:
                module.load_state_dict(value)
                return
            how = module._registrations()[name]
            setattr(module, name, how.from_json(value) if how.from_json else value)
        except CallsheetError:
            raise
        except Exception as exc:
            raise StateMismatch(f"The state {path!r} that is kept of {self.agent.label} with the id {self.agent.id!r} "
                                f"does not fit it: {type(exc).__name__}: {exc}. Was it written by another version of "
                                "the class? Let it read what the older one wrote, or delete the state: callsheet "
                                f"session delete {self.agent.id}") from exc

    def changes(self, most: int) -> Changes:
        """What changed since `load`.

        Raises:
            CannotTravel: an attribute is not JSON data any more; names it.
            PayloadTooLarge: one takes more.
        """
        before = self._memories
        self._bind()
        texts = {path: self._text(path) for path in self._attributes}
        changed = {path: text for path, text in texts.items() if self._texts.get(path) != text}
        logs = {}
        for path, memory in self._memories.items():
            if memory is before.get(path):
                logs[path] = memory.take_changes()
            else:  # the reply put another one in its place
                logs[path] = [{"set": written(memory.content)}]
                self.rebound = True
        if self._fresh and (changed or any(logs.values())):
            # What the agent was sent with is the beginning; and whoever knows a deleted state of this id learns so.
            logs = {path: [{"set": written(memory.content)}] for path, memory in self._memories.items()}
        found = in_order(logs, self._memories)
        refuse_large(self.agent.label, [*changed.items(), *found.entries], most)
        return Changes(fields=changed, entries=found.entries, base=found.base, trim=found.trim)

    def _text(self, path: str) -> str:
        module, name = self._attributes[path]
        if name:
            return to_json(module, name, module._registrations()[name])
        try:
            return json.dumps(module.state_dict(), ensure_ascii=False, separators=(",", ":"))
        except Exception as exc:
            raise CannotTravel(f"The state of {path!r} of {self.agent.label} cannot be kept: its state_dict gives no "
                               f"JSON data ({exc}).") from exc

    def saved(self, changes: Changes) -> None:
        """The changes are kept: go on from here, with the values as another worker would read them."""
        self._fresh = self._fresh and not (changes.fields or changes.entries)
        for path, text in changes.fields.items():
            self._set(path, text)
            self._texts[path] = text
        self.size += sum(len(text) for _, text in changes.entries)
        self.entries += len(changes.entries)


def _modules(agent: AgentBase) -> Iterator[tuple[str, StateModule]]:
    """The agent and the modules in it, by path."""
    todo: list[tuple[str, StateModule]] = [(WHOLE, agent)]
    seen: set[int] = set()
    while todo:
        path, module = todo.pop(0)
        if id(module) in seen or (module is not agent and (isinstance(module, AgentBase) or not module.has_state())):
            continue
        seen.add(id(module))
        yield path, module
        if type(module).state_dict is StateModule.state_dict:
            prefix = "" if module is agent else f"{path}."
            todo += [(prefix + name, inner) for name, inner in module._state_modules().items()]


def _parsed(text: str, path: str, agent: AgentBase) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise StateMismatch(f"The state {path!r} that is kept of {agent.label} with the id {agent.id!r} is not JSON: "
                            f"{exc}. Something else has written to Redis under this id.") from exc


def _dumped(change: Change) -> str:
    return json.dumps(change, ensure_ascii=False, separators=(",", ":"))


def refuse_large(label: str, given: Iterable[tuple[str, str]], most: int) -> None:
    """Refuse an attribute or a change that takes more than `most` bytes, unless it is the whole of a memory."""
    for path, text in given:
        if len(text) > most and not text.startswith(('{"set":', '{"compact":')):
            raise PayloadTooLarge(
                f"The state {path!r} of {label} grew by {len(text):,} bytes of JSON at once; the limit is {most:,}. "
                "Keep a reference (a path, an address) in its place, or raise CALLSHEET_PAYLOAD_MAX.")


def in_order(logs: dict[str, list[Change]], memories: dict[str, InMemoryMemory]) -> Changes:
    """The changes of all memories in the order in which they are written.

    Where one says what the whole content is, all do, side by side: who reads begins there.
    """
    if not any("set" in change or "compact" in change for changes in logs.values() for change in changes):
        return Changes(entries=[(path, _dumped(change)) for path, changes in logs.items() for change in changes])
    before: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    trim = True
    for path, memory in memories.items():
        changes = logs.get(path, [])
        last = max((i for i, change in enumerate(changes) if "set" in change or "compact" in change), default=None)
        if last is None:
            last = len(changes)
            changes = [*changes, {"compact": written(memory.content), "drop": []}]
        trim = trim and "set" in changes[last]
        before += [(path, _dumped(change)) for change in changes[:last]]
        after += [(path, _dumped(change)) for change in changes[last:]]
    return Changes(entries=before + after, base=len(before), trim=trim)
