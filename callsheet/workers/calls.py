"""One run of a task on the asyncio pool: what Celery handed over, and how it runs, on the loop or in a thread."""

import asyncio
import contextvars
import enum
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.app import trace
from celery.exceptions import Ignore, SoftTimeLimitExceeded, Terminated
from celery.worker import state

from callsheet.resources.loops import running_loop
from callsheet.tasks.bridge import Crossing, SoftLimit
from callsheet.tasks.patience import hold_limits, lift_limits
from callsheet.workers.threads import Interrupted, raise_in

if TYPE_CHECKING:
    from callsheet.workers.pool import AsyncioPool

logger = logging.getLogger(__name__)

Callback = Callable[..., Any] | None
ENDING = 0.1  # seconds between two looks at a call that is over its time while its result is stored


class Fate(enum.Enum):
    """Why the pool ended a call."""

    TERMINATED = "revoked or cancelled"
    TIMED_OUT = "over its hard time limit"
    TAKEN = "another worker's by now"
    DROPPED = "dropped by a cold shutdown, to be delivered again"


class Failure(ExceptionInfo):
    """Billiard's account of an exception, with the traceback itself.

    Billiard copies the traceback for pickling, a megabyte or so with the positions of every instruction. Where many
    calls fail at once and all wait for their failures to be stored, that is a gigabyte. Nothing is pickled here.
    """

    def __init__(self, exc_info: Any = None, internal: bool = False) -> None:
        kind, error, found = exc_info or sys.exc_info()
        self.type, self.tb, self.internal = kind, found, internal
        self.traceback = "".join(traceback.format_exception(kind, error, found))
        self.exception = ExceptionWithTraceback(error, self.traceback)


def _with_failure(method: Any) -> Any:
    """Celery's method as it is, where ExceptionInfo means Failure."""
    names = {**vars(trace), "ExceptionInfo": Failure}
    return FunctionType(method.__code__, names, method.__name__, method.__defaults__)


class Info(trace.TraceInfo):
    """Celery's way with what a task raised, with that account of it."""

    handle_retry = _with_failure(trace.TraceInfo.handle_retry)
    handle_failure = _with_failure(trace.TraceInfo.handle_failure)


def trace_lightly(app: Any, hostname: str) -> None:
    """Give each task a tracer that accounts so for its failures, in place of the one that the consumer gave it."""
    for name, task in app.tasks.items():
        # Looked up now: what watches tasks may have wrapped it.
        task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, Info=Info, app=app)


def info_of(error: BaseException) -> Failure:
    """The exception as Celery's callbacks take it."""
    return Failure((type(error), error, error.__traceback__))


