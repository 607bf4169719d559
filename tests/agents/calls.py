"""An agent that calls an endpoint."""

from callsheet import AgentBase, Msg
from callsheet.resources import client


class Calls(AgentBase):
    """Asks its endpoint, and says how that went."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name, self.endpoint = name, endpoint

    async def reply(self, msg: Msg | None = None) -> Msg:
        response = await client(self.endpoint).post("chat/completions", json={"user": "0 0"})
        return Msg(self.name, str(response.status_code), "assistant")
