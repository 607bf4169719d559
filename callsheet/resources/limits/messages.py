"""What calls, gates and the limiter say to each other. An exchange is one message and one answer, both JSON data.

A gate is one event loop's queue for one endpoint. It sends what happened since the last exchange, and the limiter
answers with what may go. Numbers of calls are told as they are, not as changes, so that a lost answer does no harm.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from callsheet.errors import CallsheetError, RateLimited, UsageError
from callsheet.settings import Endpoint


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one endpoint, in the unit of its window.

    Attributes:
        requests: in any window, or None.
        tokens: in any window, or None.
        calls: under way at once, or None.
        window: seconds.
        burst: the share of a window's requests and tokens that may go at once after a quiet time.
    """

    requests: int | None = None
    tokens: int | None = None
    calls: int | None = None
    window: float = 60.0
    burst: float = 0.2

    @classmethod
    def of(cls, endpoint: Endpoint) -> "Limits":
        """The limits in an endpoint's settings."""
        return cls(in_window(endpoint.rpm, endpoint.window), in_window(endpoint.tpm, endpoint.window),
                   endpoint.max_concurrency, endpoint.window, endpoint.burst)

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return self.requests is not None or self.tokens is not None or self.calls is not None

    def to_message(self) -> dict[str, Any]:
        """As part of a message."""
        found = {"r": self.requests, "t": self.tokens, "c": self.calls}
        return {"window": self.window, "burst": self.burst,
                **{name: value for name, value in found.items() if value is not None}}


def in_window(per_minute: int | None, window: float) -> int | None:
    """What a limit a minute allows in a window of so many seconds; at least 1."""
    return None if per_minute is None else max(1, int(per_minute * window / 60))


@dataclass(slots=True, kw_only=True)
class Ask:
    """A call that wants to go.

    Attributes:
        id: of the call within its gate.
        priority: 0 (first) to 9.
        tenant: for whom, or "".
        weight: of the tenant: one of weight 2 gets twice what one of weight 1 gets.
        tokens: that it will take.
        longest: seconds that it would wait; over that it is refused at once. -1: any time.
        place: where in the queue it stood before, to stand there again; "" for a new one.
    """

    id: int
    priority: int = 5
    tenant: str = ""
    weight: float = 1.0
    tokens: int = 0
    longest: float = -1.0
    place: str = ""

    def to_message(self) -> list[Any]:
        """As part of a message."""
        return [self.id, self.priority, self.tenant, self.weight, self.tokens, self.longest, self.place]


@dataclass(slots=True, kw_only=True)
class Message:
    """From a gate.

    Attributes:
        gate: its name.
        name: the endpoint's.
        limits: as the gate's settings have them.
        held: calls under way that went through this gate.
        queued: calls that wait and that this gate has been told are queued.
        asks: new calls, the first first.
        cancels: queue entries whose calls have given up.
        settles: [bucket, requests, tokens] to add to what was counted in that bucket; negative ones are given back.
        pause: seconds that nobody may send, or 0.
        learned: [requests, tokens] in a window as the provider told its limits, 0 for unknown; None: nothing new.
        foreign: [number of a grant, requests, tokens] that the provider counted beyond ours at that grant; or None.
        resync: forget what is queued for this gate.
    """

    gate: str
    name: str
    limits: Limits
    held: int = 0
    queued: int = 0
    asks: list[Ask] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    settles: list[tuple[int, int, int]] = field(default_factory=list)
    pause: float = 0.0
    learned: tuple[int, int] | None = None
    foreign: tuple[int, int, int] | None = None
    resync: bool = False

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        data: dict[str, Any] = {"gate": self.gate, "name": self.name, "held": self.held, "queued": self.queued,
                                **self.limits.to_message()}
        more = {"asks": [ask.to_message() for ask in self.asks], "cancels": self.cancels, "settles": self.settles,
                "pause": self.pause, "learned": self.learned, "foreign": self.foreign, "resync": self.resync}
        return {**data, **{name: value for name, value in more.items() if value}}


