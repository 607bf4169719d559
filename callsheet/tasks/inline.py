"""Running calls in the caller's process, with the semantics of workers and without Redis: for unit tests.

The agent and its arguments are written and read as if they travelled, so that an agent is built anew for each call
and what could not travel is refused; only the classes themselves may live anywhere, also in a test function.
"""

import asyncio
import json
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from celery import states
from celery.exceptions import SoftTimeLimitExceeded

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.base import printer
from callsheet.agents.dispatch import override
from callsheet.agents.running import run_reply
from callsheet.errors import AnswerRefused, CallsheetError, JobCancelled, JobError, ResultTimeout, UsageError
from callsheet.hub.local import LocalHubs
from callsheet.hub.place import refuse_on_loop
from callsheet.messages import Msg
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.resources.accounts import JobUsage, local_account
from callsheet.resources.context import call_context, current_call
from callsheet.resources.loops import running_loop
from callsheet.settings import Settings, get_settings
from callsheet.tasks import payloads
from callsheet.tasks.bridge import OWN_CANCEL
from callsheet.tasks.call import AgentCall, Gathering, make_call
from callsheet.tasks.control import Running, Said, plain_code
from callsheet.tasks.events import Event
from callsheet.tasks.gather import gathered
from callsheet.tasks.jobs import Job
from callsheet.tasks.people.store import Question
from callsheet.tasks.pipelines import FanoutPipeline, Member, Pipeline, SequentialPipeline
from callsheet.tasks.records import CallRecord
from callsheet.tasks.reply import NOT_RETRIED, retry_pause
from callsheet.tasks.results import failed_meta, failure, record_of
from callsheet.tasks.scope import Scope, current_scope
from callsheet.tasks.turns.desk import Desk, Turn, waiting_for
from callsheet.tasks.turns.hearing import hear, speak, tell_inline
from callsheet.tasks.turns.local import PROCESS, LocalStore
from callsheet.tasks.turns.records import Claim, within_itself

_POLL = 0.002  # seconds between two looks at what a job printed


@contextmanager
def inline() -> Iterator[None]:
    """Run every call that is made in the block in this process, without Redis; as CALLSHEET_INLINE=1 does for all.

    What agents remember is forgotten at the end of the block.
    """
    settings = get_settings()
    token = override.set(InlineDispatcher(settings, LocalStore(LocalHubs(settings.hub_length))))
    try:
        yield
    finally:
        override.reset(token)


