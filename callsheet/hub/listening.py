"""Listening to a hub from anywhere: pushed over its fanout exchange, read from its log where something is missing."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import cached_property
from typing import Any, TypeVar

from redis.exceptions import RedisError

from callsheet.errors import RedisUnavailable, UsageError
from callsheet.hub.entries import checked_name, gap, missing, read
from callsheet.hub.place import Hubs, refuse_on_loop, the_hubs
from callsheet.hub.records import Entry, HubInfo, Pushed, number_of, time_of
from callsheet.hub.redis import any_large
from callsheet.messages import Msg
from callsheet.resources.loops import lasting_loop

T = TypeVar("T")
_PAGE = 500
_MOST_WAITING = 2000  # pushed messages that wait for a slow listener; what comes then is read from the log
_READ_AGAIN = 0.2  # seconds
_LOOK_ANYWAY = 30.0  # seconds without a message after which to look whether the hub is still there


class HubEvent:
    """A message that was said in a hub.

    Attributes:
        hub: the hub's name.
        id: of the message in the hub; `listen(since=...)` goes on after it.
        number: which of the hub's messages it is, from 1.
        sender: the id of the agent that said it, or "" where it was none.
        time: unix time.
        missing: how many messages it stands for that are no longer kept; 0 of a usual one.
    """

    def __init__(self, hub: str, entry: Entry, gone: Msg | None = None, missing: int = 0) -> None:
        self.hub, self.id, self.sender = hub, entry.id, entry.sender
        self.number, self.time, self.missing = entry.number, time_of(entry.id), missing
        self._entry, self._gone = entry, gone

    @cached_property
    def msg(self) -> Msg:
        """The message; where some are missing, one that says so."""
        return read(self._entry) if self._gone is None else self._gone

    def __repr__(self) -> str:
        return f"<HubEvent {self.hub} {self.id}>"


class Listening:
    """Events of a hub; iterate with `async for` in async code, with `for` in plain code. See `listen`."""

    def __init__(self, name: str, since: str) -> None:
        self._name, self._since = name, since

    async def __aiter__(self) -> AsyncIterator[HubEvent]:
        hubs = the_hubs()
        events = _Events(hubs, self._name, self._since)
        try:
            while (page := await _there(hubs, events.page)) is not None:
                for event in page:
                    self._since = event.id
                    yield event
        finally:
            await _there(hubs, events.end)

    def __iter__(self) -> Iterator[HubEvent]:
        refuse_on_loop("for event in hub.listen(...)", "async for event in hub.listen(...)")
        hubs = the_hubs()
        events = _Events(hubs, self._name, self._since)
        loop = lasting_loop() if hubs.remote else asyncio.new_event_loop()

        def run(work: Callable[[], Any]) -> Any:
            if not hubs.remote:
                return loop.run_until_complete(work())
            future = asyncio.run_coroutine_threadsafe(work(), loop)
            try:
                return future.result()
            except BaseException:
                future.cancel()
                raise

        try:
            while (page := run(events.page)) is not None:
                for event in page:
                    self._since = event.id
                    yield event
        finally:
            run(events.end)
            if not hubs.remote:
                loop.close()


async def _there(hubs: Hubs, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Where the hubs' connections live."""
    loop = lasting_loop() if hubs.remote else asyncio.get_running_loop()
    if loop is asyncio.get_running_loop():
        return await work()
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))


