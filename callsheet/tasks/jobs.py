"""Job: what a caller holds of work under way."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import Any

from celery import Celery, states

from callsheet.agents.options import is_id
from callsheet.errors import RedisUnavailable, ResultTimeout, UsageError
from callsheet.hub.place import refuse_on_loop
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader
from callsheet.resources.accounts import JobUsage
from callsheet.resources.backlog import backlogs, in_words
from callsheet.resources.books import job_usage
from callsheet.resources.epoch import REMEDY, epoch
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings, get_settings
from callsheet.settings.keys import Keys
from callsheet.tasks import payloads
from callsheet.tasks.app import current_app
from callsheet.tasks.bridge import parked
from callsheet.tasks.control import Said, ask_workers
from callsheet.tasks.events import Event, checked_since, read_events
from callsheet.tasks.loop import on_process_loop, wait_on_process_loop
from callsheet.tasks.patience import patient
from callsheet.tasks.people import answers
from callsheet.tasks.people.store import Question, questions_of
from callsheet.tasks.records import CallRecord
from callsheet.tasks.results import RESULT_KEY, failure, ready, stored_results
from callsheet.tasks.tree.read import refuse_unknown
from callsheet.tasks.turns.desk import current_turn, waiting_for
from callsheet.tasks.waiter import grace, waiter
from callsheet.tasks.whereabouts import whereabouts

_TOGETHER = 500  # jobs cancelled with one broadcast
_UNKNOWN_FOR = 3.0  # seconds in which nothing is heard of a job before it is looked for
_EXPLAINED_WITHIN = 3.0  # seconds to find out why a result is not there in time
_CANCELLED_AGAIN = 0.1  # seconds after which what was cancelled and goes on is cancelled again
_RECORDS_LATE = 0.5  # seconds that the records of earlier calls may come after the last one's


class Job:
    """A call, or a pipeline's calls, under way on workers.

    Make one with `agent.submit(...)`, `pipeline.submit(...)` or `Job.from_id(id)`. In plain code use `get`, in async
    code `await job`.

    Attributes:
        id: also the Celery task id of its last call; stock Celery clients can read the result under it.
        label: what runs, for people.
    """

    def __init__(self, job_id: str, *, label: str = "", queues: tuple[str, ...] = (),
                 calls: tuple[str, ...] | None = None, settings: Settings | None = None) -> None:
        self.id = job_id
        self.label = label
        self._queues = queues
        self._calls = calls if calls is not None else (job_id,)
        self._settings = settings or get_settings()
        self._losses = epoch(self._settings).losses

    @classmethod
    def from_id(cls, job_id: str) -> "Job":
        """A handle on a job by its id, from any process that has the same Redis; opens no connection yet.

        Raises:
            UsageError: it is no id at all.
        """
        if not is_id(job_id):
            raise UsageError(f"{job_id!r:.80} is no job's id: give the text that job.id is.")
        job = cls(job_id, label=f"job {job_id}")
        job._known = job._made_here = False
        return job

    _known = True
    _made_here = True
    _called = False  # by who waits for it, and so known to be waited for

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the result: a Msg, a list of them or None.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            ResultTimeout: no result in time; names the queue that nothing reads from, if that is why.
            AgentFailed: the agent raised, there.
            JobCancelled: it was cancelled.
            JobLost: Redis lost its data, and no worker has it any more.
            UsageError: called on a running event loop, which it would block; use `await job` there.
        """
        refuse_on_loop("job.get()", "await job")
        try:
            return wait_on_process_loop(self._outcome(), timeout)
        except ResultTimeout:
            raise ResultTimeout(self._why_not_yet(timeout)) from None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        async with parked():
            return await on_process_loop(self._outcome())

    async def _outcome(self) -> Any:
        if self._called or current_turn.get() is None:
            meta = await self._stored()
        else:
            async with waiting_for(self.id):
                meta = await self._stored()
        if meta["status"] != states.SUCCESS:
            raise failure(meta, self.label, self.id)
        data = await patient(lambda: payloads.load_async(meta["result"], self._settings))
        return Reader(AllowList(self._settings.modules)).read(data)

    async def _stored(self) -> dict[str, Any]:
        if not self._known:  # while Redis has what tells which calls it is made of
            await patient(lambda: asyncio.to_thread(self._all_calls))
        return await waiter(self._settings).wait(self.id, self._losses, self._calls)

    def stream(self, since: str = "0") -> "EventStream":
        """What the job's agents print, as events, until the job ends; raises the job's error if it failed.

        Iterate with `async for` in async code, with `for` in plain code.

        Args:
            since: the id of the last event that was seen; goes on after it.

        Raises:
            UsageError: `since` is no event's id.
            UnknownJob: nothing is known of a job of this id, and nothing came of it for some seconds; while iterating.
        """
        return EventStream(self, checked_since(since))

    async def _events(self, since: str) -> AsyncGenerator[Event, None]:
        done = asyncio.ensure_future(self._end())
        try:
            async for event in read_events(self.id, since, done, self._settings):
                yield event
            if done.result()["status"] != states.SUCCESS:
                raise failure(done.result(), self.label, self.id)
        finally:
            done.cancel()

    async def _end(self) -> Any:
        """The result as it is stored; of a job that may be none, UnknownJob in its place."""
        end = asyncio.ensure_future(self._stored())
        try:
            if not self._made_here and not (await asyncio.wait({end}, timeout=_UNKNOWN_FOR))[0]:
                await asyncio.to_thread(refuse_unknown, self.id, self._settings)
            return await end
        finally:
            end.cancel()

    @property
    def status(self) -> str:
        """Celery's state: PENDING (also for an id that is not known), STARTED, RETRY, SUCCESS, FAILURE, REVOKED."""
        meta = stored_results([self.id], self._settings).get(self.id)
        return str(meta["status"] if meta is not None else states.PENDING)

    @property
    def done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.status in states.READY_STATES

    def cancel(self) -> None:
        """Cancel what runs of it and drop what waits; waiting callers get JobCancelled at once.

        A running coroutine is cancelled where it awaits; a process on a cpu worker is ended. A worker that starts
        later drops the job too. A job that has ended stays as it is.
        """
        cancel_all([self])

    def interrupt(self, msg: Said = None) -> bool:
        """Interrupt what runs of it: the agents' `handle_interrupt` answers in place of their `reply`.

        Where the reply awaits, it gets asyncio.CancelledError, with `msg` as its argument; child jobs that it awaits
        are cancelled. A pipeline goes on with what `handle_interrupt` gave. A timeout, a cancellation or a worker's
        shutdown is no interrupt. Blocks for up to a second or two; in async code use `asyncio.to_thread`.

        Returns:
            Whether anything was interrupted: what waits in a queue, or has ended, stays as it is.

        Raises:
            UsageError: the reply is plain code, or runs in a process of a cpu worker.
        """
        if self.done:
            return False
        return ask_workers(self._app(), self._all_calls(), msg, self.label, self._settings)

    def questions(self) -> list[Question]:
        """What it waits for people to answer, the oldest question first."""
        return [] if self.done else questions_of(self.id, self._settings)

    def answer(self, msg: answers.Said = None, data: answers.Data = None, *, question: str | None = None) -> Question:
        """Answer a question that it asks a person: an event of its stream whose `type` is "input_required".

        Args:
            msg: a text, a Msg or content blocks.
            data: of the form that the question's `schema` says, where it has one; a Msg may have them as metadata,
                and a text may be them as JSON.
            question: the id of the one that is meant, where there are several.

        Returns:
            The question that was answered.

        Raises:
            AnswerRefused: it waits for no answer, or for several and `question` is not given; somebody was first; the
                data do not fit.
            PayloadTooLarge: the answer is over the limit.
        """
        return answers.answer(self.id, self.label, msg, data, question, self._settings)

    def calls(self) -> list[CallRecord]:
        """What ran where, and when: a record for each of its calls that has ended, in order of their start."""
        calls, end = self._all_calls(), time.monotonic() + _RECORDS_LATE
        while True:
            metas = stored_results(calls, self._settings)
            # Celery starts the next step of a chain before it stores the result of the one before.
            late = len(metas) < len(calls) and self.id in metas and ready(metas[self.id])
            if not late or time.monotonic() > end:
                break
            time.sleep(0.02)
        found = [record for meta in metas.values() if (record := CallRecord.of(meta)) is not None]
        return sorted(found, key=lambda call: call.started)

    @property
    def usage(self) -> JobUsage:
        """What its agents' outbound calls took so far: tokens, cost, retries, time; complete once it has its result.

        With the calls of agents that its agents called, and of jobs that they submitted. Kept as long as results are.
        """
        return job_usage([self.id], self._settings)

    def remember(self, plan: dict[str, Any]) -> None:
        """Keep in Redis what `from_id` needs to know beyond the id; for jobs of more than one call."""
        key = Keys(self._settings.key_prefix).job(self.id)
        known = {"calls": json.dumps(self._calls), "queues": json.dumps(self._queues), "plan": json.dumps(plan)}
        with translated(self._settings), sync_client(self._settings).pipeline(transaction=False) as pipe:
            pipe.hset(key, mapping=known)
            pipe.expire(key, self._settings.result_expires)
            pipe.execute()

    def _app(self) -> Celery:
        return current_app(self._settings)

    def _all_calls(self) -> tuple[str, ...]:
        if not self._known:
            with translated(self._settings):
                stored = sync_client(self._settings).hgetall(Keys(self._settings.key_prefix).job(self.id))
            if stored:
                self._calls = tuple(json.loads(stored[b"calls"]))
                self._queues = tuple(json.loads(stored[b"queues"]))
            self._known = True
        return self._calls

    def _why_not_yet(self, timeout: float | None) -> str:
        """In words, and soon: a Redis that does not answer is not waited for."""
        found: list[str] = []

        def look() -> None:
            try:
                with translated(self._settings):
                    found.append(self._whats_wrong())
            except RedisUnavailable as exc:
                found.append(str(exc))

        looking = threading.Thread(target=look, name="callsheet-why", daemon=True)
        looking.start()
        looking.join(_EXPLAINED_WITHIN)
        what, number = (self.label, f" (job {self.id})") if self.label else (f"job {self.id}", "")
        text = f"No result of {what} within {timeout:g} s{number}. "
        return text + (found[0] if found else f"The Redis at {self._settings.redis_address} does not answer either: "
                       "see its log and `redis-cli --latency`.")

    def _whats_wrong(self) -> str:
        self._all_calls()
        data = epoch(self._settings)
        data.look()
        if data.losses > self._losses:
            return (f"Redis has lost data since it was sent. If no worker has it any more, job.get() ends with JobLost "
                    f"in up to {grace(self._settings) + 10:.0f} s; if one has, with its result. {REMEDY}")
        if asked := questions_of(self.id, self._settings):
            return (f"It waits for a person's answer to {asked[0].agent}: job.answer(...), or "
                    f"callsheet answer {self.id} TEXT.")
        queues = self._queues or self._settings.known_queues  # of a single call from an id nothing is kept
        found = backlogs(queues, sync_client(self._settings))
        waiting = {queue: backlog for queue, backlog in found.items() if backlog}
        if not waiting:
            return self._not_waiting()
        served = self._app().control.inspect(timeout=1.0).active_queues() or {}
        read = {queue["name"] for queues in served.values() for queue in queues}
        for queue in sorted(set(waiting) - read):
            module = queue if queue in ("io", "cpu") else "io"
            extra = "" if queue in ("io", "cpu") else f" -Q {queue}"
            return (f"No worker reads the queue {queue!r}, where {in_words(waiting[queue])}. Start one: "
                    f"celery -A callsheet.workers.{module} worker{extra}")
        queue, backlog = max(waiting.items(), key=lambda item: item[1])
        return f"Workers are busy: {in_words(backlog)} in the queue {queue!r}. Start more workers."

    def _not_waiting(self) -> str:
        # Of a job made here it is known that there is one; so it is of each that left something in Redis.
        known = self._queues or sync_client(self._settings).exists(
            f"{RESULT_KEY}{self.id}", Keys(self._settings.key_prefix).job(self.id))
        if known:
            if {call for call, _ in whereabouts(self._settings)}.isdisjoint(self._calls) and not self.done:
                return ("Neither a queue nor a worker has a call of it: what it waited for was evicted (have Redis' "
                        "maxmemory-policy at noeviction), has expired (CALLSHEET_RESULT_EXPIRES), or was lost. Submit "
                        "it again.")
            return "It is running, or waits for its time; wait on with job.get(timeout=...)."
        return (f"Nothing is kept of a job of this id at {self._settings.redis_address}: it is a single call whose "
                "reply has not ended, its result has expired, or there never was one. `callsheet show` tells whether a "
                "worker has it; if none has, compare the id with job.id, and CALLSHEET_REDIS_URL with its sender's.")

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.label}>"


