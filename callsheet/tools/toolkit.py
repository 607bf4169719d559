"""Toolkit: the tools that an agent's model can call."""

import inspect
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import BaseModel

from callsheet.errors import ToolError, UsageError
from callsheet.messages import ToolUseBlock
from callsheet.messages.pairing import LONGEST, tool_name
from callsheet.tools import travel
from callsheet.tools.arguments import Misfit, given
from callsheet.tools.clients import ClientTool, McpClient, McpFunction, tools_of
from callsheet.tools.execution import PASS_THROUGH, Responses, responses
from callsheet.tools.groups import BASIC, META_TOOL, Grouped
from callsheet.tools.registered import (
    NamesakeStrategy,
    Postprocess,
    Reading,
    RegisteredToolFunction,
    ToolFunction,
    names_in,
)
from callsheet.tools.response import ToolResponse, failure_text, text_response
from callsheet.tools.signature import name_of

logger = logging.getLogger(__name__)
Handler = Callable[..., Coroutine[Any, Any, Responses]]
Middleware = Callable[[dict[str, Any], Handler], Responses]
_STRATEGIES = ("raise", "override", "skip", "rename")


class Toolkit(Grouped):
    """The tools that an agent's model can call: functions, and the tools of MCP servers.

    A toolkit travels to workers with its agent, and so does what was registered in it: functions defined at the top
    level of a module, `functools.partial` of these, methods of objects that travel, MCP clients.

    Attributes:
        tools: by the name that the model knows: the function's or the server's, unless providers do not take that.
        groups: by name, without "basic".
        middlewares: the outermost first.
    """

    def __init__(self) -> None:
        self.tools = {}
        self.groups = {}
        self.middlewares: list[Middleware] = []

    # Registering -----------------------------------------------------------------------------------

    def register_tool_function(  # noqa: PLR0913 - AgentScope's parameters
            self, tool_func: ToolFunction, group_name: str = BASIC, preset_kwargs: dict[str, Any] | None = None,
            func_name: str | None = None, func_description: str | None = None,
            json_schema: dict[str, Any] | None = None, include_long_description: bool = True,
            include_var_positional: bool = False, include_var_keyword: bool = False,
            postprocess_func: Postprocess | None = None, namesake_strategy: NamesakeStrategy = "raise", *,
            timeout: float | None = None, retries: int = 0, queue: str | None = None) -> None:
        """Make a function a tool; its schema comes of its signature and docstring (Google or numpy style).

        It may be plain or async, and give any value, a ToolResponse, or a generator of them. Plain functions run in
        a thread.

        Args:
            tool_func: the function; or what an MCP client's `get_callable_function` gave.
            group_name: "basic", or a group of this toolkit.
            preset_kwargs: arguments that the model neither sees nor gives.
            func_name: the tool's name, in place of the function's.
            func_description: in place of the docstring's.
            json_schema: `{"type": "function", "function": {"name", "description", "parameters"}}`, in place of the
                one made of the function; arguments are checked against it and handed on as they are.
            include_long_description: whether the docstring's long description is given to the model.
            include_var_positional: whether the model may give `*args`, as a list.
            include_var_keyword: whether the model may give `**kwargs`, as an object.
            postprocess_func: gets the model's call and each response; may give another. Plain or async.
            namesake_strategy: where the name is taken: "raise", "override", "skip" or "rename".
            timeout: seconds for a call, its retries and its wait for a thread or a worker included.
            retries: how often a call that raised is tried again, with growing pauses.
            queue: the queue whose workers run it, e.g. "cpu", as a job; None runs it where the agent runs.

        Raises:
            ToolError: the name is taken, there is no such group, or the function has no schema.
            UsageError: an argument that cannot be right.
        """
        original, presets, own_name, given_schema, mcp_name = _unpacked(tool_func)
        presets = {**presets, **(preset_kwargs or {})}
        name = func_name or own_name
        schema = _checked_schema(json_schema, name) or given_schema
        reading = Reading(description=func_description, schema=schema, long=include_long_description,
                          positional=include_var_positional, keyword=include_var_keyword)
        self._add(RegisteredToolFunction(
            name=name, group=group_name, source="function" if mcp_name is None else "mcp_server",
            original_func=original, json_schema=reading.json_schema(name, original, frozenset(presets)),
            preset_kwargs=presets, original_name=own_name if func_name else None, mcp_name=mcp_name,
            postprocess_func=postprocess_func, timeout=timeout, retries=retries, queue=queue, reading=reading),
            namesake_strategy)

    def _add(self, tool: RegisteredToolFunction, strategy: NamesakeStrategy, others: Collection[str] = ()) -> None:
        if strategy not in _STRATEGIES:
            raise ToolError(f"namesake_strategy is {strategy!r}: one of {', '.join(_STRATEGIES)} is needed.")
        if tool.group != BASIC and tool.group not in self.groups:
            raise ToolError(f"There is no tool group {tool.group!r}; there are {', '.join([BASIC, *self.groups])}. "
                            "Make it with create_tool_group first.")
        tool = self._offerable(tool, others)
        if tool.name not in self.tools or strategy == "override":
            self.tools[tool.name] = tool
        elif strategy == "raise":
            raise ToolError(f"There is a tool {tool.name!r} already. Give func_name, or say in namesake_strategy "
                            "what to do.")
        elif strategy == "skip":
            logger.info("tool_skipped tool=%s: there is one of that name", tool.name)
        else:
            new = next(name for name in iter(lambda: f"{tool.name[:LONGEST - 7]}_{secrets.token_hex(3)}", None)
                       if name not in self.tools)
            self.tools[new] = _renamed(tool, new)

    def _offerable(self, tool: RegisteredToolFunction, others: Collection[str]) -> RegisteredToolFunction:
        """The tool by a name that every provider takes; MCP, for one, allows dots, slashes and 128 characters."""
        name = tool_name(tool.name)
        known = self.tools.get(name)
        if name != tool.name and (name in others or (known is not None and (known.original_name or name) != tool.name)):
            name = tool_name(tool.name, told_apart=True)
        return tool if name == tool.name else _renamed(tool, name)

    def _known(self, name: Any) -> RegisteredToolFunction | None:
        """The tool of this name, or the one that has another only because no provider takes this."""
        if not isinstance(name, str) or name in self.tools or tool_name(name) == name:
            return self.tools.get(name) if isinstance(name, str) else None
        return next((tool for tool in self.tools.values() if tool.original_name == name), None)

    def remove_tool_function(self, tool_name: str, allow_not_exist: bool = True) -> None:
        """Take a tool away.

        Raises:
            ToolError: there is none of that name, and `allow_not_exist` is False.
        """
        known = self._known(tool_name)
        if known is not None:
            del self.tools[known.name]
        elif not allow_not_exist:
            raise ToolError(f"There is no tool {tool_name!r}; there are {', '.join(self.tools) or 'none'}.")

    def set_extended_model(self, func_name: str, model: type[BaseModel] | None) -> None:
        """Ask the model for more arguments of a tool: those of a pydantic model; None for no more.

        The function gets them if it takes them or has `**kwargs`.

        Raises:
            UsageError: not a pydantic model.
            ToolError: there is no such tool.
        """
        if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise UsageError(f"The extended model is {model!r:.200}: a subclass of pydantic's BaseModel is needed.")
        known = self._known(func_name)
        if known is None:
            raise ToolError(f"There is no tool {func_name!r}; there are {', '.join(self.tools) or 'none'}.")
        known.extended_model = model

    def register_middleware(self, middleware: Middleware) -> None:
        """Put an async generator function around each call of a tool; the first one registered is the outermost.

        Args:
            middleware: gets `kwargs`, with the model's call as `tool_call`, and `next_handler`; it yields what
                `async for response in await next_handler(**kwargs)` gives, changed or not, or answers itself.
        """
        self.middlewares.append(middleware)

    def clear(self) -> None:
        """Take all tools and groups away."""
        self.tools.clear()
        self.groups.clear()

    # MCP -------------------------------------------------------------------------------------------

    async def register_mcp_client(
            self, mcp_client: McpClient, group_name: str = BASIC, enable_funcs: list[str] | None = None,
            disable_funcs: list[str] | None = None, preset_kwargs_mapping: dict[str, dict[str, Any]] | None = None,
            postprocess_func: Postprocess | None = None, namesake_strategy: NamesakeStrategy = "raise",
            execution_timeout: float | None = None, *, timeout: float | None = None, retries: int = 0) -> None:
        """Make an MCP server's tools tools of this toolkit: all of them, or none if one cannot be.

        Args:
            mcp_client: of the server; one that holds a session is connected first.
            group_name: "basic", or a group of this toolkit.
            enable_funcs: names of the tools to take; None takes all.
            disable_funcs: names of the tools to leave out.
            preset_kwargs_mapping: arguments by tool that the model neither sees nor gives.
            postprocess_func: as in `register_tool_function`, as are `namesake_strategy`, `timeout` and `retries`.
            execution_timeout: seconds that the client gives a call.

        Raises:
            ToolError: a tool is both enabled and disabled, a name is taken, or there is no such group.
            UsageError: an argument of another type.
            RuntimeError: the client is not connected.
        """
        preset = RegisteredToolFunction(
            name="", group=group_name, source="mcp_server", original_func=name_of, json_schema={},
            mcp_name=mcp_client.name, postprocess_func=postprocess_func, timeout=timeout, retries=retries)
        tools = await tools_of(mcp_client, preset, enable_funcs, disable_funcs, preset_kwargs_mapping,
                               execution_timeout)
        before = dict(self.tools)
        try:
            for one in tools:
                self._add(one, namesake_strategy, {tool.name for tool in tools})
        except ToolError:
            self.tools = before
            raise
        logger.info("mcp_tools_registered client=%s tools=%d", mcp_client.name, len(tools))

    async def remove_mcp_clients(self, client_names: str | list[str]) -> None:
        """Take the tools of MCP clients away.

        Raises:
            UsageError: not a name or a list of names.
        """
        names = names_in(client_names, "client_names")
        for tool in [tool for tool in self.tools.values() if tool.mcp_name in names]:
            del self.tools[tool.name]

    # For the agent ---------------------------------------------------------------------------------

    def get_json_schemas(self) -> list[dict[str, Any]]:
        """The schemas of the tools that the model is offered now.

        Raises:
            ToolError: an extended model has an argument that the tool has already.
        """
        return [self._meta_schema(tool) if tool.name == META_TOOL else tool.extended_json_schema
                for tool in self.tools.values() if self.is_offered(tool)]

    async def call_tool_function(self, tool_call: ToolUseBlock) -> AsyncGenerator[ToolResponse, None]:
        """Call a tool: `async for response in await toolkit.call_tool_function(block)`.

        Each response holds all that has come so far. What goes wrong with the call or in the tool comes as a
        response, for the model to read. An interrupt of the agent ends it with an interrupted response.
        """
        handler: Handler = self._base
        for middleware in reversed(self.middlewares):
            handler = _around(middleware, handler)
        return await handler(tool_call=tool_call)

    async def _base(self, tool_call: ToolUseBlock) -> Responses:
        return self._called(tool_call)

    async def _called(self, call: ToolUseBlock) -> Responses:
        name = call.get("name")
        tool = self._known(name)
        if tool is None:
            offered = ", ".join(one.name for one in self.tools.values() if self.is_offered(one))
            yield text_response(f"Error: there is no tool {name!r:.200}. There are {offered or 'none'}.")
            return
        if not self.is_offered(tool):
            yield text_response(f"Error: the tool {name} belongs to the tool group {tool.group!r}, which is off. "
                                f"Switch it on with {META_TOOL} first.")
            return
        try:
            arguments = given(tool, call)
        except Misfit as exc:
            yield text_response(f"Error: {exc}")
            return
        async with aclosing(responses(tool, arguments)) as found:
            async for response in found:
                yield await _postprocessed(tool, call, response)

    # How it travels --------------------------------------------------------------------------------

    def wire_extras(self) -> dict[str, Any]:
        """What was registered."""
        return travel.sent(self)

    def apply_wire_extras(self, extras: dict[str, Any]) -> None:
        """Register what was registered in the toolkit that was sent."""
        travel.received(self, extras)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self.tools) or 'without tools'}>"


