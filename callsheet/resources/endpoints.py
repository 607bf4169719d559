"""Endpoints by name, and how requests to them are signed."""

import base64
import difflib
from collections.abc import Generator

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


class EndpointAuth(httpx.Auth):
    """Gives requests to an endpoint's own host its headers, and the key that its settings give at that moment.

    A header that a request brings itself stays. A request to another host is left unsigned, so that
    a redirect or an absolute address never carries a key away.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        url = httpx.URL(endpoint.base_url)
        self._origin = _origin(url)
        self._login = f"Basic {base64.b64encode(url.userinfo).decode()}" if url.userinfo else None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """One request, signed where it should be."""
        if _origin(request.url) == self._origin:
            for name, value in self._endpoint.headers.items():
                request.headers.setdefault(name, value)
            credentials = self._credentials()
            if credentials:
                request.headers.setdefault("Authorization", credentials)
        yield request

    def _credentials(self) -> str | None:
        key = self._endpoint.key()
        return f"Bearer {key}" if key else self._login


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, url.port or default
