"""Circuit breaking: an endpoint that fails is left alone for a while, then probed by one request of the whole fleet."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Hashable
from uuid import uuid4

import httpx

from callsheet.errors import CircuitOpen
from callsheet.resources.boards import LEASE, SLOTS, Answer, Clock, FleetBoard, LocalBoard, Outcome, Recent
from callsheet.resources.loops import on_lasting_loop
from callsheet.resources.record import Layer, record_of, watch
from callsheet.resources.refusals import PARAMETER
from callsheet.resources.subscriptions import subscriptions
from callsheet.resources.timings import count
from callsheet.resources.transport import UntrustedCertificate
from callsheet.settings import Endpoint, Settings
from callsheet.settings.endpoints import BreakerPolicy

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds at most between two looks whether another's probe has ended, where no notice of that comes."""

_NOT_ITS_FAULT = (httpx.UnsupportedProtocol, httpx.DecodingError, httpx.PoolTimeout, UntrustedCertificate)


class Breaker:
    """One endpoint's breaker in this process, on any of its loops. While it is closed it makes no Redis trip.

    Failures are reported to the board, with the successes since the last report; that is also how a process hears
    what the board thinks, unless a notice told it before. While any process reports failures, all report successes
    from time to time, so that the share is the fleet's.

    Args:
        name: the endpoint's.
        policy: of its settings.
        board: where the state is.
        clock: seconds that only grow.

    Attributes:
        listens: whether this process gets the board's notices.
    """

    def __init__(self, name: str, policy: BreakerPolicy, board: LocalBoard, clock: Clock = time.monotonic) -> None:
        self.name = name
        self._policy = policy
        self._board = board
        self._clock = clock
        self._until: float | None = None  # not None: refuse, and after that time ask
        self._asking = False
        self._failures = Recent(policy.window, clock)
        self._successes = Recent(policy.window, clock)
        self._suspect_until = 0.0
        self._report_at = 0.0
        self._reporting: asyncio.Task[None] | None = None
        self.listens = False  # to the board's notices

    @property
    def closed(self) -> bool:
        """Whether requests go through, as far as this process knows."""
        return self._until is None

    async def admit(self) -> str | None:
        """Let a request through, or not.

        Returns:
            None; or a token, where this request is the probe: `settle` must be called with it.

        Raises:
            CircuitOpen: the endpoint is left alone.
        """
        if self._until is None:
            return None
        left = self._until - self._clock()
        if left > 0 or self._asking:
            raise self._refusal(left)
        token = uuid4().hex
        self._asking = True
        try:
            answer = await self._board.ask(token)
        finally:
            self._asking = False
        self._take(answer)
        if answer.state == "probe":
            log.warning("breaker_probe endpoint=%s", self.name)
            return token
        if self._until is None:
            return None
        raise self._refusal(answer.seconds)

    def ended(self, failed: bool) -> None:
        """A request that was let through has ended; on a running loop."""
        now = self._clock()
        if not failed:
            self._successes.add()
            if now >= self._suspect_until or now < self._report_at:
                return
        else:
            self._failures.add()
        if self._until is None:
            self._report_soon()

    async def settle(self, token: str, outcome: Outcome) -> None:
        """The probe has ended."""
        self._take(await self._board.settle(token, outcome))

    async def keep(self, token: str) -> None:
        """Keep others from probing while the probe is under way; ends when it is cancelled."""
        while True:
            await asyncio.sleep(LEASE / 3)
            await self._board.renew(token)

    def heard(self, notice: bytes) -> None:
        """A notice of the board's came; empty: they begin to come, and what was told before has to be asked for."""
        if not notice:
            self._report_soon()
            return
        kind, _, milliseconds = notice.decode().partition(" ")
        if kind == "open":
            self._take(Answer("open", float(milliseconds) / 1000))
        elif kind == "closed":
            self._take(Answer("closed"))
        elif kind == "suspect":
            self._suspect_until = self._clock() + self._policy.window
            self._report_at = 0.0

    def _report_soon(self) -> None:
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.get_running_loop().create_task(self._report(), name="callsheet-breaker")

    async def _report(self) -> None:
        self._report_at = self._clock() + self._policy.window / SLOTS
        while True:
            failures, successes = self._failures.take(), self._successes.take()
            if failures:
                self._suspect_until = self._clock() + self._policy.window
            try:
                answer = await self._board.report(failures, successes)
            except asyncio.CancelledError:  # its loop ends; the next report tells
                self._failures.add(failures)
                self._successes.add(successes)
                raise
            self._take(answer)
            if self._until is not None or not self._failures.total:
                return

    def _take(self, answer: Answer) -> None:
        if answer.state == "closed":
            if self._until is not None:
                log.warning("breaker_closed endpoint=%s", self.name)
                count("breaker_closed", self.name)
            self._until = None
            return
        if self._until is None:
            log.warning("breaker_open endpoint=%s seconds=%.1f", self.name, answer.seconds)
            count("breaker_opened", self.name)
        wait = answer.seconds if answer.state == "open" else min(answer.seconds, LOOK)
        self._until = self._clock() + wait

    def _refusal(self, seconds: float) -> CircuitOpen:
        seconds = round(max(0.0, seconds), 3)
        count("breaker_refused", self.name)
        when = f"It is probed in {seconds:.1f} s." if seconds else "It is being probed."
        return CircuitOpen(f"The endpoint {self.name!r} is left alone: too many requests to it failed. {when} Try "
                           "again then, give the endpoint a `fallback`, or look at what is wrong with it.",
                           self.name, seconds)


