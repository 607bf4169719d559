"""Hubs in this process, for calls that run inline."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from callsheet.errors import HubMismatch
from callsheet.hub.entries import differs, missing
from callsheet.hub.records import (
    REPLICA,
    Entry,
    Hear,
    HubInfo,
    Member,
    News,
    Opened,
    Opening,
    Pushed,
    Seat,
    is_own,
    number_of,
)

_MOST_CLOSED = 100


@dataclass
class _Log:
    """What was said in one life of a hub."""

    entries: deque[Entry]
    last: str


@dataclass
class _Place:
    """An agent's seat in a hub: what it has heard, and of one that has left, up to where it still has to."""

    hub: "_Hub"
    cursor: str
    upto: str = ""
    deaf: bool = False


@dataclass
class _Member:
    seat: Seat
    place: str
    by: set[str]


@dataclass
class _Hub:
    name: str
    epoch: str
    auto: bool
    opened: bool
    log: _Log
    kept: bool = False
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    closed: float | None = None
    seats: int = 0
    openers: set[str] = field(default_factory=set)
    members: dict[str, _Member] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)

    def info(self) -> HubInfo:
        return HubInfo(name=self.name, epoch=self.epoch, auto=self.auto, kept=self.kept, created=self.created,
                       used=self.used, messages=number_of(self.log.last), last=self.log.last,
                       members=len(self.members), openers=len(self.openers), closed=self.closed)

    def eager(self) -> list[Seat]:
        return [member.seat for member in self.members.values() if member.seat.eager]


