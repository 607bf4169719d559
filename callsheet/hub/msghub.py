"""MsgHub: what is said by one of a group of agents, the others hear."""

import logging
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from callsheet.agents import AgentBase
from callsheet.agents.naming import checked_id
from callsheet.errors import HubMissing, UsageError
from callsheet.hub.broadcast import say_async, say_nowait, say_plain, spec_of, texts_of
from callsheet.hub.entries import checked_name, missing
from callsheet.hub.place import on_loop, refuse_on_loop, the_hubs
from callsheet.hub.records import Opened, Opening, Seat
from callsheet.memory.base import messages_of
from callsheet.messages import Msg

logger = logging.getLogger(__name__)


class MsgHub:
    """A group of agents that hear each other: `async with MsgHub([alice, bob]) as hub: ...`, in plain code `with`.

    What a participant replies, its calls once they are made through `await agent(...)`, `submit` or a pipeline, the
    others observe before their next reply: once each, in one order, on whichever worker they run. The group is kept in
    Redis under its name; another program that opens a hub of this name joins it. The hub is closed when the last
    program that opened it has left, unless it was opened with `MsgHub.open`.

    Args:
        participants: agents; each has an `observe`.
        announcement: a message, or several, that all of them hear first.
        enable_auto_broadcast: whether replies are shared; otherwise only what `broadcast` is given.
        name: by default one that no other hub has.

    Attributes:
        participants: the agents that this object brought in.

    Raises:
        UsageError: a participant is no agent or has no `observe`, the announcement is no message, or no hub may have
            the name.
    """

    def __init__(self, participants: Sequence[AgentBase], announcement: Msg | list[Msg] | None = None,
                 enable_auto_broadcast: bool = True, name: str | None = None) -> None:
        if announcement is not None:
            messages_of(announcement, "MsgHub's announcement")
        self.name = uuid4().hex if name is None else checked_name(name)
        self.participants: list[AgentBase] = []
        self.announcement = announcement
        self.enable_auto_broadcast = bool(enable_auto_broadcast)
        self._auto: bool | None = self.enable_auto_broadcast
        self._kept = False
        self._opener = ""
        self._epoch = ""
        self._take_in(_agents(participants, "MsgHub"))

    def _take_in(self, agents: Iterable[AgentBase]) -> list[AgentBase]:
        """Those that are new here."""
        known = {agent.id for agent in self.participants}
        new = []
        for agent in agents:
            if agent.id not in known:
                known.add(agent.id)
                new.append(agent)
            agent._take_seat(self.name)
        self.participants += new
        return new

    # Opening and leaving ------------------------------------------------------------------------------

    @classmethod
    def open(cls, name: str, participants: Sequence[AgentBase] = (), announcement: Msg | list[Msg] | None = None,
             enable_auto_broadcast: bool | None = None) -> Self:
        """Open a hub that outlives this program, or join it: for any process, until somebody calls `close`.

        Blocks for a trip to Redis; in async code `await MsgHub.open(...)` may be written as well.

        Args:
            name: of the hub.
            participants: agents that join it.
            announcement: said to all that are in it, without waiting for eager members.
            enable_auto_broadcast: of a new hub, True by default; a hub that is open must have been opened so, if given.

        Raises:
            HubMismatch: the hub was opened with another enable_auto_broadcast.
            UsageError: as for MsgHub.
        """
        hub = cls(participants, announcement, enable_auto_broadcast is not False, checked_name(name))
        hub._auto, hub._kept = enable_auto_broadcast, True
        hub._opened(the_hubs().open(hub.name, hub._opening()))
        if announcement is not None:
            hub.broadcast_nowait(announcement)
        return hub

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield

    def _opening(self) -> Opening:
        if self._epoch:
            raise UsageError(f"The hub {self.name!r} is open through this object already. Make another MsgHub of the "
                             "same name to join it once more.")
        self._opener = "" if self._kept else uuid4().hex
        return Opening(opener=self._opener, auto=self._auto, kept=self._kept, seats=_seats(self.participants))

    def _opened(self, opened: Opened) -> None:
        self._epoch, self.enable_auto_broadcast = opened.epoch, opened.auto

    async def __aenter__(self) -> Self:
        if not (self._kept and self._epoch):
            self._opened(await the_hubs().aopen(self.name, self._opening()))
            if self.announcement is not None:
                try:
                    await self.broadcast(self.announcement)
                except BaseException as exc:
                    await self.__aexit__(type(exc), exc, None)
                    raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None,
                        trace: TracebackType | None) -> None:
        if leaving := self._leaving():
            try:
                await the_hubs().aleave(self.name, *leaving)
            except HubMissing:
                logger.debug("hub_left hub=%s: it was closed before", self.name)

    def __enter__(self) -> Self:
        refuse_on_loop("with MsgHub(...)", "async with MsgHub(...)")
        if not (self._kept and self._epoch):
            self._opened(the_hubs().open(self.name, self._opening()))
            if self.announcement is not None:
                try:
                    self.broadcast(self.announcement)
                except BaseException as exc:
                    self.__exit__(type(exc), exc, None)
                    raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None,
                 trace: TracebackType | None) -> None:
        if leaving := self._leaving():
            try:
                the_hubs().leave(self.name, *leaving)
            except HubMissing:
                logger.debug("hub_left hub=%s: it was closed before", self.name)

    def _leaving(self) -> tuple[str, str, list[str]] | None:
        if self._kept:
            return None
        if not self._epoch:
            logger.warning("hub_left hub=%s: this object has left the hub before.", self.name)
            return None
        epoch, self._epoch = self._epoch, ""
        return epoch, self._opener, [agent.id for agent in self.participants]

    def close(self) -> None:
        """Close the hub for all who have it open; what its members have not heard yet they still hear.

        Closing it once more does nothing.
        """
        if not self._epoch:
            logger.warning("hub_closed hub=%s: this object has left the hub, or closed it, before.", self.name)
            return
        epoch, self._epoch = self._epoch, ""
        try:
            the_hubs().close(self.name, epoch)
        except HubMissing:
            logger.warning("hub_closed hub=%s: somebody else has closed it before.", self.name)

    # Who is in it -------------------------------------------------------------------------------------

    def add(self, new_participant: AgentBase | Sequence[AgentBase]) -> None:
        """Have agents join; they hear what is said from now on. One that is in it already stays as it is.

        Raises:
            UsageError: it is no agent, or has no `observe`.
            HubMissing: the hub was closed by somebody else.
        """
        agents = _agents(new_participant, "hub.add")
        if self._epoch:
            the_hubs().add(self.name, self._epoch, self._opener, _seats(agents))
        self._take_in(agents)

    def delete(self, participant: AgentBase | str | Sequence[AgentBase | str]) -> None:
        """Have agents leave: they still hear what was said before, and reach the hub no more. A stranger: a warning.

        Args:
            participant: an agent, the id of one, or several.

        Raises:
            UsageError: something else.
            HubMissing: the hub was closed by somebody else.
        """
        ids = list(dict.fromkeys(_ids(participant)))
        here = {agent.id for agent in self.participants}
        self.participants = [agent for agent in self.participants if agent.id not in ids]
        if self._epoch:
            strangers = the_hubs().delete(self.name, self._epoch, ids)
        else:
            strangers = [agent_id for agent_id in ids if agent_id not in here]
        for agent_id in strangers:
            logger.warning("hub_delete hub=%s id=%s: no agent of this id is in the hub.", self.name, agent_id)

    def set_auto_broadcast(self, enable: bool) -> None:
        """Say whether replies are shared from now on.

        Raises:
            HubMissing: the hub was closed by somebody else.
        """
        if self._epoch:
            the_hubs().set_auto(self.name, self._epoch, bool(enable))
        else:
            self._auto = bool(enable)
        self.enable_auto_broadcast = bool(enable)

    # What is said -------------------------------------------------------------------------------------

    def broadcast(self, msg: Msg | list[Msg]) -> Any:
        """Tell all participants a message, or several: `await hub.broadcast(...)`; in plain code without await.

        They hear it before their next replies; eager ones are told now, and waited for.

        Returns:
            The id of the (last) message in the hub, as events have them.

        Raises:
            UsageError: something that is no message.
            ObserveFailed: eager members raised; the others have the message.
            HubMissing: the hub is not open.
        """
        texts = texts_of(msg, "hub.broadcast")
        return (say_async if on_loop() else say_plain)(self.name, self._life(), texts)

    def broadcast_nowait(self, msg: Msg | list[Msg]) -> str:
        """As `broadcast`, in plain and in async code, without waiting for eager members; blocks for a trip to Redis."""
        return say_nowait(self.name, self._life(), texts_of(msg, "hub.broadcast"))

    def _life(self) -> str:
        if not self._epoch:
            raise missing(self.name)
        return self._epoch

    def __repr__(self) -> str:
        return f"<MsgHub {self.name} {'open' if self._epoch else 'not open'}>"


