"""Saying something in a hub."""

from typing import Any
from uuid import uuid4

from callsheet.hub.large import parted
from callsheet.hub.patience import patient, patiently
from callsheet.hub.place import on_loop, the_hubs
from callsheet.hub.refusals import checked_name
from callsheet.hub.telling import atell, raise_failed, tell
from callsheet.hub.wire import written
from callsheet.memory.base import messages_of
from callsheet.messages import Msg
from callsheet.resources.context import current_call
from callsheet.resources.payloads import store, store_async
from callsheet.settings import get_settings


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
