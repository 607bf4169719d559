"""One piece of an elastic group's work on its way."""

import asyncio
import time
from typing import Any

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import CallsheetError
from callsheet.hub.telling import in_words
from callsheet.messages import Msg

NOTICE = "elastic"
"""Key in the metadata of messages between a group, its shifts and its user."""


def notice(name: str, told: dict[str, Any]) -> Msg:
    """A message that is not for people."""
    return Msg(name, "", "user", metadata={NOTICE: told})


class Shift(AgentBase):
    """Has a replica reply to one message, and tells its group.

    A second run of it, after its worker died, finds the replica's reply under the same id and runs nothing twice.
    """

    def __init__(self, group: Any, taker: int, number: int, ident: str) -> None:
        self.group, self.taker, self.number, self.ident = group, taker, number, ident
        self.name = f"{group.name} {number}"

    async def reply(self, msg: Msg) -> Any:
        """The replica's reply."""
        began = time.time()
        replica = self.group.replica(self.taker)
        replica._once = True
        options = CallOptions(job_id=f"{self.ident}-reply", retries=self.group.retries)
        try:
            reply = await dispatcher().call(replica, (msg,), {}, options)
        except CallsheetError as exc:
            await self._tell(time.time() - began, in_words(exc))
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._tell(time.time() - began, "cancelled"))
            raise
        await self._tell(time.time() - began, "")
        return reply

    async def _tell(self, seconds: float, error: str) -> None:
        told = {"ended": self.number, "seconds": seconds, "error": error}
        await dispatcher().call(self.group, (notice(self.name, told),), {}, CallOptions())
