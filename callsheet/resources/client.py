"""One pooled HTTP client an endpoint, shared by everything in the process that calls it.

A connection belongs to the event loop that opened it, so each loop has clients of its own. A forked child
starts without any: closing what it inherited would tear at the parent's sockets, so that is kept, unused.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from callsheet.errors import UsageError
from callsheet.resources.endpoints import EndpointAuth, find_endpoint, shown_url
from callsheet.resources.transport import pooled_transport
from callsheet.settings import Endpoint, Settings


class _LoopClients:
    """The clients of one event loop."""

    def __init__(self) -> None:
        self.clients: dict[tuple[Any, ...], httpx.AsyncClient] = {}
        self.guard: AsyncGenerator[None, None] = self._until_shutdown()
        # asyncio.run() closes a loop's asynchronous generators before the loop. One that is begun here closes
        # the clients then, so that a script need not. Its first step awaits nothing.
        with contextlib.suppress(StopIteration):
            self.guard.asend(None).send(None)

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        while self.clients:
            await self.clients.popitem()[1].aclose()


_loops: dict[asyncio.AbstractEventLoop, _LoopClients] = {}
_inherited: list[Any] = []


def _forget() -> None:
    """In a forked child: keep the parent's clients from being used, and from being finalised."""
    global _loops  # noqa: PLW0603 - the registry is the process's
    _inherited.append(_loops)
    _loops = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def client(endpoint: str | Endpoint, settings: Settings | None = None) -> httpx.AsyncClient:
    """The process's client for an endpoint, on the running event loop.

    Its `base_url`, headers, time limits and key are the endpoint's; paths are relative:
    `post("chat/completions")`. A call waits, without limit, while `max_connections` calls are under way.
    Do not close it: others use it.

    Args:
        endpoint: a name in the settings, or an endpoint as such.
        settings: where to look the name up; the process's settings without.

    Raises:
        SettingsError: no endpoint has that name.
        UsageError: no event loop runs here.
    """
    found = find_endpoint(endpoint, settings) if isinstance(endpoint, str) else endpoint
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError("resources.client() was called where no event loop runs. "
                         "Call it inside the coroutine that makes the request.") from None
    mine = _loops.get(loop)
    if mine is None:
        for old in [known for known in list(_loops) if known.is_closed()]:
            _loops.pop(old, None)
        mine = _loops[loop] = _LoopClients()
    key = _identity(found)
    made = mine.clients.get(key)
    if made is None or made.is_closed:
        made = mine.clients[key] = _make(found)
    return made


async def aclose_all() -> None:
    """Close the running loop's clients; calls under way on them fail. The next `client()` opens new ones."""
    mine = _loops.pop(asyncio.get_running_loop(), None)
    if mine is not None:
        await mine.guard.aclose()


def _identity(endpoint: Endpoint) -> tuple[Any, ...]:
    """What makes two endpoints the same client; an Endpoint holds a dict and cannot be hashed itself."""
    headers = tuple(sorted(endpoint.headers.items()))
    return (endpoint.base_url, endpoint.api_key, endpoint.api_key_env, headers, endpoint.timeout,
            endpoint.connect_timeout, endpoint.max_connections)


def _make(endpoint: Endpoint) -> httpx.AsyncClient:
    # `pool=None`: to wait for a free connection is not an error; the caller's own deadline bounds it.
    timeout = httpx.Timeout(endpoint.timeout, connect=endpoint.connect_timeout, pool=None)
    made = httpx.AsyncClient(
        base_url=shown_url(endpoint.base_url),  # httpx logs addresses; what is secret in one goes to `auth`
        headers={"User-Agent": "callsheet"},
        auth=EndpointAuth(endpoint),
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        timeout=timeout,
        transport=pooled_transport(endpoint),
    )
    for name in made.headers.keys() & {header.lower() for header in endpoint.headers}:
        del made.headers[name]  # `auth` adds the endpoint's headers, and leaves alone what is already there
    return made