def _renamed(tool: RegisteredToolFunction, name: str) -> RegisteredToolFunction:
    function = {**tool.json_schema["function"], "name": name}
    return replace(tool, name=name, original_name=tool.original_name or tool.name,
                   json_schema={**tool.json_schema, "function": function})


def _around(middleware: Middleware, handler: Handler) -> Handler:
    async def wrapped(**kwargs: Any) -> Responses:
        return middleware(kwargs, handler)

    return wrapped


async def _postprocessed(tool: RegisteredToolFunction, call: ToolUseBlock, response: ToolResponse) -> ToolResponse:
    if tool.postprocess_func is None:
        return response
    try:
        made = tool.postprocess_func(call, response)
        changed = await made if inspect.isawaitable(made) else made
    except PASS_THROUGH:
        raise
    except Exception as exc:
        logger.warning("tool_postprocess_failed tool=%s error=%s", tool.name, type(exc).__name__)
        return text_response(failure_text(exc))
    return response if changed is None else changed


def _unpacked(tool_func: ToolFunction) -> tuple[ToolFunction, dict[str, Any], str, dict[str, Any] | None, str | None]:
    """What is called, the arguments that it has already, its name, and of an MCP tool the schema and the client."""
    if isinstance(tool_func, partial):
        return tool_func.func, _bound(tool_func), name_of(tool_func.func), None, None
    if not callable(tool_func) or isinstance(tool_func, type):
        raise UsageError(f"{tool_func!r:.200} is not a function.")
    if not inspect.isroutine(tool_func) and isinstance(tool_func, McpFunction):
        client: Any = getattr(tool_func, "client", None)
        called: ToolFunction = tool_func
        if hasattr(client, "get_callable_function"):  # by its client it can travel
            called = ClientTool(client, tool_func.name, tool_func.json_schema, getattr(tool_func, "timeout", None),
                                tool_func)
        return called, {}, tool_func.name, tool_func.json_schema, tool_func.mcp_name
    return tool_func, {}, name_of(tool_func), None, None


def _bound(given: "partial[Any]") -> dict[str, Any]:
    """The arguments of a partial, by parameter."""
    signature = inspect.signature(given.func)
    found: dict[str, Any] = {}
    try:
        arguments = signature.bind_partial(*given.args, **given.keywords).arguments
    except TypeError as exc:
        raise UsageError(f"The partial of {name_of(given.func)} has arguments that it does not take: {exc}.") from None
    for name, value in arguments.items():
        named = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        found.update(value if named else {name: value})
    return found


def _checked_schema(schema: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    if schema is None:
        return None
    if not isinstance(schema, dict) or schema.get("type") != "function" or not isinstance(schema.get("function"), dict):
        raise ToolError(f"json_schema of the tool {name}: {{'type': 'function', 'function': {{'name', 'description', "
                        "'parameters'}}}} is needed.")
    return schema
