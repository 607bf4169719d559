"""Agents that hold a connection open, or hold up the loop."""

import time

from callsheet import AgentBase, Msg, resources
from callsheet.settings import Endpoint


class Listens(AgentBase):
    """Reads a stream to its end, which never comes."""

    def __init__(self, url: str, path: str) -> None:
        self.url = url
        self.path = path

    async def reply(self, msg: Msg | None = None) -> None:
        client = resources.client(Endpoint(base_url=self.url))
        async with client.stream("GET", self.path) as answer:
            async for _ in answer.aiter_bytes():
                pass


class Blocks(AgentBase):
    """Sleeps without letting others go on."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds

    async def reply(self, msg: Msg | None = None) -> None:
        time.sleep(self.seconds)
