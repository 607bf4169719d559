"""What the transport tells of a call's requests, beside what the SDK makes of them.

The SDK sends a call's requests in tasks of its own, with the context variables of whoever makes the call.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar


class SessionLost(Exception):
    """The server does not know the session, and so has not begun the call; never leaves this package."""


class Attempt:
    """The requests of one call, or of one greeting.

    Attributes:
        failed: done when a request failed; never holds an exception.
        error: why it failed, or None.
    """

    def __init__(self) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None
        self._until: float | None = None
        self._bounds: set[asyncio.Timeout] = set()

    def fail(self, error: BaseException) -> None:
        """A request failed; the first failure counts."""
        if self.error is None:
            self.error = error
        if not self.failed.done():
            self.failed.set_result(None)

    def abandon(self, grace: float) -> None:
        """Nobody waits for it any more: break its requests off after `grace` seconds."""
        self._until = asyncio.get_running_loop().time() + grace
        for bound in self._bounds:
            if not bound.expired():
                bound.reschedule(self._until)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._until is not None

    @asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        """A block that is broken off with TimeoutError once the attempt is abandoned."""
        async with asyncio.timeout_at(self._until) as bound:
            self._bounds.add(bound)
            try:
                yield
            finally:
                self._bounds.discard(bound)


current_attempt: ContextVar[Attempt | None] = ContextVar("callsheet_mcp_attempt", default=None)
"""The attempt that requests made here belong to."""
