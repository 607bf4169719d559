"""Agents that ask a chat model."""

from typing import Any

from callsheet import AgentBase, Msg
from callsheet.models import ChatModelBase, ChatResponse


class Asker(AgentBase):
    """Asks its model what it is told, and answers with the content of the answer."""

    def __init__(self, model: ChatModelBase) -> None:
        self.name = "asker"
        self.model = model

    async def reply(self, msg: Msg) -> Msg:
        result = await self.model([{"role": "user", "content": msg.get_text_content()}])
        response: Any = result if isinstance(result, ChatResponse) else [chunk async for chunk in result][-1]
        return Msg(self.name, response.content, "assistant")


def shout(messages: list[dict[str, Any]], **_: Any) -> str:
    return str(messages[-1]["content"]).upper()
