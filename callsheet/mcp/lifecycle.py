"""How a session and the requests in it end: what became of it, its stream of messages, and attempts that fail."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
from anyio.abc import ObjectReceiveStream


@dataclass(eq=False)
class Fate:
    """Why a session ended."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)  # set when it has, or is to
    reason: str = ""  # why, in words; "" while it goes on
    silent: bool = False  # whether its stream was given up, since nothing came for too long
    last_words: str = ""  # the last line that a program wrote to its standard error

    def tell(self, reason: str) -> None:
        """It has ended, or is to; the first reason counts."""
        self.reason = self.reason or reason
        self.ended.set()

    def __str__(self) -> str:
        reason = self.reason or "it closed the connection"
        return f"{reason}; its last words: {self.last_words}" if self.last_words else reason


@dataclass(eq=False)
class Watched(ObjectReceiveStream[Any]):
    """A stream of the SDK's that tells when the server has closed it."""

    stream: Any  # the SDK's
    fate: Fate  # is told

    @property
    def last_context(self) -> contextvars.Context | None:
        """Of whoever sent the last message; the SDK asks for it."""
        context: contextvars.Context | None = getattr(self.stream, "last_context", None)
        return context

    async def receive(self) -> Any:
        """The next message."""
        try:
            message = await self.stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self.fate.tell("")
            raise
        if isinstance(message, httpx2.ReadTimeout):  # of the transport "sse", whose one stream it ends
            self.fate.silent = True
        return message

    def close(self) -> None:
        """Close it."""
        self.stream.close()

    async def aclose(self) -> None:
        """Close it."""
        await self.stream.aclose()


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