Chooser = Callable[[httpx.Request], Breaker]


class Breaking(Layer):
    """Lets requests through to an endpoint that works.

    Failures are connections that cannot be opened or break, silence, and answers of 500 and above, but for those that
    say which parameter the server does not take. Other answers, 429 among them, are successes.

    Args:
        inner: the next transport.
        choose: gives the breaker, for the request that is sent now.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, choose: Chooser) -> None:
        super().__init__(inner)
        self._choose = choose

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, if the breaker lets it through."""
        breaker = self._choose(request)
        if not breaker.closed:
            token = await breaker.admit()
            if token is not None:
                return await self._probe(request, breaker, token)
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.TransportError as exc:
            if is_failure(exc):
                breaker.ended(True)
            raise
        if response.status_code >= 500:
            breaker.ended(_failed(response))
            return response
        return watch(response, lambda error: breaker.ended(error is not None and is_failure(error)))

    async def _probe(self, request: httpx.Request, breaker: Breaker, token: str) -> httpx.Response:
        outcome: Outcome = "unknown"  # of a probe that was cancelled, or not sent after all
        keeping = asyncio.get_running_loop().create_task(breaker.keep(token), name="callsheet-probe")
        try:
            response = await self._inner.handle_async_request(request)
            outcome = "failed" if _failed(response) else "ok"
            return response
        except httpx.TransportError as exc:
            outcome = "failed" if is_failure(exc) else "unknown"
            raise
        finally:
            keeping.cancel()
            await breaker.settle(token, outcome)


def _failed(response: httpx.Response) -> bool:
    return response.status_code >= 500 and not response.extensions.get(PARAMETER)


def is_failure(exc: BaseException) -> bool:
    """Whether an error says that the endpoint does not work."""
    return isinstance(exc, httpx.TransportError) and not isinstance(exc, _NOT_ITS_FAULT)


_kept: dict[Hashable, Breaker] = {}
_MOST_KEPT = 256

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept.clear)  # the parent's loops, and what runs on them, stay there


def breakers(name: str, endpoint: Endpoint, settings: Settings) -> Chooser:
    """Gives an endpoint's breaker: the fleet's to calls of agents on workers, this process's own to any other.

    Args:
        name: the endpoint's.
        endpoint: its settings.
        settings: where Redis is.
    """
    policy = endpoint.breaker
    key = (name, endpoint.base_url, policy)
    alone = _breaker(key, name, policy, lambda: LocalBoard(policy))
    if settings.inline:
        return lambda request: alone
    board = FleetBoard(name, policy, settings)
    fleet = _breaker((*key, settings.redis_url, settings.key_prefix), name, policy, lambda: board)

    async def listen() -> None:
        subscriptions(settings).add(board.channel, fleet.heard)

    def choose(request: httpx.Request) -> Breaker:
        record = record_of(request)
        if record is None or record.context.call is None or record.context.local:
            return alone
        if not fleet.listens:
            fleet.listens = True
            on_lasting_loop(listen)
        return fleet

    return choose


def left_alone() -> list[str]:
    """The endpoints that this process does not call now, by name."""
    return sorted(name for name, alone in breaker_states().items() if alone)


def breaker_states() -> dict[str, bool]:
    """By endpoint whether this process leaves it alone now; of those that it has called."""
    found: dict[str, bool] = {}
    for breaker in tuple(_kept.values()):
        found[breaker.name] = found.get(breaker.name, False) or not breaker.closed
    return found


def _breaker(key: Hashable, name: str, policy: BreakerPolicy, board: Callable[[], LocalBoard]) -> Breaker:
    if key not in _kept:
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[key] = Breaker(name, policy, board())
    return _kept[key]
