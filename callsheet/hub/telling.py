"""Telling eager members of a hub what was said, at once: each in a call of its own, in which it only observes."""

import asyncio
import json
import logging
from typing import Any

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import AgentFailed, HubMissing, JobError, ObserveFailed
from callsheet.hub.place import the_hubs
from callsheet.hub.records import Seat
from callsheet.messages import Msg
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.resources.context import current_call
from callsheet.settings import get_settings

logger = logging.getLogger(__name__)
_FAILED = "failed"


def spec_of(agent: AgentBase) -> str:
    """What an eager member is built of, as JSON text.

    Raises:
        CannotTravel: part of the agent cannot be sent.
    """
    modules = get_settings().modules
    written = Writer(AllowList(modules) if modules else None).write(agent, f"the agent {agent.label}")
    return json.dumps(written, separators=(",", ":"))


class Teller(AgentBase):
    """Has a hub's eager members observe. One call of it costs a broadcast the same, however many there are."""

    def __init__(self, hub: str) -> None:
        self.hub = hub

    async def reply(self) -> Msg:
        """Have them observe, side by side; gives a message whose metadata name those that raised."""
        try:
            seats = await the_hubs().eager(self.hub)
        except HubMissing:  # it was closed meanwhile: they hear it with their next calls
            seats = []
        # Whoever waits for this hears it when its reply has ended.
        told = [seat for seat in seats if seat.id not in current_call().held]
        outcomes = await asyncio.gather(*(_tell(seat) for seat in told), return_exceptions=True)
        failed = {}
        for seat, outcome in zip(told, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failed[seat.id] = f"{seat.label}: {in_words(outcome)}"
                logger.warning("hub_observe hub=%s agent=%s id=%s: %s", self.hub, seat.label, seat.id, failed[seat.id])
            elif outcome is not None:
                raise outcome
        return Msg(self.hub, f"{len(told)} were told", "assistant", {_FAILED: failed})


def in_words(error: Exception) -> str:
    """What went wrong in a call, in short."""
    if isinstance(error, AgentFailed):
        return f"{error.remote_type.rpartition('.')[2]}: {error.remote_message}"
    return error.message if isinstance(error, JobError) else f"{type(error).__name__}: {error}"


async def _tell(seat: Seat) -> BaseException | None:
    if seat.agent is not None:
        agent: AgentBase = seat.agent.with_id(seat.id)
    else:
        agent = Reader(AllowList(get_settings().modules)).read(json.loads(seat.spec))
    agent._observing = agent._seated = True
    await dispatcher().call(agent, (), {}, CallOptions())
    return None


def raise_failed(hub: str, answer: Msg) -> None:
    """Raise what went wrong."""
    failed: Any = answer.metadata[_FAILED]
    if failed:
        raise ObserveFailed(f"{len(failed)} of the eager members of the hub {hub!r} raised when they were told a "
                            f"message; the others have it. {'; '.join(sorted(failed.values()))}", failed)


async def atell(hub: str) -> None:
    """Have a hub's eager members observe, and wait for that.

    Raises:
        ObserveFailed: members raised.
    """
    raise_failed(hub, await dispatcher().call(Teller(hub), (), {}, CallOptions()))


def tell(hub: str) -> Any:
    """As `atell`, without waiting; gives the job."""
    return dispatcher().submit(Teller(hub), (), {}, CallOptions())
