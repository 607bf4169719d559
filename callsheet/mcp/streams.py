"""The stream of a server's messages, with an eye on its end, and what became of the session."""

import asyncio
import contextvars
from typing import Any

import anyio
import httpx2
from anyio.abc import ObjectReceiveStream


class Fate:
    """Why a session ended.

    Attributes:
        ended: set when it has, or is to.
        reason: why, in words; "" while it goes on.
        silent: whether its stream was given up, since nothing came for too long.
        last_words: the last line that a program wrote to its standard error.
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.reason = ""
        self.silent = False
        self.last_words = ""

    def tell(self, reason: str) -> None:
        """It has ended, or is to; the first reason counts."""
        self.reason = self.reason or reason
        self.ended.set()

    def __str__(self) -> str:
        reason = self.reason or "it closed the connection"
        return f"{reason}; its last words: {self.last_words}" if self.last_words else reason


class Watched(ObjectReceiveStream[Any]):
    """A stream of the SDK's that tells when the server has closed it.

    Args:
        stream: the SDK's.
        fate: is told.
    """

    def __init__(self, stream: Any, fate: Fate) -> None:
        self._stream = stream
        self._fate = fate

    @property
    def last_context(self) -> contextvars.Context | None:
        """Of whoever sent the last message; the SDK asks for it."""
        context: contextvars.Context | None = getattr(self._stream, "last_context", None)
        return context

    async def receive(self) -> Any:
        """The next message."""
        try:
            message = await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._fate.tell("")
            raise
        if isinstance(message, httpx2.ReadTimeout):  # of the transport "sse", whose one stream it ends
            self._fate.silent = True
        return message

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()
