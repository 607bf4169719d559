"""The event loops of a process: the shared one, and the private ones of threads that wait for a coroutine.

The process's loop is where shared async clients live, because a client belongs to the loop that opened it. In an
io worker it is the pool's loop; anywhere else a daemon thread runs it, from the first time it is asked for.
"""

import asyncio
import atexit
import contextlib
import contextvars
import importlib
import logging
import os
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from kombu.utils.compat import detect_environment

from callsheet.errors import ResultTimeout, UsageError
from callsheet.resources.loops import provide_process_loop, running_loop
from callsheet.settings import get_settings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]]


def new_loop() -> asyncio.AbstractEventLoop:
    """A new loop, of uvloop where that is installed and the settings do not say otherwise.

    Where gevent or eventlet have patched the process it is asyncio's, which waits as they have it wait.
    """
    if detect_environment() != "default":  # type: ignore[no-untyped-call]
        return _stepping_aside()
    if get_settings().loop != "asyncio":
        with contextlib.suppress(ImportError):
            loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
            return loop
    return asyncio.new_event_loop()


def _stepping_aside() -> asyncio.AbstractEventLoop:
    """A loop in a greenlet: those that go on while it waits, to asyncio in the same thread, are not on this loop."""
    others: list[asyncio.AbstractEventLoop | None] = [None]

    class Loop(asyncio.SelectorEventLoop):
        def run_forever(self) -> None:
            others[0] = asyncio._get_running_loop()
            asyncio._set_running_loop(None)
            super().run_forever()

    class Selector(selectors.DefaultSelector):  # the one that they have patched in
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            loop = asyncio._get_running_loop()
            asyncio._set_running_loop(others[0])
            try:
                return super().select(timeout)
            finally:
                others[0] = asyncio._get_running_loop()
                asyncio._set_running_loop(loop)

    return Loop(Selector())


class LoopThread:
    """A daemon thread that runs one event loop until `stop`."""

    def __init__(self, on_start: Callable[[], object] | None = None) -> None:
        self.loop = new_loop()
        self._on_start = on_start
        self._stopping = False
        self.thread = threading.Thread(target=self._main, name="callsheet-loop", daemon=True)

    def start(self) -> "LoopThread":
        """Start the thread; the loop accepts `call_soon_threadsafe` from now on."""
        self.thread.start()
        return self

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        if self._on_start is not None:
            self._on_start()
        while not self._stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these two through from any coroutine; the other calls must go on.
                logger.exception("A coroutine raised SystemExit or KeyboardInterrupt on the shared loop: ignored")
        self._close()

    def _close(self) -> None:
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        if not asyncio.all_tasks(self.loop):  # closing would break off those that will not end
            self.loop.close()

    def stop(self, timeout: float = 2.0) -> bool:
        """Cancel what is left on the loop and end the thread; False when it goes on after `timeout` seconds."""
        self._stopping = True
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(timeout)
        return not self.thread.is_alive()


class _Process:
    """What belongs to one process id."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shared: asyncio.AbstractEventLoop | None = None
        self.private = threading.local()


_process = _Process()


def _after_fork() -> None:
    global _process  # noqa: PLW0603 - a child has none of its parent's threads, so none of its loops
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def adopt(loop: asyncio.AbstractEventLoop | None) -> None:
    """Make `loop`, which some thread runs, the process's loop; None forgets the one there is."""
    with _process.lock:
        _process.shared = loop


def process_loop() -> asyncio.AbstractEventLoop:
    """The loop that this process's shared async clients live on; started at the first call."""
    shared = _process.shared
    if shared is not None and not shared.is_closed():
        return shared
    with _process.lock:
        if _process.shared is None or _process.shared.is_closed():
            thread = LoopThread().start()
            _process.shared = thread.loop
            atexit.register(_end, thread, os.getpid())
        return _process.shared


def _end(thread: LoopThread, pid: int) -> None:
    # A daemon thread that wakes up while the interpreter goes down may take the process with it.
    if pid == os.getpid():
        thread.stop()


provide_process_loop(process_loop)


def _coroutine(work: Work[T]) -> Coroutine[Any, Any, T]:
    return work() if callable(work) else work


async def on_process_loop(work: Work[T]) -> T:
    """Await a coroutine, or what a function without arguments returns, on the process's loop.

    Cancelling the caller cancels the coroutine. Context variables are the caller's.
    """
    loop = process_loop()
    if asyncio.get_running_loop() is loop:
        return await _coroutine(work)
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_coroutine(work), loop))


def wait_on_process_loop(work: Work[T], timeout: float | None = None) -> T:
    """Run a coroutine on the process's loop and wait for it, from code that is not async.

    Raises:
        UsageError: called on the process's loop, which would wait for itself.
        ResultTimeout: not done within `timeout`.
    """
    loop = process_loop()
    if running_loop() is loop:
        raise UsageError("wait_on_process_loop() was called on the process's loop, which would wait for itself "
                         "for ever: await on_process_loop(...) there instead.")
    future = asyncio.run_coroutine_threadsafe(_coroutine(work), loop)
    try:
        return future.result(timeout)
    except FutureTimeout:
        if future.done():  # the coroutine's own TimeoutError
            raise
        future.cancel()
        raise ResultTimeout(f"Not done on the process's loop within {timeout} s.") from None
    except BaseException:
        future.cancel()
        raise


def run_private(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on this thread's own loop, which is kept for the next one.

    What is raised into the wait, such as SoftTimeLimitExceeded by a prefork child's signal handler, cancels the
    coroutine, waits for it to end, and goes on. Tasks that it leaves behind are cancelled.
    """
    private = _process.private
    loop: asyncio.AbstractEventLoop | None = getattr(private, "loop", None)
    if loop is None or loop.is_closed():
        # asyncio's own loop: an exception raised by a signal handler leaves it at once, which uvloop does not allow.
        loop = private.loop = asyncio.new_event_loop()
    task = loop.create_task(coro)
    try:
        return loop.run_until_complete(task)
    finally:
        left = asyncio.all_tasks(loop)
        for other in left:
            other.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


def run_in_thread(coro: Coroutine[Any, Any, T]) -> T:
    """As `run_private`, in a thread of its own, for a thread whose loop is busy running the caller."""
    def run() -> T:
        try:
            return run_private(coro)
        finally:
            _process.private.loop.close()

    with ThreadPoolExecutor(1, "callsheet-eager") as thread:
        return thread.submit(contextvars.copy_context().run, run).result()
