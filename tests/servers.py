"""HTTP servers that play a part."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import web

from tests.hanging import for_ever

Part = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(status: int = 200, body: bytes | str = b"{}", content_type: str = "application/json",
           **headers: str) -> Part:
    """A part that answers; underscores in header names are dashes."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body.encode() if isinstance(body, str) else body,
                            content_type=content_type, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


async def hang_up(request: web.Request) -> web.StreamResponse:
    """Closes the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silence(request: web.Request) -> web.StreamResponse:
    """Never answers."""
    await for_ever()
    return web.Response()


async def break_off(request: web.Request) -> web.StreamResponse:
    """Begins an answer of 200 and closes the connection within its body."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"half": ')
    return await hang_up(request)


class Playing:
    """A server that plays one part after the other, the last one for ever.

    Attributes:
        requests: bodies of the requests that came.
        heads: their headers.
        peers: connections that they came on.
    """

    def __init__(self, *parts: Part, tls: ssl.SSLContext | None = None) -> None:
        self.parts = list(parts) or [answer()]
        self.tls = tls
        self.requests: list[bytes] = []
        self.heads: list[Any] = []
        self.peers: set[Any] = set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.heads.append(request.headers)
        part = self.parts[min(len(self.requests), len(self.parts) - 1)]
        self.requests.append(b"")
        number = len(self.requests) - 1
        self.requests[number] = await request.read()
        return await part(request)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, backlog=2048, ssl_context=self.tls).start()
        self.port = self.runner.addresses[0][1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.runner.cleanup()
