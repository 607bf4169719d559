"""Clients of MCP servers, with AgentScope's names and parameters."""

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Any, Literal

from callsheet.errors import McpMisused, ModuleNotAllowed, ToolError, ToolFailed, UsageError
from callsheet.mcp.home import at_home, sdk_module, sessions
from callsheet.mcp.results import MCPToolFunction, fitting
from callsheet.mcp.specs import LISTED, TRANSPORTS, HttpSpec, Spec, StdioSpec, declaration
from callsheet.messages import Recorded
from callsheet.settings import get_settings

_MOST_LISTS = 256
_listed: OrderedDict[Hashable, tuple[float, list[Any]]] = OrderedDict()
_OPTIONS = {"streamable_http": {"auth", "http_client", "httpx_client_factory", "terminate_on_close",
                                "max_sse_event_size"},
            "sse": {"auth", "httpx_client_factory", "on_session_created"}}


class MCPClientBase(Recorded):
    """Base of the clients.

    Attributes:
        name: the client's; clients of one name and the same settings share a session.
        spec: the server.
    """

    name: str
    spec: Spec

    @abstractmethod
    async def list_tools(self) -> list[Any]:
        """The server's tools (`mcp.types.Tool`)."""

    @abstractmethod
    async def _known_tools(self) -> list[Any]:
        """The tools, as far as they are known."""

    @abstractmethod
    async def call(self, tool: Any, arguments: dict[str, Any], timeout: float | None) -> tuple[Any, Any]:
        """Call a tool: the SDK's result, and the tool as it is listed now."""

    async def get_callable_function(self, func_name: str, wrap_tool_result: bool = True,
                                    execution_timeout: float | None = None) -> MCPToolFunction:
        """A tool as an async function of its arguments.

        Args:
            func_name: the tool's name.
            wrap_tool_result: whether the function gives a ToolResponse, or the SDK's own `CallToolResult`.
            execution_timeout: seconds for a call, connecting included; the settings' without.

        Raises:
            ToolError: the server has no such tool (a ValueError).
            McpError: the server is not there.
        """
        tools = await self._known_tools()
        return MCPToolFunction(self, _found(tools, func_name, self.spec), wrap_tool_result, execution_timeout)

    def leaving(self, local: bool) -> None:
        """See that it is nothing that a message could have a worker start, other than its settings say.

        Raises:
            ModuleNotAllowed: the settings do not say the same of a server of that name.
        """
        spec = self.spec
        if not local and isinstance(spec, StdioSpec) and not spec.is_declared(get_settings()):
            raise ModuleNotAllowed(f"{spec.shown} is a program, and a worker starts none that its settings do not "
                                   "name, with the same arguments, env and cwd. "
                                   f"{declaration(spec.name, spec.command or 'program', spec.args)}")

    arrived = leaving


