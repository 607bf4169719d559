"""What an elastic group remembers beside the work that waits, as plain records, and the agent that does its work."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import CallsheetError
from callsheet.hub.broadcast import in_words
from callsheet.messages import Msg

NOTICE = "elastic"
"""Key in the metadata of messages between a group, its shifts and its user."""

_MOST_FAILURES = 20
_NEW = 0.2  # weight of the last piece in the average of seconds


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work, kept as the metadata of a message.

    Attributes:
        at: unix time at which it came.
        taker: number of the replica that it is for, or None for any.
        msg: the message as JSON data.
    """

    at: float
    taker: int | None
    msg: dict[str, Any]

    @classmethod
    def from_data(cls, data: Any) -> "Piece":
        """From JSON data."""
        return cls(**data)


@dataclass(kw_only=True)
class Ledger:
    """Who works, and on what.

    Attributes:
        size: replicas that take work: numbers 1 to `size`.
        life: begins the ids of the jobs in which work is handed out.
        handed: pieces that were handed out.
        busy: number of the piece by the replica's number, as text.
        seated: replicas that sit in the group's hubs.
        hubs: names of these.
        seconds: that a piece takes, lately.
        waited: seconds that the last piece had waited.
        done: pieces that were replied to.
        failed: pieces whose reply raised.
        failures: the last of these, in words.
        again: numbers of these pieces, which may yet be done.
        bound: what fixed the size.
        policy: what the scaling policy remembers.
        look: number of the last look ahead.
        looks: whether it is still to come.
    """

    size: int
    life: str = ""
    handed: int = 0
    busy: dict[str, int] = field(default_factory=dict)
    seated: list[int] = field(default_factory=list)
    hubs: list[str] = field(default_factory=list)
    seconds: float | None = None
    waited: float | None = None
    done: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    bound: str = "minimum"
    policy: list[float | None] = field(default_factory=list)
    look: int = 0
    looks: bool = False

    def ended(self, number: int, seconds: float, error: str) -> None:
        """A piece of work has ended; told twice, it counts once."""
        taker = next((taker for taker, busy in self.busy.items() if busy == number), None)
        if taker is None and not (number in self.again and not error):
            return
        if taker is None:  # it was given back by a worker that stopped, and has run since
            self.again.remove(number)
            self.failed, self.done = self.failed - 1, self.done + 1
            return
        del self.busy[taker]
        if error:
            self.failed += 1
            self.again = [*self.again, number][-_MOST_FAILURES:]
            self.failures = [*self.failures, f"replica {taker}: {error}"][-_MOST_FAILURES:]
            return
        self.done += 1
        self.seconds = seconds if self.seconds is None else (1 - _NEW) * self.seconds + _NEW * seconds

    def looked(self, look: int) -> None:
        """A look ahead has come."""
        if look == self.look:
            self.looks = False

    def look_ahead(self) -> int:
        """The number of the next look ahead."""
        self.look, self.looks = self.look + 1, True
        return self.look

    def hand_out(self, pieces: Sequence[Piece]) -> list[tuple[int, int, int]]:
        """Give work to replicas that are free.

        Returns:
            For each that is handed out: its position, its number, and the replica's.
        """
        free = [taker for taker in range(1, self.size + 1) if str(taker) not in self.busy]
        # A piece for one that is to leave is finished first.
        leaving = [taker for taker in self.seated if taker > self.size and str(taker) not in self.busy]
        handed = []
        for position, piece in enumerate(pieces):
            if not (free or leaving):
                break
            taker = piece.taker if piece.taker is not None else (free[0] if free else None)
            for group in (free, leaving):
                if taker in group and (piece.taker is not None or group is free):
                    group.remove(taker)
                    self.handed += 1
                    self.busy[str(taker)] = self.handed
                    handed.append((position, self.handed, taker))
                    break
        return handed

    def to_seat(self, wanted: Collection[int | None]) -> tuple[list[int], list[int]]:
        """Replicas that have to join the hubs, and those that can leave."""
        joining = [taker for taker in range(1, self.size + 1) if taker not in self.seated]
        leaving = [taker for taker in self.seated
                   if taker > self.size and str(taker) not in self.busy and taker not in wanted]
        return joining, leaving


def notice(name: str, told: dict[str, Any]) -> Msg:
    """A message that is not for people."""
    return Msg(name, "", "user", metadata={NOTICE: told})


class Shift(AgentBase):
    """Has a replica reply to one message, and tells its group.

    A second run of it, after its worker died, finds the replica's reply under the same id and runs nothing twice.
    """

    def __init__(self, group: Any, taker: int, number: int, ident: str) -> None:
        self.group, self.taker, self.number, self.ident = group, taker, number, ident
        self.name = f"{group.name} {number}"

    async def reply(self, msg: Msg) -> Any:
        """The replica's reply."""
        began = time.time()
        replica = self.group.replica(self.taker)
        replica._once = True
        options = CallOptions(job_id=f"{self.ident}-reply", retries=self.group.retries)
        try:
            reply = await dispatcher().call(replica, (msg,), {}, options)
        except CallsheetError as exc:
            await self._tell(time.time() - began, in_words(exc))
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._tell(time.time() - began, "cancelled"))
            raise
        await self._tell(time.time() - began, "")
        return reply

    async def _tell(self, seconds: float, error: str) -> None:
        told = {"ended": self.number, "seconds": seconds, "error": error}
        await dispatcher().call(self.group, (notice(self.name, told),), {}, CallOptions())
