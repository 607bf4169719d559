"""The innermost transport: httpx's interface over aiohttp's connection pool.

httpx's own pool looks through all its connections at each request; aiohttp's does not, which is what lets one
process hold a thousand slow calls.
"""

import base64
import ssl
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from callsheet.errors import SettingsError
from callsheet.settings import Endpoint
from callsheet.settings.endpoints import address_of

KEEPALIVE = 15.0
"""Seconds that an idle connection is kept for the next call."""


def pooled_transport(endpoint: Endpoint) -> httpx.AsyncBaseTransport:
    """A transport that keeps at most `endpoint.max_connections` connections; a call beyond waits for one.

    Raises:
        SettingsError: the endpoint's file of certificates cannot be read.
    """
    limits = httpx.Limits(max_connections=endpoint.max_connections, keepalive_expiry=KEEPALIVE)
    address = endpoint.proxy.get_secret_value() if endpoint.proxy else _proxy_in_environment(endpoint.base_url)
    return _Pooled(limits=limits, proxy=_proxy(address), verify=_trusted(endpoint))


class _Pooled(AiohttpTransport):
    def get_client(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self.limits.max_connections or 0, keepalive_timeout=KEEPALIVE, ssl=self.ssl_context)
        # A jar would carry one agent's cookies into another's calls.
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with _exact_errors(request):
            response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, request)
        return response


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, request: httpx.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _exact_errors(self._request):
            async for chunk in self._stream:
                yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


# httpx-aiohttp calls it a ConnectTimeout when a server hangs up, and a plain timeout when none answers. Whoever
# retries must know whether the server may have seen the call. The first match counts.
_EXACT: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientProxyConnectionError, httpx.ProxyError),
    (aiohttp.ClientHttpProxyError, httpx.ProxyError),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ServerFingerprintMismatch, httpx.ConnectError),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
    (aiohttp.ClientError, httpx.ReadError),
    (ConnectionError, httpx.ReadError),
)


@contextmanager
def _exact_errors(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, aiohttp.ClientError, ConnectionError) as exc:
        cause = exc.__cause__ if isinstance(exc, httpx.TransportError) else exc
        for theirs, ours in _EXACT:
            if isinstance(cause, theirs):
                raise ours(str(cause), request=request) from cause
        raise


def _trusted(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """The certificates to trust; True for the system's.

    Raises:
        SettingsError: the endpoint's file of them cannot be read.
    """
    if endpoint.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=endpoint.ca_file)
    except OSError as exc:  # also of what is in it
        raise SettingsError(f"The certificates for {address_of(endpoint.base_url)} cannot be read from "
                            f"{endpoint.ca_file}: {exc.strerror or exc}. Put a PEM file there, or correct "
                            "ca_file.") from None


def _proxy(address: str | None) -> httpx.Proxy | None:
    """A proxy, signed in to with the user and password of its address.

    aiohttp makes Proxy-Authorization of this header, for tunnels and plain requests alike.
    """
    if address is None:
        return None
    proxy = httpx.Proxy(address)
    if proxy.auth is None:
        return proxy
    credentials = base64.b64encode(":".join(proxy.auth).encode()).decode()
    return httpx.Proxy(proxy.url, headers={"Authorization": f"Basic {credentials}"})


def _proxy_in_environment(base_url: str) -> str | None:
    """The proxy that HTTPS_PROXY and its kin name for the address, asked for once a client."""
    parsed = urllib.parse.urlsplit(base_url)
    proxies = urllib.request.getproxies()
    address = proxies.get(parsed.scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(parsed.netloc.rpartition("@")[2]):
        return None
    return address if "://" in address else f"http://{address}"