class StatefulClientBase(MCPClientBase):
    """Base of the clients that hold a session.

    The session lives in the process, not in the client: clients of one name and the same settings share it. It is
    opened anew when it was lost. A client that came with a message connects when it is needed.

    Attributes:
        is_connected: whether `connect` was called, and `close` was not; or, on a worker, whether it was needed.
        affinity: whether calls of agents that have it go to the io worker that holds its session.
    """

    is_connected: bool = False
    affinity: bool = False
    _closed: bool = False

    async def connect(self) -> None:
        """Connect.

        Raises:
            McpMisused: it is connected (a RuntimeError).
            McpError: the server is not there, or is none.
        """
        if self.is_connected:
            raise McpMisused(f"{self.spec.shown} is connected already. Call close() before you connect again.")

        async def work() -> None:
            session = sessions().of(self.spec)
            await session.open()
            session.holders.add(id(self))

        await at_home(work)
        self.is_connected, self._closed = True, False

    async def close(self, ignore_errors: bool = True) -> None:
        """Close; the session ends with the last client that connected to it.

        Args:
            ignore_errors: of the server's; there are none that could be raised.

        Raises:
            McpMisused: it is not connected (a RuntimeError).
        """
        if not self.is_connected:
            raise McpMisused(f"{self.spec.shown} is not connected. Call connect() before close().")
        self.is_connected, self._closed = False, True
        await at_home(lambda: sessions().release(self.spec, id(self)))

    async def list_tools(self) -> list[Any]:
        """The server's tools (`mcp.types.Tool`), as they are now.

        They are asked for once a session, and again when the server says that they have changed.

        Raises:
            McpMisused: the client was closed.
            McpError: the server is not there.
        """
        tools: list[Any] = await at_home(lambda: self._session().tools())
        return list(tools)

    async def _known_tools(self) -> list[Any]:
        return await self.list_tools()

    async def call(self, tool: Any, arguments: dict[str, Any], timeout: float | None) -> tuple[Any, Any]:
        """Call a tool: the SDK's result, and the tool as it is listed now.

        Raises:
            ToolFailed: the arguments do not fit, or the tool is there no more.
            McpError: the server refused, is not there, was lost, did not answer in time, or answered too much.
        """
        async def steps() -> tuple[Any, Any]:
            session = self._session()
            try:
                current = _found(await session.tools(), tool.name, self.spec)
            except ToolError as exc:
                raise ToolFailed(f"{exc}") from None
            fitting(current, arguments)
            return await session.call(current.name, arguments, timeout), current

        async def work() -> tuple[Any, Any]:
            found: tuple[Any, Any] = await self._session().within(timeout, steps)  # others may hold up the list
            return found

        return await at_home(work)

    def _session(self) -> Any:
        if self._closed:
            raise McpMisused(f"{self.spec.shown} was closed. Call connect() first.")
        session = sessions().of(self.spec)
        if not self.is_connected:
            session.kept = self.is_connected = True
        return session


class HttpStatefulClient(StatefulClientBase):
    """A session with a server behind an address.

    Requests go over the process's connections, under the limits, the circuit breaker and the accounting of an endpoint:
    the one that is named, or one whose `base_url` is the url, or one of its own. A request is sent once, unless the
    endpoint's settings have a `retry`.

    Args:
        name: of the client; clients of one name and the same settings share a session.
        transport: "streamable_http" or "sse".
        url: the server's address; may be left out where there is an endpoint.
        headers: sent with each request. What is secret belongs to an endpoint: with it a client does not travel.
        timeout: seconds to connect and to send.
        sse_read_timeout: seconds that the server may be silent while an answer of its is awaited, and on the stream of
            the transport "sse" at any time; a call that waits then ends with McpTimeout.
        client_kwargs: of the SDK's client: `auth`, `httpx_client_factory`; with "streamable_http" also `http_client`,
            `terminate_on_close`, `max_sse_event_size`; with "sse" also `on_session_created`. They take the place of
            what Callsheet gives it. `endpoint`: the name of an endpoint in the settings, which has address and key.
            `affinity=True`: calls of agents that have the client go to the io worker that holds its session.

    Raises:
        UsageError: an argument that cannot be right.
    """

    def __init__(self, name: str, transport: Literal["streamable_http", "sse"], url: str | None = None,
                 headers: dict[str, str] | None = None, timeout: float = 30, sse_read_timeout: float = 300,
                 **client_kwargs: Any) -> None:
        self.name = name
        self.affinity = bool(client_kwargs.pop("affinity", False))
        self.spec = _http_spec(name, transport, url, headers, timeout, sse_read_timeout, client_kwargs)


class HttpStatelessClient(MCPClientBase):
    """A server behind an address, with a session for each call; what is said of `HttpStatefulClient` holds else.

    Args:
        name: of the client.
        transport: as of `HttpStatefulClient`, as are the others.
    """

    def __init__(self, name: str, transport: Literal["streamable_http", "sse"], url: str | None = None,
                 headers: dict[str, str] | None = None, timeout: float = 30, sse_read_timeout: float = 300,
                 **client_kwargs: Any) -> None:
        self.name = name
        self.spec = _http_spec(name, transport, url, headers, timeout, sse_read_timeout, client_kwargs)

    async def list_tools(self) -> list[Any]:
        """The server's tools (`mcp.types.Tool`).

        Raises:
            McpError: the server is not there.
        """
        async def work() -> list[Any]:
            async with self._session() as session:
                found: list[Any] = await session.tools()
                return found

        tools = await at_home(work)
        _listed[self.spec.key] = (time.monotonic(), tools)
        if len(_listed) > _MOST_LISTS:
            _listed.popitem(last=False)
        return list(tools)

    async def _known_tools(self) -> list[Any]:
        asked, tools = _listed.get(self.spec.key, (0.0, None))
        fresh = tools is not None and time.monotonic() - asked < LISTED
        return tools if fresh and tools is not None else await self.list_tools()

    async def call(self, tool: Any, arguments: dict[str, Any], timeout: float | None) -> tuple[Any, Any]:
        """Call a tool, with a session of its own: the SDK's result, and the tool.

        Raises:
            ToolFailed: the arguments do not fit.
            McpError: the server refused, is not there, was lost, did not answer in time, or answered too much.
        """
        async def work() -> tuple[Any, Any]:
            fitting(tool, arguments)
            async with self._session() as session:
                return await session.call(tool.name, arguments, timeout), tool

        return await at_home(work)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Any]:
        session = sdk_module("session").Session(self.spec, get_settings())
        try:
            yield session
        finally:
            await session.close()