class _Events:
    """A hub's events after one, without gaps and in order; on one loop."""

    def __init__(self, hubs: Hubs, name: str, since: str) -> None:
        self._hubs, self._name, self._since = hubs, name, since
        self._info: HubInfo | None = None
        self._after = ""
        self._pushed: deque[Entry] = deque()
        self._look = True
        self._closed = False
        self._wake = asyncio.Event()
        self._end: Callable[[], None] | None = None

    async def _begin(self) -> None:
        info = await self._hubs.info(self._name)
        if info is None:
            raise missing(self._name)
        self._info, self._closed = info, info.closed is not None
        begun = f"{info.last.partition('-')[0]}-0" if info.messages == 0 else "0-0"
        self._after = {"start": begun, "now": info.last}.get(self._since, self._since)
        self._end = self._hubs.listen(self._name, self._hear)

    def _hear(self, told: Pushed) -> None:
        if told.look or self._info is None or told.epoch != self._info.epoch:
            self._look = True  # also where another life of the hub has begun
        elif told.closed:
            self._closed = self._look = True
        elif told.entry is not None:
            if len(self._pushed) < _MOST_WAITING:
                self._pushed.append(told.entry)
            else:
                self._look = True
        self._wake.set()

    async def end(self) -> None:
        """Listen no more."""
        if self._end is not None:
            self._end()
            self._end = None

    async def page(self) -> list[HubEvent] | None:
        """The next events, at least one; None when the hub is closed and all of them were given."""
        if self._info is None:
            await self._begin()
        while True:
            found = self._next_pushed()
            if not found and self._look:
                found = await self._read()
            if found:
                await self._fill(found)
                return found
            if not self._look:
                if self._closed:
                    return None
                self._wake.clear()
                if not self._pushed:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), _LOOK_ANYWAY)
                    self._look |= not self._wake.is_set()

    async def _fill(self, events: list[HubEvent]) -> None:
        """Put large messages into their places."""
        large = [event for event in events if any_large([event._entry])]
        while large:
            try:
                entries = await self._hubs.filled(self._name, [event._entry for event in large])
            except RedisUnavailable:
                await asyncio.sleep(_READ_AGAIN)
                continue
            for event, entry in zip(large, entries, strict=True):
                event._entry = entry
            return

    def _next_pushed(self) -> list[HubEvent]:
        found: list[HubEvent] = []
        while self._pushed:
            number, entry = number_of(self._after), self._pushed[0]
            if entry.number != number + 1 and (entry.number > number or time_of(entry.id) > time_of(self._after)):
                self._look = True  # some are missing, or Redis came back without the last ones: the log has it
                break
            self._pushed.popleft()
            if entry.number == number + 1:
                found.append(HubEvent(self._name, entry))
                self._after = entry.id
        return found

    async def _read(self) -> list[HubEvent]:
        assert self._info is not None
        closed, self._look, waiting = self._closed, False, len(self._pushed)
        try:
            entries = await self._hubs.read(self._info.epoch, self._after, _PAGE)
            info = await self._hubs.info(self._name) if not entries else None
            if info is not None and self._ahead(info):  # said meanwhile, or no longer kept
                entries = await self._hubs.read(self._info.epoch, self._after, _PAGE)
        except (RedisError, RedisUnavailable, OSError):
            self._look = True
            await asyncio.sleep(_READ_AGAIN)
            return []
        if entries:
            self._look = True  # there may be more, and whether the hub is closed is asked when there is none
        if not entries and info is not None and info.epoch == self._info.epoch:
            self._closed = closed or info.closed is not None
            if self._ahead(info):
                return self._missed(number_of(info.last), info.last)
        elif not entries:
            if info is None and not closed:  # Redis lost it
                raise missing(self._name)
            self._closed = True  # a life of the hub that is over
        if not entries:
            for _ in range(waiting):
                self._pushed.popleft()  # the log does not have them either: Redis lost them as it went down
            return []
        found = []
        if entries[0].number > number_of(self._after) + 1:
            first = entries[0].number - 1
            found = self._missed(first, f"{entries[0].id.partition('-')[0]}-{first}")
        found += [HubEvent(self._name, entry) for entry in entries]
        self._after = entries[-1].id
        return found

    def _ahead(self, info: HubInfo) -> bool:
        assert self._info is not None
        return info.epoch == self._info.epoch and number_of(info.last) > number_of(self._after)

    def _missed(self, last: int, entry_id: str) -> list[HubEvent]:
        first = number_of(self._after) + 1
        self._after = entry_id
        return [HubEvent(self._name, Entry(entry_id, "", ""), gap(self._name, first, last), last - first + 1)]


def listen(name: str, since: str = "start") -> Listening:
    """What is said in a hub, as it is said, from any process that has the same Redis; ends when the hub is closed.

    Each message comes once and in order, also when connections break or Redis restarts. What is no longer kept is
    one event that says how many are missing.

    Args:
        name: of the hub.
        since: "start", "now", or the id of an event, after which to go on.

    Raises:
        HubMissing: when the iteration begins, there is no such hub, or later: Redis has lost it.
        UsageError: `since` is none of these.
    """
    if not isinstance(since, str) or (since not in ("start", "now") and not _is_id(since)):
        raise UsageError(f"since={since!r}: \"start\", \"now\" or the id of an event is needed.")
    return Listening(checked_name(name), since)


def _is_id(text: str) -> bool:
    with contextlib.suppress(ValueError):
        number_of(text)
        return "-" in text and time_of(text) >= 0
    return False
