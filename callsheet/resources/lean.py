"""httpx's client without the work that a call of an endpoint has no use for."""

from typing import Any

import httpx

from callsheet.errors import UsageError

_MOST_KNOWN = 256
_READ = httpx.ByteStream(b"")


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
