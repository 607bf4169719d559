"""How a worker carries out a call: its payloads are loaded, its agent replies and prints, the reply is written.

A call of an agent with state also takes its agent's turn, and saves what its reply changed (`StatefulCall`).
"""

import asyncio
import contextlib
import contextvars
import functools
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from celery.exceptions import Ignore

from callsheet.agents import AgentBase
from callsheet.agents.asking import asker
from callsheet.agents.base import printer
from callsheet.agents.running import checked_reply, run_reply
from callsheet.errors import TurnLost
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Writer
from callsheet.resources.loops import on_lasting_loop
from callsheet.resources.payloads import store_async
from callsheet.settings import Settings
from callsheet.tasks import payloads
from callsheet.tasks.bridge import unseated
from callsheet.tasks.call import AgentCall, Gathering
from callsheet.tasks.control import Running, interruptible
from callsheet.tasks.events import current_stream
from callsheet.tasks.gather import gathered, piped_input
from callsheet.tasks.loop import on_process_loop, run_private, wait_on_process_loop
from callsheet.tasks.patience import ended, patient, patiently
from callsheet.tasks.people.asker import JobAsker
from callsheet.tasks.prints import EventWriter
from callsheet.tasks.results import failed_meta, failure, parse, ready
from callsheet.tasks.scope import Scope, current_scope
from callsheet.tasks.turns.backlog import Backlog
from callsheet.tasks.turns.desk import Desk, Taken, Turn, running
from callsheet.tasks.turns.hearing import hear, speak, tell_eager
from callsheet.tasks.turns.keeper import Keeper
from callsheet.tasks.turns.line import Publisher, place_of
from callsheet.tasks.turns.records import Busy, Claim, Replied
from callsheet.tasks.turns.redis import RedisStore

logger = logging.getLogger(__name__)

FINAL = "__callsheet_final__"
"""Attribute of an error after which the call is not tried again."""

_MOST_RERUNS = 1  # of a call whose turn was lost
_LOOK = 0.2  # of the lease, between two looks of the keeper


def parts_of(call: AgentCall, value: Any, with_agent: bool = True) -> list[Any]:
    """What large payloads may stand in for; without the agent where it is there already."""
    branches = call.gathering.branches if call.gathering else None
    return [call.agent if with_agent else None, call.args, call.kwargs, value, branches]


def filled(call: AgentCall, parts: list[Any]) -> AgentCall:
    """The call with its payloads in their places."""
    agent, args, kwargs, _, _ = parts
    return replace(call, agent=agent, args=args, kwargs=kwargs)


def arguments(call: AgentCall, parts: list[Any], settings: Settings, backend: Any
              ) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `reply`."""
    value, branches = parts[3:]
    if call.gathering is not None:
        value = gathered(value, Gathering(branches=branches, on_error=call.gathering.on_error), backend)
    return filled(call, parts).arguments(piped_input(value), settings)


def prepared(call: AgentCall, parts: list[Any], settings: Settings, backend: Any
             ) -> tuple[AgentBase, tuple[Any, ...], dict[str, Any]]:
    """The agent and the arguments of `reply`."""
    return filled(call, parts).build_agent(settings), *arguments(call, parts, settings, backend)


def written(call: AgentCall, reply: Any, settings: Settings) -> tuple[Any, dict[str, bytes]]:
    """A reply as JSON data, and the large payloads to store before it is handed on."""
    return payloads.pack(Writer().write(reply, f"the reply of {call.label}"), settings, f"The reply of {call.label}")


async def stored(blobs: dict[str, bytes], settings: Settings) -> None:
    """The large payloads of a reply that has ended are stored; on any loop."""
    if blobs:
        with ended():
            await patient(lambda: on_process_loop(lambda: store_async(blobs, settings)))


async def import_aside(agent: Any, settings: Settings) -> None:
    """Import the agent's module in a thread, the first time: what it imports may take long, and the loop is shared."""
    ref = agent.get("$new") if isinstance(agent, dict) else None
    module = ref.partition(":")[0] if isinstance(ref, str) else ""
    if module and module not in sys.modules and AllowList(settings.modules).admits(module):
        with contextlib.suppress(Exception):  # building the agent raises it again, with a better text
            await asyncio.to_thread(importlib.import_module, module)


async def with_prints(call: AgentCall, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                      settings: Settings, entry: Running | None = None, turn: Turn | None = None) -> Any:
    """The reply, with what the agent prints sent to the job's event stream; `turn`: what it hears before."""
    writer = _writer(call, settings)
    try:
        with _printing_to(writer):
            if turn is not None and turn.news:
                await hear(turn, _in_thread)
            if call.observe:
                return None
            if entry is not None:
                entry.begin(agent)
            return await run_reply(agent, args, kwargs, _in_thread)
    finally:
        with ended():
            await writer.close()


