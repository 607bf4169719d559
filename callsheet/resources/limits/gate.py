"""Gates: each is one process's queue for one endpoint, which asks the limiter by the batch.

A gate lives on the process's loop and is asked from any. However many calls wait, one exchange is under way at a time,
which carries whatever came up during the one before. Between exchanges the gate sleeps until the first of its calls
may have its turn, as the limiter reckoned, or until the limiter wakes it.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Hashable
from typing import Any
from uuid import uuid4

from callsheet.errors import CallsheetError, LimiterUnavailable
from callsheet.resources.limits.local import LocalStore
from callsheet.resources.limits.messages import Answer, Grant, Limits, Message, Spent, Store, Ticket, refusal
from callsheet.resources.limits.store import RedisStore
from callsheet.resources.loops import lasting_loop, running_loop
from callsheet.settings import Settings

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that a call waits for a Redis that does not answer."""

ANSWERS_WITHIN = 5.0
"""Seconds that Redis may take for an exchange."""

BEAT_WAITING, BEAT_HOLDING = 1.0, 5.0
"""Seconds between signs of life of a gate whose calls wait, or are under way."""

LAZY = 0.05
"""Seconds that a report may wait for the next exchange when nobody waits for what it frees."""

LEARNED_AGAIN = 300.0
"""Seconds after which what the provider says of its limits is told to the limiter again."""

MOST_ASKS = 250
"""New calls in one exchange."""

SOONEST, SLOWEST = 0.002, 0.25
"""Seconds between two exchanges: at least, and where the turn was told too early again and again."""


