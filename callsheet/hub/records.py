"""What hubs, and those who use them, say to each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

GONE = "gone"
"""In place of an entry's id: the hub is no longer kept."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in a hub's log.

    Attributes:
        id: "<microseconds>-<number>"; numbers count the hub's messages from 1.
        sender: the agent id of who said it, or "".
        text: the message as JSON.
    """

    id: str
    sender: str
    text: str

    @property
    def number(self) -> int:
        """Which of the hub's messages it is, from 1."""
        return number_of(self.id)


REPLICA = "/replica-"
"""Between the id of an elastic group and the number of one of its replicas."""


def is_own(sender: str, agent_id: str) -> bool:
    """Whether a message is no news to an agent: it, or a replica of the group that it is, said it."""
    return sender == agent_id or sender.startswith(agent_id + REPLICA)


def number_of(entry_id: str) -> int:
    """The number in an entry's id."""
    return int(entry_id.rpartition("-")[2])


def time_of(entry_id: str) -> float:
    """The unix time in an entry's id, in seconds."""
    return int(entry_id.partition("-")[0]) / 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What an agent has not heard of one hub.

    Attributes:
        seat: the agent's, in that hub.
        hub: its name.
        epoch: which life of the hub.
        cursor: id of the last entry that it has heard.
        upto: id of the last entry there is for it, or GONE.
        first: id of the first entry that is still kept after the cursor, or "".
        entries: those of others.
    """

    seat: str
    hub: str
    epoch: str
    cursor: str
    upto: str
    first: str
    entries: list[Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """An agent that is to sit in a hub.

    Attributes:
        id: the agent's.
        label: the agent, for people.
        eager: whether it is told each message at once.
        deaf: whether it is heard in the hub and hears nothing there: a replica of an elastic group, of which the hub
            takes it only while the group sits there itself.
        spec: of an eager one, what it is built of.
        agent: the object, where calls run inline.
    """

    id: str
    label: str
    eager: bool = False
    deaf: bool = False
    spec: str = ""
    agent: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A hub that was opened or joined.

    Attributes:
        epoch: which life of the hub.
        auto: whether replies are broadcast.
    """

    epoch: str
    auto: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a hub.

    Attributes:
        id: the agent's.
        label: the agent, for people.
        eager: whether it is told each message at once.
        behind: messages that it has not heard yet, its own among them.
    """

    id: str
    label: str
    eager: bool
    behind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HubInfo:
    """A hub.

    Attributes:
        name: its name.
        epoch: which life of it.
        auto: whether replies are broadcast.
        kept: whether it outlives who opened it.
        created: unix time.
        used: unix time of the last use, about.
        messages: how many were said in it.
        last: id of the last of them, or of none, which ends in "-0".
        members: how many it has.
        openers: how many programs have it open.
        closed: unix time, or None.
    """

    name: str
    epoch: str
    auto: bool
    kept: bool
    created: float
    used: float
    messages: int
    last: str
    members: int
    openers: int
    closed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What listeners are told.

    Attributes:
        epoch: which life of the hub.
        entry: a message, or None.
        closed: whether the hub was closed.
        look: whether something may have been missed.
    """

    epoch: str = ""
    entry: Entry | None = None
    closed: bool = False
    look: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a hub is opened.

    Attributes:
        opener: who opens it; "" for nobody, who never leaves.
        auto: whether replies are broadcast; None for as it is.
        kept: whether it outlives who opened it.
        seats: agents that are to sit in it.
    """

    opener: str
    auto: bool | None
    kept: bool
    seats: Sequence[Seat] = field(default_factory=tuple)


Hear = Callable[[Pushed], None]
