"""How a coroutine runs inside a greenlet on an event loop, and how it gives its slot back while it waits.

Celery's tracer is a plain function that calls the task's body and wants its result. On the asyncio pool the
tracer runs in a greenlet (`Crossing`). Where the body is a coroutine, `drive` runs it there: what it awaits is
handed to the greenlet's parent, which yields it to asyncio, and whatever asyncio sends or throws back comes the
same way. So one call is one asyncio.Task, one greenlet and one coroutine, and both asyncio's `current_task` and
Celery's are right inside the coroutine; Celery's also in the subtasks that it starts (`call_ident`).
"""

import asyncio
import contextlib
import contextvars
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, Self, TypeVar

from celery.exceptions import SoftTimeLimitExceeded
from greenlet import getcurrent, greenlet

from callsheet.errors import JobError
from callsheet.resources.context import CallNotes, current_call, provide_parking, provide_unseating

T = TypeVar("T")

OWN_CANCEL = ("The task's coroutine ended with asyncio.CancelledError, although nobody revoked it and no time limit "
              "was over. Something that it awaits was cancelled, or it cancelled itself: catch CancelledError there.")


class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):
    """What a soft time limit raises at the await point.

    Code catches it as SoftTimeLimitExceeded. It is a CancelledError too because locks, task groups and clients
    undo a broken-off wait only for that; as a plain exception it would lose wake-ups and orphan subtasks.
    """


class Seat(Protocol):
    """A call's place in a pool."""

    def park(self) -> None:
        """Give the slot back, on the pool's loop."""

    async def unpark(self) -> None:
        """Wait for a slot, on the pool's loop."""


# Where code runs: in the call itself, in a subtask that it started, or in a thread or callback that took its context.
_crossing: contextvars.ContextVar["Crossing | None"] = contextvars.ContextVar("callsheet_crossing", default=None)


class Strand(greenlet):
    """A greenlet in which coroutines can be driven."""

    crossing: "Crossing"


