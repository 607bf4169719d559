"""The innermost transport: httpx's interface over aiohttp's connection pool.

httpx's own pool looks through all its connections at each request; aiohttp's does not, which is what lets one
process hold a thousand slow calls.
"""

import asyncio
import base64
import functools
import importlib
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import httpx

from callsheet.errors import SettingsError
from callsheet.settings import Endpoint
from callsheet.settings.endpoints import address_of

if TYPE_CHECKING:
    import aiohttp

KEEPALIVE = 15.0
"""Seconds that an idle connection is kept for the next call."""

_CHUNK = 64 * 1024  # bytes of a body that are handed on at once, at most


def pooled_transport(endpoint: Endpoint,
                     opening: Callable[[Any], socket.socket] | None = None) -> httpx.AsyncBaseTransport:
    """A transport that keeps at most `endpoint.max_connections` connections; a call beyond waits for one.

    Args:
        endpoint: its settings.
        opening: makes the socket for an address, unless a proxy opens the connections.

    Raises:
        SettingsError: the endpoint's file of certificates cannot be read.
    """
    address = endpoint.proxy.get_secret_value() if endpoint.proxy else proxy_in_environment(endpoint.base_url)
    trusted = httpx.create_ssl_context(_trusted(endpoint))
    return Pooled(endpoint.max_connections or 0, trusted, proxy_at(address), None if address else opening)


class Pooled(httpx.AsyncBaseTransport):
    """Connections of the loop in which the first request is made.

    Args:
        limit: connections at most; 0 for no limit.
        trusted: certificates.
        proxy: through which to connect.
        opening: makes the socket for an address.
    """

    def __init__(self, limit: int, trusted: ssl.SSLContext, proxy: httpx.Proxy | None,
                 opening: Callable[[Any], socket.socket] | None = None) -> None:
        self._limit = limit
        self._trusted = trusted
        self._proxy = str(proxy.url) if proxy else None
        self._proxy_headers = proxy.headers if proxy else None
        self._opening = opening
        self._opened: aiohttp.ClientSession | None = None

    async def _open(self) -> "aiohttp.ClientSession":
        # A third of a second, which programs and workers whose agents call no model never need.
        aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
        if self._opened is not None:
            return self._opened
        connector = aiohttp.TCPConnector(limit=self._limit, keepalive_timeout=KEEPALIVE, ssl=self._trusted,
                                         socket_factory=self._opening)
        # A jar would carry one agent's cookies into another's calls.
        self._opened = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._opened

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request.

        Raises:
            httpx.TransportError: it could not be sent, or nobody answered.
        """
        content: bytes | httpx.AsyncByteStream | None
        try:
            content = request.content or None
        except httpx.RequestNotRead:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            content = request.stream
            request.headers.pop("transfer-encoding", None)  # aiohttp's affair
        limits = request.extensions.get("timeout", {})
        session = self._opened or await self._open()
        timeout = type(session.timeout)(
            connect=limits.get("pool"), sock_connect=limits.get("connect"), sock_read=limits.get("read"))
        try:
            answer = await session.request(
                request.method, str(request.url), headers=request.headers, data=content, timeout=timeout,
                allow_redirects=False, auto_decompress=False, proxy=self._proxy, proxy_headers=self._proxy_headers,
                server_hostname=request.extensions.get("sni_hostname"))
        except _theirs() as exc:
            raise _exact(exc, request) from exc
        extensions = {"http_version": b"HTTP/1.1"}
        if answer.reason:
            extensions["reason_phrase"] = answer.reason.encode()
        return httpx.Response(answer.status, headers=answer.raw_headers, stream=_Body(answer, request),
                              request=request, extensions=extensions)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: "aiohttp.ClientResponse", request: httpx.Request) -> None:
        self._answer = answer
        self._request = request

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._answer.content.read(_CHUNK)
        except _theirs() as exc:
            raise _exact(exc, self._request) from exc
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._answer.release()
        await self._answer.wait_for_close()


class UntrustedCertificate(httpx.ConnectError):
    """The server shows a certificate that is not trusted."""


class ProxyRefused(httpx.ProxyError):
    """The proxy answered that it does not connect there, and not for a trouble of its own."""


@functools.cache
def _exactly() -> tuple[tuple[type[Exception], type[httpx.TransportError]], ...]:
    """Whoever retries must know whether the server may have seen the call. The first match counts."""
    import aiohttp

    return (
        (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
        (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
        (aiohttp.ClientProxyConnectionError, httpx.ProxyError),
        (aiohttp.ClientHttpProxyError, httpx.ProxyError),
        (aiohttp.ClientSSLError, UntrustedCertificate),
        (aiohttp.ClientConnectorError, httpx.ConnectError),
        (aiohttp.ServerFingerprintMismatch, httpx.ConnectError),
        (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
        (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
        (aiohttp.ClientResponseError, httpx.RemoteProtocolError),
        (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
        (aiohttp.ClientError, httpx.ReadError),
        (ConnectionError, httpx.ReadError),
    )


@functools.cache
def _theirs() -> tuple[type[Exception], ...]:
    return tuple(theirs for theirs, _ in _exactly())


def _exact(error: Exception, request: httpx.Request) -> httpx.TransportError:
    """httpx's error for one of aiohttp's."""
    found = next(ours for theirs, ours in _exactly() if isinstance(error, theirs))
    if found is httpx.ProxyError and getattr(error, "status", 500) < 500:
        found = ProxyRefused
    return found(str(error), request=request)


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


def proxy_at(address: str | None) -> httpx.Proxy | None:
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


def proxy_in_environment(base_url: str) -> str | None:
    """The proxy that HTTPS_PROXY and its kin name for the address, asked for once a client."""
    parsed = urllib.parse.urlsplit(base_url)
    proxies = urllib.request.getproxies()
    address = proxies.get(parsed.scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(parsed.netloc.rpartition("@")[2]):
        return None
    return address if "://" in address else f"http://{address}"
