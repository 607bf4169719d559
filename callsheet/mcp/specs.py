"""What a client is given of its server: enough to connect, to tell servers apart, and to name one."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

from callsheet.errors import SettingsError, UsageError
from callsheet.resources.endpoints import find_endpoint, shown_url
from callsheet.settings import Endpoint, Settings
from callsheet.settings.endpoints import RetryPolicy
from callsheet.settings.mcp import McpServer

LISTED = 300.0
"""Seconds that a list of tools is kept where nobody tells of changes."""

Transport = Literal["streamable_http", "sse"]
TRANSPORTS = ("streamable_http", "sse")
ONCE = RetryPolicy(attempts=1)
"""A call of a tool may have been carried out when its answer is lost, so that it is sent once."""


@dataclass(frozen=True, kw_only=True)
class HttpSpec:
    """A server behind an address."""

    name: str  # the client's
    transport: Transport  # how it is spoken to
    url: str | None  # its address, or None: that of its endpoint
    endpoint: str | None  # name of an endpoint in the settings, or None
    headers: tuple[tuple[str, str], ...]  # sent with each request
    timeout: float  # seconds to connect and to send
    sse_read_timeout: float  # seconds that the server may be silent
    options: tuple[tuple[str, Any], ...]  # what else the SDK's client is given

    @property
    def key(self) -> Hashable:
        """What makes two of them the same."""
        options = tuple((name, value if value.__hash__ else id(value)) for name, value in self.options)
        return replace(self, options=options)

    @property
    def shown(self) -> str:
        """The server, for the beginning of a message; nothing secret."""
        where = shown_url(self.url) if self.url else f"endpoint {self.endpoint}"
        return f"The MCP server {self.name!r} ({self.transport}, {where})"

    def target(self, settings: Settings) -> tuple[str, Endpoint, str]:
        """The endpoint's name, the endpoint, and the address without what is secret in it but its query.

        Raises:
            SettingsError: there is no such endpoint.
            UsageError: the address is not the endpoint's.
        """
        if self.endpoint is not None:
            name, found = self.endpoint, find_endpoint(self.endpoint, settings)
        else:
            assert self.url is not None
            address = self.url.rstrip("/")
            own = shown_url(self.url), Endpoint(base_url=self.url)
            name, found = next(((name, known) for name, known in settings.endpoints.items()
                                if known.base_url == address), own)
        url = httpx.URL(self.url or found.base_url)
        if self.endpoint is not None and url.host != httpx.URL(found.base_url).host:
            raise UsageError(f"{self.shown}: the endpoint {name!r} is at {shown_url(found.base_url)}. Leave the url "
                             "out, or give one there.")
        if "retry" not in found.model_fields_set:
            found = found.model_copy(update={"retry": ONCE})
        return name, found, str(url.copy_with(userinfo=b""))


@dataclass(frozen=True, kw_only=True)
class StdioSpec:
    """A server that is a program."""

    name: str  # the client's
    command: str | None  # the program, or None: what the settings say of a server of that name
    args: tuple[str, ...]  # its arguments
    env: tuple[tuple[str, str], ...]  # variables that it gets
    cwd: str | None  # the folder that it runs in
    encoding: str  # of its messages
    errors: str  # what is done about bytes that are not in that encoding

    @property
    def key(self) -> Hashable:
        """What makes two of them the same."""
        return self

    @property
    def shown(self) -> str:
        """The server, for the beginning of a message; its arguments are not shown."""
        return f"The MCP server {self.name!r} ({self.command or 'of the settings'})"

    def program(self, settings: Settings) -> McpServer:
        """What is to be started.

        Raises:
            SettingsError: the settings do not say.
        """
        if self.command is not None:
            return McpServer(command=self.command, args=self.args, env=dict(self.env), cwd=self.cwd)
        declared = settings.mcp.server(self.name)
        if declared is None:
            raise SettingsError(f"There is no MCP server {self.name!r} in the settings; they know: "
                                f"{', '.join(sorted(settings.mcp.servers)) or 'none'}. {declaration(self.name)}")
        return declared

    def is_declared(self, settings: Settings) -> bool:
        """Whether the settings say the same of a server of this name."""
        declared = settings.mcp.server(self.name)
        if declared is None or self.command is None:
            return declared is not None
        cwd = None if declared.cwd is None else str(declared.cwd)
        return ((self.command, self.args, self.cwd) == (declared.command, declared.args, cwd)
                and set(self.env) <= set(declared.env.items()))


def declaration(name: str, command: str = "program", args: tuple[str, ...] = ()) -> str:
    """How a program is declared."""
    listed = ", ".join(f'"{arg}"' for arg in args)
    return (f'Declare it where the workers run, in callsheet.toml: [mcp.servers."{name}"] with command = "{command}"'
            f"{f' and args = [{listed}]' if args else ''}.")


Spec = HttpSpec | StdioSpec
