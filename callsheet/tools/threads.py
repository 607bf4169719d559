"""Where tools run: plain functions in threads of this process, others on the workers of a queue."""

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from callsheet.errors import UsageError
from callsheet.resources.context import unseated
from callsheet.settings import get_settings
from callsheet.tools.registered import RegisteredToolFunction
from callsheet.tools.response import ToolResponse

T = TypeVar("T")
_IDLE = 30.0  # seconds after which an idle thread ends


class ToolThreads:
    """Daemon threads up to a number; more work than that waits its turn.

    Daemons because nothing can end a thread that does not return, and a worker must still be able to exit.

    Args:
        most: threads at once.
        idle: seconds after which an idle thread ends.
    """

    def __init__(self, most: int, idle: float = _IDLE) -> None:
        self._most = most
        self._idle = idle
        self._work: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._waiting = 0
        self.count = 0

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Run `function` in a thread, unless its future is cancelled before that begins."""
        future: Future[T] = Future()
        with self._changed:
            self._work.append((future, function))
            if len(self._work) <= self._waiting:
                self._changed.notify()
            elif self.count < self._most:
                self.count += 1
                threading.Thread(target=self._main, name="callsheet-tool", daemon=True).start()
        return future

    def _main(self) -> None:
        while (item := self._next()) is not None:
            future, function = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as exc:
                    future.set_exception(exc)
            del item, future, function  # nothing is kept while the thread waits

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            while not self._work:
                self._waiting += 1
                woken = self._changed.wait(self._idle)
                self._waiting -= 1
                if not woken and not self._work:
                    self.count -= 1
                    return None
            return self._work.popleft()


_of_process: dict[int, ToolThreads] = {}


def tool_threads() -> ToolThreads:
    """This process's; as many as the settings say."""
    found = _of_process.get(os.getpid())
    if found is None:
        _of_process.clear()  # a forked child has none of its parent's threads
        found = _of_process.setdefault(os.getpid(), ToolThreads(get_settings().tool_threads))
    return found


async def in_thread(function: Callable[[], T], context: contextvars.Context | None = None) -> T:
    """Run a plain function in a thread of its own, with this context's variables or the given ones.

    Where the wait is cancelled the function goes on, and what it gives is dropped.
    """
    held = context or contextvars.copy_context()
    return await asyncio.wrap_future(tool_threads().submit(lambda: _contained(held, function)))


def _contained(context: contextvars.Context, function: Callable[[], T]) -> T:
    try:
        return context.run(unseated, function)
    except (StopIteration, SystemExit) as exc:  # neither may reach the loop
        raise RuntimeError(f"it raised {exc!r}") from exc


@dataclass(frozen=True, kw_only=True)
class Errand:
    """One call of a tool on another worker."""

    tool: RegisteredToolFunction  # what is to run
    arguments: dict[str, Any]  # the model's, known to fit
    timeout: float | None  # seconds that are left for it, or None


class Elsewhere(Protocol):
    """Runs tools on the workers of the queues that they name."""

    def is_here(self, queue: str) -> bool:
        """Whether what runs here came from that queue."""

    async def run(self, errand: Errand) -> ToolResponse:
        """Run it there, and wait without holding a slot.

        Raises:
            ToolFailed: the tool raised, or could not be run; with the text for the model.
        """


_provider: list[Callable[[], Elsewhere]] = []


def provide(provider: Callable[[], Elsewhere]) -> None:
    """Say who runs tools elsewhere; called once by the layer above, at import."""
    _provider[:] = [provider]


def elsewhere() -> Elsewhere:
    """Who runs tools elsewhere."""
    if not _provider:
        raise UsageError("Nothing is there to run tools on other workers: import callsheet, not callsheet.tools alone.")
    return _provider[0]()
