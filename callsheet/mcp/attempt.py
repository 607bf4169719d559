"""What the transport tells of a call's requests, beside what the SDK makes of them.

The SDK sends a call's requests in tasks of its own, with the context variables of whoever makes the call.
"""

import asyncio
from contextvars import ContextVar
from types import TracebackType


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

    def bounded(self) -> "Bounded":
        """A block that is broken off with TimeoutError once the attempt is abandoned."""
        return Bounded(self)


class Bounded:
    """See Attempt.bounded."""

    __slots__ = ("_attempt", "_bound")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    async def __aenter__(self) -> None:
        self._bound = asyncio.timeout_at(self._attempt._until)
        await self._bound.__aenter__()
        self._attempt._bounds.add(self._bound)

    async def __aexit__(self, cls: type[BaseException] | None, exc: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._attempt._bounds.discard(self._bound)
        await self._bound.__aexit__(cls, exc, trace)


current_attempt: ContextVar[Attempt | None] = ContextVar("callsheet_mcp_attempt", default=None)
"""The attempt that requests made here belong to."""
