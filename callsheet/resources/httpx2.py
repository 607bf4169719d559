"""Our transports for SDKs that speak httpx2, httpx's successor under another name.

Import it only where httpx2 is installed: it comes with the SDKs that need it.
"""

import importlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

httpx2: Any = importlib.import_module("httpx2")


class _Body(httpx2.AsyncByteStream):  # type: ignore[misc]
    """The body of a response, whose errors are httpx2's."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx.RequestError as exc:
            raise _theirs(exc) from exc

    async def aclose(self) -> None:
        """Close the body."""
        await self._stream.aclose()


class Httpx2Transport(httpx2.AsyncBaseTransport):  # type: ignore[misc]
    """Hands what an httpx2 client sends to one of our transports: `httpx2.AsyncClient(transport=...)`.

    Args:
        inner: e.g. `resources.transport("anthropic")`.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: Any) -> Any:
        """Send the request. Its errors are httpx2's, with ours as their cause."""
        content = await request.aread()  # whoever sends it again needs it whole
        ours = httpx.Request(request.method, str(request.url), headers=request.headers.raw, content=content,
                             extensions=dict(request.extensions))
        try:
            response = await self._inner.handle_async_request(ours)
        except httpx.TransportError as exc:
            raise _theirs(exc) from exc
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return httpx2.Response(response.status_code, headers=response.headers.raw, stream=_Body(response.stream))

    async def aclose(self) -> None:
        """The transport is others' too, and stays open."""


def _theirs(exc: httpx.RequestError) -> Exception:
    """httpx2's error of the same name."""
    cls = getattr(httpx2, type(exc).__name__, httpx2.TransportError)
    made: Exception = cls(str(exc))
    return made