class Gate:
    """One process's queue for one endpoint; its methods are to be called on its loop, unless they say otherwise.

    Args:
        name: the endpoint's.
        limits: from its settings.
        store: where they are kept.

    Attributes:
        paused_until: `time.monotonic()` before which nobody may send; read from any thread.
        learned: limits that the provider told, [requests, tokens] in a window; 0 unknown.
        watched_until: `time.monotonic()` until which a limit that the provider told is kept to though none is set.
        limit: what its first waiting call waits for.
        failing_since: `time.monotonic()` since when Redis has not answered, or None.
    """

    def __init__(self, name: str, limits: Limits, store: Store) -> None:
        self.name, self.limits = name, limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self.paused_until = 0.0
        self.learned = (0, 0)
        self.watched_until = 0.0
        self.id = uuid4().hex[:16]
        self._store = store
        self._numbers = itertools.count(1)
        self._tickets: dict[int, Ticket] = {}  # that wait
        self._in_line: set[int] = set()  # of these, those that the limiter has told are queued
        self._new: dict[int, None] = {}  # to be asked for; in order
        self._struck: dict[int, int] = {}  # tokens of those that left the line while an exchange was under way
        self._cancels: list[str] = []
        self._settles: list[tuple[int, int, int]] = []
        self._news: dict[str, Any] = {}  # pause, learned, foreign: for the next message
        self._held = 0
        self._resync = False
        self._due = False
        self._contended = limits.calls is not None
        self._learned_until = 0.0
        self._delay = SOONEST
        self.failing_since: float | None = None
        self.limit = ""
        self._turn: float | None = None
        self._running: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._attached = False

    # From any thread

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The process's, which is started when it is first needed."""
        if self._loop is None:
            self._loop = lasting_loop()
        return self._loop

    @property
    def usable(self) -> bool:
        """Whether its loop still runs."""
        return self._loop is None or not self._loop.is_closed()

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._tickets)

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Run a method of the gate on its loop."""
        if running_loop() is self.loop:
            function(*args)
        else:
            with contextlib.suppress(RuntimeError):  # closed: its process ends
                self.loop.call_soon_threadsafe(function, *args)

    def paused(self, name: str, seconds: float) -> None:
        """Somebody was told to leave an endpoint alone."""
        until = time.monotonic() + seconds
        if name == self.name and until > self.paused_until:
            self.paused_until = until
            self.call(self._refuse_late)

    def learn(self, requests: int, tokens: int) -> None:
        """The provider told its limits in a window, 0 for none; goes with the next exchange."""
        now, known = time.monotonic(), self.learned
        if now > self._learned_until:
            known = (0, 0)
        merged = _least(requests, known[0]), _least(tokens, known[1])
        if merged != known:
            self._news["learned"] = self.learned = merged
            self._learned_until = now + LEARNED_AGAIN

    # For calls

    def attach(self) -> None:
        """Listen for turns and pauses."""
        if not self._attached:
            self._attached = True
            self._store.attach(self.id, lambda _: self.call(self.look), self.paused)

    def ask(self, ticket: Ticket) -> None:
        """Queue a call."""
        self.attach()
        ticket.ask.id = next(self._numbers)
        self._tickets[ticket.ask.id] = ticket
        self._new[ticket.ask.id] = None
        self.look()

    def give_up(self, ticket: Ticket) -> None:
        """The call wants no turn any more; one that it had unused goes back."""
        ticket.dead = True
        if ticket.grant is not None:
            grant, ticket.grant = ticket.grant, None
            self.ended(grant, ticket.ask.tokens, Spent(0, 0))
        elif ticket.ask.id in self._in_line:
            self._strike(ticket)
            self.look()
        elif ticket.ask.id in self._new:
            del self._new[ticket.ask.id]
            self._tickets.pop(ticket.ask.id, None)

    def _strike(self, ticket: Ticket) -> None:
        self._in_line.discard(ticket.ask.id)
        del self._tickets[ticket.ask.id]
        self._cancels.append(ticket.entry)
        self._struck[ticket.ask.id] = ticket.ask.tokens

    def ended(self, grant: Grant, tokens: int, spent: Spent) -> None:
        """A call that was granted so many tokens has ended, and used this."""
        self._held -= 1
        change = spent.requests - 1, spent.tokens - tokens
        if change != (0, 0):
            self._settles.append((grant.bucket, *change))
        if self._contended or self._in_line:
            self.look()
        elif self._settles and self._running is None:
            self._wake_in(LAZY)

    def pause(self, seconds: float) -> None:
        """The endpoint asked to be left alone: tell everybody."""
        self.attach()
        self._news["pause"] = max(seconds, self._news.get("pause", 0.0))
        self.look()

    def foreign(self, number: int, requests: int, tokens: int) -> None:
        """At the grant of that number the provider had counted so much beyond what we had."""
        self._news["foreign"] = number, requests, tokens
        self.look()

    def look(self) -> None:
        """Make an exchange now, or right after the one under way."""
        self._due = True
        if self._running is None:
            self._running = self.loop.create_task(self._exchanges(), name=f"callsheet-limits-{self.name}")

    # Exchanges

    async def _exchanges(self) -> None:
        try:
            while self._due:
                self._due = False
                await self._exchange()
        except asyncio.CancelledError:
            self._resync = True  # what the server made of it is not known
            raise
        finally:
            self._running = None
        self._schedule()

    async def _exchange(self) -> None:
        message, began = self._message(), time.monotonic()
        try:
            async with asyncio.timeout(ANSWERS_WITHIN):
                answer = await self._store.exchange(message)
        except Exception as exc:  # whatever it is, callers must not wait for ever
            await self._failed(exc)
            return
        self.failing_since = None
        self._apply(message, answer, began)

    def _message(self) -> Message:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        new = list(itertools.islice(self._new, MOST_ASKS))
        for number in new:
            del self._new[number]
        self._due = bool(self._new)  # the server has others to serve between two parts
        asks = [ticket.ask for number in new if (ticket := self._tickets.get(number)) is not None]
        asks.sort(key=lambda ask: ask.priority)
        now = time.monotonic()
        for ask in asks:
            until = self._tickets[ask.id].until
            ask.longest = -1.0 if until is None else max(0.0, until - now)
        cancels, self._cancels = self._cancels, []
        self._struck.clear()
        settles, self._settles = _joined(self._settles), []
        news, self._news = self._news, {}
        resync, self._resync = self._resync, False
        return Message(gate=self.id, name=self.name, limits=self.limits, held=self._held,
                       queued=len(self._in_line), asks=asks, cancels=cancels, settles=settles, resync=resync, **news)

    def _apply(self, message: Message, answer: Answer, began: float) -> None:
        if answer.resync:
            self._ask_anew()
            return
        for grant in answer.grants:
            self._granted(grant, began)
        for number, entry, place in answer.queued:
            self._queued(number, entry, place)
        for number, limit, seconds in answer.refused:
            self._refuse(number, limit, seconds)
        if answer.paused > 0:
            self.paused(self.name, answer.paused)
        self._contended = self.limits.calls is not None or answer.waiting > 0
        self._turn, self.limit = answer.turn, answer.limit
        self._delay = SOONEST if answer.grants or message.asks else min(SLOWEST, self._delay * 2)

    def _granted(self, grant: Grant, began: float) -> None:
        self._held += 1
        self._in_line.discard(grant.id)
        ticket = self._tickets.pop(grant.id, None)
        if ticket is None or ticket.dead:
            tokens = self._struck.get(grant.id, 0) if ticket is None else ticket.ask.tokens
            self.ended(grant, tokens, Spent(0, 0))
            return
        ticket.grant, ticket.asked = grant, began
        self._on(ticket, ticket.go, grant)

    def _queued(self, number: int, entry: str, place: str) -> None:
        ticket = self._tickets.get(number)
        if ticket is None:
            return
        if ticket.dead:
            del self._tickets[number]
            self._cancels.append(entry)
            self._due = True
            return
        ticket.entry, ticket.place = entry, place
        self._in_line.add(number)
        self._on(ticket, ticket.wait)

    def _refuse(self, number: int, limit: str, seconds: float, error: CallsheetError | None = None) -> None:
        self._in_line.discard(number)
        ticket = self._tickets.pop(number, None)
        if ticket is not None:
            self._on(ticket, ticket.fail, error or refusal(self.name, limit, seconds, ticket.ask.tokens))

    def _refuse_late(self) -> None:
        """Those for whom a pause is too long need not wait to find out."""
        for number in list(self._in_line):
            ticket = self._tickets[number]
            if ticket.until is not None and ticket.until < self.paused_until:
                self._strike(ticket)
                self._on(ticket, ticket.fail, refusal(self.name, "pause", self.paused_until - time.monotonic(), 0))

    def _on(self, ticket: Ticket, function: Callable[..., None], *args: Any) -> None:
        if ticket.loop is self.loop:
            function(*args)
        else:
            with contextlib.suppress(RuntimeError):  # its loop is closed, and the call gone with it
                ticket.loop.call_soon_threadsafe(function, *args)

    def _ask_anew(self) -> None:
        """The limiter has lost this gate's queue, or may have: ask for every call again."""
        for number in [number for number, ticket in self._tickets.items() if ticket.dead]:
            del self._tickets[number]
        self._in_line.clear()
        for ticket in self._tickets.values():
            ticket.entry = ticket.place = ticket.ask.place = ""
        self._new = dict.fromkeys(self._tickets)
        self._due = bool(self._new)

    async def _failed(self, exc: Exception) -> None:
        """Redis gives no answer. What was given back is lost, so that nothing is given back twice."""
        now = time.monotonic()
        self.failing_since = self.failing_since or now
        self._resync = True
        self._ask_anew()
        if now - self.failing_since >= PATIENCE:
            for number in list(self._tickets):
                self._refuse(number, "", 0, self.unavailable(exc))
            self._new = {}
            self.failing_since = None
        self._due = bool(self._tickets)
        log.warning("limiter_unavailable endpoint=%s waiting=%d: %s", self.name, len(self._tickets),
                    type(exc).__name__)
        if self._due:
            await asyncio.sleep(min(1.0, 0.1 + (now - (self.failing_since or now)) / 4))

    def unavailable(self, exc: Exception | None = None) -> LimiterUnavailable:
        """The error of a call that waited for Redis in vain."""
        return LimiterUnavailable(f"The limits of endpoint {self.name!r} are kept in Redis, which does not answer"
                                  f"{f': {exc}' if exc else ''}. Calls go on when it does; without limits in the "
                                  "endpoint's settings they do not need it.")

    # When to look again

    def _schedule(self) -> None:
        if self._in_line:
            delay = BEAT_WAITING
            if self._turn is not None and self.limit != "max_concurrency":
                delay = min(delay, max(self._turn, self._delay))
            self._wake_in(delay)
        elif self._settles:
            self._wake_in(LAZY)
        elif self._held and self.limits.calls is not None:
            self._wake_in(BEAT_HOLDING)

    def _wake_in(self, seconds: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= self.loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.look()


def _least(one: int, other: int) -> int:
    """The smaller one; 0 is none."""
    return min(one, other) if one and other else one or other


def _joined(settles: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """One entry a bucket."""
    sums: dict[int, list[int]] = {}
    for bucket, requests, tokens in settles:
        found = sums.setdefault(bucket, [0, 0])
        found[0] += requests
        found[1] += tokens
    return [(bucket, requests, tokens) for bucket, (requests, tokens) in sums.items() if requests or tokens]


_MOST_KEPT = 1024
_gates: dict[Hashable, Gate] = {}
_stores: dict[Hashable, Store] = {}


def _forget() -> None:
    _gates.clear()
    _stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # the parent's loop, and what runs on it, stay there


def gate_of(name: str, limits: Limits, settings: Settings | None) -> Gate:
    """The process's gate of an endpoint.

    Args:
        name: the endpoint's.
        limits: from its settings.
        settings: where Redis is; None: this process counts for itself.
    """
    redis = (settings.redis_url, settings.key_prefix) if settings is not None else None
    key = (name, limits, redis)
    gate = _gates.get(key)
    if gate is not None and gate.usable:
        return gate
    if len(_gates) >= _MOST_KEPT:
        _forget()
    store = _stores.get(redis)
    if store is None:
        store = _stores[redis] = RedisStore(settings) if settings is not None else LocalStore()
    gate = _gates[key] = Gate(name, limits, store)
    if settings is not None:
        gate.call(gate.attach)  # pauses concern also those who have no limits
    return gate


def waiting() -> dict[str, int]:
    """Calls of this process that wait for their turn, by endpoint; any thread."""
    found: dict[str, int] = {}
    for gate in tuple(_gates.values()):
        found[gate.name] = found.get(gate.name, 0) + gate.waiting
    return found
