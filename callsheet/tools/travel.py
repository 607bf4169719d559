"""A toolkit's registrations as data that a Writer can write, and back.

A function travels by its name, a bound method as the object and the method's name, where the object travels; a method
of the toolkit itself as its name; a tool of an MCP client as the client, which is recorded, and the tool's name.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from callsheet.errors import CannotTravel
from callsheet.messages.recorded import Recorded
from callsheet.tools.clients import ClientTool, McpClient
from callsheet.tools.registered import Reading, RegisteredToolFunction, ToolGroup

#: Whose methods a message may not name as tools, also where a user's class has them from there; and which it may.
#: Of objects whose classes the messages do not name, such as paths and dates, it may name none.
_CLOSED = ("callsheet", "pydantic")
_OWN_METHODS = frozenset({"Grouped.reset_equipped_tools"})
_KEPT = ("group", "preset_kwargs", "original_name", "extended_model", "timeout", "retries", "queue")


def sent(owner: Any) -> dict[str, Any]:
    """What was registered in the toolkit `owner`; {} if nothing was."""
    clients: dict[str, McpClient] = {}
    extras: dict[str, Any] = {}
    if owner.groups:
        extras["groups"] = {name: asdict(group) for name, group in owner.groups.items()}
    if owner.tools:
        extras["tools"] = {name: _tool(owner, tool, clients) for name, tool in owner.tools.items()}
    if owner.middlewares:
        extras["middlewares"] = [_function(owner, function) for function in owner.middlewares]
    if clients:
        extras["clients"] = clients
    return extras


def _tool(owner: Any, tool: RegisteredToolFunction, clients: dict[str, McpClient]) -> dict[str, Any]:
    defaults = RegisteredToolFunction(tool.name, "basic", "function", tool.original_func, {})
    data = {name: value for name in _KEPT if (value := getattr(tool, name)) != getattr(defaults, name)}
    reading = {name: value for name, value in vars(tool.reading).items() if value != getattr(defaults.reading, name)}
    if isinstance(tool.original_func, ClientTool):
        found = tool.original_func
        clients[found.mcp_name] = found.client
        data["mcp"] = [found.mcp_name, found.name, found.timeout]
        reading["schema"] = tool.json_schema
    else:
        data["function"] = _function(owner, tool.original_func)
        if tool.mcp_name is not None:
            data["mcp_name"] = tool.mcp_name
    if reading:
        data["reading"] = reading
    if tool.postprocess_func is not None:
        data["postprocess"] = _function(owner, tool.postprocess_func)
    return data


def _function(owner: Any, function: Callable[..., Any]) -> Any:
    if not isinstance(function, types.MethodType):
        return function
    if function.__self__ is owner:
        return {"own": function.__name__}
    return {"method": [function.__self__, function.__name__]}


def received(owner: Any, extras: Mapping[str, Any]) -> None:
    """Register in the toolkit `owner` what `sent` gave, in place of what is there.

    Raises:
        CannotTravel: it names a method that is not there.
    """
    owner.groups.clear()
    owner.groups.update({name: ToolGroup(**data) for name, data in extras.get("groups", {}).items()})
    owner.middlewares[:] = [_found(owner, data) for data in extras.get("middlewares", ())]
    clients = extras.get("clients", {})
    owner.tools.clear()
    for name, data in extras.get("tools", {}).items():
        owner.tools[name] = _registered(owner, name, data, clients)


def _registered(owner: Any, name: str, data: dict[str, Any], clients: Mapping[str, McpClient]
                ) -> RegisteredToolFunction:
    reading = Reading(**data.get("reading", {}))
    mcp_name = data.get("mcp_name")
    if "mcp" in data:
        mcp_name, server_name, timeout = data["mcp"]
        assert reading.schema is not None
        function: Callable[..., Any] = ClientTool(clients[mcp_name], server_name, reading.schema, timeout)
    else:
        function = _found(owner, data["function"])
    kept = {"group": "basic", **{key: data[key] for key in _KEPT if key in data}}
    return RegisteredToolFunction(
        name=name, source="function" if mcp_name is None else "mcp_server", original_func=function,
        json_schema=reading.json_schema(name, function, frozenset(kept.get("preset_kwargs", ()))), mcp_name=mcp_name,
        postprocess_func=_found(owner, data["postprocess"]) if "postprocess" in data else None, reading=reading, **kept)


def _found(owner: Any, data: Any) -> Callable[..., Any]:
    if not isinstance(data, dict):
        if not callable(data) or isinstance(data, type):
            raise CannotTravel(f"A toolkit's message has {type(data).__name__} in place of a function. Do the workers "
                               "run another version of Callsheet?")
        function: Callable[..., Any] = data
        return function
    target, name = (owner, data["own"]) if "own" in data else data["method"]
    method = next((vars(cls)[name] for cls in type(target).__mro__ if name in vars(cls)), None)
    named = isinstance(target, (Recorded, BaseModel, Enum)) or is_dataclass(target)
    if not named or name.startswith("_") or not isinstance(method, types.FunctionType) or (
            method.__module__.partition(".")[0] in _CLOSED and method.__qualname__ not in _OWN_METHODS):
        raise CannotTravel(f"{type(target).__name__} has no method {name!r} here that can be a tool. Give a function "
                           "of a module in its place; or do the workers run another version of it?")
    bound: Callable[..., Any] = getattr(target, name)
    return bound
