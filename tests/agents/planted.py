"""Agents and a task that tell every secret that their worker has; for tests/test_planted_keys.py."""

import base64
import json
import logging
import os
import subprocess
import sys
from typing import Any
from urllib.parse import quote

from celery import shared_task

from callsheet import AgentBase, Msg, Toolkit
from callsheet.mcp import HttpStatelessClient, StdIOStatefulClient
from callsheet.models import AnthropicChatModel, DashScopeChatModel, GeminiChatModel, OllamaChatModel, OpenAIChatModel
from callsheet.resources import client

logger = logging.getLogger("somebody.elses")
ASK: Any = [{"role": "user", "content": "Hello"}]
NAMES = "KEYS_OF_THIS_RUN"


def keys() -> list[str]:
    return list(json.loads(os.environ[NAMES]))


def all_of_them() -> str:
    """The secrets, as texts hold them."""
    plain = keys()
    return " ".join([*plain, *map(quote, plain), *map(repr, plain), json.dumps(plain),
                     *(base64.b64encode(key.encode()).decode() for key in plain),
                     *(key[:len(key) * 2 // 3] for key in plain)])


def leaky(query: str) -> str:
    """Fail, with secrets in the text."""
    raise ValueError(f"{query}: {all_of_them()}")


class Asks(AgentBase):
    """Calls whoever repeats what it was sent."""

    def __init__(self, name: str, whom: str) -> None:
        self.name, self.whom = name, whom

    async def reply(self, msg: Msg) -> Msg:
        found = await self._ask()
        return Msg(self.name, str(found), "assistant")

    async def _ask(self) -> Any:
        if self.whom == "own":
            return await OpenAIChatModel("m", keys()[-1], stream=False, endpoint="open")(ASK)
        if self.whom == "mcp":
            return await HttpStatelessClient("s", "streamable_http", endpoint="mcp").list_tools()
        if self.whom == "program":
            return await StdIOStatefulClient("leaky").list_tools()
        if self.whom == "client":
            response = await client("login").get("x")
            return response.raise_for_status()
        models: dict[str, Any] = {"claude": AnthropicChatModel, "gemini": GeminiChatModel, "ollama": OllamaChatModel,
                                  "dashscope": DashScopeChatModel}
        made = models.get(self.whom)
        model = made("m", stream=False) if made else OpenAIChatModel("m", stream=False, endpoint=self.whom)
        return await model(ASK)


class Tells(AgentBase):
    """Tells them by log, print, a tool's failure and a warning of a program's, and raises them."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        text = all_of_them()
        await self.print(Msg(self.name, f"I print {text}", "assistant"))
        logger.warning("I log %s", text)
        print("I say", text)
        kit = Toolkit()
        kit.register_tool_function(leaky)
        async for response in await kit.call_tool_function(
                {"type": "tool_use", "id": "1", "name": "leaky", "input": {"query": "q"}}):
            told = response.content[0]["text"]
        try:
            raise KeyError(text)
        except KeyError as exc:
            logger.exception("I log it, too")
            raise RuntimeError(f"{told} {text}", {"nested": [text]}) from exc


class Computes(AgentBase):
    """The same on cpu."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Msg) -> Msg:
        OpenAIChatModel("m", keys()[-1])  # which no setting has
        logger.error("I log %s", all_of_them())
        print("I say", all_of_them(), file=sys.stderr)
        raise subprocess.CalledProcessError(1, ["program", *keys()[:-1]], output=all_of_them())


class Repeats(AgentBase):
    """Replies with them."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        return Msg(self.name, all_of_them(), "assistant")


@shared_task
def plain_task() -> None:
    raise ValueError(all_of_them())


@shared_task(bind=True, max_retries=1)
def tries_again(self: Any) -> None:
    try:
        raise ValueError(all_of_them())
    except ValueError as exc:
        raise self.retry(exc=exc, countdown=0) from exc
