"""One pooled HTTP client an endpoint, shared by everything on a loop that calls it."""

import asyncio
from typing import Any

import httpx

from callsheet.errors import UsageError
from callsheet.resources.endpoints import EndpointAuth, shown_url
from callsheet.resources.loops import PerLoop
from callsheet.resources.stack import EndpointTransport, stacks, transport
from callsheet.settings import Endpoint, Settings

_MOST_KNOWN = 256
_READ = httpx.ByteStream(b"")
_clients: PerLoop[httpx.AsyncClient] = PerLoop()


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
    shared = transport(endpoint, settings)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError("resources.client() was called where no event loop runs. "
                         "Call it inside the coroutine that makes the request.") from None
    made = _clients.get(shared.key, lambda: _make(shared))
    if made.is_closed:
        _clients.drop(shared.key)
        made = _clients.get(shared.key, lambda: _make(shared))
    return made


async def aclose_all() -> None:
    """Close the running loop's clients; calls under way on them fail. The next `client()` opens new ones."""
    await _clients.aclose()
    await stacks.aclose()


def _make(shared: EndpointTransport) -> httpx.AsyncClient:
    endpoint = shared.endpoint
    # `pool=None`: to wait for a free connection is not an error; the caller's own deadline bounds it.
    timeout = httpx.Timeout(endpoint.timeout, connect=endpoint.connect_timeout, pool=None)
    made = LeanClient(
        base_url=shown_url(endpoint.base_url),  # httpx logs addresses; what is secret in one goes to `auth`
        headers={"User-Agent": "callsheet"},
        auth=EndpointAuth(endpoint),
        timeout=timeout,
        transport=shared,
    )
    for name in made.headers.keys() & {header.lower() for header in endpoint.headers}:
        del made.headers[name]  # `auth` adds the endpoint's headers, and leaves alone what is already there
    return made


class _NoCookies(httpx.Cookies):
    """Keeps none: a jar would carry one agent's cookies into another's calls. httpx's own would look for some."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Leave them."""


class LeanClient(httpx.AsyncClient):
    """httpx's, for many calls of few addresses: an address is put together once, and cookies are not looked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._no_cookies = _NoCookies()
        self._known: dict[str, httpx.URL] = {}

    @property
    def cookies(self) -> httpx.Cookies:
        """None are kept, and none can be set."""
        return self._no_cookies

    @cookies.setter
    def cookies(self, cookies: object) -> None:
        raise UsageError("A client of an endpoint is shared and keeps no cookies: give a call its Cookie header.")

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:
        """httpx's."""
        if isinstance(url, str):
            known = self._known.get(url)
            if known is None:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                known = self._known[url] = super().build_request(method, url).url
            url = known
        return super().build_request(method, url, **options)

    async def send(self, request: httpx.Request, *, stream: bool = False, auth: Any = httpx.USE_CLIENT_DEFAULT,
                   follow_redirects: Any = httpx.USE_CLIENT_DEFAULT) -> httpx.Response:
        """httpx's; an answer that has been read leaves nothing to Python's garbage collector."""
        response = await super().send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)
        if response.is_closed:
            response.stream = _READ  # httpx's refers to the response
        return response
