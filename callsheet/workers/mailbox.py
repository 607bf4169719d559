"""Function calls that any thread may post and one thread runs, in order."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class Mailbox:
    """A queue of calls for one thread; a burst of posts costs one wake-up.

    Args:
        wake: makes the thread call `drain` soon; thread-safe.
        most: calls in one `drain`; the rest waits for the next one. None for no bound.
    """

    def __init__(self, wake: Callable[[], None], most: int | None = None) -> None:
        self._wake = wake
        self._most = most
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._woken = False

    def __len__(self) -> int:
        return len(self._calls)

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        """Have `function(*args)` run in the mailbox's thread, after what was posted before."""
        self._calls.append((function, args))
        if not self._woken:
            self._woken = True
            self._wake()

    def drain(self) -> None:
        """Run what was posted so far. Exceptions are logged; SystemExit and its like leave, and lose nothing."""
        self._woken = False  # first: whoever posts from now on wakes again
        calls = self._calls
        try:
            for _ in range(len(calls) if self._most is None else min(len(calls), self._most)):
                function, args = calls.popleft()
                try:
                    function(*args)
                except Exception:
                    logger.exception("Callback %r raised", function)
        except IndexError:
            pass  # a signal handler drained the rest meanwhile
        finally:
            if calls and not self._woken:
                self._woken = True
                self._wake()


class LoopMailbox(Mailbox):
    """Calls for the thread of an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int | None = None) -> None:
        self._loop = loop
        super().__init__(self._wake_loop, most)

    def _wake_loop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker is going down
            self._loop.call_soon_threadsafe(self.drain)


class HubMailbox(Mailbox):
    """Calls for the thread of kombu's hub; run by whoever posts them where a worker has no hub.

    The hub reads a socket of ours rather than being told with `call_soon`: Celery's callbacks leave
    acknowledgements and prefetch changes for the hub's next round, which follows what a reader does at once, but
    what `call_soon` does only after a poll of up to a second.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._has_hub = False
        self._lock = threading.RLock()
        super().__init__(self._wake_hub)

    def register(self, hub: Any) -> None:
        """Let `hub` run what is posted; again after each `hub.reset()`."""
        self._has_hub = True
        hub.add_reader(self._reader.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        with contextlib.suppress(OSError):
            self._reader.recv(4096)
        self.drain()

    def _wake_hub(self) -> None:
        if self._has_hub:
            with contextlib.suppress(OSError):  # full: it is readable anyway
                self._writer.send(b"\0")
        else:
            with self._lock:
                self.drain()
