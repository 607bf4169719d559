"""What belongs to one event loop, made there on first use and closed with it.

A connection belongs to the loop that opened it. A forked child starts without any: closing what it inherited would
tear at the parent's sockets, so that is kept, unused.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """Something that holds connections."""

    async def aclose(self) -> None:
        """Close them."""


T = TypeVar("T", bound=Closable)


class _Kept(Generic[T]):
    """The things of one loop."""

    def __init__(self) -> None:
        self.things: dict[Hashable, T] = {}
        self.guard: AsyncGenerator[None, None] = self._until_shutdown()
        # asyncio.run() closes a loop's asynchronous generators before the loop. One that is begun here closes
        # the things then, so that a script need not. Its first step awaits nothing.
        with contextlib.suppress(StopIteration):
            self.guard.asend(None).send(None)

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            while self.things:
                await self.things.popitem()[1].aclose()


class PerLoop(Generic[T]):
    """Things of one kind, by loop and key."""

    def __init__(self) -> None:
        self._loops: dict[asyncio.AbstractEventLoop, _Kept[T]] = {}
        self._inherited: list[Any] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._inherited.append(self._loops)
        self._loops = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The running loop's thing under `key`, made if there is none.

        Raises:
            RuntimeError: no loop runs.
        """
        loop = asyncio.get_running_loop()
        kept = self._loops.get(loop)
        if kept is None:
            for old in [known for known in list(self._loops) if known.is_closed()]:
                self._loops.pop(old, None)
            kept = self._loops[loop] = _Kept()
        found = kept.things.get(key)
        if found is None:
            found = kept.things[key] = make()
        return found

    def drop(self, key: Hashable) -> None:
        """Forget the running loop's thing under `key`."""
        kept = self._loops.get(asyncio.get_running_loop())
        if kept is not None:
            kept.things.pop(key, None)

    async def aclose(self) -> None:
        """Close the running loop's things; the last made first."""
        kept = self._loops.pop(asyncio.get_running_loop(), None)
        if kept is not None:
            await kept.guard.aclose()


#: The loop that runs in this thread, if one does.
running_loop = asyncio._get_running_loop

_process_loop: list[Callable[[], asyncio.AbstractEventLoop]] = []


def provide_process_loop(give: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Say which loop of this process lasts; called once by the layer that owns it."""
    _process_loop[:] = [give]


def lasting_loop() -> asyncio.AbstractEventLoop:
    """The process's loop, which outlasts the calls of agents; without one the running loop."""
    return _process_loop[0]() if _process_loop else asyncio.get_running_loop()


def on_lasting_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Have the process's loop run a coroutine, and do not wait for it; any thread.

    What is left to run on another loop may be cancelled with the call that left it there.
    """
    loop = lasting_loop()

    def begin() -> None:
        task = loop.create_task(work())
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)

    loop.call_soon_threadsafe(begin)


_under_way: set[asyncio.Task[None]] = set()
