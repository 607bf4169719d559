"""States in this process, for calls that run inline."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from callsheet.errors import StateMismatch, UsageError
from callsheet.hub.local import PROCESS as PROCESS_HUBS
from callsheet.hub.local import LocalHubs
from callsheet.tasks.turns.records import (
    NOTHING,
    Busy,
    Changes,
    Claim,
    Described,
    Ended,
    Granted,
    Place,
    Replied,
    Stored,
    held_up,
    other_class,
)


@dataclass
class _State:
    """One agent's."""

    cls: str = ""
    token: int = 0
    version: int = 0
    turns: int = 0
    created: float = 0.0
    updated: float = 0.0
    fields: dict[str, str] = field(default_factory=dict)
    entries: list[tuple[int, str, str]] = field(default_factory=list)  # turn, path, change
    base: int = 0  # of the entries
    holder: Claim | None = None
    waits: frozenset[str] = frozenset()
    line: deque[tuple[Claim, "Future[None]"]] = field(default_factory=deque)

    def clear(self) -> None:
        self.cls, self.version, self.turns, self.created, self.base = "", 0, 0, 0.0, 0
        self.fields, self.entries = {}, []

    def stored(self, agent_id: str) -> Stored:
        return Stored(id=agent_id, cls=self.cls, version=self.version, turns=self.turns, created=self.created,
                      updated=self.updated, fields=dict(self.fields),
                      entries=[(path, text) for _, path, text in self.entries])


class LocalStore:
    """As RedisStore. Any thread and any loop; calls wait for their turn where they are."""

    def __init__(self, hubs: LocalHubs) -> None:
        self.hubs = hubs
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()

    async def take(self, claim: Claim, known: int, place: Place | None = None) -> Granted | Replied | Busy:
        """As RedisStore; waits for the turn, and never says Busy."""
        with self._lock:
            state = self._states.setdefault(claim.agent_id, _State())
            _check(state, claim)
            turn: Future[None] = Future()
            if state.holder is None:
                state.holder = claim
                turn.set_result(None)
            else:
                if held := state.waits.intersection(claim.jobs):
                    raise UsageError(held_up(claim, min(held)))
                state.line.append((claim, turn))
        try:
            await asyncio.wrap_future(turn)
            with self._lock:
                _check(state, claim)
        except BaseException:
            self._leave(state, claim)
            raise
        with self._lock:
            state.token += 1
            new = [entry for entry in state.entries[state.base:] if entry[0] > known]
            return Granted(token=state.token, version=state.version, news=self.hubs.news(claim.agent_id),
                           fields=dict(state.fields) if state.version != known else {},
                           entries=[(path, text) for _, path, text in new])

    def _leave(self, state: _State, claim: Claim) -> None:
        with self._lock:
            state.line = deque(entry for entry in state.line if entry[0] is not claim)
            if state.holder is claim:
                self._next(state)

    def _next(self, state: _State) -> None:
        state.holder, state.waits = None, frozenset()
        while state.line:
            claim, turn = state.line.popleft()
            if turn.set_running_or_notify_cancel():
                state.holder = claim
                turn.set_result(None)
                return

    async def end(self, claim: Claim, token: int, changes: Changes = NOTHING, reply: str | None = None) -> Ended:
        """As RedisStore."""
        with self._lock:
            state = self._states[claim.agent_id]
            if changes.replace:
                state.clear()
            if changes.fields or changes.entries:
                now = time.time()
                state.cls, state.version, state.updated = claim.cls or state.cls, token, now
                state.created = state.created or now
                state.turns += 1
                state.fields |= changes.fields
                if changes.base is not None:
                    state.base = len(state.entries) + changes.base
                state.entries += [(token, path, text) for path, text in changes.entries]
                if changes.trim:
                    del state.entries[:state.base]
                    state.base = 0
            eager = self.hubs.ended(claim.agent_id, changes.heard, changes.said)
            if state.holder is not None and state.token == token:
                self._next(state)
            return Ended(state.version, eager)

    async def pass_on(self, claim: Claim) -> None:
        """As RedisStore; nothing is left lying here."""

    async def leave(self, claim: Claim) -> None:
        """As RedisStore."""
        self._leave(self._states[claim.agent_id], claim)

    async def waits(self, claim: Claim, token: int, jobs: Sequence[str]) -> bool:
        """As RedisStore."""
        with self._lock:
            state = self._states[claim.agent_id]
            state.waits = frozenset(jobs)
            return any(state.waits.intersection(one.jobs) for one, _ in state.line)

    # Sessions -----------------------------------------------------------------------------------------

    async def read(self, agent_id: str) -> Stored | None:
        """As RedisStore."""
        with self._lock:
            state = self._states.get(agent_id)
            return state.stored(agent_id) if state and state.version else None

    async def copy(self, agent_id: str, claim: Claim, token: int) -> None:
        """As RedisStore."""
        with self._lock:
            old, new = self._states[agent_id], self._states[claim.agent_id]
            new.cls, new.version, new.turns, new.base = old.cls, token, old.turns, old.base
            new.fields, new.entries = dict(old.fields), list(old.entries)
            new.created = new.updated = time.time()

    async def remove(self, agent_id: str) -> None:
        """As RedisStore."""
        with self._lock:
            state = self._states.get(agent_id)
            if state is not None:
                state.clear()

    async def listed(self, most: int) -> list[Described]:
        """As RedisStore."""
        with self._lock:
            found = [Described(id=agent_id, cls=state.cls, turns=state.turns, created=state.created,
                               updated=state.updated) for agent_id, state in self._states.items() if state.version]
        return sorted(found, key=lambda one: -one.updated)[:most]


def _check(state: _State, claim: Claim) -> None:
    if state.cls and claim.cls and state.cls != claim.cls:
        raise StateMismatch(other_class(claim, state.cls))


PROCESS = LocalStore(PROCESS_HUBS)
"""States of calls that run inline outside of `with inline()`."""