class LocalHubs:
    """Hubs in this process; as RedisHubs. Any thread and any loop."""

    remote = False

    def __init__(self, length: int = 10_000) -> None:
        self._length = length
        self._hubs: dict[str, _Hub] = {}
        self._places: dict[str, dict[str, _Place]] = {}
        self._listeners: dict[str, list[Hear]] = {}
        self._lock = threading.RLock()
        self._time = 0

    def _open_hub(self, name: str, epoch: str = "") -> _Hub:
        hub = self._hubs.get(name)
        if hub is None or hub.closed is not None or epoch not in ("", hub.epoch):
            raise missing(name)
        return hub

    # Changing -----------------------------------------------------------------------------------------

    def open(self, name: str, opening: Opening) -> Opened:
        """As RedisHubs."""
        with self._lock:
            hub = self._hubs.get(name)
            if hub is None or hub.closed is not None:
                auto, epoch = opening.auto is not False, uuid4().hex
                self._forget()
                log = _Log(deque(maxlen=self._length), f"{_now()}-0")
                hub = self._hubs[name] = _Hub(name, epoch, auto, auto, log)
            elif opening.auto not in (None, hub.opened):
                raise HubMismatch(differs(name, hub.opened))
            hub.kept = hub.kept or opening.kept
            if opening.opener:
                hub.openers.add(opening.opener)
            self._join(hub, opening.opener, opening.seats)
            return Opened(epoch=hub.epoch, auto=hub.auto)

    def _forget(self) -> None:
        """Of hubs that are closed, only some are kept to be looked at."""
        closed = [name for name, hub in self._hubs.items() if hub.closed is not None]
        for name in closed[:-_MOST_CLOSED]:
            del self._hubs[name]

    async def aopen(self, name: str, opening: Opening) -> Opened:
        """As RedisHubs."""
        return self.open(name, opening)

    def _join(self, hub: _Hub, opener: str, seats: Sequence[Seat]) -> None:
        for seat in seats:
            member = hub.members.get(seat.id)
            if seat.deaf and seat.id.rpartition(REPLICA)[0] not in hub.members:
                continue  # its group has left meanwhile
            if member is None:
                hub.seats += 1
                member = hub.members[seat.id] = _Member(seat, f"{hub.epoch}:{hub.seats}", set())
                self._places.setdefault(seat.id, {})[member.place] = _Place(hub, hub.log.last, deaf=seat.deaf)
            member.by.add(opener)

    def add(self, name: str, epoch: str, opener: str, seats: Sequence[Seat]) -> None:
        """As RedisHubs."""
        with self._lock:
            self._join(self._open_hub(name, epoch), opener, seats)

    def delete(self, name: str, epoch: str, agent_ids: Sequence[str]) -> list[str]:
        """As RedisHubs."""
        with self._lock:
            hub = self._open_hub(name, epoch)
            strangers = [agent_id for agent_id in agent_ids if agent_id not in hub.members]
            for agent_id in agent_ids:
                self._part(hub, agent_id)
            return strangers

    def _part(self, hub: _Hub, agent_id: str) -> None:
        member = hub.members.pop(agent_id, None)
        if member is not None and member.seat.eager:  # it may be a group, whose replicas go with it
            for other in [other for other in hub.members if is_own(other, agent_id)]:
                self._part(hub, other)
        places = self._places.get(agent_id, {})
        place = places.get(member.place) if member is not None else None
        if member is not None and place is not None:
            place.upto = hub.log.last
            if place.deaf or place.cursor == place.upto:
                del places[member.place]

    def set_auto(self, name: str, epoch: str, auto: bool) -> None:
        """As RedisHubs."""
        with self._lock:
            self._open_hub(name, epoch).auto = auto

    def say(self, name: str, epoch: str, broadcast: str, sender: str, texts: Sequence[str]) -> tuple[str, int]:
        """As RedisHubs."""
        with self._lock:
            hub = self._open_hub(name, epoch)
            if broadcast not in hub.sent:
                hub.sent[broadcast] = self._append(hub, sender, texts)
            return hub.sent[broadcast], len(hub.eager())

    async def asay(self, name: str, epoch: str, broadcast: str, sender: str, texts: Sequence[str]) -> tuple[str, int]:
        """As RedisHubs."""
        return self.say(name, epoch, broadcast, sender, texts)

    def _append(self, hub: _Hub, sender: str, texts: Sequence[str]) -> str:
        hub.used = time.time()
        for text in texts:
            self._time = max(_now(), self._time + 1)  # so that all messages have an order
            hub.log.last = f"{self._time}-{number_of(hub.log.last) + 1}"
            entry = Entry(hub.log.last, sender, text)
            hub.log.entries.append(entry)
            self._push(hub, Pushed(epoch=hub.epoch, entry=entry))
        return hub.log.last

    def _push(self, hub: _Hub, told: Pushed) -> None:
        for hear in list(self._listeners.get(hub.name, ())):
            hear(told)

    def leave(self, name: str, epoch: str, opener: str, agent_ids: Sequence[str]) -> None:
        """As RedisHubs."""
        with self._lock:
            hub = self._open_hub(name, epoch)
            had = opener in hub.openers
            hub.openers.discard(opener)
            if had and not hub.openers and not hub.kept:
                self._close(hub)
                return
            for agent_id in agent_ids:
                member = hub.members.get(agent_id)
                if member is not None:
                    member.by.discard(opener)
                    if not member.by:
                        self._part(hub, agent_id)

    async def aleave(self, name: str, epoch: str, opener: str, agent_ids: Sequence[str]) -> None:
        """As RedisHubs."""
        self.leave(name, epoch, opener, agent_ids)

    def close(self, name: str, epoch: str) -> None:
        """As RedisHubs."""
        with self._lock:
            self._close(self._open_hub(name, epoch))

    def _close(self, hub: _Hub) -> None:
        for agent_id in list(hub.members):
            self._part(hub, agent_id)
        hub.closed = time.time()
        self._push(hub, Pushed(epoch=hub.epoch, closed=True))

    # Looking ------------------------------------------------------------------------------------------

    async def info(self, name: str) -> HubInfo | None:
        """As RedisHubs."""
        hub = self._hubs.get(name)
        return hub.info() if hub is not None else None

    async def members(self, name: str) -> list[Member]:
        """As RedisHubs."""
        with self._lock:
            hub = self._open_hub(name)
            last = number_of(hub.log.last)
            return [Member(id=agent_id, label=member.seat.label, eager=member.seat.eager,
                           behind=0 if member.seat.deaf else
                           last - number_of(self._places[agent_id][member.place].cursor))
                    for agent_id, member in hub.members.items()]

    async def eager(self, name: str) -> list[Seat]:
        """As RedisHubs."""
        with self._lock:
            return self._open_hub(name).eager()

    async def listed(self, most: int) -> list[HubInfo]:
        """As RedisHubs."""
        with self._lock:
            found = [hub.info() for hub in self._hubs.values() if hub.closed is None]
        return sorted(found, key=lambda info: -info.used)[:most]

    async def read(self, epoch: str, after: str, most: int) -> list[Entry]:
        """As RedisHubs."""
        with self._lock:
            logs = [hub.log.entries for hub in self._hubs.values() if hub.epoch == epoch]
            return [entry for entries in logs for entry in entries if entry.number > number_of(after)][:most]

    async def filled(self, name: str, entries: Sequence[Entry]) -> list[Entry]:
        """As RedisHubs."""
        return list(entries)

    async def recent(self, epoch: str, most: int) -> list[Entry]:
        """As RedisHubs."""
        return (await self.read(epoch, "0-0", self._length))[-most:]

    def listen(self, name: str, hear: Hear) -> Callable[[], None]:
        """As RedisHubs."""
        hearing, loop = self._listeners.setdefault(name, []), asyncio.get_running_loop()

        def there(told: Pushed) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(hear, told)

        hearing.append(there)
        return lambda: hearing.remove(there)

    # What turns find and leave ------------------------------------------------------------------------

    def news(self, agent_id: str) -> list[News]:
        """What an agent has not heard yet, of each of its hubs."""
        with self._lock:
            found = []
            for seat, place in self._places.get(agent_id, {}).items():
                log, upto = place.hub.log, place.cursor if place.deaf else place.upto or place.hub.log.last
                new = [entry for entry in log.entries if number_of(place.cursor) < entry.number <= number_of(upto)]
                found.append(News(seat=seat, hub=place.hub.name, epoch=place.hub.epoch, cursor=place.cursor, upto=upto,
                                  first=new[0].id if new else "",
                                  entries=[entry for entry in new if not is_own(entry.sender, agent_id)]))
            return found

    def ended(self, agent_id: str, heard: Mapping[str, str], texts: Sequence[str]) -> list[str]:
        """A turn has ended: keep what was heard, by seat, and broadcast what was said.

        Returns:
            Names of the hubs whose eager members are to be told.
        """
        with self._lock:
            places, eager = self._places.get(agent_id, {}), []
            for seat, cursor in heard.items():
                if seat in places:
                    places[seat].cursor = cursor
                    if places[seat].upto and number_of(cursor) >= number_of(places[seat].upto):
                        del places[seat]
            for place in places.values() if texts else ():
                hub = place.hub
                if place.upto or hub.closed is not None or not hub.auto:
                    continue
                caught_up = place.cursor == hub.log.last
                last = self._append(hub, agent_id, texts)
                place.cursor = last if caught_up else place.cursor
                if hub.eager():
                    eager.append(hub.name)
            return eager


def _now() -> int:
    return time.time_ns() // 1_000


PROCESS = LocalHubs()
"""Hubs of calls that run inline outside of `with inline()`."""
