"""Saying something in a hub, and telling its eager members at once: each in a call of its own, which only observes."""

import asyncio
import json
import logging
from typing import Any
from uuid import uuid4

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import AgentFailed, HubMissing, JobError, ObserveFailed
from callsheet.hub.entries import checked_name, written
from callsheet.hub.patience import patient, patiently
from callsheet.hub.place import on_loop, the_hubs
from callsheet.hub.records import Seat
from callsheet.hub.redis import parted
from callsheet.memory.base import messages_of
from callsheet.messages import Msg
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.resources.context import current_call
from callsheet.resources.payloads import store, store_async
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


def texts_of(msg: Any, what: str) -> list[str]:
    """Messages as they stand in a hub's log."""
    most = get_settings().payload_max
    return [written(one, most) for one in messages_of(msg, what)]


def _named(texts: list[str]) -> tuple[str, str, list[str]]:
    """Under an id which a second run of the call that runs here gives it too."""
    call = current_call()
    broadcast = uuid4().hex if call.call is None else f"{call.call}/{next(call.steps)}"
    return broadcast, call.agent_id or "", texts


def _stored(texts: list[str]) -> list[str]:
    if not the_hubs().remote:
        return texts
    given, blobs = parted(texts, get_settings())
    patiently(lambda: store(blobs, get_settings()))
    return given


def say_nowait(name: str, epoch: str, texts: list[str]) -> str:
    """Broadcast without waiting for eager members; blocks for a trip to Redis."""
    entry_id, eager = the_hubs().say(name, epoch, *_named(_stored(texts)))
    if eager:
        patiently(lambda: tell(name))
    return entry_id


def say_plain(name: str, epoch: str, texts: list[str]) -> str:
    """Broadcast, and wait for eager members."""
    entry_id, eager = the_hubs().say(name, epoch, *_named(_stored(texts)))
    if eager:
        raise_failed(name, patiently(lambda: tell(name)).get())
    return entry_id


async def say_async(name: str, epoch: str, texts: list[str]) -> str:
    """As `say_plain`, in async code."""
    hubs, settings = the_hubs(), get_settings()
    if hubs.remote:
        texts, blobs = parted(texts, settings)
        await patient(lambda: store_async(blobs, settings))
    entry_id, eager = await hubs.asay(name, epoch, *_named(texts))
    if eager:
        await atell(name)
    return entry_id


def say(name: str, msg: Msg | list[Msg]) -> Any:
    """Say something in a hub that others have open, from any process: `await say(...)`; in plain code without await.

    Args:
        name: of the hub.
        msg: a message, or several.

    Returns:
        The id of the (last) message's event.

    Raises:
        HubMissing: no hub of this name is open.
        UsageError: something that is no message.
        ObserveFailed: eager members raised; the others have the message.
    """
    texts = texts_of(msg, "hub.say")
    return (say_async if on_loop() else say_plain)(checked_name(name), "", texts)