class Crossing:
    """One run of a plain function in a greenlet of its own on the running loop, in which `drive` works.

    Args:
        function: called with `args` in the greenlet, in a copy of the context in which `run` is awaited.
        seat: the slot that `parked()` gives back.

    Attributes:
        ending: its result is being stored.
    """

    __slots__ = ("_args", "_function", "_strand", "_task", "_thrown", "cancelled", "driving", "ending", "seat",
                 "thread")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...] = (), seat: Seat | None = None) -> None:
        self._function = function
        self._args = args
        self.seat = seat
        self.thread = 0
        self.driving = 0  # coroutines, one below the other
        self.ending = False
        self.cancelled = False
        self._strand: Strand | None = None
        self._task: asyncio.Task[Any] | None = None
        self._thrown: BaseException | None = None

    async def run(self) -> Any:
        """Run the function in its greenlet; once only."""
        return await _cross(self)

    def cancel(self, message: str) -> None:
        """Raise CancelledError at the await point; the drive then ends so whatever the coroutine makes of it."""
        self.cancelled = True
        if self._task is not None:
            self._task.cancel(message)

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` at the await point. A function that does not wait is left alone."""
        if self._task is not None and self._strand is not None and not self._strand.dead:
            self._thrown = error
            # Wakes the task and cancels what it awaits; _cross puts `error` in place of the CancelledError.
            self._task.cancel()

    def _take_thrown(self) -> BaseException | None:
        thrown, self._thrown = self._thrown, None
        if thrown is not None and self._task is not None:
            self._task.uncancel()
        return thrown

    def _end(self) -> None:
        # Nothing is left to interrupt; and no cycle of references, which would be work for the garbage collector.
        self._task = self._strand = self.seat = None
        self._function = _ended

    def _in_strand(self) -> Any:
        self.thread = threading.get_ident()
        _crossing.set(self)
        return self._function(*self._args)


def _ended(*_: Any) -> None:
    raise RuntimeError("a Crossing runs once")


@types.coroutine
def _cross(crossing: Crossing) -> Generator[Any, Any, Any]:
    if crossing.cancelled:
        raise asyncio.CancelledError
    crossing._task = asyncio.current_task()
    crossing._strand = strand = Strand(crossing._in_strand)
    strand.crossing = crossing
    strand.gr_context = contextvars.copy_context()
    try:
        value = strand.switch()
        while not strand.dead:
            try:
                sent = yield value
            except BaseException as exc:
                problem = crossing._take_thrown() or exc
            else:
                thrown = crossing._thrown
                if thrown is None:
                    value = strand.switch(sent)
                    continue
                problem = crossing._take_thrown() or thrown
            value = strand.throw(problem)
        return value
    finally:
        crossing._end()


def call_ident() -> Any:
    """Whose entry in Celery's task stacks code sees: its call's, also in a subtask of the call; else its greenlet's.

    Celery keys these stacks by greenlet, and asyncio runs a subtask in the loop's own. A thread has its own entry even
    with the call's context: what it runs would be pushed on a stack that the loop is using.
    """
    crossing = _crossing.get()
    return getcurrent() if crossing is None or crossing.thread != threading.get_ident() else crossing


def in_strand() -> bool:
    """True inside a greenlet in which `drive` works."""
    return isinstance(getcurrent(), Strand)


def in_plain_code() -> bool:
    """True in a strand outside coroutines, as where Celery's tracer calls an errback: what is async is driven there."""
    strand = getcurrent()
    return isinstance(strand, Strand) and not strand.crossing.driving


def drive(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, as `await` would; inside a `Crossing` only.

    Raises:
        JobError: the coroutine ended with a CancelledError that nobody asked for.
        asyncio.CancelledError: the crossing was cancelled, whatever the coroutine made of that.
        SoftTimeLimitExceeded: the soft time limit was over.
    """
    strand: Strand = getcurrent()
    crossing = strand.crossing
    crossing.driving += 1
    try:
        if not crossing.cancelled:
            result = _stepped(coro, strand.parent.switch)
            if not crossing.cancelled:
                return result
    except SoftLimit as exc:
        if not crossing.cancelled:
            raise SoftTimeLimitExceeded(*exc.args).with_traceback(exc.__traceback__) from None
    except asyncio.CancelledError as exc:
        if not crossing.cancelled:
            raise JobError(OWN_CANCEL) from exc
    except BaseException:
        if not crossing.cancelled:
            raise
    finally:
        crossing.driving -= 1
        coro.close()
    # A BaseException, so that the tracer stores neither a result nor a failure over REVOKED or the time limit.
    raise asyncio.CancelledError("cancelled by the pool")


def _stepped(coro: Coroutine[Any, Any, T], switch: Callable[[Any], Any]) -> T:
    try:
        waits_for = coro.send(None)
        while True:
            try:
                sent = switch(waits_for)
            except BaseException as exc:
                problem = exc
            else:
                waits_for = coro.send(sent)
                continue
            waits_for = coro.throw(problem)
    except StopIteration as stop:
        result: T = stop.value
        return result


def drive_unbroken(future: asyncio.Future[T]) -> T:
    """Wait for a future that stores the call's end. A cancellation is too late for it, and strikes what comes after."""
    strand: Strand = getcurrent()
    strand.crossing.ending = True
    try:
        return _stepped(_unbroken(future), strand.parent.switch)
    finally:
        strand.crossing.ending = False


async def _unbroken(future: asyncio.Future[T]) -> T:
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(future)
    return future.result()


class parked:
    """Give the call's slot back while the block waits, and take one again afterwards, before any new call.

    To be used as `async with parked(): await result` in a task on the asyncio pool; anywhere else it does nothing.
    Blocks in several subtasks of one call may overlap: the slot comes back when the last ends.
    """

    __slots__ = ("_notes", "_seat")

    def __init__(self) -> None:
        self._seat: Seat | None = None
        self._notes: CallNotes | None = None

    async def __aenter__(self) -> Self:
        crossing = _crossing.get()
        self._seat = crossing.seat if crossing is not None else None
        self._notes = current_call().notes
        if self._notes is not None:
            self._notes.leave()
        if self._seat is not None:
            self._seat.park()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            if self._seat is not None:
                await self._seat.unpark()
        finally:
            if self._notes is not None:
                self._notes.come_back()


def unseated(function: Callable[[], T]) -> T:
    """Run a function for which there is no slot to give back: away from the pool's loop."""
    token = _crossing.set(None)
    try:
        return function()
    finally:
        _crossing.reset(token)


provide_parking(parked)
provide_unseating(unseated)
