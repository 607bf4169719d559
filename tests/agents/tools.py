"""Tools, and an agent that calls them, on workers."""

import os
import threading
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