def cancel_all(jobs: Sequence[Job]) -> None:
    """Cancel many jobs with a few Redis trips; see Job.cancel."""
    if not jobs:
        return
    settings, app = jobs[0]._settings, jobs[0]._app()
    calls = [job._all_calls() for job in jobs]
    with translated(settings):
        client, key = sync_client(settings), Keys(settings.key_prefix).revoked()
        metas = stored_results([job.id for job in jobs], settings)
        going = [index for index, job in enumerate(jobs) if not ready(metas.get(job.id, {}))]
        now = time.time()
        for start in range(0, len(going), _TOGETHER):
            some = going[start:start + _TOGETHER]
            ids = [call for index in some for call in calls[index]]
            with client.pipeline(transaction=False) as pipe:
                pipe.zadd(key, dict.fromkeys(ids, now))
                pipe.zremrangebyscore(key, 0, now - settings.result_expires)
                pipe.expire(key, settings.result_expires)
                pipe.execute()
            app.control.revoke(ids, terminate=True)
            for index in some:
                app.backend.mark_as_revoked(jobs[index].id, "cancelled", store_result=True)


class EventStream:
    """A job's events; see Job.stream."""

    def __init__(self, job: Job, since: str) -> None:
        self._job = job
        self._since = since

    async def __aiter__(self) -> AsyncIterator[Event]:
        events = _Events(self._job._events(self._since))
        try:
            while (event := await on_process_loop(events.next())) is not None:
                self._since = event.id
                yield event
        finally:
            await on_process_loop(events.end())

    def __iter__(self) -> Iterator[Event]:
        refuse_on_loop("for event in job.stream()", "async for event in job.stream()")
        events = _Events(self._job._events(self._since))
        try:
            while (event := wait_on_process_loop(events.next())) is not None:
                self._since = event.id
                yield event
        finally:
            wait_on_process_loop(events.end())


class _Events:
    """A job's events on the process's loop, where a `next` that was broken off elsewhere takes a moment to end."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events
        self._next: asyncio.Task[Any] | None = None

    async def next(self) -> Event | None:
        self._next = asyncio.current_task()
        try:
            return await anext(self._events, None)
        finally:
            self._next = None

    async def end(self) -> None:
        while self._next is not None:
            await asyncio.wait({self._next}, timeout=_CANCELLED_AGAIN)
            if self._next is not None:  # asyncio.wait_for, which redis-py uses, may swallow a cancellation up to 3.11
                self._next.cancel()
        await self._events.aclose()
