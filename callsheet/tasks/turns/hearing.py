"""What an agent hears before its reply: everything that was said in its hubs since its last turn, once, in order."""

import asyncio
import heapq
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from callsheet.errors import ObserveFailed
from callsheet.hub.broadcast import atell, tell
from callsheet.hub.entries import missing_of, read_by_many, said
from callsheet.hub.records import News, time_of
from callsheet.hub.redis import any_large, filled, parted
from callsheet.messages import Msg
from callsheet.settings import Settings
from callsheet.tasks.loop import on_process_loop
from callsheet.tasks.patience import patient
from callsheet.tasks.turns.desk import Turn

logger = logging.getLogger(__name__)

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
_Item = tuple[float, str, str, Callable[[], Msg]]  # time, seat, cursor, message


async def hear(turn: Turn, in_thread: InThread) -> None:
    """Have the turn's agent observe what is new in its hubs.

    A message that its `observe` raises at counts as heard, if the call is not tried again; those behind it do not.

    Args:
        turn: the agent's.
        in_thread: how a plain `def observe` is run off the loop.
    """
    agent: Any = turn.agent
    if any(any_large(news.entries) for news in turn.news):
        turn.news = await patient(lambda: on_process_loop(lambda: _filled(turn.news, turn.desk.settings)))
    plain = not inspect.iscoroutinefunction(type(agent).observe)
    for _, seat, cursor, message in heapq.merge(*map(_items, turn.news), key=lambda item: item[0]):
        turn.heard[seat] = cursor
        msg = message()
        if plain:
            await in_thread(lambda msg=msg: agent.observe(msg))  # type: ignore[misc]
        else:
            await agent.observe(msg)
    for news in turn.news:
        if news.upto != news.cursor:
            turn.heard[news.seat] = news.upto


async def _filled(news: list[News], settings: Settings) -> list[News]:
    return [replace(one, entries=await filled(one.hub, one.entries, settings)) for one in news]


def _items(news: News) -> Iterator[_Item]:
    missing = missing_of(news)
    if missing is not None:
        cursor, msg = missing
        when = time_of(news.cursor)
        yield when, news.seat, cursor, lambda: msg
    for entry in news.entries:
        yield time_of(entry.id), news.seat, entry.id, lambda entry=entry: read_by_many(entry)  # type: ignore[misc]


def speak(turn: Turn, reply: Any) -> dict[str, bytes]:
    """Have the turn's end tell the agent's hubs what it replied; gives large payloads to be stored before."""
    if not (turn.news and turn.agent.shares_replies):
        return {}
    settings = turn.desk.settings
    turn.said, blobs = parted(said(reply, settings.payload_max), settings)
    return blobs


async def tell_eager(names: Sequence[str]) -> None:
    """Have the eager members of hubs told what was said. What goes wrong is logged: they hear it later."""
    for name in names:
        try:
            await patient(lambda name=name: asyncio.to_thread(tell, name))  # type: ignore[misc]
        except Exception:
            logger.exception("hub_tell hub=%s: its eager members hear the last message with their next calls", name)


async def tell_inline(names: Sequence[str]) -> None:
    """As `tell_eager`, where calls run inline: the loop may end with the call, so it is waited for."""
    for name in names:
        try:
            await atell(name)
        except ObserveFailed as exc:
            logger.warning("hub_tell hub=%s: %s", name, exc)