class InlineDispatcher:
    """Runs calls in this process."""

    def __init__(self, settings: Settings, store: LocalStore | None = None) -> None:
        # Payloads stay in their messages: there is no Redis to keep them in.
        self.settings = settings.model_copy(update={"payload_inline_max": settings.payload_max})
        self.store = store or PROCESS
        self.hubs = self.store.hubs
        self._desk = Desk(self.store, self.settings)

    def submit(self, target: Member, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Job:
        """Run it: to its end in plain code, as a task of the running loop in async code."""
        return InlineJob(self._checked(target, args, kwargs, options, awaited=False), args, kwargs)

    def submit_many(self, target: Member, values: Any, options: CallOptions,
                    job_ids: Sequence[str] | None = None) -> list[Job]:
        """A job for each value; with these ids, if given."""
        ids: Sequence[str | None] = job_ids or [options.job_id] * len(values)
        return [self.submit(target, (value,), {}, replace(options, job_id=job_id))
                for value, job_id in zip(values, ids, strict=True)]

    async def call(self, target: Member, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Any:
        """Run it and give its result."""
        return await self._checked(target, args, kwargs, options, awaited=True).run(args, kwargs)

    def _checked(self, target: Member, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions,
                 awaited: bool) -> "InlineRun":
        run = InlineRun(target, options, self._desk, awaited)
        run.check(args, kwargs)
        if isinstance(target, AgentBase):
            target._jobs.add(run)
        return run


class InlineRun:
    """One job's calls; `awaited`: a call that runs here waits for it.

    Attributes:
        records: of its calls that have ended.
        account: what its outbound calls took.
    """

    def __init__(self, target: Member, options: CallOptions, desk: Desk, awaited: bool) -> None:
        self.target = target
        self.options = options
        self.settings = desk.settings
        self._desk = desk
        self.id = options.job_id or str(uuid4())
        self.account = local_account(self.id)
        self._awaited = awaited
        self.records: list[CallRecord] = []
        self._running: set[Running] = set()
        self._local: list[Any] = []
        self._writer = Writer(local=self._local)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse what could not be sent, before anything runs."""
        if not isinstance(self.target, (AgentBase, Pipeline)):
            raise UsageError(f"A {type(self.target).__name__} cannot be submitted: an agent or a pipeline is needed.")
        agents = [self.target] if isinstance(self.target, AgentBase) else self.target.members()
        if isinstance(self.target, Pipeline):
            self._input(args)
            args = ()
        for agent in agents:
            self._queue(agent)
            if running_loop() is None and agent.id in current_call().held and agent.has_state():
                # On a worker it would only be sent; here it runs to its end before the reply goes on.
                raise UsageError(within_itself(agent.label, agent.id))
            self._call_of(agent, args, kwargs)

    def _input(self, args: tuple[Any, ...]) -> Any:
        what = f"the input of {self.target.label}"
        return payloads.pack(self._writer.write(args[0] if args else None, what), self.settings, what)[0]

    def _queue(self, agent: AgentBase) -> str:
        return self.options.queue_for(agent.default_queue(), agent.label, self.settings.known_queues)

    async def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The job's result."""
        start = self.options.start_time()
        if start is not None:
            await asyncio.sleep(max(0.0, start.timestamp() - time.time()))
        if isinstance(self.target, AgentBase):
            out = await self._agent(self.target, args, kwargs)
        else:
            out = await self._any(self.target, self._input(args), kwargs)
        return self._read(out)

    def _read(self, data: Any) -> Any:
        return Reader(AllowList(self.settings.modules), self._local).read(json.loads(json.dumps(data)))

    async def _any(self, target: Member, value: Any, kwargs: dict[str, Any]) -> Any:
        if isinstance(target, AgentBase):
            return await self._agent(target, (self._read(value),), kwargs)
        if isinstance(target, SequentialPipeline):
            for agent in target.agents:
                value = await self._any(agent, value, kwargs)
                kwargs = {} if _has_steps(agent) else kwargs
            return value
        assert isinstance(target, FanoutPipeline)
        gathering = Gathering(branches=target.branches(), on_error=target.on_error)
        if target.enable_gather:
            parts = await asyncio.gather(*(self._branch(agent, value, kwargs) for agent in target.agents))
            results = gathered(list(parts), gathering, None)
        else:
            results = []
            for agent, label in zip(target.agents, gathering.branches, strict=True):
                one = Gathering(branches=(label,), on_error=target.on_error)
                results += gathered([await self._branch(agent, value, kwargs)], one, None)
        return await self._any(target.reduce, results, {}) if target.reduce is not None else results

    async def _branch(self, agent: Member, value: Any, kwargs: dict[str, Any]) -> Any:
        try:
            return await self._any(agent, value, kwargs)
        except CallsheetError as exc:
            return {"$error": record_of(exc, agent.label)}

    def _call_of(self, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call, _ = make_call(agent, args, kwargs, self.options, job=self.id, settings=self.settings,
                            writer=self._writer, awaited=self._awaited)
        return call

    def interrupt(self, msg: Said = None) -> bool:
        """As Job.interrupt; any thread."""
        answers = [entry.interrupt(msg) for entry in list(self._running)]
        if answers and not any(answers):
            raise UsageError(plain_code(self.target.label))
        return any(answers)

    async def _agent(self, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call, sent, status = self._call_of(agent, args, kwargs), time.time(), states.REVOKED
        tries, pause = 0, 0.0
        while True:
            started = time.time()
            token = current_scope.set(Scope(self.id, self.id, call.path or self.id, tries > 0))
            try:
                out = await self._try(agent, call, tries >= self.options.retries)
                status = states.SUCCESS
                return out
            except Exception as exc:
                status = states.FAILURE
                if isinstance(exc, NOT_RETRIED) or tries >= self.options.retries:
                    raise failure(failed_meta(exc, call.label), call.label, self.id) from exc
                status, pause = states.RETRY, retry_pause(tries, self.settings, exc)
            finally:
                current_scope.reset(token)
                if status != states.RETRY:
                    self.records.append(CallRecord(
                        task_id=self.id, agent=call.label, queue=self._queue(agent), worker="inline", pid=os.getpid(),
                        sent=sent, started=started, ended=time.time(), status=str(status)))
            status = states.REVOKED
            await asyncio.sleep(pause)
            tries += 1

    async def _try(self, agent: AgentBase, call: AgentCall, last: bool) -> Any:
        def build() -> AgentBase:
            return call.build_agent(self.settings, self._local)

        def final(exc: Exception) -> bool:
            return last or isinstance(exc, NOT_RETRIED)

        if call.state is None:
            return await self._run(agent, build(), call)
        claim = Claim(agent_id=call.state[0], cls=call.state[1], call_id=self.id, label=call.label,
                      jobs=(call.context.job or self.id, *call.context.parents))
        async with self._desk.whole_turn(claim, call.agent, build, final) as turn:
            out = await self._run(agent, turn.agent, call, turn)
        await tell_inline(turn.eager)
        return out

    async def _run(self, agent: AgentBase, built: AgentBase, call: AgentCall, turn: Turn | None = None) -> Any:
        args, kwargs = call.arguments(None, self.settings, self._local)
        built.msg_queue, built._console = agent.msg_queue, agent._console
        limit = asyncio.timeout(self.options.timeout)
        entry = Running(asyncio.get_running_loop(), built)
        self._running.add(entry)
        try:
            with call_context(call.running(self.id, self.options.timeout, local=True)):
                async with limit:
                    if turn is not None and turn.news:
                        await hear(turn, asyncio.to_thread)
                    reply = None if call.observe else await run_reply(built, args, kwargs)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise JobError(OWN_CANCEL) from exc
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise SoftTimeLimitExceeded(self.options.timeout) from exc  # as on a worker
        finally:
            self._running.discard(entry)
        if turn is not None:
            speak(turn, reply)
        what = f"the reply of {call.label}"
        return payloads.pack(self._writer.write(reply, what), self.settings, what)[0]


def _has_steps(target: Member) -> bool:
    """Whether it makes any call or gathers: an empty SequentialPipeline hands its input on as it is."""
    return not isinstance(target, SequentialPipeline) or any(map(_has_steps, target.agents))


class InlineJob(Job):
    """A job that runs, or ran, in this process."""

    def __init__(self, run: "InlineRun", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(run.id, label=run.target.label, settings=run.settings)
        self._run = run
        self._events_so_far: deque[Event] = deque(maxlen=run.settings.events_max)
        self._printed_runs: set[str] = set()
        self._count = 0
        self._task: asyncio.Task[None] | None = None
        self._over = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        token = printer.set(self._printed)
        try:
            work = self._finish(args, kwargs)
            loop = running_loop()
            if loop is None:
                asyncio.run(_with_all_begun(work))
            else:
                self._task = loop.create_task(work)
                self._task.add_done_callback(self._ended)
                _begun.add(self._task)
        finally:
            printer.reset(token)
        if self._task is None:
            self._over.set()

    def _printed(self, agent: AgentBase, msg: Msg, last: bool) -> None:
        scope = current_scope.get()
        call, run, again = (scope.call, scope.run, scope.again) if scope is not None else ("", "", False)
        self._count += 1
        self._events_so_far.append(Event(id=f"{self._count}-0", agent=agent.label, agent_id=agent.id,
                                         msg=msg.model_copy(deep=True), last=last, time=time.time(), call=call,
                                         run=run, again=again and run not in self._printed_runs))
        self._printed_runs.add(run)

    async def _finish(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._result = await self._run.run(args, kwargs)
        except Exception as exc:
            self._error = exc

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # perhaps before it began
            self._error = JobCancelled(f"The call of {self.label} was cancelled (job {self.id}).")
        elif task.exception() is not None:  # SystemExit and the like
            self._error = task.exception()
        self._over.set()

    def _value(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def get(self, timeout: float | None = None) -> Any:
        """As Job.get; inline, plain code has the result at once."""
        refuse_on_loop("job.get()", "await job")
        if not self._over.wait(timeout):
            raise ResultTimeout(f"No result of {self.label} within {timeout:g} s (job {self.id}).")
        return self._value()

    async def _wait(self) -> Any:
        async with waiting_for(self.id):  # a reply that waits for its own agent's next turn is refused
            if self._task is not None and self._task.get_loop() is asyncio.get_running_loop():
                await asyncio.wait({self._task})
            else:
                await asyncio.to_thread(self._over.wait)
        return self._value()

    async def _events(self, since: str) -> AsyncGenerator[Event, None]:
        seen = int(since.partition("-")[0])
        while True:
            over = self.done
            new = self._count - seen
            for event in list(self._events_so_far)[-new:] if new > 0 else ():
                seen = int(event.id.partition("-")[0])
                yield event
            if over:
                self._value()
                return
            await asyncio.sleep(_POLL)

    @property
    def status(self) -> str:
        """PENDING, SUCCESS, FAILURE or REVOKED."""
        if not self._over.is_set():
            return str(states.PENDING)
        if self._error is None:
            return str(states.SUCCESS)
        return str(states.REVOKED if isinstance(self._error, JobCancelled) else states.FAILURE)

    def interrupt(self, msg: Said = None) -> bool:
        """As Job.interrupt."""
        return self._run.interrupt(msg)

    def questions(self) -> list[Question]:
        """None: the agents of an inline job ask at once, by their input method or at the terminal."""
        return []

    def answer(self, *_: Any, **__: Any) -> Question:
        """Is refused; see `questions`."""
        raise AnswerRefused(f"The job {self.id} of {self.label} runs inline, where a UserAgent asks at the terminal: "
                            "give it another way, UserAgent(name, input=function).")

    def cancel(self) -> None:
        """Cancel it, if it still runs."""
        if self._task is not None and not self._over.is_set():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    @property
    def usage(self) -> JobUsage:
        """As Job.usage."""
        return JobUsage.of(dict(self._run.account.rows))

    def calls(self) -> list[CallRecord]:
        """As Job.calls; they ran in this process."""
        return sorted(self._run.records, key=lambda call: call.started)


#: Tasks of jobs that nobody may wait for.
_begun: "WeakSet[asyncio.Task[None]]" = WeakSet()


async def _with_all_begun(work: Coroutine[Any, Any, None]) -> None:
    """Run a job, and those that it submits without waiting for them: on workers they run too."""
    await work
    loop = asyncio.get_running_loop()
    while left := [task for task in _begun if task.get_loop() is loop and not task.done()]:
        await asyncio.wait(left)
