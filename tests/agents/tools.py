"""Tools, and an agent that calls them, on workers."""

import os
import threading
from dataclasses import dataclass
from typing import Any

from callsheet import AgentBase, Msg, Toolkit, ToolResponse
from callsheet.messages import Recorded


def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


def where() -> str:
    """The process and thread that this runs in."""
    return f"{os.getpid()} {threading.current_thread().name}"


def fails(text: str) -> None:
    """Fail."""
    raise ValueError(text)


def forever() -> None:
    """Never end."""
    threading.Event().wait()


def counts(up_to: int) -> Any:
    """Count."""
    for number in range(up_to):
        yield f"{number} "


async def shout(call: Any, response: ToolResponse) -> ToolResponse:
    """Louder."""
    return ToolResponse([{**block, "text": block["text"].upper()} if block["type"] == "text" else block
                         for block in response.content])


async def mark(kwargs: dict[str, Any], next_handler: Any) -> Any:
    """Mark each response."""
    async for response in await next_handler(**kwargs):
        response.content.append({"type": "text", "text": "(marked)"})
        yield response


class Shelf(Recorded):
    """What has methods that are tools, and travels."""

    def __init__(self, books: list[str]) -> None:
        self.books = books

    def find(self, word: str) -> str:
        """Find a book."""
        return next((book for book in self.books if word in book), "none")


@dataclass
class ServerTool:
    """A tool as a server lists it."""

    name: str
    description: str | None
    inputSchema: Any


class Server(Recorded):
    """A client of a server that is this process; it keeps to the protocol of MCP clients.

    Args:
        name: of the client.
        lists: names of its tools.
    """

    def __init__(self, name: str, lists: list[str]) -> None:
        self.name = name
        self.lists = lists
        self.is_connected = True
        self.asked: list[tuple[str, float | None]] = []

    async def list_tools(self) -> list[ServerTool]:
        """The tools; the last one's schema is nonsense."""
        schema = {"type": "object", "properties": {"word": {"type": "string"}, "key": {"type": "string"}},
                  "required": ["word", "key"]}
        return [ServerTool(name, f"Say {name}.", "nonsense" if name == self.lists[-1] else schema)
                for name in self.lists]

    async def get_callable_function(self, func_name: str, wrap_tool_result: bool = True,
                                    execution_timeout: float | None = None) -> Any:
        """A tool."""
        self.asked.append((func_name, execution_timeout))
        if func_name not in self.lists:
            raise ValueError(func_name)

        async def call(**kwargs: Any) -> ToolResponse:
            return ToolResponse([{"type": "text", "text": f"{self.name}.{func_name} {kwargs} {os.getpid()}"}])

        return call


class Kit(Toolkit):
    """A toolkit with a tool of its own."""

    def __init__(self, greeting: str) -> None:
        super().__init__()
        self.greeting = greeting
        self.register_tool_function(self.greet)

    def greet(self, name: str) -> str:
        """Greet."""
        return f"{self.greeting}, {name}"


class Caller(AgentBase):
    """Calls a tool and says what it gave; the last response's text, or that it was interrupted."""

    def __init__(self, name: str, toolkit: Toolkit) -> None:
        self.name = name
        self.toolkit = toolkit

    async def reply(self, tool: str, arguments: dict[str, Any]) -> Msg:
        """Call a tool."""
        block: Any = {"type": "tool_use", "id": "1", "name": tool, "input": arguments}
        text, interrupted = "", False
        async for response in await self.toolkit.call_tool_function(block):
            text = " ".join(block["text"] for block in response.content if block["type"] == "text")
            interrupted = response.is_interrupted
            await self.print(Msg(self.name, text or " ", "assistant"), last=response.is_last)
        return Msg(self.name, text, "assistant",
                   metadata={"interrupted": interrupted, "pid": os.getpid(), "schemas": self.toolkit.get_json_schemas(),
                             "groups": self.toolkit.state_dict()["active_groups"]})
