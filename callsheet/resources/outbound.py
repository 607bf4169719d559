"""Which addresses are called, since messages name some: models', MCP servers', those of media, which are fetched."""

import asyncio
import errno
import functools
import ipaddress
import socket
from collections.abc import Hashable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import httpx

from callsheet.errors import UsageError
from callsheet.resources.endpoints import origin
from callsheet.resources.transport import Pooled, proxy_at, proxy_in_environment
from callsheet.settings import Settings

PUBLIC = "public"
"""Stands for all addresses that the whole internet reaches."""

SILENT, WHOLE = 60.0, 300.0
"""Seconds that a download may be silent, and that it may take."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOPS = 5  # redirects that are followed
_certificates = functools.cache(httpx.create_ssl_context)
_GLOBAL = ipaddress.ip_network("2000::/3")
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0/96")))  # IPv4 in IPv6
_METADATA = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "fd00:ec2::254")))


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for; others as they are."""
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _TRANSLATED):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.sixtofour or (address.teredo[1] if address.teredo else address)
    return address


def admitted(address: Address, host: str, allowed: Sequence[str]) -> bool:
    """Whether a request to `host`, which is at `address`, may be sent.

    Args:
        address: that is connected to.
        host: as the request names it.
        allowed: PUBLIC, addresses, networks such as 10.1.0.0/16, and names or patterns such as `*.example.com`. A name
            does not admit an address of the link or of a cloud's metadata: these must be given as such.
    """
    real = _plain(address)
    for one in allowed:
        if one == PUBLIC:
            found = real.is_global and not real.is_multicast and real not in _METADATA and (
                real.version == 4 or real in _GLOBAL)
        else:
            try:
                found = real in ipaddress.ip_network(one, strict=False)
            except ValueError:
                found = (fnmatchcase(host.lower().rstrip("."), one.lower()) and real not in _METADATA
                         and not real.is_link_local)
        if found:
            return True
    return False


class Outbound:
    """The addresses of the settings' endpoints, and of others what their `outbound_hosts` admits.

    Args:
        settings: of the process.

    Attributes:
        key: what makes two of them the same.
    """

    def __init__(self, settings: Settings) -> None:
        self._allowed = settings.outbound_hosts
        self._known = frozenset(origin(httpx.URL(one.base_url)) for one in settings.endpoints.values())
        self._numbers = (*self._allowed, *(host.decode() for _, host, _ in self._known), "*")
        self.key: Hashable = (self._allowed, self._known)

    def check(self, url: httpx.URL) -> None:
        """See that an address may be called.

        Raises:
            UsageError: it may not; names the remedy.
        """
        if origin(url) not in self._known:
            host = url.host.lower().rstrip(".")
            try:
                right = admitted(ipaddress.ip_address(host), host, self._allowed)
            except ValueError:
                right = any(fnmatchcase(host, name.lower()) for name in self._allowed)
            if not right:
                raise _refused(host)

    def connecting(self, info: Any) -> socket.socket:
        """The socket for an address that a name was found to stand for; aiohttp's `socket_factory`.

        Raises:
            UsageError: it may not be called.
        """
        if not admitted(ipaddress.ip_address(info[4][0]), "", self._numbers):
            raise _refused(info[4][0])
        return socket.socket(*info[:3])


def _refused(host: str) -> UsageError:
    return UsageError(f"{host!r} may not be called: no endpoint of the settings is there, and CALLSHEET_OUTBOUND_HOSTS "
                      "does not let it. Declare an endpoint with this address where the call is made, or add the host "
                      "to that list; a cloud's own services and link-local addresses by number, e.g. 169.254.0.0/16.")


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
    body, plain = bytearray(), {"accept-encoding": "identity"}
    async with asyncio.timeout(WHOLE):
        for _ in range(_HOPS + 1):
            async with (httpx.AsyncClient(transport=_outside(url, allowed), timeout=SILENT, headers=plain) as http,
                        http.stream("GET", url) as response):
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


def _outside(url: str, allowed: Sequence[str]) -> Pooled:
    """Connections to one address: each is looked at when it is connected to, however it was found.

    Through a proxy of the environment it is the proxy that looks names up, and that must refuse its own inside.
    """
    host, proxy = httpx.URL(url).host, proxy_in_environment(url)

    def look(where: str) -> None:
        if not admitted(ipaddress.ip_address(where), host, allowed):
            raise PermissionError(errno.EACCES, f"{where} is no address that CALLSHEET_MEDIA_HOSTS allows")

    def opening(info: Any) -> socket.socket:
        look(info[4][0])
        return socket.socket(*info[:3])

    if proxy:
        try:
            look(host)
        except PermissionError as exc:
            raise httpx.ConnectError(str(exc)) from exc
        except ValueError:  # a name
            pass
    return Pooled(0, _certificates(), proxy_at(proxy), None if proxy else opening)