@dataclass(frozen=True, slots=True)
class Grant:
    """A call may go.

    Attributes:
        id: of the call.
        bucket: in which it was counted.
        number: of the grant, over the whole fleet.
        requests: in the window, with it.
        tokens: likewise.
    """

    id: int
    bucket: int
    number: int
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """From the limiter.

    Attributes:
        grants: calls that may go now.
        queued: (id, entry, place) of calls that wait.
        refused: (id, limit, seconds) of calls that would wait too long, or for ever: limit "size", and what is allowed.
        turn: seconds until this gate's first waiting call may go, as far as can be told; None where none waits.
        limit: what it waits for: "rpm", "tpm", "max_concurrency" or "pause".
        paused: seconds that nobody may send.
        waiting: calls that wait in the whole fleet.
        resync: the queue was lost: ask again for every call.
    """

    grants: list[Grant]
    queued: list[tuple[int, str, str]]
    refused: list[tuple[int, str, float]]
    turn: float | None
    limit: str
    paused: float
    waiting: int
    resync: bool

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "Answer":
        """From JSON data; Lua writes an empty list as an empty object."""
        return cls(
            grants=[Grant(*map(int, one)) for one in data["grants"] or ()],
            queued=[(int(one[0]), one[1], one[2]) for one in data["queued"] or ()],
            refused=[(int(one[0]), one[1], float(one[2])) for one in data["refused"] or ()],
            turn=data.get("turn"), limit=data.get("limit", ""), paused=data["paused"], waiting=int(data["waiting"]),
            resync=bool(data.get("resync")))


class Store(Protocol):
    """Where the limits are kept."""

    async def exchange(self, message: Message) -> Answer:
        """One exchange."""

    def attach(self, gate: str, wake: Callable[[bytes], None], paused: Callable[[str, float], None]) -> None:
        """Call `wake` when the gate's turn may have come, and `paused` with name and seconds of a paused endpoint."""


class Ticket:
    """A call in a gate's hands. Futures are of the loop on which it was made.

    Args:
        ask: what is asked for.
        longest: seconds that the call has, or None.
    """

    __slots__ = ("ask", "asked", "dead", "entry", "first", "grant", "loop", "permit", "place", "until")

    def __init__(self, ask: Ask, longest: float | None) -> None:
        self.ask = ask
        self.loop = asyncio.get_running_loop()
        self.first: asyncio.Future[bool] = self.loop.create_future()  # the first word: whether it may go at once
        self.permit: asyncio.Future[Grant] = self.loop.create_future()
        self.grant: Grant | None = None
        self.asked = 0.0  # when the exchange began that brought the grant
        self.entry = ""
        self.place = ask.place
        self.dead = False
        self.until = None if longest is None else time.monotonic() + longest

    # On the loop on which it was made

    def go(self, grant: Grant) -> None:
        """It may go."""
        if not self.first.done():
            self.first.set_result(True)
        if not self.permit.done():
            self.permit.set_result(grant)

    def wait(self) -> None:
        """It is queued."""
        if not self.first.done():
            self.first.set_result(False)

    def fail(self, error: CallsheetError) -> None:
        """It is refused."""
        future: asyncio.Future[Any] = self.permit if self.first.done() else self.first
        if not future.done():
            future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a granted call used in the end.

    Attributes:
        requests: 0 where it was never sent, else 1.
        tokens: that it used.
    """

    requests: int
    tokens: int


def refusal(name: str, limit: str, seconds: float, tokens: int) -> CallsheetError:
    """The error of a call that is not let in.

    Args:
        name: the endpoint's.
        limit: what it would wait for, or "size".
        seconds: that it would wait, or for "size" the tokens that are allowed.
        tokens: that it was reckoned to take.
    """
    if limit == "size":
        return UsageError(f"A request to endpoint {name!r} is reckoned to take {tokens} tokens, and all of its limit "
                          f"(tpm) is {seconds:g} in a window: it could never be sent. Send less, lower max_tokens, or "
                          "raise tpm if the provider allows more.")
    what = "The endpoint asked to be left alone" if limit == "pause" else f"The limit is {limit or 'used up'}"
    when = f"would be its turn in {seconds:.1f} s" if seconds > 0 else "had no turn within its time"
    return RateLimited(f"A request to endpoint {name!r} {when}, after its deadline. {what}. Give the call more time "
                       "(timeout), call less often, or ask the provider for a higher limit.", name, limit,
                       round(seconds, 3) if seconds > 0 else None)
