"""What is fetched from addresses that messages name."""

import asyncio
import errno
import functools
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import aiohttp
import httpx

from callsheet.resources.outbound import admitted
from callsheet.resources.transport import Pooled, proxy_in_environment

SILENT, WHOLE = 60.0, 300.0  # seconds that a download may be silent, and that it may take
_HOPS = 5  # redirects that are followed

_certificates = functools.cache(httpx.create_ssl_context)


class Outside(Pooled):
    """Connects where the settings allow it: each address is looked at when it is connected to, however it was found.

    Through a proxy of the environment it is the proxy that looks names up, and that must refuse its own inside.

    Args:
        allowed: see `admitted`.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(0, _certificates(), None)
        self._allowed, self._host = allowed, ""

    def _connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(ssl=self._trusted, force_close=True, socket_factory=self._socket)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; one at a time.

        Raises:
            httpx.TransportError: it could not be sent, or the address is not allowed.
        """
        self._host, self._proxy = request.url.host, proxy_in_environment(str(request.url))
        if self._proxy:
            try:
                self._look(request.url.host)
            except OSError as exc:
                raise httpx.ConnectError(str(exc)) from exc
        return await super().handle_async_request(request)

    def _socket(self, info: Any) -> socket.socket:
        if not self._proxy:
            self._look(info[4][0])
        made = socket.socket(info[0], info[1], info[2])
        made.setblocking(False)
        return made

    def _look(self, where: str) -> None:
        try:
            address = ipaddress.ip_address(where)
        except ValueError:  # a name, on its way to a proxy
            return
        if not admitted(address, self._host, self._allowed):
            raise PermissionError(errno.EACCES, f"{where} is no address that CALLSHEET_MEDIA_HOSTS allows")


async def fetched(url: str, most: int, allowed: Sequence[str]) -> bytes | None:
    """What is at an address of the web.

    Args:
        url: of http or https.
        most: bytes at most.
        allowed: see `admitted`; redirects are held to it too.

    Returns:
        None where it has more bytes.

    Raises:
        httpx.HTTPError, httpx.InvalidURL, TimeoutError: it cannot be had.
    """
    body = bytearray()
    headers = {"accept-encoding": "identity"}
    async with (asyncio.timeout(WHOLE),
                httpx.AsyncClient(transport=Outside(allowed), timeout=SILENT, headers=headers) as http):
        for _ in range(_HOPS + 1):
            async with http.stream("GET", url) as response:
                if response.next_request is not None:
                    url = str(response.next_request.url)
                    continue
                response.raise_for_status()
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise httpx.DecodingError("it is compressed, which was not asked for")
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > most:
                        return None
                return bytes(body)
    raise httpx.TooManyRedirects(f"more than {_HOPS} redirects")