def plain_reply(call: AgentCall, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                settings: Settings) -> Any:
    """As `with_prints`, of a plain `def reply` that runs in this thread."""
    writer = _writer(call, settings)
    try:
        with _printing_to(writer):
            return checked_reply(agent, agent.reply(*args, **kwargs))
    finally:
        with ended():
            writer.close_plain()


def _writer(call: AgentCall, settings: Settings) -> EventWriter:
    return EventWriter(current_scope.get() or Scope(call.job, "", "", False), settings)


@contextlib.contextmanager
def _printing_to(writer: EventWriter) -> Iterator[None]:
    """In the block agents print, and ask people, by way of the job's events."""
    token, stream = printer.set(writer.add), current_stream.set(writer.scope.job)
    asking = asker.set(JobAsker(writer))
    try:
        yield
    finally:
        printer.reset(token)
        current_stream.reset(stream)
        asker.reset(asking)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for `def reply` on an io worker; the pool's slots bound how many are in use."""
    return ThreadPoolExecutor(max_workers=10_000, thread_name_prefix="callsheet-reply")


async def _in_thread(function: Any) -> Any:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads(), context.run, unseated, function)


_desks: dict[tuple[int, str, str], Desk] = {}


def worker_desk(settings: Settings, app: Any) -> Desk:
    """This process's desk; `app` is Celery's."""
    key = (os.getpid(), settings.redis_url.get_secret_value(), settings.key_prefix)
    if key not in _desks:
        for stale in [old for old in _desks if old[0] != key[0]]:
            del _desks[stale]
        publisher = Publisher(app, settings)
        backlog = Backlog(settings)
        store = RedisStore(settings, publisher, backlog)
        keeper = Keeper(store, publisher.now, _LOOK * settings.turn_lease)
        _desks[key] = Desk(store, settings, keeper, warm=True, backlog=backlog)
    return _desks[key]


