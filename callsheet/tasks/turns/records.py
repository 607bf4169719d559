"""What a call and the place where states are kept say to each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from callsheet.agents import AgentBase
from callsheet.hub.records import News

FORMAT = 1
"""Version of the form in which state is written; a state of a higher one is refused."""

COLD = -1
"""Version of a state of which nothing is known here yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A call that wants its agent's turn."""

    agent_id: str  # whose state it is
    call_id: str  # id of the call's task
    cls: str  # the agent's class as "module:Name"; "" for who writes to a state of any class
    label: str = ""  # the agent, for people
    # unix time in microseconds at which it was sent: its place in the line; also tells a second delivery from another
    # call of the same id
    sent: int = 0
    before: str = ""  # the call of the agent that its sender sent before it, "<microseconds> <id>", or ""
    jobs: tuple[str, ...] = ()  # ids of the job that it belongs to, and of those in whose course that was made
    once: bool = False  # whether any other call of the same id is this one, whenever it was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the line."""

    message: str = ""  # published when the turn comes; "" where someone asks again and again instead
    expires: int | None = None  # unix time in ms after which the call is not wanted any more, or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The turn is the call's."""

    token: int  # the number of the turn, higher than any before
    version: int  # number of the turn that wrote the state last; 0 where there is none yet
    anew: bool = False  # whether what is known here must be forgotten: the state was deleted, or replaced, meanwhile
    # registered attributes as JSON by path; all of them, or none if the version known is this one
    fields: dict[str, str] = field(default_factory=dict)
    # changes of memories since the version known: path and JSON
    entries: list[tuple[str, str]] = field(default_factory=list)
    # what was said in the agent's hubs since its last turn; of each hub that it sits in
    news: list[News] = field(default_factory=list)


class Ended(NamedTuple):
    """A turn has ended."""

    version: int  # of the state
    eager: Sequence[str] = ()  # names of the hubs whose eager members are to be told what was said


@dataclass(frozen=True, slots=True)
class Replied:
    """The call has been run before."""

    text: str  # what came of it, as JSON
    eager: Sequence[str] = ()  # hubs whose eager members may not have been told


@dataclass(frozen=True, slots=True)
class Busy:
    """It is another's turn."""

    # seconds after which somebody should look, if nobody has the turn and one that came before is still on its way;
    # or None
    pause: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a turn changed."""

    fields: dict[str, str] = field(default_factory=dict)  # registered attributes as JSON by path
    entries: list[tuple[str, str]] = field(default_factory=list)  # changes of memories, in order: path and JSON
    base: int | None = None  # which of the entries a reader that knows nothing begins with from now on, or None
    trim: bool = False  # whether what was before that is dropped
    replace: bool = False  # whether all that was there before is dropped
    # by seat in a hub, the id of the last entry that the agent has heard
    heard: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)  # messages that the hubs which it sits in are to hear, as JSON


NOTHING = Changes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A state that is kept.

    Attributes:
        id: the agent's.
        cls: the agent's class as "module:Name".
        turns: how many wrote to it.
        created: unix time.
        updated: unix time.
    """

    id: str
    cls: str
    turns: int
    created: float
    updated: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Described):
    """A state as it is kept."""

    version: int  # number of the turn that wrote it last
    fields: dict[str, str]  # registered attributes as JSON by path
    entries: list[tuple[str, str]]  # all changes of memories: path and JSON


def class_of(agent: AgentBase) -> str:
    """An agent's class as its state names it."""
    return f"{type(agent).__module__}:{type(agent).__qualname__}"


def other_class(claim: Claim, found: str) -> str:
    """Why a state is refused that is of another class."""
    return (f"{claim.label} with the id {claim.agent_id!r} is a {claim.cls}, but the state under this id is of a "
            f"{found}. Give the agent another id, or delete the state: callsheet session delete {claim.agent_id}")


def held_up(claim: Claim, job: str) -> str:
    """Why a call is refused for which the reply waits whose turn it is."""
    return (f"{claim.label} with the id {claim.agent_id!r} is called in the course of job {job}, for which its own "
            "reply waits: neither would ever end. Do not wait there, or have another agent answer.")


def lost(claim: Claim) -> str:
    """What TurnLost says."""
    return (f"{claim.label} with the id {claim.agent_id!r} lost its turn while it replied (call {claim.call_id}): its "
            "process did not run for longer than CALLSHEET_TURN_LEASE. What it changed is not kept.")


def within_itself(label: str, agent_id: str) -> str:
    """Why an agent's reply may not wait for a reply of the same agent."""
    return (f"{label} with the id {agent_id!r} is called while its own reply waits for the answer, itself or through "
            "others: an agent with state replies to one call at a time, so neither would ever end. Submit the call and "
            "do not wait for it, or call an agent with another id.")
