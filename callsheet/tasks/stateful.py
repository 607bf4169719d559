"""Calls of agents with state on a worker: each takes its agent's turn, and saves what its reply changed."""

import asyncio
import json
import logging
import os
import traceback
from collections.abc import Sequence
from typing import Any

from celery import states
from celery.exceptions import Ignore

from callsheet.errors import TurnLost
from callsheet.resources.loops import on_lasting_loop
from callsheet.settings import Settings
from callsheet.tasks import payloads
from callsheet.tasks.call import AgentCall
from callsheet.tasks.interrupts import interruptible
from callsheet.tasks.loop import on_process_loop, run_private, wait_on_process_loop
from callsheet.tasks.patience import ended, patient, patiently
from callsheet.tasks.results import failure, parse, ready, record_of
from callsheet.tasks.turns.backlog import Backlog
from callsheet.tasks.turns.desk import Desk, Taken, Turn, running
from callsheet.tasks.turns.hearing import hear, speak, tell_eager
from callsheet.tasks.turns.keeper import Keeper
from callsheet.tasks.turns.line import Publisher, place_of
from callsheet.tasks.turns.records import Busy, Claim, Replied
from callsheet.tasks.turns.redis import RedisStore
from callsheet.tasks.work import (
    arguments,
    filled,
    import_aside,
    parts_of,
    plain_reply,
    stored,
    with_prints,
    written,
)

logger = logging.getLogger(__name__)

FINAL = "__callsheet_final__"
"""Attribute of an error after which the call is not tried again."""

_MOST_RERUNS = 1  # of a call whose turn was lost
_LOOK = 0.2  # of the lease, between two looks of the keeper

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
        record = {"status": states.FAILURE, "result": record_of(exc, self.claim.label),
                  "traceback": "".join(traceback.format_exception(exc))}
        await self.desk.end_failed(turn, {"error": record})

    async def _release(self, taken: Taken) -> None:
        """Nothing is kept of the turn; in spite of a cancellation."""
        await asyncio.shield(asyncio.ensure_future(self.desk.release(self.claim, taken.granted.token)))


async def _told(hubs: Sequence[str]) -> None:
    """Have the eager members of hubs told; in spite of a cancellation."""
    await asyncio.shield(asyncio.ensure_future(tell_eager(hubs)))
