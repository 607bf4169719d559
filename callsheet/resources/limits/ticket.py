"""One call in a gate's hands."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from callsheet.errors import CallsheetError, RateLimited, UsageError
from callsheet.resources.limits.messages import Ask, Grant


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