class Call:
    """What Celery handed to the pool, and how far it has come. Celery keeps a weak reference to it.

    Args:
        home: its pool.
        target: Celery's tracer, with `args` and `kwargs`.
        options: the callbacks and time limits (seconds) that Celery's Request gives to `apply_async`.
    """

    # Without, over 30 attributes would take a dictionary of more than a kilobyte.
    __slots__ = ("__weakref__", "_clock", "_held_since", "_holds", "_timers", "accept_callback", "args", "callback",
                 "done", "error_callback", "failure", "fate", "first", "hard", "home", "id", "key", "kwargs", "pid",
                 "request", "signum", "soft", "target", "timeout_callback", "twins", "value", "waited")

    def __init__(self, home: "AsyncioPool", target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
                 options: dict[str, Any]) -> None:
        self.home = home
        self.target, self.args, self.kwargs = target, args, kwargs
        self.callback: Callback = options.get("callback")
        self.error_callback: Callback = options.get("error_callback")
        self.accept_callback: Callback = options.get("accept_callback")
        self.timeout_callback: Callback = options.get("timeout_callback")
        self.soft: float | None = options.get("soft_timeout")
        self.hard: float | None = options.get("timeout")
        self.id: str = options.get("correlation_id") or ""
        self.key: tuple[Any, ...] | None = None
        self.request: Any = getattr(self.accept_callback, "__self__", None)  # Celery's Request
        self.pid = 0  # until it has a slot
        self.waited = False
        self.fate: Fate | None = None
        self.signum = 0
        self.done = False
        self.first: Call | None = None  # the running call that this one is a second delivery of
        self.twins: list[Call] = []
        self.value: Any = None
        self.failure: Failure | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._clock = 0.0  # the loop's time at which the limits began, less that of holds
        self._holds = 0
        self._held_since = 0.0

    @property
    def name(self) -> str:
        """`task[id]`, or `Class(name)[id]` of an agent's call, for logs."""
        agent = getattr(self.request, "agent", "")
        return f"{agent or (self.args[0] if self.args else self.target)}[{self.id}]"

    def may_be_stale(self) -> bool:
        """Whether the task may have expired or been revoked while it waited for its slot; any thread."""
        request = self.request
        return self.waited and request is not None and bool(
            request.expires or request.id in state.revoked or (request.stamped_headers and state.revoked_stamps))

    def terminate(self, signal: int | None = None) -> None:
        """Celery's Request asks to end the call."""
        self.home.end(self, Fate.TERMINATED, int(signal or 0))

    def launch(self) -> None:
        """Begin in the thread that runs it; any thread."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Break off the run, whose fate is set; any thread."""
        raise NotImplementedError

    def soften(self, seconds: float) -> None:
        """Raise SoftTimeLimitExceeded in the run; loop thread."""
        raise NotImplementedError

    def release(self) -> None:
        """Give back the slot; with the lock of the slots held."""
        self.home.slots.free()

    def accepted(self) -> None:
        """Tell Celery that the call has started."""
        if self.accept_callback is not None:
            self.home.to_hub.post(self.accept_callback, self.pid, time.monotonic())

    def trace(self) -> None:
        """Run the tracer and keep what comes of it. Nothing escapes: it would leave the request active for ever."""
        lift_limits.set(self.clear_timers)
        hold_limits.set(self.hold_timers)
        try:
            self.value = self.target(*self.args, **self.kwargs)
        except BaseException as exc:
            if self.fate is None:  # else nobody asks, and a shutdown would format the same traceback for each call
                self.failure = info_of(exc)

    def set_timers(self) -> None:
        """Start the time limits; loop thread."""
        if self.done:
            return
        loop = self.home.loop
        self._clock = self._clock or loop.time()
        for limit, reached in ((self.soft, self._soft_limit), (self.hard, self._hard_limit)):
            if limit and self._clock + limit > loop.time():  # else it was reached before a hold
                self._timers.append(loop.call_at(self._clock + limit, reached))

    def hold_timers(self) -> Callable[[], object]:
        """Stop the time limits that are the worker's or the task's, rather than the call's own, for a while.

        Returns:
            What has them go on. Holds may overlap; loop thread, elsewhere nothing is held.
        """
        sent = getattr(self.request, "time_limits", None) or (None, None)
        if any(sent) or not self._clock or running_loop() is not self.home.loop:
            return lambda: None
        if not self._holds:
            self._clear_timers()
            self._held_since = self.home.loop.time()
        self._holds += 1
        return self._go_on

    def _go_on(self) -> None:
        self._holds -= 1
        if not self._holds and not self.done and self.fate is None:
            self._clock += self.home.loop.time() - self._held_since
            self.set_timers()

    def clear_timers(self) -> None:
        """Stop the time limits; any thread."""
        if self._timers:
            self.home.to_loop.post(self._clear_timers)

    def _clear_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def is_ending(self) -> bool:
        """Whether its result is being stored, which nothing breaks off; loop thread."""
        return False

    def _soft_limit(self) -> None:
        if self.done or self.fate is not None or self.is_ending():
            return
        if self.timeout_callback is not None:
            self.home.to_hub.post(self.timeout_callback, True, self.soft)
        self.soften(float(self.soft or 0))

    def _hard_limit(self) -> None:
        if self.is_ending():
            self._timers.append(self.home.loop.call_later(ENDING, self._hard_limit))
        elif self.home.end(self, Fate.TIMED_OUT) and self.timeout_callback is not None:
            self.home.to_hub.post(self.timeout_callback, False, self.hard)

    def check_gone(self) -> None:
        """Some time after `cancel`: complain about a run that goes on, and cancel again; loop thread."""
        if not self.done and self.fate is not None:
            logger.warning("Task %s goes on %g s after it was ended (%s). It keeps its slot until it returns.",
                           self.name, self.home.cancel_grace, self.fate.value)
            self.cancel()

    def settles_its_message(self) -> bool:
        """Whether the end that it has come to is the message's too, rather than a reason to deliver it again."""
        if self.fate is Fate.TIMED_OUT:
            task = getattr(self.request, "task", None)
            return task is None or not task.acks_late or bool(task.acks_on_timeout)
        return self.fate is None or (self.fate is Fate.DROPPED and self.value is not None)

    def report(self) -> None:
        """Tell Celery what came of the call."""
        if self.fate is Fate.TERMINATED:
            self._post(self.error_callback, info_of(Terminated(self.signum)))
        elif self.fate is None and self.failure is not None:
            self._post(self.error_callback, self.failure)
        elif self.fate is None or (self.fate is Fate.DROPPED and self.value is not None):
            self._post(self.callback, self.value)
        elif self.fate is Fate.TAKEN and (let_go := getattr(self.request, "let_go", None)) is not None:
            self.home.to_hub.post(let_go)
        # After a hard time limit Celery has settled the request in timeout_callback; a dropped one stays unsettled,
        # unless its result was stored all the same.

    def report_as(self, first: "Call") -> None:
        """Report what came of `first`, whose message was delivered a second time as this call."""
        self.value, self.failure = first.value, first.failure
        if first.fate is Fate.TIMED_OUT:
            self.failure = info_of(Ignore("ended by the time limit of an earlier delivery"))
        self.accepted()
        self.report()

    def _post(self, callback: Callback, argument: Any) -> None:
        if callback is not None:
            self.home.to_hub.post(callback, argument)


