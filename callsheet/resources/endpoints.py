"""Endpoints by name, and how requests to them are signed."""

import base64
import difflib
from collections.abc import Generator, Iterator, MutableMapping
from typing import Any

import httpx

from callsheet.errors import SettingsError
from callsheet.settings import Endpoint, Settings, get_settings


def find_endpoint(name: str, settings: Settings | None = None) -> Endpoint:
    """The endpoint of that name.

    Args:
        name: a key of `Settings.endpoints`.
        settings: where to look; the process's settings without.

    Raises:
        SettingsError: no endpoint has that name; says which there are and how to declare this one.
    """
    endpoints = (settings or get_settings()).endpoints
    if name in endpoints:
        return endpoints[name]
    known = ", ".join(sorted(endpoints)) or "none"
    near = difflib.get_close_matches(name, endpoints, 1)
    meant = f"Did you mean {near[0]!r}? If not, declare it" if near else "Declare it"
    raise SettingsError(
        f"There is no endpoint named {name!r}; the settings know: {known}. {meant}: {_declaration(name)}.")


def resolved(endpoint: str | Endpoint, settings: Settings) -> tuple[str, Endpoint]:
    """An endpoint and its name; one that the settings do not name goes by its address.

    Raises:
        SettingsError: no endpoint has that name.
    """
    if isinstance(endpoint, str):
        return endpoint, find_endpoint(endpoint, settings)
    for name, known in settings.endpoints.items():
        if known is endpoint or known == endpoint:
            return name, endpoint
    return shown_url(endpoint.base_url), endpoint


def _declaration(name: str) -> str:
    # pydantic-settings lower-cases what it reads from the environment, so only such names come from there.
    if name.isidentifier() and name == name.lower() and "__" not in name:
        prefix = f"CALLSHEET_ENDPOINTS__{name.upper()}"
        return f"set {prefix}__BASE_URL=https://host/v1, and the name of its key's variable in {prefix}__API_KEY_ENV"
    return f'write [endpoints."{name}"] with base_url = "https://host/v1" into callsheet.toml'


def shown_url(url: str) -> str:
    """An address without user, password, query and fragment, for messages."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")


STAND_IN = "set-by-callsheet"
"""What a client of somebody else's has in place of a key or a secret header, which it never gets to see."""

_SIGNED_BY = "callsheet_signature"  # in a request's extensions


class Signature:
    """The headers and the key of an endpoint, for requests to its own origin (scheme, host, port) and no other.

    Args:
        endpoint: its settings.
        header: that takes the key; "" where a stand-in is in its place already.
        own: a key in place of the endpoint's, which is looked up anew for each request.
    """

    __slots__ = ("_endpoint", "_header", "_login", "_origin", "_own")

    def __init__(self, endpoint: Endpoint, header: str = "Authorization", own: str | None = None) -> None:
        url = httpx.URL(endpoint.base_url)
        self._endpoint, self._header, self._own, self._origin = endpoint, header, own, origin(url)
        self._login = f"Basic {base64.b64encode(url.userinfo).decode()}" if url.userinfo else None

    def sign(self, headers: httpx.Headers, url: httpx.URL) -> None:
        """Add to the headers of a request what belongs there. What it brings itself stays; stand-ins do not."""
        key = None
        if origin(url) == self._origin:
            key = self._own or self._endpoint.key()
            for name, value in self._values(key):
                if STAND_IN in headers.get(name, STAND_IN):
                    headers[name] = value
        if self._header:
            return
        for name, value in [(name, value) for name, value in headers.items() if STAND_IN in value]:
            if key:
                headers[name] = value.replace(STAND_IN, key)
            else:
                del headers[name]

    def mark(self, extensions: MutableMapping[str, Any]) -> None:
        """Have the endpoint's transport sign the request of these extensions, and those that redirects make of it."""
        extensions[_SIGNED_BY] = self

    def _values(self, key: str | None) -> Iterator[tuple[str, str]]:
        """Headers, those that count first."""
        signing: tuple[tuple[str, str], ...] = ()
        if key and self._header:
            signing = ((self._header, f"Bearer {key}" if self._header == "Authorization" else key),)
        elif self._login and not key:
            signing = (("Authorization", self._login),)
        if self._own:
            yield from signing
        yield from self._endpoint.headers.items()
        yield from signing


def signed(request: httpx.Request) -> httpx.Headers | None:
    """The headers with which a marked request is to be sent; None where nobody signs it.

    A copy: httpx makes a redirected request of the headers of the one before.
    """
    signature = request.extensions.get(_SIGNED_BY)
    if signature is None:
        return None
    headers = request.headers.copy()
    signature.sign(headers, request.url)
    return headers


class EndpointAuth(httpx.Auth):
    """Has requests signed where they are sent; see Signature."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._signature = Signature(endpoint)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """One request, marked."""
        self._signature.mark(request.extensions)
        yield request


def origin(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    """Scheme, host and port of an address."""
    return url.raw_scheme, url.raw_host, url.port  # None for the scheme's own
