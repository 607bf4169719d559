"""Agents outside the modules that the tests' workers allow."""

from callsheet import AgentBase, Msg


class Outsider(AgentBase):
    """Is not admitted."""

    async def reply(self, msg: Msg | None = None) -> Msg:
        return Msg("outsider", "ran", "assistant")
