"""States by id, from outside of turns: what `callsheet.sessions` and the command line do with them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from callsheet.agents import AgentBase
from callsheet.agents.dispatch import override
from callsheet.agents.naming import checked_id
from callsheet.errors import StateBusy, StateMismatch, StateMissing, UsageError
from callsheet.memory.inmemory import InMemoryMemory
from callsheet.memory.journal import Change, Content, apply, original
from callsheet.memory.redis import provide_kept
from callsheet.messages import Msg, StateModule
from callsheet.resources.context import current_call
from callsheet.settings import get_settings
from callsheet.tasks.app import current_app
from callsheet.tasks.loop import on_process_loop
from callsheet.tasks.turns.binding import Binding, in_order, refuse_large
from callsheet.tasks.turns.line import Publisher
from callsheet.tasks.turns.local import PROCESS, LocalStore
from callsheet.tasks.turns.records import (
    COLD,
    FORMAT,
    Changes,
    Claim,
    Described,
    Granted,
    Place,
    Stored,
    class_of,
    other_class,
    within_itself,
)
from callsheet.tasks.turns.redis import RedisStore, Store

T = TypeVar("T")

MODULES = "callsheet:modules"
"""Class of a state that is not an agent's: modules saved together under one id."""

PATIENCE = 30.0
"""Seconds that is waited for an agent's turn."""

_LOOK = 0.05  # seconds between two looks whether it has come
_SUMMARY = "_compressed_summary"  # attribute of a memory


def the_store() -> Store:
    """Where states are kept here: in Redis, or inline in this process."""
    here = getattr(override.get(), "store", None)
    settings = get_settings()
    if isinstance(here, LocalStore):
        return here
    return PROCESS if settings.inline else RedisStore(settings, Publisher(current_app(settings), settings))