class StdIOStatefulClient(StatefulClientBase):
    """A session with a program that is a server.

    Args:
        name: of the client; clients of one name and the same settings share a session.
        command: the program; without, what the settings say of the server of that name.
        args: its arguments.
        env: variables that it gets beside a few of this process's own, PATH and HOME among them.
        cwd: the folder that it runs in.
        encoding: of its messages.
        encoding_error_handler: what is done about bytes that are not in that encoding.
        affinity: whether calls of agents that have the client go to the io worker that holds its session.

    Raises:
        UsageError: an argument that cannot be right.
    """

    def __init__(self, name: str, command: str | None = None, args: list[str] | None = None,
                 env: dict[str, str] | None = None, cwd: str | None = None, encoding: str = "utf-8",
                 encoding_error_handler: Literal["strict", "ignore", "replace"] = "strict", *,
                 affinity: bool = False) -> None:
        self.name = _name(name)
        self.affinity = affinity
        if command is None and (args or env or cwd):
            raise UsageError(f"StdIOStatefulClient({name!r}): args, env and cwd are of a command. Give that too, or "
                             "leave all of it to the settings.")
        self.spec = StdioSpec(name=name, command=command, args=tuple(map(str, args or ())),
                              env=tuple(sorted((env or {}).items())), cwd=None if cwd is None else str(cwd),
                              encoding=encoding, errors=encoding_error_handler)


def _found(tools: list[Any], name: str, spec: Spec) -> Any:
    for tool in tools:
        if tool.name == name:
            return tool
    raise ToolError(f"{spec.shown} has no tool {name!r}; it has "
                    f"{', '.join(tool.name for tool in tools) or 'none'}.")


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UsageError(f"The name of an MCP client is {name!r}: a text is needed.")
    return name


def _http_spec(name: Any, transport: Any, url: Any, headers: Any, timeout: float, sse_read_timeout: float,
               client_kwargs: dict[str, Any]) -> HttpSpec:
    options = dict(client_kwargs)
    endpoint, where = options.pop("endpoint", None), f"MCP client {_name(name)!r}"
    if transport not in TRANSPORTS:
        raise UsageError(f"{where}: transport={transport!r}: one of {', '.join(TRANSPORTS)} is needed.")
    if url is None and endpoint is None:
        raise UsageError(f"{where}: neither url nor endpoint says where the server is.")
    if url is not None and not str(url).startswith(("http://", "https://")):
        raise UsageError(f"{where}: the url does not begin with http:// or https://.")
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in (headers or {}).items()):
        raise UsageError(f"{where}: headers are texts by name.")
    unknown = options.keys() - _OPTIONS[transport]
    if unknown:
        raise UsageError(f"{where}: {', '.join(sorted(unknown))}: no such option with transport {transport!r}. There "
                         f"are endpoint, {', '.join(sorted(_OPTIONS[transport]))}.")
    for what, seconds in (("timeout", timeout), ("sse_read_timeout", sse_read_timeout)):
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds <= 0:
            raise UsageError(f"{where}: {what}={seconds!r}: seconds over 0 are needed.")
    return HttpSpec(name=name, transport=transport, url=url, endpoint=endpoint,
                    headers=tuple(sorted((headers or {}).items())), timeout=timeout,
                    sse_read_timeout=sse_read_timeout, options=tuple(sorted(options.items())))