def _agents(given: Any, what: str) -> list[AgentBase]:
    agents = [given] if isinstance(given, AgentBase) else given
    if not isinstance(agents, (list, tuple)):
        raise UsageError(f"{what} takes an agent or a list of agents, not a {type(given).__name__}.")
    for number, agent in enumerate(agents):
        if not isinstance(agent, AgentBase):
            hint = " Did you give the class in place of an object?" if isinstance(agent, type) else ""
            raise UsageError(f"Participant {number + 1} for {what} is a {type(agent).__name__}: an agent is "
                             f"needed.{hint}")
        if type(agent).observe is AgentBase.observe:
            raise UsageError(f"{agent.label} cannot take part in a hub: its class has no observe method, by which it "
                             "would hear the others. Write `async def observe(self, msg)`.")
        checked_id(agent.id)
    return list(agents)


def _ids(given: Any) -> list[str]:
    several = [given] if isinstance(given, (AgentBase, str)) else given
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, (AgentBase, str)) for one in several):
        raise UsageError("hub.delete takes an agent, the id of one, or a list of these.")
    return [one if isinstance(one, str) else one.id for one in several]


def _seats(agents: Sequence[AgentBase]) -> list[Seat]:
    inline = not the_hubs().remote
    seats = []
    for agent in {agent.id: agent for agent in agents}.values():
        eager = type(agent).observes_at_once
        seats.append(Seat(id=agent.id, label=agent.label, eager=eager, agent=agent if inline else None,
                          spec=spec_of(agent) if eager and not inline else ""))
    return seats
