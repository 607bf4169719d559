"""The job of calls that run in the caller's process."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery import states

from callsheet.agents import AgentBase
from callsheet.agents.base import printer
from callsheet.errors import AnswerRefused, JobCancelled, ResultTimeout
from callsheet.hub.place import refuse_on_loop
from callsheet.messages import Msg
from callsheet.resources.accounts import JobUsage
from callsheet.resources.loops import running_loop
from callsheet.tasks.events import Event
from callsheet.tasks.interrupts import Said
from callsheet.tasks.jobs import Job
from callsheet.tasks.people.question import Question
from callsheet.tasks.records import CallRecord
from callsheet.tasks.scope import current_scope
from callsheet.tasks.turns.desk import waiting_for

if TYPE_CHECKING:
    from callsheet.tasks.inline import InlineRun

_POLL = 0.002  # seconds between two looks at what a job printed


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
            await self._until_over()
        return self._value()

    async def _until_over(self) -> None:
        if self._task is not None and self._task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait({self._task})
        else:
            await asyncio.to_thread(self._over.wait)

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