class CoroutineCall(Call):
    """A task whose body is a coroutine: the tracer runs in a greenlet on the loop. Also its own seat to park."""

    __slots__ = ("_away", "_back", "_crossing", "_parks", "_task")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._crossing = Crossing(self.trace, seat=self)
        self._task: asyncio.Task[None] | None = None
        self._parks = 0
        self._away = False  # guarded by the lock of the slots, as is _back
        self._back: asyncio.Future[None] | None = None

    def launch(self) -> None:
        """Begin on the loop."""
        self.home.begins.post(self._begin)

    def _begin(self) -> None:
        self.accepted()
        self._task = self.home.loop.create_task(self._run(), name=self.name)
        if self.soft or self.hard:
            self.set_timers()

    async def _run(self) -> None:
        try:
            await self._crossing.run()
        except BaseException as exc:  # cancelled before it began
            if self.fate is None:
                self.failure = info_of(exc)
        finally:  # whatever happens, its slot is free again
            self.home.finish(self)

    def cancel(self) -> None:
        """Raise CancelledError at the await point."""
        self.home.to_loop.post(self._cancel)

    def _cancel(self) -> None:
        if not self.done and self.fate is not None:
            self._crossing.cancel(self.fate.value)
            self._timers.append(self.home.loop.call_later(self.home.cancel_grace, self.check_gone))

    def is_ending(self) -> bool:
        """Whether its result is being stored."""
        return self._crossing.ending

    def soften(self, seconds: float) -> None:
        """Raise SoftLimit at the await point."""
        self._crossing.interrupt(SoftLimit(seconds))

    def release(self) -> None:
        """Give back the slot, or the parked call's claim to one."""
        if self._away:
            self.home.slots.stay_away(self._granted)
            self.home.prefetch.park(-1)
        else:
            self.home.slots.free()

    def park(self) -> None:
        """Give the slot back, unless another subtask has."""
        with self.home.slots.lock:
            self._parks += 1
            if self._parks == 1:
                self._leave()

    def _leave(self) -> None:
        if self._away or self.done:
            return
        self._away = self.home.slots.leave()
        if self._away:
            self.home.prefetch.park(1)
        else:
            logger.warning("Task %s keeps its slot while it waits: %d calls are parked, and max_parked allows no "
                           "more. Raise CALLSHEET_MAX_PARKED or start more workers.", self.name,
                           self.home.slots.parked)

    async def unpark(self) -> None:
        """Wait for a slot, unless another subtask is still parked."""
        with self.home.slots.lock:
            self._parks -= 1
            if self._parks or not self._away or self.done:
                return
            back = self._back
            if back is None:
                back = self._back = self.home.loop.create_future()
                self.home.slots.come_back(self._granted)
        await asyncio.shield(back)

    def _granted(self) -> None:
        self._away = False
        back, self._back = self._back, None
        self.home.to_loop.post(self._resume, back)

    def _resume(self, back: asyncio.Future[None]) -> None:
        self.home.prefetch.park(-1)
        if not back.done():
            back.set_result(None)
        with self.home.slots.lock:
            if self._parks:  # another subtask went to wait meanwhile
                self._leave()


class ThreadCall(Call):
    """A task whose body is a plain function: the tracer runs in a thread.

    A thread cannot be killed. Time limits and revocation raise in it when it next runs Python code; one that
    blocks in C is reported when it returns, and holds its slot until then.
    """

    __slots__ = ("_lock", "_thread")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.Lock()
        self._thread: int | None = None

    def launch(self) -> None:
        """Begin in a thread."""
        self.home.crew.submit(self._run, lambda: self.home.finish(self))

    def _run(self) -> None:
        try:
            self._thread = threading.get_ident()
            self.accepted()
            if self.soft or self.hard:
                self.home.to_loop.post(self.set_timers)
            if self.fate is None:
                contextvars.copy_context().run(self.trace)
        except BaseException as exc:  # raised into this thread between two lines
            self.failure = self.failure or info_of(exc)
        while self._thread is not None:
            try:
                self._out_of_reach()
            except BaseException:
                logger.debug("Task %s was interrupted when it had ended", self.name)

    def _out_of_reach(self) -> None:
        with self._lock:
            raise_in(threading.get_ident(), None)
            self._thread = None

    def _raise(self, error: type[BaseException]) -> None:
        with self._lock:
            if self._thread is not None:
                raise_in(self._thread, error)

    def cancel(self) -> None:
        """Raise Interrupted in the thread."""
        self._raise(Interrupted)
        self.home.to_loop.post(self._check_later)

    def _check_later(self) -> None:
        self._timers.append(self.home.loop.call_later(self.home.cancel_grace, self.check_gone))

    def soften(self, seconds: float) -> None:
        """Raise SoftTimeLimitExceeded in the thread."""
        self._raise(SoftTimeLimitExceeded)