async def on_loop(store: Store, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do something with a store where its connections live."""
    return await (work() if isinstance(store, LocalStore) else on_process_loop(work))


@asynccontextmanager
async def turn_of(store: Store, agent_id: str, cls: str, label: str) -> AsyncIterator[tuple[Claim, Granted]]:
    """A turn to write in; who is in the block ends it, or it is given back unused.

    Raises:
        StateBusy: the agent's replies leave none within PATIENCE.
        StateMismatch: the state is of another class.
        UsageError: the reply that runs here is the agent's own.
    """
    if agent_id in current_call().held:
        raise UsageError(within_itself(label, agent_id))
    claim = Claim(agent_id=checked_id(agent_id), call_id=f"session-{uuid4()}", cls=cls, label=label,
                  sent=round(time.time() * 1_000_000))
    end = time.monotonic() + PATIENCE
    try:
        while not isinstance(answer := await store.take(claim, COLD, Place()), Granted):
            if time.monotonic() > end:
                raise StateBusy(f"{label} with the id {agent_id!r} is replying, and others wait for it too: no turn "
                                f"within {PATIENCE:g} s. Try again later.")
            await asyncio.sleep(_LOOK)
    except BaseException:
        await store.leave(claim)
        raise
    ended = False
    try:
        yield claim, answer
        ended = True
    finally:
        if not ended:
            await store.end(claim, answer.token)


async def in_turn(agent_id: str, cls: str, label: str, do: Callable[[Store, Claim, Granted], Awaitable[T]]) -> T:
    """Do something in a turn, where the store's connections live; see `turn_of`."""
    store = the_store()

    async def work() -> T:
        async with turn_of(store, agent_id, cls, label) as (claim, granted):
            return await do(store, claim, granted)

    return await on_loop(store, work)


async def save(agent: AgentBase, agent_id: str) -> None:
    """Write an agent's state, in place of what is there."""
    changes = replace(Binding(agent, _nothing).changes(get_settings().payload_max), replace=True)
    await in_turn(agent_id, class_of(agent), agent.label,
                  lambda store, claim, granted: store.end(claim, granted.token, changes))


async def _nothing() -> None:
    return None


async def load(agent: AgentBase, agent_id: str) -> bool:
    """Read a state into an agent; False if there is none."""
    found = await read(agent_id)
    if found is None:
        return False
    if found.cls not in ("", class_of(agent)):
        claim = Claim(agent_id=agent_id, call_id="", cls=class_of(agent), label=agent.label)
        raise StateMismatch(other_class(claim, found.cls))
    Binding(agent, _nothing).load(Granted(token=0, version=found.version, fields=found.fields, entries=found.entries))
    return True


async def read(agent_id: str) -> Stored | None:
    """A state, or None."""
    store = the_store()
    return await on_loop(store, lambda: store.read(agent_id))


async def existing(agent_id: str) -> Stored:
    """A state."""
    found = await read(agent_id)
    if found is None:
        raise StateMissing(f"No state is kept under the id {agent_id!r}. See which are: callsheet session list")
    return found


def content_of(stored: Stored, with_summarised: bool = False) -> dict[str, Content]:
    """What the memories of a state hold, by path; or held before anything was summarised."""
    changes: dict[str, list[Any]] = {}
    for path, text in stored.entries:
        changes.setdefault(path, []).append(json.loads(text))
    read_log = original if with_summarised else _replayed
    return {path: read_log(log) for path, log in changes.items()}


def _replayed(log: list[Change]) -> Content:
    content: Content = []
    for number, change in enumerate(log):
        content = apply(content, change, number)
    return content


def messages_of(stored: Stored, with_summarised: bool) -> list[Msg]:
    """The messages of all memories of a state, the main one's first."""
    found = content_of(stored, with_summarised)
    return [msg for path in sorted(found, key=lambda path: (path != "memory", path)) for msg, _ in found[path]]


async def fork(agent_id: str, new_id: str, overwrite: bool) -> None:
    """Copy a state to another id."""
    source = await existing(agent_id)

    async def copy(store: Store, claim: Claim, granted: Granted) -> None:
        await _free(store, new_id, overwrite)
        await store.copy(agent_id, claim, granted.token)
        await store.end(claim, granted.token)

    await in_turn(new_id, "", source.cls.partition(":")[2] or "the agent", copy)


async def _free(store: Store, agent_id: str, overwrite: bool) -> None:
    if not overwrite and await store.read(agent_id) is not None:
        raise StateMismatch(f"There is a state under the id {agent_id!r} already. Choose another id, or replace it "
                            "(replace=True, --replace).")


async def delete(agent_id: str) -> bool:
    """Remove a state; whether there was one."""
    async def remove(store: Store, claim: Claim, granted: Granted) -> bool:
        there = await store.read(agent_id) is not None
        await store.remove(agent_id)
        await store.end(claim, granted.token)
        return there

    return await in_turn(agent_id, "", "the agent", remove)


async def listed(most: int) -> list[Described]:
    """The states, the last used first."""
    store = the_store()
    return await on_loop(store, lambda: store.listed(most))


# As text ------------------------------------------------------------------------------------------------


async def export(agent_id: str) -> str:
    """A state as JSON lines."""
    found = await existing(agent_id)
    head = {"callsheet": "state", "format": FORMAT, "id": found.id, "class": found.cls, "turns": found.turns,
            "created": found.created, "updated": found.updated,
            "state": {path: json.loads(text) for path, text in sorted(found.fields.items())}}
    lines = [head, *({"memory": path, **json.loads(text)} for path, text in found.entries)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


async def put(text: str, agent_id: str | None, overwrite: bool) -> str:
    """Write a state that `export` gave; gives its id."""
    head, changes = _parsed(text)
    new_id = checked_id(agent_id or head["id"])

    async def write(store: Store, claim: Claim, granted: Granted) -> None:
        await _free(store, new_id, overwrite)
        await store.end(Claim(agent_id=new_id, call_id=claim.call_id, cls=head["class"]), granted.token, changes)

    await in_turn(new_id, "", head["class"].partition(":")[2] or "the agent", write)
    return new_id


def _parsed(text: str) -> tuple[dict[str, Any], Changes]:
    lines: list[Any] = []
    for number, line in enumerate(filter(str.strip, text.splitlines())):
        try:
            lines.append(json.loads(line))
        except ValueError as exc:
            raise StateMismatch(f"Line {number + 1} is not JSON: {exc}. A state is a file that `callsheet session "
                                "export` wrote.") from None
    head = lines[0] if lines and isinstance(lines[0], dict) else {}
    if head.get("callsheet") != "state" or not all(isinstance(head.get(key), kind) for key, kind in (
            ("id", str), ("class", str), ("state", dict), ("format", int))):
        raise StateMismatch("The first line is not the head of a state, as `callsheet session export` writes it.")
    if head["format"] > FORMAT:
        raise StateMismatch(f"The state was exported by a newer version of Callsheet (form {head['format']}; this one "
                            f"knows up to {FORMAT}). Update Callsheet here.")
    entries = []
    for number, line in enumerate(lines[1:], 2):
        if not isinstance(line, dict) or not isinstance(line.get("memory"), str):
            raise StateMismatch(f"Line {number} is no change of a memory, as `callsheet session export` writes it.")
        entries.append((line.pop("memory"), json.dumps(line, ensure_ascii=False, separators=(",", ":"))))
    _try(entries)
    fields = {path: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
              for path, value in head["state"].items()}
    return head, Changes(fields=fields, entries=entries, replace=True)


def _try(entries: Iterable[tuple[str, str]]) -> None:
    """Refuse entries that no memory could be read from."""
    content: dict[str, Content] = {}
    for number, (path, text) in enumerate(entries, 2):
        try:
            content[path] = apply(content.get(path, []), json.loads(text), number)
        except (LookupError, TypeError, StateMismatch) as exc:
            raise StateMismatch(f"Line {number} does not fit: {exc}") from exc


# AgentScope's sessions ----------------------------------------------------------------------------------


async def save_modules(session_id: str, modules: dict[str, StateModule]) -> None:
    """Write the states of modules under one id, in one step."""
    fields = {name: json.dumps(module.state_dict(), ensure_ascii=False) for name, module in modules.items()}
    await in_turn(session_id, MODULES, "the session", lambda store, claim, granted: store.end(
        claim, granted.token, Changes(fields=fields, replace=True)))


async def load_modules(session_id: str, modules: dict[str, StateModule], allow_not_exist: bool) -> None:
    """Read the states of modules; those that were not saved stay as they are."""
    found = await read(session_id) if allow_not_exist else await existing(session_id)
    if found is None:
        return
    if found.cls != MODULES:
        raise StateMismatch(f"The state under the id {session_id!r} is that of an agent of {found.cls}: load it with "
                            "sessions.load(agent).")
    for name, module in modules.items():
        if name in found.fields:
            module.load_state_dict(json.loads(found.fields[name]))


# Memories that several agents share ----------------------------------------------------------------------


def _memories(path: str, fields: dict[str, str], entries: list[tuple[str, str]]) -> dict[str, InMemoryMemory]:
    """All memories of a state, that at `path` among them; each knows its changes so far."""
    logs: dict[str, list[Change]] = {path: []}
    for of, text in entries:
        logs.setdefault(of, []).append(json.loads(text))
    found = {}
    for of, log in logs.items():
        memory = found[of] = InMemoryMemory()
        memory.content = _replayed(log)
        memory._compressed_summary = json.loads(fields.get(f"{of}.{_SUMMARY}", '""'))

        async def so_far(log: list[Change] = log) -> list[Change]:
            return log

        memory.note_changes(so_far)
    return found


class Shared:
    """See Kept."""

    async def look(self, agent_id: str, path: str, work: Callable[[InMemoryMemory], Awaitable[T]]) -> T:
        """See Kept."""
        found = await read(agent_id)
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
