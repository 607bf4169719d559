"""What was last said in the hubs of a process's warm agents, pushed as it was said.

So a message crosses from Redis to a process once, and not once for each member that has its turn there. Nothing depends
on it: the script that takes a turn reads whatever the process has not got.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from callsheet.hub.records import Entry, Pushed, number_of
from callsheet.hub.redis import channel_of, pushed
from callsheet.resources.subscriptions import subscriptions
from callsheet.settings import Settings

logger = logging.getLogger(__name__)
_MOST = 1000  # messages kept of a hub
_MOST_BYTES = 16 * 1024 * 1024  # that all of them take, as JSON


@dataclass
class Run:
    """Messages of one life of a hub without gaps; entries are only ever added."""

    entries: list[Entry] = field(default_factory=list)
    size: int = 0

    @property
    def first(self) -> int:
        """The number of the first."""
        return self.entries[0].number

    @property
    def last(self) -> str:
        """The id of the last."""
        return self.entries[-1].id

    def between(self, after: str, upto: str) -> list[Entry]:
        """Those after one id, up to another."""
        first = self.first
        return self.entries[max(0, number_of(after) + 1 - first):max(0, number_of(upto) + 1 - first)]


class Backlog:
    """Of one process; on its loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._on = False
        self._hubs: dict[str, tuple[str, Callable[[bytes], None]]] = {}  # epoch -> channel and listener
        self._seats: dict[str, frozenset[str]] = {}  # agent -> epochs
        self._runs: dict[str, Run] = {}
        self._size = 0
        self._idle: set[str] = set()

    def start(self) -> None:
        """Follow hubs from now on."""
        self._on = True

    def stop(self) -> None:
        """Follow none, and forget what was said."""
        self._on = False
        for epoch in list(self._hubs):
            self._leave(epoch)
        self._seats.clear()

    @property
    def follows(self) -> int:
        """How many hubs are followed."""
        return len(self._hubs)

    def seated(self, agent_id: str, hubs: Iterable[tuple[str, str]]) -> None:
        """An agent is kept warm that sits in these hubs: names and epochs."""
        if not self._on:
            return
        names = {epoch: name for name, epoch in hubs}
        if not names:
            self._seats.pop(agent_id, None)
            return
        self._seats[agent_id] = frozenset(names)
        for epoch, name in names.items():
            if epoch not in self._hubs:
                self._follow(name, epoch)

    def _follow(self, name: str, epoch: str) -> None:
        channel = channel_of(name, self._settings)

        def listener(data: bytes) -> None:
            told = pushed(data) if data else Pushed(look=True)
            if told.look:  # the subscription is new: something may have been missed
                self._forget(epoch)
            elif told.epoch == epoch and told.entry is not None:
                self._take(epoch, told.entry)
            elif told.closed or told.epoch != epoch:
                self._leave(epoch)

        self._hubs[epoch] = channel, listener
        subscriptions(self._settings).add(channel, listener, quiet=True)

    def _leave(self, epoch: str) -> None:
        known = self._hubs.pop(epoch, None)
        self._forget(epoch)
        if known is not None:
            subscriptions(self._settings).remove(*known)

    def _forget(self, epoch: str) -> None:
        run = self._runs.pop(epoch, None)
        self._size -= run.size if run else 0

    def _take(self, epoch: str, entry: Entry) -> None:
        run = self._runs.get(epoch)
        if run is not None and (entry.number != run.entries[-1].number + 1 or len(run.entries) >= _MOST):
            kept = run.entries[_MOST // 2:] if entry.number == run.entries[-1].number + 1 else []
            self._forget(epoch)  # who reads the old run goes on with it
            run = self._runs[epoch] = Run(kept, sum(len(one.text) for one in kept))
            self._size += run.size
        if run is None:
            run = self._runs[epoch] = Run()
        run.entries.append(entry)
        run.size += len(entry.text)
        self._size += len(entry.text)
        while self._size > _MOST_BYTES and self._runs:
            self._forget(next(iter(self._runs)))

    def known(self, agent_id: str) -> dict[str, Run]:
        """What is there of the agent's hubs, by epoch. Later messages are added to it."""
        return {epoch: self._runs[epoch] for epoch in self._seats.get(agent_id, ()) if epoch in self._runs}

    def sweep(self, warm: Collection[str]) -> None:
        """Follow the hubs no longer in which no agent sits that is warm now, or was at the sweep before."""
        gone = {agent_id for agent_id in self._seats if agent_id not in warm}
        for agent_id in gone & self._idle:
            del self._seats[agent_id]
        self._idle = gone
        wanted = frozenset().union(*self._seats.values())
        for epoch in [epoch for epoch in self._hubs if epoch not in wanted]:
            self._leave(epoch)