class StatefulCall:
    """One delivery of a call of an agent with state."""

    def __init__(self, task: Any, call: AgentCall, value: Any, settings: Settings,
                 not_retried: tuple[type[BaseException], ...]) -> None:
        assert call.state is not None
        self._task, self._call, self._value, self._settings = task, call, value, settings
        self._not_retried = not_retried
        self._request = task.request  # another thread would find its own
        self._data: dict[str, Any] = self._request.args[-1]
        self.desk = worker_desk(settings, task.app)
        agent_id, cls = call.state
        self.claim = Claim(agent_id=agent_id, call_id=self._request.id, cls=cls, label=call.label,
                           sent=round(self._data.get("sent", 0) * 1_000_000), before=self._data.get("before", ""),
                           jobs=(call.context.job or call.job, *call.context.parents), once=call.once)

    async def run(self) -> Any:
        """Run it on the asyncio pool; gives the reply as JSON data."""
        with interruptible(self.claim.call_id) as entry:
            taken = await self._take()
            if isinstance(taken, Replied):
                return await self._replied(taken)
            turn = None
            try:
                parts = await patient(lambda: payloads.load_async(self._parts(taken), self._settings))
                await import_aside(parts[0], self._settings)
                turn = self._open(taken, parts)
                args, kwargs = arguments(self._call, parts, self._settings, self._task.backend)
                with running(turn):
                    reply = await with_prints(self._call, turn.agent, args, kwargs, self._settings, entry, turn)
                out, blobs = written(self._call, reply, self._settings)
                blobs |= speak(turn, reply)
            except Exception as exc:
                await self._failed(taken, turn, exc)
                raise
            except BaseException:
                await self._release(taken)
                raise
        return await self._kept(taken, turn, out, blobs)

    def run_plain(self) -> Any:
        """As `run`, in a process of a cpu worker: the reply is in its main thread, where time limits reach it."""
        taken = wait_on_process_loop(self._take)
        if isinstance(taken, Replied):
            return wait_on_process_loop(self._replied(taken))
        turn = None
        try:
            parts = patiently(lambda: payloads.load(self._parts(taken), self._settings))
            turn = self._open(taken, parts)
            args, kwargs = arguments(self._call, parts, self._settings, self._task.backend)
            with running(turn):
                if turn.agent.is_async() or self._call.observe:
                    reply = run_private(with_prints(self._call, turn.agent, args, kwargs, self._settings, None, turn))
                else:
                    if turn.news:
                        run_private(hear(turn, asyncio.to_thread))
                    reply = plain_reply(self._call, turn.agent, args, kwargs, self._settings)
            out, blobs = written(self._call, reply, self._settings)
            blobs |= speak(turn, reply)
        except Exception as exc:
            wait_on_process_loop(self._failed(taken, turn, exc))
            raise
        except BaseException:
            wait_on_process_loop(self._release(taken))
            raise
        return run_private(self._kept(taken, turn, out, blobs))

    async def _kept(self, taken: Taken, turn: Turn, out: Any, blobs: dict[str, bytes]) -> Any:
        """Keep what the reply changed; gives `out`. On any loop."""
        try:
            await turn.warm.binding.compact()
            changes = turn.changes()
            await stored(blobs, self._settings)
        except BaseException:
            await on_process_loop(lambda: self._release(taken))
            raise
        with ended():
            return await on_process_loop(lambda: self._end(turn, changes, out))

    def _parts(self, taken: Taken) -> list[Any]:
        return parts_of(self._call, self._value, with_agent=taken.warm is None)

    def _open(self, taken: Taken, parts: list[Any]) -> Turn:
        return self.desk.open(taken, self._call.agent, lambda: filled(self._call, parts).build_agent(self._settings))

    async def _take(self) -> Taken | Replied:
        """The turn; or what came of the call when it was delivered before.

        Raises:
            Ignore: it is another's turn: the call has stepped back, and is delivered again when its turn comes.
        """
        try:
            answer = await self.desk.take(self.claim, self._call.agent,
                                          lambda: place_of(self._task, self._request, self._data))
        except asyncio.CancelledError:
            on_lasting_loop(lambda: self.desk.store.leave(self.claim))
            raise
        if isinstance(answer, Busy):
            logger.debug("turn_waits agent=%s id=%s call=%s", self.claim.label, self.claim.agent_id,
                         self.claim.call_id)
            raise Ignore
        return answer

    async def _replied(self, before: Replied) -> Any:
        """What came of the call when it was delivered before.

        Raises:
            Ignore: that is known already.
            AgentFailed: it failed.
        """
        if not (self._request.delivery_info or {}).get("redelivered"):
            backend = self._task.backend
            key = backend.get_key_for_task(self.claim.call_id)
            stored = await patient(lambda: asyncio.to_thread(backend.get, key))
            if stored and ready(parse(stored)):
                raise Ignore
        told = json.loads(before.text)
        if "error" not in told:
            if before.eager:  # whoever ran it may have died before it did
                await _told(before.eager)
            return told["out"]
        error = failure(told["error"], self.claim.label, self._call.job)
        setattr(error, FINAL, True)
        raise error

    async def _end(self, turn: Turn, changes: Any, out: Any) -> Any:
        """Save; gives `out`.

        Raises:
            Ignore: the turn was lost, and the call runs again.
            TurnLost: it was lost once more.
        """
        try:
            await self.desk.end(turn, changes, {"out": out})
        except TurnLost as exc:
            await self._lost(exc)
        if turn.eager:
            await _told(turn.eager)
        return out

    async def _lost(self, exc: TurnLost) -> None:
        if exc.args[1]:
            raise Ignore from exc  # another delivery of the call sees to it
        reruns = self._data.get("reruns", 0)
        if reruns >= _MOST_RERUNS:
            raise exc
        logger.warning("turn_lost agent=%s id=%s call=%s: the reply is run again.", self.claim.label,
                       self.claim.agent_id, self.claim.call_id)
        place = place_of(self._task, self._request, {**self._data, "reruns": reruns + 1})
        await Publisher(self._task.app, self._settings)([place.message])
        raise Ignore from exc

    def _last(self, exc: BaseException) -> bool:
        """Whether the call is not tried again after this error."""
        return isinstance(exc, self._not_retried) or self._request.retries >= self._call.retries

    async def _failed(self, taken: Taken, turn: Turn | None, exc: Exception) -> None:
        """Keep what a reply that raised changed, if it is not tried again."""
        if turn is None or not self._last(exc):
            await self._release(taken)
            return
        await self.desk.end_failed(turn, {"error": failed_meta(exc, self.claim.label)})

    async def _release(self, taken: Taken) -> None:
        """Nothing is kept of the turn; in spite of a cancellation."""
        await asyncio.shield(asyncio.ensure_future(self.desk.release(self.claim, taken.granted.token)))


async def _told(hubs: Sequence[str]) -> None:
    """Have the eager members of hubs told; in spite of a cancellation."""
    await asyncio.shield(asyncio.ensure_future(tell_eager(hubs)))
